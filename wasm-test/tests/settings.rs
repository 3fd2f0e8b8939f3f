//! Changes by the Settings program take effect on every worker immediately, through its server or through its file,
//! and change nothing else.

use std::time::Duration;

use serde_json::{Value, json};
use wasm_test::apexmcp::Apexmcp;
use wasm_test::envoy::{Envoy, complete_gateway, configuration};
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, local_cluster, plugin};
use wasm_test::http::Request;
use wasm_test::load::Load;
use wasm_test::module::Module;
use wasm_test::oauth::token_request_of;
use wasm_test::process::{Folder, argument};
use wasm_test::provider::Provider;
use wasm_test::server::Server;
use wasm_test::settings::TOKEN;
use wasm_test::upstream;

const WORKERS: usize = 4;
const ROUNDS: usize = 10;

/// A gateway that fetches its policy from `settings`.
async fn by_server(settings: &mut Apexmcp, upstream: &Server) -> Gateway {
    let port = settings.serve().await;
    let mut plugin = plugin(&json!({}));
    plugin["policy"] = json!({"remote": {"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN"}});
    Setup::new(plugin).workers(WORKERS).settings(port, TOKEN).start(upstream).await
}

/// A gateway that watches a file. `settings` writes this file.
async fn by_file(settings: &Apexmcp, upstream: &Server) -> Gateway {
    let setup = Setup::new(plugin(&json!({}))).workers(WORKERS);
    let (template, file) = (settings.file("template.json"), settings.file("filter.json"));
    std::fs::write(&template, Module::under_test().configuration(&setup.filter(&plugin(&json!({})))).to_string())
        .expect("the template is written");
    settings.run(&format!("ecds enable --template {} --file {}", argument(&template), argument(&file)));
    setup.filter_file(file).start(upstream).await
}

fn call(key: &str) -> Request {
    Request::tools_list("/mcp/acme").api_key(key)
}

#[tokio::test(flavor = "multi_thread")]
async fn created_and_revoked_keys_take_effect_immediately_and_affect_nobody_else() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    let (_, stays) = settings.create_key();
    let gateway = by_server(&mut settings, &upstream).await;
    come_and_go(&settings, &gateway, &stays).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn created_and_revoked_keys_take_effect_through_the_file_too() {
    let upstream = upstream::start().await;
    let settings = Apexmcp::new();
    let (_, stays) = settings.create_key();
    let gateway = by_file(&settings, &upstream).await;
    come_and_go(&settings, &gateway, &stays).await;
}

