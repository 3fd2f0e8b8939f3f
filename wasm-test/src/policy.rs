//! API keys and other parts of a policy.

use serde_json::{Value, json};

/// The API key that belongs to an id of the form `key_…`. It is derived from the id.
pub fn api_key(id: &str) -> String {
    format!("apx_live_sk_{:0>32}", id.replace('_', ""))
}

/// The policy record of [`api_key`].
pub fn api_key_record(id: &str) -> Value {
    json!({"id": id, "sha256": sha256(&api_key(id))})
}

/// The hash that a policy stores instead of a secret.
pub fn sha256(secret: &str) -> String {
    hex::encode(hmac_sha256::Hash::hash(secret.as_bytes()))
}

/// Returns `object` with these changes. A null removes a member.
pub fn merged(mut object: Value, changes: &Value) -> Value {
    let members = object.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    object
}
