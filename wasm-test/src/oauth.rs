//! The complete gateway of `envoy/envoy.yaml` with its two demo connectors, and OAuth clients that use it.

use std::path::PathBuf;

use rsa::RsaPrivateKey;
use rsa::pkcs8::EncodePrivateKey;
use rsa::rand_core::OsRng;
use rsa::traits::PublicKeyParts;
use serde_json::{Value, json};

use crate::connector::Connector;
use crate::envoy::{Envoy, complete_gateway};
use crate::eventually;
use crate::http::Request;
use crate::module::Module;
use crate::policy::{api_key, api_key_record, merged, sha256};
use crate::process::{Folder, Process, argument, free_port};
use crate::token::base64url;

pub const ORG: &str = "acme-corp";
/// The id of the client that has a secret.
pub const WITH_SECRET: &str = "apx_client_5ecre700";
/// The secret of [`WITH_SECRET`].
pub const SECRET: &str = "apx_secret_0123456789abcdefghijklmn";
/// The id of the client that has a key pair.
pub const WITH_KEY: &str = "apx_client_0000key0";
/// The client authentication methods that the gateway supports.
pub const METHODS: [&str; 3] = ["client_secret_basic", "client_secret_post", "private_key_jwt"];

const FILTER: &str = "filter.json";
const CONNECTORS: [&str; 2] = ["notes", "clock"];

/// An RSA key of 2048 bits that can be exported.
#[derive(Debug)]
pub struct PrivateKey(RsaPrivateKey);

impl PrivateKey {
    /// Creates a new key.
    pub fn new() -> Self {
        Self(RsaPrivateKey::new(&mut OsRng, 2048).expect("a key"))
    }

    /// The private key as PKCS#8 PEM.
    pub fn pem(&self) -> String {
        self.0.to_pkcs8_pem(Default::default()).expect("PEM").to_string()
    }

    /// The public key as a member of a JWK set.
    pub fn jwk(&self) -> Value {
        let number = |number: &rsa::BigUint| base64url(number.to_bytes_be());
        json!({"kty": "RSA", "use": "sig", "alg": "RS256", "n": number(self.0.n()), "e": number(self.0.e())})
    }

    /// The record of this key among the policy's signing keys.
    pub fn record(&self, kid: &str) -> Value {
        json!({"kid": kid, "private_key_pem": self.pem()})
    }
}

impl Default for PrivateKey {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
pub struct Site {
    envoy: Envoy,
    /// The `gateway.origin` of the filter's configuration.
    origin: String,
    /// The filter's configuration from `envoy/envoy.yaml`.
    filter: Value,
    client_key: PrivateKey,
    _connectors: Vec<Connector>,
}

impl Site {
    /// Starts the gateway with these signing keys and two workers.
    pub async fn start(signing_keys: &Value) -> Self {
        let mut connectors = Vec::new();
        for name in CONNECTORS {
            connectors.push(Connector::start(&format!("demo/connectors/{name}.py")).await);
        }
        Self::before(connectors, signing_keys).await
    }

    /// Starts the gateway in front of these connectors. They get the names of the demo connectors, in the same order.
    pub async fn before(connectors: Vec<Connector>, signing_keys: &Value) -> Self {
        let folder = Folder::new().expect("a folder");
        let port = free_port();
        let mut bootstrap = complete_gateway();
        bootstrap["node"] = json!({"id": "gateway", "cluster": "gateway"});
        bootstrap["admin"]["address"]["socket_address"]["port_value"] = json!(0);
        for cluster in bootstrap["static_resources"]["clusters"].as_array_mut().expect("clusters") {
            let index = CONNECTORS.iter().position(|name| cluster["name"] == *name);
            if let Some(connector) = index.and_then(|index| connectors.get(index)) {
                let endpoint = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
                endpoint["address"]["socket_address"]["port_value"] = json!(connector.port());
            }
        }
        let listener = &mut bootstrap["static_resources"]["listeners"][0];
        listener["address"]["socket_address"]["port_value"] = json!(port);
        let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        // The policy must change while Envoy runs, so Envoy reads the filter from a file that it watches.
        let watched = json!({
            "config_source": {
                "path_config_source": {"path": folder.file(FILTER), "watched_directory": {"path": folder.file("")}},
                "resource_api_version": "V3",
            },
            "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
        });
        let filter = manager["http_filters"][0].take();
        manager["http_filters"][0] = json!({"name": filter["name"], "config_discovery": watched});

        let client_key = PrivateKey::new();
        let origin = format!("http://127.0.0.1:{port}");
        folder.write(FILTER, &with_policy(&filter, &origin, &policy(signing_keys, &client_key))).expect("the filter is written");
        let envoy = Envoy::start(&bootstrap, 2, folder).await;
        Self { envoy, origin, filter, client_key, _connectors: connectors }
    }

