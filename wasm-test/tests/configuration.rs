//! A wrong configuration is refused, with a log line for each problem, and the configuration in force stays.

use serde_json::{Value, json};
use wasm_test::gateway::{Setup, plugin};
use wasm_test::http::Request;
use wasm_test::issuer::Issuer;
use wasm_test::load::{Load, Loads, strangers};
use wasm_test::module::Module;
use wasm_test::oauth::PrivateKey;
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::process::Folder;
use wasm_test::token::Key;
use wasm_test::upstream::{self, Arrived};
use wasm_test::{eventually, repository};

fn orgs(keys: &[&str]) -> Value {
    json!({"acme": {"api_keys": keys.iter().map(|id| api_key_record(id)).collect::<Vec<Value>>()}})
}

fn with_key(changes: &Value) -> Value {
    plugin(&json!({"acme": {"api_keys": [merged(api_key_record("key_new"), changes)]}}))
}

/// An organization with a key for this connector, and a client with this scope.
fn colliding(separator: &str, connector: &str, scope: &str) -> Value {
    let key = merged(api_key_record("key_new"), &json!({"connectors": [connector]}));
    let client = json!({"client_id": "apx_client_1", "secret_sha256": ["0".repeat(64)], "scopes": [scope]});
    let mut plugin = plugin(&json!({"acme": {"api_keys": [key], "oauth_clients": [client]}}));
    plugin["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("k")]);
    plugin["gateway"]["connector_separator"] = json!(separator);
    plugin
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_while_the_old_one_stays_in_force() {
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin(&orgs(&["key_old"]))).workers(2).start(&upstream).await;
    let with = |changes: Value| merged(plugin(&orgs(&["key_new"])), &changes);
    let provider = |changes: Value| {
        let record = json!({"issuer": "https://idp.example", "jwks_uri": "http://idp.example/keys", "audience": "apexmcp"});
        plugin(&json!({"acme": {"identity_providers": [merged(record, &changes)]}}))
    };
    let table = [
        (json!(""), vec!["."]),
        (json!("{"), vec!["."]),
        (json!("[]"), vec!["."]),
        (json!("\"text\""), vec!["."]),
        (json!({}), vec!["gateway", "policy"]),
        (with(json!({"gateway": {"origin": "gateway.example"}})), vec!["gateway.origin"]),
        (with(json!({"gateway": {"origin": "https://gateway.example/path"}})), vec!["gateway.origin"]),
        (with(json!({"gateway": {"origin": 7}})), vec!["gateway.origin"]),
        (with(json!({"gateway": {"origin": "https://a", "mcp_path": "/mcp"}})), vec!["gateway.mcp_path"]),
        (with(json!({"gateway": {"origin": "https://a", "unmatched_paths": "maybe"}})), vec!["gateway.unmatched_paths"]),
        (with(json!({"gateway": {"origin": "https://a", "mcp_pth": "/mcp/{org}"}})), vec!["gateway.mcp_pth"]),
        (with(json!({"gatway": {}, "extra": 1})), vec!["gatway", "extra"]),
        (with(json!({"mode": "off"})), vec!["mode"]),
        (with(json!({"policy": {}})), vec!["policy"]),
        (with(json!({"jwks": {"timeout": "5 parsecs"}})), vec!["jwks.timeout"]),
        (with(json!({"jwks": {"timeout": "0s"}})), vec!["jwks.timeout"]),
        (with(json!({"jwks": {"max_stale": "1h", "refresh_interval": "2h"}})), vec!["jwks.max_stale"]),
        (with(json!({"tokens": {"cache_size": -1}})), vec!["tokens.cache_size"]),
        (with(json!({"tokens": {"clock_skew": "1d"}})), vec!["tokens.clock_skew"]),
        (with(json!({"forward": {"header_prefix": "X Y"}})), vec!["forward.header_prefix"]),
        (with(json!({"forward": {"header_prefix": "x-"}})), vec!["forward.header_prefix"]),
        (with_key(&json!({"id": null})), vec!["policy.inline.orgs.acme.api_keys[0].id"]),
        (with_key(&json!({"sha256": "abc"})), vec!["policy.inline.orgs.acme.api_keys[0].sha256"]),
        (with_key(&json!({"expires_at": "tomorrow"})), vec!["policy.inline.orgs.acme.api_keys[0].expires_at"]),
        (with_key(&json!({"expires_at": "2027-01-01T00:00:00"})), vec!["policy.inline.orgs.acme.api_keys[0].expires_at"]),
        (with_key(&json!({"conectors": ["notes"]})), vec!["policy.inline.orgs.acme.api_keys[0].conectors"]),
        (with_key(&json!({"connectors": ["a b"]})), vec!["policy.inline.orgs.acme.api_keys[0].connectors"]),
        (with_key(&json!({"connectors": "notes"})), vec!["policy.inline.orgs.acme.api_keys[0].connectors"]),
        (with_key(&json!({"connectors": ["notes", "notes_"]})), vec!["policy.inline.orgs.acme.api_keys[0].connectors[1]"]),
        // Names that this separator cannot tell apart. The two names may be in different records.
        (colliding("__", "notes", "mcp:call:notes__v2"), vec!["policy.inline.orgs.acme.oauth_clients[0].scopes[0]"]),
        (colliding("__", "a_", "mcp:call:a"), vec!["policy.inline.orgs.acme.api_keys[0].connectors[0]"]),
        (colliding("-", "notes-v2", "mcp:call:notes"), vec!["policy.inline.orgs.acme.api_keys[0].connectors[0]"]),
        (plugin(&orgs(&["key_new", "key_new"])), vec!["policy.inline.orgs.acme.api_keys[1]"]),
        (plugin(&json!({"a/b": {}, "c d": {}})), vec!["policy.inline.orgs.a/b", "policy.inline.orgs.c d"]),
        (provider(json!({"issuer": null, "audience": null})), {
            vec!["policy.inline.orgs.acme.identity_providers[0].issuer", "policy.inline.orgs.acme.identity_providers[0].audience"]
        }),
        (provider(json!({"jwks_uri": "ftp://idp"})), vec!["policy.inline.orgs.acme.identity_providers[0].jwks_uri"]),
        (merged(provider(json!({})), &json!({"jwks": {"https_cluster": "x"}})), {
            vec!["policy.inline.orgs.acme.identity_providers[0].jwks_uri"]
        }),
    ];
    let old = Request::get("/mcp/acme").api_key(&api_key("key_old"));
    let new = Request::get("/mcp/acme").api_key(&api_key("key_new"));
    let mut silent = Vec::new();
    for (wrong, paths) in table {
        let before = gateway.log().len();
        assert!(!gateway.reconfigure(&wrong).await, "this configuration was accepted: {wrong}");
        let log = gateway.log().split_off(before);
        for path in paths {
            let is_named = |line: &str| line.contains("invalid configuration") && line.contains(&format!(": {path}"));
            if !log.lines().any(is_named) {
                silent.push(format!("the log does not name {path} for {wrong}:\n{log}"));
            }
        }
        gateway.admits("the old key", &old).await;
        assert_eq!(gateway.refuses("the new key", &new).await.reason, "api_key_unknown", "{wrong}");
    }

    assert!(silent.is_empty(), "{}", silent.join("\n"));

    assert!(gateway.reconfigure(&plugin(&orgs(&["key_new"]))).await, "a valid configuration is accepted");
    eventually("the new key is admitted", async || Arrived::of(&gateway.send(&new).await)).await;
    eventually("the old key is refused", async || (gateway.send(&old).await.status == 401).then_some(())).await;
    // Each worker has its own copy of the configuration. Many connections reach all workers.
    for _ in 0..20 {
        let request =
            format!("GET /mcp/acme HTTP/1.1\r\nHost: a\r\nX-Api-Key: {}\r\nConnection: close\r\n\r\n", api_key("key_old"));
        let reply = gateway.client().send_bytes(request.as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 401"), "{reply}");
    }
}

#[tokio::test]
async fn without_a_valid_first_configuration_nobody_is_admitted() {
    let upstream = upstream::start().await;
    let gateway = Setup::new(merged(plugin(&orgs(&["key_all"])), &json!({"mode": "shadow", "extra": 1}))).start(&upstream).await;
    for request in [Request::get("/mcp/acme").api_key(&api_key("key_all")), Request::get("/")] {
        assert!(gateway.send(&request).await.status >= 500);
    }
    assert_eq!(upstream.requests(), 0);
    assert!(gateway.log().contains("invalid configuration: extra"), "{}", gateway.log());
    assert!(gateway.reconfigure(&plugin(&orgs(&["key_all"]))).await);
    let request = Request::get("/mcp/acme").api_key(&api_key("key_all"));
    eventually("the fixed configuration is in force", async || Arrived::of(&gateway.send(&request).await)).await;
}

#[tokio::test]
async fn a_configuration_change_under_load_refuses_no_valid_request() {
    const CHANGES: usize = 5;
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[&key]).await;
    let configuration = |version: usize| {
        let orgs = json!({"acme": {
            "api_keys": [api_key_record("key_all"), api_key_record(&format!("key_{version}"))],
            "identity_providers": [issuer.record()],
        }});
        plugin(&orgs)
    };
    let gateway = Setup::new(configuration(0)).workers(2).start(&upstream).await;
    let by_key = Request::tools_list("/mcp/acme").api_key(&api_key("key_all"));
    let by_token = Request::tools_list("/mcp/acme").bearer(&key.token(&issuer.claims()));
    let load = Load::start(gateway.client(), vec![by_key, by_token]);
    for version in 1..=CHANGES {
        assert!(gateway.reconfigure(&configuration(version)).await);
        let request = Request::tools_list("/mcp/acme").api_key(&api_key(&format!("key_{version}")));
        eventually("the next version is in force", async || Arrived::of(&gateway.send(&request).await)).await;
        load.until_answered(100).await;
    }
    let (sent, refused) = load.stop().await;
    println!("{CHANGES} changes under {sent} requests: {} refused", refused.len());
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(issuer.requests(), 1, "the key set outlives the configuration");
}

/// The filter's file names another module, and then the first one again: an operator upgrades, and goes back.
#[tokio::test]
async fn a_module_change_under_load_refuses_no_valid_request() {
    if Module::is_native("Envoy loads it once, so an upgrade is a restart of Envoy") {
        return;
    }
    let upstream = upstream::start().await;
    let setup = Setup::new(plugin(&orgs(&["key_all"]))).workers(2);
    let modules = Folder::new().expect("a folder");
    let built = std::fs::read(repository().join("dist/apexmcp_auth.wasm")).expect("the module");
    // With one more custom section, it is another module to Envoy.
    std::fs::write(modules.file("other.wasm"), [built.as_slice(), b"\x00\x02\x01x"].concat()).expect("a module");
    let gateway = setup.start(&upstream).await;
    let good = vec![Request::tools_list("/mcp/acme").api_key(&api_key("key_all"))];
    let loads = Loads::start(gateway.client(), good, strangers(&Request::tools_list("/mcp/acme"), []));
    for module in [Some(modules.file("other.wasm")), None] {
        loads.until_answered(100).await;
        assert!(gateway.load_module(module.as_deref()).await);
        loads.until_answered(100).await;
    }
    assert_eq!(loads.stop("two modules").await, 0);
    // The line is logged on the main thread and on both workers, once for each module.
    assert!(gateway.log().matches("signatures are verified by").count() >= 6, "{}", gateway.log());
}
