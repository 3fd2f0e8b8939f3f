//! A person who signs in at a real OpenID provider, and the tokens that the person's client receives.

use serde_json::{Value, json};

use crate::eventually;
use crate::process::{Folder, Process};

/// The provider after the person signed in. It publishes its keys until the value is dropped.
#[derive(Debug)]
pub struct SignIn {
    told: Value,
    _process: Process,
    _folder: Folder,
}

impl SignIn {
    /// Starts the provider, signs the person in, and waits for the tokens.
    pub async fn new() -> Self {
        let folder = Folder::new().expect("a folder");
        let mut process = Process::start("node", &["wasm-test/src/sign_in.mjs"], &folder).expect("node starts");
        let told = eventually("a person has signed in", async || {
            assert!(!process.has_ended(), "{}", folder.read("stderr"));
            // Other lines are warnings of the provider.
            folder.read("stdout").lines().find_map(|line| serde_json::from_str(line).ok())
        })
        .await;
        Self { told, _process: process, _folder: folder }
    }

    /// The provider's record in a policy, with this audience.
    pub fn record(&self, audience: &str) -> Value {
        json!({"issuer": self.told["issuer"], "jwks_uri": self.told["jwks_uri"], "audience": audience})
    }

    /// The `iss` of the tokens.
    pub fn issuer(&self) -> &str {
        self.text("issuer")
    }

    /// The id of the client. It is the audience of the ID token.
    pub fn client_id(&self) -> &str {
        self.text("client_id")
    }

    /// The `sub` of the person.
    pub fn subject(&self) -> &str {
        self.text("subject")
    }

    /// The ID token, which tells the client who the person is (OpenID Connect Core §2).
    pub fn id_token(&self) -> &str {
        self.text("id_token")
    }

    /// The access token, for the audience `apexmcp`.
    pub fn access_token(&self) -> &str {
        self.text("access_token")
    }

    fn text(&self, name: &str) -> &str {
        self.told[name].as_str().expect("a text")
    }
}