    pub fn envoy(&self) -> &Envoy {
        &self.envoy
    }

    /// The value of `gateway.origin`. It is also the issuer of the gateway's tokens.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The URL of the endpoint of all connectors, or of one.
    pub fn endpoint(&self, connector: Option<&str>) -> String {
        connector.map_or_else(|| format!("{}/mcp/{ORG}", self.origin), |name| format!("{}/mcp/{ORG}/{name}", self.origin))
    }

    /// The policy with which the gateway started.
    pub fn policy(&self, signing_keys: &Value) -> Value {
        policy(signing_keys, &self.client_key)
    }

    /// Allows web pages of this origin. Takes effect with the next policy.
    pub fn allow_origin(&mut self, origin: &str) {
        self.filter["typed_config"]["config"]["configuration"]["value"]["gateway"]["allowed_origins"] = json!([origin]);
    }

    /// Puts another policy in force.
    pub async fn enforce(&self, policy: &Value) {
        let taken = async || self.envoy.stat("extension_config_discovery.http_filter.apexmcp.update_success").await;
        let before = taken().await;
        let filter = with_policy(&self.filter, &self.origin, policy);
        self.envoy.folder().write(FILTER, &filter).expect("the filter is written");
        eventually("the policy is in force", async || (taken().await > before).then_some(())).await;
    }

    /// Requests a token for [`WITH_SECRET`], with the client credentials grant.
    pub async fn token(&self) -> String {
        let reply = self.envoy.client().send(&token_request(SECRET)).await;
        reply.json()["access_token"].as_str().unwrap_or_else(|| panic!("no token: {reply:?}")).to_owned()
    }

    /// Writes the settings of a client program into a file: its endpoint, its credentials, and the tool that it calls.
    fn settings(&self, method: &str, changes: &Value, folder: &Folder) -> PathBuf {
        let mut settings = json!({
            "url": self.endpoint(None),
            "issuer": self.origin,
            "tool": "notes__read",
            "arguments": {"title": "welcome"},
        });
        if method == "private_key_jwt" {
            settings["client_id"] = json!(WITH_KEY);
            settings["private_key"] = json!(self.client_key.pem());
        } else {
            settings["client_id"] = json!(WITH_SECRET);
            settings["client_secret"] = json!(SECRET);
        }
        folder.write("settings.json", &merged(settings, changes).to_string()).expect("the settings are written");
        folder.file("settings.json")
    }

