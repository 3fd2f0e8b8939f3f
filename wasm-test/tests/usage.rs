//! Gateways report what they decided to Settings: exactly, whatever happens to a report on the way.

use std::cell::Cell;

use serde_json::{Value, json};
use wasm_test::apexmcp::{Apexmcp, USAGE_TOKEN};
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::policy::{api_key, merged};
use wasm_test::provider::Provider;
use wasm_test::server::Server;
use wasm_test::settings::TOKEN;
use wasm_test::upstream;

/// A gateway with two workers that reports each second.
fn setup(port: u16) -> Setup {
    let remote = json!({
        "cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN",
        "usage": {"token_env": "APEXMCP_USAGE_TOKEN", "interval": "1s"},
    });
    let plugin = merged(plugin(&json!({})), &json!({"policy": {"inline": null, "remote": remote}}));
    Setup::new(plugin).workers(2).settings(port, TOKEN).secret("APEXMCP_USAGE_TOKEN", USAGE_TOKEN)
}

async fn send(gateway: &Gateway, request: &Request, times: usize, status: u16) {
    for _ in 0..times {
        assert_eq!(gateway.send(request).await.status, status);
    }
}

/// The usage of `acme`: by credential the allowed requests and all refusals.
fn usage(settings: &Apexmcp) -> Value {
    settings.run("usage show --org acme")
}

/// Waits until this credential has these numbers of allowed and refused requests.
async fn until(settings: &Apexmcp, name: &str, allowed: u64, refused: &Value) {
    let what = format!("{name} has {allowed} allowed and {refused} refused requests");
    eventually(&what, async || {
        let shown = usage(settings);
        let credentials = shown["credentials"].as_array()?;
        let found = credentials.iter().find(|credential| credential["credential"] == name)?;
        (found["allowed"] == allowed && found["refused"] == *refused).then_some(())
    })
    .await;
}

struct Rig {
    settings: Apexmcp,
    upstream: Server,
    port: u16,
    /// The id of a key, and the key.
    key: (String, String),
}

impl Rig {
    async fn start() -> Self {
        let mut settings = Apexmcp::new();
        let port = settings.serve_with_usage().await;
        let key = settings.create_key();
        Self { settings, upstream: upstream::start().await, port, key }
    }

    fn request(&self) -> Request {
        Request::tools_list("/mcp/acme").api_key(&self.key.1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_counts_once_for_its_credential() {
    let rig = Rig::start().await;
    let provider = Provider::start().await;
    let record = provider.record();
    let [issuer, jwks_uri] = ["issuer", "jwks_uri"].map(|name| record[name].as_str().expect("a URL").to_owned());
    rig.settings.run(&format!(
        "sso configure --org acme --issuer {issuer} --jwks-uri {jwks_uri} --audience apexmcp --allow-private-address"
    ));
    let narrow = rig.settings.run("key create --org acme --name narrow --connector github");
    let [narrow_id, narrow_key] = ["id", "key"].map(|name| narrow[name].as_str().expect("a text").to_owned());
    let (one, other) = (setup(rig.port).start(&rig.upstream).await, setup(rig.port).start(&rig.upstream).await);
    for gateway in [&one, &other] {
        send(gateway, &rig.request(), 20, 200).await;
        send(gateway, &Request::tools_list("/mcp/acme/jira").api_key(&narrow_key), 3, 403).await;
        send(gateway, &Request::tools_list("/mcp/acme").api_key(&api_key("nobody")), 2, 401).await;
        send(gateway, &Request::tools_list("/mcp/nobody").api_key(&api_key("nobody")), 2, 401).await;
    }
    let token = Request::tools_list("/mcp/acme").bearer(&provider.token("scope=mcp:call").await);
    send(&one, &token, 5, 200).await;
    until(&rig.settings, &format!("acme/key/{}", rig.key.0), 40, &json!({})).await;
    until(&rig.settings, &format!("acme/key/{narrow_id}"), 0, &json!({"scope_insufficient": 6})).await;
    let providers = rig.settings.run("sso list --org acme");
    let id = providers[0]["id"].as_str().expect("an id");
    until(&rig.settings, &format!("acme/idp/{id}"), 5, &json!({})).await;
    let shown = usage(&rig.settings);
    assert_eq!(shown["refused"], json!({"api_key_unknown": 4}), "{shown}");
    assert_eq!(shown["month"]["allowed"], 45, "{shown}");
    let keys = rig.settings.run("key list --org acme");
    let used = keys.as_array().expect("keys").iter().find(|key| key["id"] == *rig.key.0).expect("the key");
    assert!(used["last_used"].is_string(), "{used}");
    let log = one.log() + &rig.settings.output();
    assert!(!log.contains(USAGE_TOKEN) && !log.contains(&rig.key.1));
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_wait_for_settings_and_count_once() {
    let mut rig = Rig::start().await;
    let name = format!("acme/key/{}", rig.key.0);
    let gateway = setup(rig.port).start(&rig.upstream).await;
    send(&gateway, &rig.request(), 10, 200).await;
    until(&rig.settings, &name, 10, &json!({})).await;
    rig.settings.kill();
    send(&gateway, &rig.request(), 10, 200).await;
    eventually("a report fails", async || gateway.log().contains("the usage was not reported").then_some(())).await;
    send(&gateway, &rig.request(), 10, 200).await;
    rig.settings.serve_with_usage().await;
    until(&rig.settings, &name, 30, &json!({})).await;
    // A server that is killed in the middle of reports counts each batch once.
    for round in 1..=5 {
        send(&gateway, &rig.request(), 20, 200).await;
        rig.settings.kill();
        rig.settings.serve_with_usage().await;
        until(&rig.settings, &name, 30 + 20 * round, &json!({})).await;
    }
}

/// The month of a gateway that was restarted begins at the total of all gateways.
#[tokio::test(flavor = "multi_thread")]
async fn a_quota_survives_a_restart_of_the_gateway() {
    let rig = Rig::start().await;
    rig.settings.run("limits set --org acme --monthly-quota 100");
    let name = format!("acme/key/{}", rig.key.0);
    let gateway = setup(rig.port).start(&rig.upstream).await;
    send(&gateway, &rig.request(), 60, 200).await;
    until(&rig.settings, &name, 60, &json!({})).await;
    drop(gateway);
    let gateway = setup(rig.port).start(&rig.upstream).await;
    send(&gateway, &rig.request(), 1, 200).await;
    until(&rig.settings, &name, 61, &json!({})).await;
    let sent = Cell::new(1);
    eventually("the gateway counts the requests before its start", async || {
        let reply = gateway.send(&rig.request()).await;
        sent.set(sent.get() + 1);
        let remaining = reply.header("ratelimit").expect("a standing").split("r=").nth(1)?.split(';').next()?.to_owned();
        (remaining.parse::<u64>().ok()? < 40).then_some(())
    })
    .await;
    let until_known = sent.get();
    while gateway.send(&rig.request()).await.status == 200 {
        sent.set(sent.get() + 1);
    }
    // What passes before a gateway knows the total comes on top.
    let passed = sent.get();
    assert!((40..=40 + until_known).contains(&passed) && until_known < 20, "{passed} of 40, {until_known} before the total");
    assert_eq!(gateway.send(&rig.request()).await.json()["reason"], "monthly_quota");
}