/// Creates and revokes keys under load, and measures the time until each change is in force on every worker.
async fn come_and_go(settings: &Apexmcp, gateway: &Gateway, stays: &str) {
    assert_eq!(gateway.send(&call(stays)).await.status, 200, "a request waits for the first policy");
    let load = Load::start(gateway.client(), vec![call(stays)]);
    load.until_answered(100).await;
    let mut longest = Duration::ZERO;
    for _ in 0..ROUNDS {
        let (id, key) = settings.create_key();
        longest = longest.max(gateway.until_everywhere(&call(&key), 200).await);
        settings.run(&format!("key revoke {id}"));
        longest = longest.max(gateway.until_everywhere(&call(&key), 401).await);
    }
    let (sent, refused) = load.stop().await;
    println!("{sent} requests during the changes; each change was in force everywhere after {longest:?} at most");
    assert_eq!(refused.len(), 0, "some of {sent} requests were refused, the first: {:?}", refused.first());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_identity_provider_is_accepted_from_the_first_request_on() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    let provider = Provider::start().await;
    let (id, key) = settings.create_key();
    let gateway = by_server(&mut settings, &upstream).await;
    gateway.until_everywhere(&call(&key), 200).await;
    let request = Request::tools_list("/mcp/acme").bearer(&provider.token("scope=mcp:call").await);
    assert_eq!(gateway.send(&request).await.json()["reason"], "issuer_unknown");
    let record = provider.record();
    let [issuer, jwks_uri] = ["issuer", "jwks_uri"].map(|name| record[name].as_str().expect("a URL").to_owned());
    let saved = settings.run(&format!(
        "sso configure --org acme --issuer {issuer} --jwks-uri {jwks_uri} --audience apexmcp --allow-private-address"
    ));
    assert_eq!(saved["saved"], true, "{saved}");
    // When the key is refused, a later policy than the one with the provider is in force.
    settings.run(&format!("key revoke {id}"));
    gateway.until_everywhere(&call(&key), 401).await;
    assert_eq!(gateway.send(&request).await.status, 200);
    settings.run(&format!("sso remove --org acme --issuer {issuer}"));
    gateway.until_everywhere(&request, 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_tokens_until_they_are_revoked() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    let client = settings.run("client create --org acme --name billing --scope mcp:call");
    let gateway = by_server(&mut settings, &upstream).await;
    let [id, secret] = ["client_id", "client_secret"].map(|name| client[name].as_str().expect("a text").to_owned());
    let take = || token_request_of(&id, &secret);
    let token = gateway.send(&take()).await.json()["access_token"].as_str().expect("a token").to_owned();
    let request = Request::tools_list("/mcp/acme").bearer(&token);
    gateway.until_everywhere(&request, 200).await;
    let kid = settings.run("signing-key create")["kid"].as_str().expect("a kid").to_owned();
    settings.run(&format!("signing-key use {kid}"));
    let keys = Request::get("/.well-known/jwks.json");
    let first = || async { gateway.send(&keys).await.json()["keys"][0]["kid"] == kid.as_str() };
    eventually("the new key is the first", async || first().await.then_some(())).await;
    gateway.until_everywhere(&request, 200).await;
    settings.run(&format!("token revoke --org acme --client {id}"));
    gateway.until_everywhere(&request, 401).await;
    settings.run(&format!("client revoke {id}"));
    // Each failure counts as a guess, so the test makes only a few.
    let is_refused = async || gateway.send(&take()).await.status == 401;
    eventually("the client gets no more tokens", async || is_refused().await.then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_settings_the_last_policy_stays_in_force() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    let (_, stays) = settings.create_key();
    let gateway = by_server(&mut settings, &upstream).await;
    gateway.until_everywhere(&call(&stays), 200).await;
    let load = Load::start(gateway.client(), vec![call(&stays)]);
    settings.kill();
    let failures = async || gateway.metric("apexmcp_policy_fetches", &[("outcome", "failure")]).await;
    eventually("fetches from Settings fail", async || (failures().await >= 3).then_some(())).await;
    load.until_answered(1_000).await;
    let (sent, refused) = load.stop().await;
    assert_eq!(refused.len(), 0, "some of {sent} requests were refused, the first: {:?}", refused.first());
    assert!(gateway.metric("apexmcp_policy_confirmed_at_seconds", &[]).await > 0);
    let (_, meanwhile) = settings.create_key();
    assert_eq!(gateway.send(&call(&meanwhile)).await.status, 401);
    settings.serve().await;
    gateway.until_everywhere(&call(&meanwhile), 200).await;
    let version: u64 = settings.run("policy export")["version"].as_str().and_then(|text| text.parse().ok()).expect("a number");
    let is_shown = async || gateway.metric("apexmcp_policy_version", &[]).await == version;
    eventually("the version in force is shown", async || is_shown().await.then_some(())).await;
}

/// The policy has about 400 KB. A change of one key sends a few of them, also after a restart of the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_sends_only_the_parts_that_changed() {
    const KEYS: usize = 3_000;
    /// The answer to a change with its head, and the answers of this server to other requests meanwhile.
    const A_CHANGE: u64 = 8_192;
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    let api_keys: Vec<Value> = (0..KEYS)
        .map(|number| json!({"id": format!("k{number}"), "sha256": format!("{number:064x}").chars().rev().collect::<String>()}))
        .collect();
    let file = settings.file("policy.json");
    std::fs::write(&file, json!({"orgs": {"acme": {"api_keys": api_keys}}}).to_string()).expect("the policy is written");
    settings.run(&format!("policy import {}", argument(&file)));
    let (_, stays) = settings.create_key();
    let gateway = by_server(&mut settings, &upstream).await;
    gateway.until_everywhere(&call(&stays), 200).await;
    let received = async || gateway.stat("cluster.settings.upstream_cx_rx_bytes_total").await;
    let whole = received().await;
    assert!(whole > 100 * u64::try_from(KEYS).expect("a number"), "{whole} bytes");
    for is_restarted in [false, true] {
        if is_restarted {
            settings.kill();
            settings.run("org create meanwhile");
            settings.serve().await;
        }
        let before = received().await;
        let (id, key) = settings.create_key();
        gateway.until_everywhere(&call(&key), 200).await;
        settings.run(&format!("key revoke {id}"));
        gateway.until_everywhere(&call(&key), 401).await;
        let sent = received().await - before;
        assert!(sent < 2 * A_CHANGE, "{sent} bytes, restarted: {is_restarted}");
        assert_eq!(gateway.send(&call(&stays)).await.status, 200);
    }
}

/// A restored backup has an older policy. Gateways that had a newer one take all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_replaces_the_newer_policy() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    let (_, stays) = settings.create_key();
    let gateway = by_server(&mut settings, &upstream).await;
    gateway.until_everywhere(&call(&stays), 200).await;
    let (database, copy) = (settings.file("settings.db"), settings.file("copy.db"));
    settings.run(&format!("database copy --to {}", argument(&copy)));
    let (_, lost) = settings.create_key();
    gateway.until_everywhere(&call(&lost), 200).await;
    settings.kill();
    for file in ["settings.db-wal", "settings.db-shm"] {
        let _ = std::fs::remove_file(settings.file(file));
    }
    std::fs::copy(&copy, &database).expect("the restored copy");
    // The restored database soon has the same number of versions as the lost one.
    let (_, restored) = settings.create_key();
    settings.serve().await;
    gateway.until_everywhere(&call(&lost), 401).await;
    gateway.until_everywhere(&call(&restored), 200).await;
    assert_eq!(gateway.send(&call(&stays)).await.status, 200);
}