    /// Checks that the log and the access log of Envoy contain no secret: no client secret, API key, private key or
    /// JWT.
    pub fn assert_keeps_secrets(&self) {
        let key = self.client_key.pem();
        let logs = ["stderr", "stdout"].map(|name| self.envoy.folder().read(name));
        for secret in [SECRET, &api_key("key_all"), key.lines().nth(1).expect("base64"), "eyJ"] {
            assert!(logs.iter().all(|log| !log.contains(secret)), "a secret of {} characters is in a log", secret.len());
        }
    }
}

/// A policy with both clients and one API key.
pub fn policy(signing_keys: &Value, client_key: &PrivateKey) -> Value {
    json!({
        "version": "1",
        "signing_keys": signing_keys,
        "orgs": {ORG: {
            "api_keys": [api_key_record("key_all")],
            "oauth_clients": [
                {
                    "client_id": WITH_SECRET,
                    "secret_sha256": [sha256(SECRET)],
                    "scopes": ["mcp:call"],
                },
                {"client_id": WITH_KEY, "jwks": {"keys": [client_key.jwk()]}, "scopes": ["mcp:call"]},
            ],
        }},
    })
}

/// The filter as Envoy reads it from a file (ECDS).
fn with_policy(filter: &Value, origin: &str, policy: &Value) -> String {
    let mut config = filter["typed_config"].clone();
    let plugin = &mut config["config"]["configuration"]["value"];
    plugin["gateway"]["origin"] = json!(origin);
    plugin["policy"]["inline"] = policy.clone();
    // The identity providers of the tests have no TLS certificate.
    plugin["jwks"]["http_cluster"] = json!("jwks_http");
    let resource = json!({
        "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "name": filter["name"],
        "typed_config": config,
    });
    Module::under_test().configuration(&json!({"resources": [resource]})).to_string()
}

/// A token request with client credentials, for [`WITH_SECRET`].
pub fn token_request(secret: &str) -> Request {
    token_request_of(WITH_SECRET, secret)
}

/// A token request with client credentials, for any client that has a secret.
pub fn token_request_of(client_id: &str, secret: &str) -> Request {
    token_form(&format!("client_id={client_id}&client_secret={secret}"))
}

/// A token request with client credentials, for the client that this assertion identifies (RFC 7523 §2.2).
pub fn assertion_request(assertion: &str) -> Request {
    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    token_form(&format!("client_assertion_type={kind}&client_assertion={assertion}"))
}

/// A token request with client credentials and these parameters, which identify the client.
fn token_form(parameters: &str) -> Request {
    let form = format!("grant_type=client_credentials&{parameters}");
    Request::post("/oauth/token").header("content-type", "application/x-www-form-urlencoded").body(form)
}

/// The interpreter and the path of a client program. The file extension selects the interpreter.
fn program(name: &str) -> (&'static str, String) {
    let tool = if name.ends_with(".py") { "python" } else { "node" };
    (tool, format!("wasm-test/oauth-clients/{name}"))
}

/// Runs a client program with these changes of its settings. Returns its output. Panics if the program fails.
pub async fn run_client(site: &Site, name: &str, method: &str, changes: &Value) -> Value {
    let said = try_client(site, name, method, changes).await;
    let said = said.unwrap_or_else(|said| panic!("{name} {method} failed: {said}"));
    serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{name} {method}: {error}: {said}"))
}

/// Runs a client program with these changes of its settings. Returns its output.
///
/// # Errors
/// The output of the program, if it fails.
pub async fn try_client(site: &Site, name: &str, method: &str, changes: &Value) -> Result<String, String> {
    let folder = Folder::new().expect("a folder");
    let (tool, script) = program(name);
    let settings = site.settings(method, changes, &folder);
    crate::process::try_run(tool, &[&script, argument(&settings), method]).await
}

/// A client program that repeats its call until the test stops it.
#[derive(Debug)]
pub struct Worker {
    name: String,
    folder: Folder,
    process: Process,
}

impl Worker {
    /// Starts the program with these changes of its settings.
    pub fn start(site: &Site, name: &str, method: &str, changes: &Value) -> Self {
        let folder = Folder::new().expect("a folder");
        let (tool, script) = program(name);
        let settings = site.settings(method, changes, &folder);
        let stop = folder.file("stop");
        let process = Process::start(tool, &[&script, argument(&settings), method, argument(&stop)], &folder).expect("it starts");
        Self { name: format!("{name} {method}"), folder, process }
    }

    /// The number of successful calls.
    pub fn answers(&self) -> usize {
        self.folder.read("stdout").lines().filter(|line| line.contains("said")).count()
    }

    /// Waits for this number of further successful calls. Panics if the program ends.
    pub async fn until_answered(&mut self, more: usize) {
        let goal = self.answers() + more;
        eventually("answers", async || {
            assert!(!self.process.has_ended(), "{} failed:\n{}", self.name, self.folder.read("stderr"));
            (self.answers() >= goal).then_some(())
        })
        .await;
    }

    /// Stops the program. Returns the number of successful calls. Panics if the program failed.
    pub async fn stop(mut self) -> usize {
        self.folder.write("stop", "").expect("the file is written");
        eventually("the client ends", async || self.process.has_ended().then_some(())).await;
        assert!(self.folder.read("stdout").ends_with("stopped\n"), "{} failed:\n{}", self.name, self.folder.read("stderr"));
        self.answers()
    }
}
