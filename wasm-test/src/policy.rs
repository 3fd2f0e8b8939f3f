//! Records of policies.

use serde_json::{Value, json};

/// The API key that belongs to an id of the form `key_…`.
pub fn api_key(id: &str) -> String {
    format!("apx_live_sk_{:0>32}", id.replace('_', ""))
}

/// The record of that key.
pub fn api_key_record(id: &str) -> Value {
    json!({"id": id, "sha256": sha256(&api_key(id))})
}

/// The hash under which a policy keeps a secret.
pub fn sha256(secret: &str) -> String {
    hex::encode(hmac_sha256::Hash::hash(secret.as_bytes()))
}

/// `object` but for `changes`, of which null takes a member away.
///
/// # Panics
/// Where one of them is no object.
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