/// A new configuration ends the poll of the previous one.
#[tokio::test(flavor = "multi_thread")]
async fn a_reconfigured_gateway_still_follows_settings() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    let (_, stays) = settings.create_key();
    let gateway = by_server(&mut settings, &upstream).await;
    gateway.until_everywhere(&call(&stays), 200).await;
    let mut longest = Duration::ZERO;
    for minutes in 1..=5 {
        let mut plugin = plugin(&json!({}));
        plugin["policy"] = json!({"remote": {"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN"}});
        plugin["tokens"] = json!({"ttl": format!("{minutes}m")});
        assert!(gateway.reconfigure(&plugin).await);
        let (_, key) = settings.create_key();
        longest = longest.max(gateway.until_everywhere(&call(&key), 200).await);
        assert_eq!(gateway.send(&call(&stays)).await.status, 200);
    }
    println!("after a new configuration, a change was in force everywhere after {longest:?} at most");
}

#[tokio::test]
async fn the_shipped_file_configuration_works() {
    let connector = upstream::start().await;
    let settings = Apexmcp::new();
    let (_, key) = settings.create_key();
    let template = configuration("envoy/ecds/filter.yaml");
    let mut gateway = configuration("envoy/ecds/envoy.yaml");
    let filter = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters/0";
    let restrictions = |config: Option<&Value>| config.expect("a filter")["vm_config"]["capability_restriction_config"].clone();
    assert_eq!(
        restrictions(template.pointer("/resources/0/typed_config/config")),
        restrictions(complete_gateway().pointer(&format!("{filter}/typed_config/config"))),
        "both configurations must restrict the module in the same way"
    );
    let file = settings.file("filter.json");
    let module = Module::under_test();
    let filter_file = if module == Module::Native { settings.file("native.json") } else { "envoy/ecds/filter.yaml".into() };
    if module == Module::Native {
        std::fs::write(&filter_file, module.configuration(&template).to_string()).expect("the template is written");
    }
    settings.run(&format!("ecds enable --template {} --file {}", argument(&filter_file), argument(&file)));
    *gateway.pointer_mut(&format!("{filter}/config_discovery/config_source/path_config_source")).expect("the file") =
        json!({"path": file, "watched_directory": {"path": file.parent()}});
    for port in ["/admin/address", "/static_resources/listeners/0/address"] {
        *gateway.pointer_mut(&format!("{port}/socket_address/port_value")).expect("a port") = json!(0);
    }
    gateway["static_resources"]["clusters"][0] = local_cluster("notes", connector.port());
    let envoy = Envoy::start(&gateway, 1, Folder::new().expect("a folder")).await;
    let call = |key: &str| Request::tools_list("/mcp/acme").api_key(key);
    assert_eq!(envoy.client().send(&call(&key)).await.status, 200);
    let (_, second) = settings.create_key();
    let passes = async || envoy.client().send(&call(&second)).await.status == 200;
    eventually("the second key passes", async || passes().await.then_some(())).await;
}
