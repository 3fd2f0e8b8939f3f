//! A gateway with two organizations, for the targets that decide whole requests.

use std::sync::LazyLock;

use apexmcp_core::config::Config;
use apexmcp_core::jose::jwk::{JwkSet, RsaPublicKey};
use apexmcp_core::policy::Policy;
use apexmcp_core::time::UnixTime;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rsa::RsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The current time in all targets.
pub const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
/// The value of `gateway.origin`.
pub const ORIGIN: &str = "https://gw.example";
/// The API key of acme. It is valid for the connectors notes and files.
pub const API_KEY: &str = "apx_live_sk_0123456789abcdefghijABCDEFGHIJ01";
/// The secret of each client without a key.
pub const SECRET: &str = "apx_secret_0123456789abcdefghijABCD";

/// A client of the gateway's own authorization server.
pub struct Client {
    pub id: &'static str,
    pub org: &'static str,
    /// The scopes that the client may get, separated by spaces.
    pub scopes: &'static str,
    /// The letter of its key, if it authenticates with `private_key_jwt`.
    pub key: Option<u8>,
}

pub const CLIENTS: [Client; 5] = [
    Client { id: "apx_client_acme0000", org: "acme", scopes: "mcp:call", key: None },
    Client { id: "apx_client_scoped00", org: "acme", scopes: "mcp:call:files mcp:call:notes", key: None },
    Client { id: "apx_client_other000", org: "other", scopes: "mcp:call", key: None },
    Client { id: "apx_client_keyed000", org: "acme", scopes: "mcp:call:files mcp:call:notes", key: Some(b'k') },
    Client { id: "apx_client_otherkey", org: "other", scopes: "mcp:call", key: Some(b'o') },
];
/// The identity providers: the org, the issuer, and the letter of the key.
pub const PROVIDERS: [(&str, &str, u8); 2] = [("acme", "https://idp.example/a", b'a'), ("other", "https://idp.example/b", b'b')];

/// The public key of a letter. There is no private key, and [`Signatures::Hash`](apexmcp_core::testing::Signatures)
/// needs none.
pub fn key_of(letter: u8) -> RsaPublicKey {
    let mut modulus = [letter | 1; 256];
    modulus[0] = 0x80 | letter;
    RsaPublicKey::from_components(&modulus, &[1, 0, 1]).expect("a key")
}

/// The key set with the key of a letter. Its `kid` is that letter.
pub fn jwk_set(letter: u8) -> JwkSet {
    JwkSet::parse(jwks(letter).to_string().as_bytes()).expect("a set")
}

fn jwks(letter: u8) -> Value {
    let key = key_of(letter);
    let number = |bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let kid = char::from(letter).to_string();
    json!({"keys": [{"kty": "RSA", "kid": kid, "n": number(key.modulus()), "e": number(key.exponent())}]})
}

/// The configuration and the policy of the gateway.
pub fn config() -> (Config, Policy) {
    static PEM: LazyLock<String> = LazyLock::new(|| {
        let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key");
        key.to_pkcs8_pem(LineEnding::LF).expect("PEM").to_string()
    });
    let sha256 = |secret: &str| hex::encode(Sha256::digest(secret));
    let org = |name: &str| {
        let clients = CLIENTS.iter().filter(|client| client.org == name).map(|client| {
            let (proof, value) = client.key.map_or_else(|| ("secret_sha256", json!([sha256(SECRET)])), |key| ("jwks", jwks(key)));
            json!({"client_id": client.id, proof: value, "scopes": client.scopes.split(' ').collect::<Vec<_>>()})
        });
        let providers = PROVIDERS.iter().filter(|(org, ..)| *org == name).map(|(_, issuer, letter)| {
            json!({"issuer": issuer, "jwks_uri": format!("{issuer}/{}", char::from(*letter)), "audience": "apexmcp", "default_scopes": ["mcp:call:notes"]})
        });
        json!({"oauth_clients": clients.collect::<Vec<_>>(), "identity_providers": providers.collect::<Vec<_>>()})
    };
    let mut acme = org("acme");
    acme["api_keys"] = json!([{"id": "k1", "sha256": sha256(API_KEY), "connectors": ["notes", "files"]}]);
    let config: Value = json!({
        "gateway": {"origin": ORIGIN},
        "jwks": {"https_cluster": "https"},
        "tokens": {"cache_size": 64},
        "policy": {"inline": {
            "signing_keys": [{"kid": "s1", "private_key_env": "SIGNING_KEY"}],
            "orgs": {"acme": acme, "other": org("other")},
        }},
    });
    let environment = |name: &str| (name == "SIGNING_KEY").then(|| PEM.clone());
    Config::parse(config.to_string().as_bytes(), &environment).expect("a configuration")
}
