//! A real OpenID provider: `oidc-provider`, in the program of `demo/idp`.

use serde_json::{Value, json};

use crate::eventually;
use crate::http::{Client, Request};
use crate::process::{Folder, Process, argument, free_port};

/// The provider. Its keys survive [`Provider::kill`].
#[derive(Debug)]
pub struct Provider {
    folder: Folder,
    port: String,
    scopes: &'static str,
    /// The JSON object that the program prints when it is ready.
    about: Value,
    process: Option<Process>,
}

impl Provider {
    /// Starts a provider that knows the scopes of the demo.
    pub async fn start() -> Self {
        Self::with_scopes("mcp:call mcp:call:notes mcp:call:clock").await
    }

    /// Starts a provider whose client may request only these scopes, separated by spaces.
    pub async fn with_scopes(scopes: &'static str) -> Self {
        let folder = Folder::new().expect("a folder");
        let mut provider = Self { folder, port: free_port().to_string(), scopes, about: Value::Null, process: None };
        provider.revive().await;
        provider
    }

    /// Kills the provider.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the provider again, at the same address.
    pub async fn revive(&mut self) {
        let state = self.folder.file("state.json");
        let arguments = ["demo/idp/idp.mjs", "--port", &self.port, "--state", argument(&state), "--scopes", self.scopes];
        self.folder.write("stdout", "").expect("an empty file");
        let mut process = Process::start("node", &arguments, &self.folder).expect("node starts");
        self.about = eventually("the provider is ready", async || {
            assert!(!process.has_ended(), "the provider ended:\n{}", self.folder.read("stderr"));
            serde_json::from_str(&self.folder.read("stdout")).ok()
        })
        .await;
        self.process = Some(process);
    }

    /// Its record in a policy.
    pub fn record(&self) -> Value {
        json!({"issuer": self.about["issuer"], "jwks_uri": self.about["jwks_uri"], "audience": "apexmcp"})
    }

    /// The data that a client of this provider needs: the member `issuer`, the client's id and its secret.
    pub fn client(&self) -> Value {
        json!({
            "issuer": self.about["issuer"],
            "client_id": self.about["client_id"],
            "client_secret": self.about["client_secret"],
        })
    }

    /// Requests a token with the client credentials grant. `parameters` are added to the form.
    pub async fn token(&self, parameters: &str) -> String {
        let text = |name: &str| self.about[name].as_str().unwrap_or_default();
        let (client, path) = self.at("token_endpoint", "");
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}&{parameters}",
            text("client_id"),
            text("client_secret")
        );
        let request = Request::post(&path).header("content-type", "application/x-www-form-urlencoded").body(form);
        let reply = client.send(&request).await;
        let token = reply.json()["access_token"].as_str().map(str::to_owned);
        token.unwrap_or_else(|| panic!("no token: {reply:?}"))
    }

    /// Signs with a new key from now on. The old keys stay published.
    pub async fn rotate(&self) {
        let (client, path) = self.at("control", "/rotate");
        assert_eq!(client.send(&Request::post(&path)).await.status, 200);
    }

    /// The number of requests for its key set since it started.
    pub async fn jwks_requests(&self) -> u64 {
        let (client, path) = self.at("control", "/stats");
        client.send(&Request::get(&path)).await.json()["jwks_requests"].as_u64().expect("a number")
    }

    fn at(&self, address: &str, suffix: &str) -> (Client, String) {
        let url = self.about[address].as_str().and_then(|url| url.strip_prefix("http://")).expect("an http URL");
        let (authority, path) = url.split_once('/').expect("a path");
        (Client::new(authority), format!("/{path}{suffix}"))
    }
}
