//! The policy of a Settings service takes effect on every worker immediately, and changes nothing else.

use serde_json::{Value, json};
use tokio::time::Instant;
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::issuer::Issuer;
use wasm_test::load::Load;
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::server::Server;
use wasm_test::settings::{Settings, TOKEN};
use wasm_test::token::Key;
use wasm_test::upstream;

const WORKERS: usize = 4;

/// A gateway with these changes of `policy.remote`.
fn setup(settings: &Settings, changes: &Value) -> Setup {
    of_plugin(settings, changes, &json!({}))
}

/// A gateway with these changes of `policy.remote`, and with `more` changes of the plugin configuration.
fn of_plugin(settings: &Settings, changes: &Value, more: &Value) -> Setup {
    let remote = json!({"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN", "timeout": "60s"});
    let mut plugin = merged(plugin(&json!({})), more);
    plugin["policy"] = json!({ "remote": merged(remote, changes) });
    Setup::new(plugin).workers(WORKERS).settings(settings.port(), TOKEN)
}

async fn gateway(settings: &Settings, upstream: &Server) -> Gateway {
    setup(settings, &json!({})).start(upstream).await
}

fn document(orgs: &Value) -> Value {
    json!({"version": "1", "orgs": orgs})
}

fn with_keys(ids: &[&str]) -> Value {
    document(&json!({"acme": {"api_keys": ids.iter().map(|id| api_key_record(id)).collect::<Vec<_>>()}}))
}

fn call(key: &str) -> Request {
    Request::tools_list("/mcp/acme").api_key(&api_key(key))
}

#[tokio::test]
async fn an_invalid_document_is_refused_and_the_old_one_stays() {
    let upstream = upstream::start().await;
    let settings = Settings::start().await;
    settings.publish(&with_keys(&["key_stays"]));
    let gateway = gateway(&settings, &upstream).await;
    gateway.until_everywhere(&call("key_stays"), 200).await;
    settings.publish_text("{");
    let asked = settings.requests();
    eventually("a document that is not JSON is fetched again", async || (settings.requests() > asked + 2).then_some(())).await;
    for (text, problem) in [
        ("{", ".: EOF"),
        (r#"{"orgs":{"acme":{"api_keys":[{"id":"k","sha256":"SECRET"}]}}}"#, "policy.orgs.acme.api_keys[0].sha256: "),
        (r#"{"colour":1}"#, "colour: unknown field"),
    ] {
        settings.publish_text(text);
        let problem = format!("invalid policy: {problem}");
        eventually("the document is refused", async || gateway.log().contains(&problem).then_some(())).await;
        assert_eq!(gateway.send(&call("key_stays")).await.status, 200, "{text}");
    }
    assert!(gateway.metric("apexmcp_policy_fetches", &[("outcome", "invalid")]).await >= 3);
    let log = gateway.log();
    assert!(!log.contains("SECRET") && !log.contains(TOKEN));
    settings.publish(&with_keys(&["key_new"]));
    gateway.until_everywhere(&call("key_new"), 200).await;
}

#[tokio::test]
async fn before_the_first_policy_requests_wait_and_then_get_503() {
    let upstream = upstream::start().await;
    let settings = Settings::start().await;
    let patient = setup(&settings, &json!({})).start(&upstream).await;
    let hasty = setup(&settings, &json!({"timeout": "100ms"})).start(&upstream).await;
    let refusal = hasty.refuses("no policy", &call("key_stays")).await;
    assert_eq!((refusal.status, refusal.reason.as_str(), refusal.retry_after.is_some()), (503, "policy_unavailable", true));
    let waiting = {
        let client = patient.client().clone();
        tokio::spawn(async move { client.send(&call("key_stays")).await })
    };
    patient.until_active(1).await;
    settings.publish(&with_keys(&["key_stays"]));
    assert_eq!(waiting.await.expect("a reply").status, 200);
    eventually("the gateway with a short timeout gets the policy, too", async || {
        (hasty.send(&call("key_stays")).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_provider_that_the_gateway_cannot_reach_is_ignored_until_it_can() {
    let (upstream, settings) = (upstream::start().await, Settings::start().await);
    settings.publish(&with_keys(&["key_old"]));
    let plugin = |more| of_plugin(&settings, &json!({}), &more);
    let gateway = plugin(json!({"jwks": {"http_cluster": null}})).start(&upstream).await;
    gateway.until_everywhere(&call("key_old"), 200).await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[&key]).await;
    let mut document = with_keys(&["key_new"]);
    document["orgs"]["acme"]["identity_providers"] = json!([issuer.record()]);
    settings.publish(&document);
    gateway.until_everywhere(&call("key_new"), 200).await;
    gateway.until_everywhere(&call("key_old"), 401).await;
    let by_provider = Request::tools_list("/mcp/acme").bearer(&key.token(&issuer.claims()));
    assert_eq!(gateway.refuses("its keys cannot be fetched", &by_provider).await.reason, "issuer_unknown");
    assert!(gateway.log().contains("policy.orgs.acme.identity_providers[0].jwks_uri: must be https"));
    assert!(gateway.reconfigure(plugin(json!({"jwks": {"http_cluster": "jwks_http"}})).plugin()).await);
    gateway.until_everywhere(&by_provider, 200).await;
}

#[tokio::test]
async fn the_keys_of_a_removed_provider_are_released() {
    let (upstream, settings) = (upstream::start().await, Settings::start().await);
    let key = Key::first("a");
    let (stays, leaves) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    let trusting = |issuers: &[&Issuer]| {
        document(&json!({"acme": {"identity_providers": issuers.iter().map(|issuer| issuer.record()).collect::<Vec<_>>()}}))
    };
    settings.publish(&trusting(&[&stays, &leaves]));
    let jwks = json!({"jwks": {"http_cluster": "jwks_http", "refresh_interval": "1s", "max_stale": "2s"}});
    let gateway = of_plugin(&settings, &json!({}), &jwks).start(&upstream).await;
    let call = |issuer: &Issuer| Request::tools_list("/mcp/acme").bearer(&key.token(&issuer.claims()));
    for issuer in [&stays, &leaves] {
        gateway.until_everywhere(&call(issuer), 200).await;
    }

    settings.publish(&trusting(&[&stays]));
    gateway.until_everywhere(&call(&leaves), 401).await;
    // Each worker releases the keys separately. Keys in use are still fetched.
    eventually("no worker fetches them any more", async || {
        let asked = (stays.requests(), leaves.requests());
        eventually("further fetches", async || {
            assert_eq!(gateway.send(&call(&stays)).await.status, 200);
            (stays.requests() > asked.0 + 2).then_some(())
        })
        .await;
        (leaves.requests() == asked.1).then_some(())
    })
    .await;
    let keys = async || gateway.metric("apexmcp_jwks_keys", &[]).await;
    eventually("one set is left", async || {
        gateway.send(&call(&stays)).await;
        (keys().await == 1).then_some(())
    })
    .await;
    settings.publish(&trusting(&[&leaves]));
    gateway.until_everywhere(&call(&leaves), 200).await;
}

#[tokio::test]
async fn the_longest_document_is_accepted_and_a_longer_one_is_not() {
    const LONGEST: usize = 32 << 20;
    let upstream = upstream::start().await;
    let settings = Settings::start().await;
    let padded = |key: &str, length: usize| {
        let document = with_keys(&[key]).to_string();
        format!("{document}{}", " ".repeat(length - document.len()))
    };
    settings.publish_text(padded("key_longest", LONGEST));
    let gateway = gateway(&settings, &upstream).await;
    gateway.until_everywhere(&call("key_longest"), 200).await;
    let failures = async || gateway.metric("apexmcp_policy_fetches", &[("outcome", "failure")]).await;
    let before = failures().await;
    settings.publish_text(padded("key_longer", LONGEST + 1));
    let is_told = async || failures().await > before;
    eventually("the failure is counted", async || is_told().await.then_some(())).await;
    assert_eq!(gateway.send(&call("key_longer")).await.status, 401);
    assert_eq!(gateway.send(&call("key_longest")).await.status, 200);
    // Only the first 20 of many problems are logged.
    let key = |number: usize| json!({"id": format!("k{number}"), "sha256": "no hash"});
    settings.publish(&document(&json!({"acme": {"api_keys": (0..21).map(key).collect::<Vec<_>>()}})));
    let told = async || gateway.log().matches("invalid policy: ").count();
    let is_refused = async || gateway.metric("apexmcp_policy_fetches", &[("outcome", "invalid")]).await > 0;
    eventually("the document is refused", async || is_refused().await.then_some(())).await;
    assert_eq!(told().await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_large_policy_delays_no_request() {
    const ORGS: usize = 10_000;
    const KEYS: usize = 10;
    let upstream = upstream::start().await;
    let settings = Settings::start().await;
    let large = |changed: &str| {
        let mut orgs: serde_json::Map<String, Value> = (0..ORGS)
            .map(|org| {
                let keys: Vec<Value> = (0..KEYS).map(|key| api_key_record(&format!("key_{org}x{key}"))).collect();
                (format!("org-{org}"), json!({"api_keys": keys, "limits": {"monthly_quota": 1_000_000}}))
            })
            .collect();
        orgs.insert("acme".into(), json!({"api_keys": [api_key_record("key_stays"), api_key_record(changed)]}));
        document(&Value::Object(orgs)).to_string()
    };
    let (first, second) = (large("key_one"), large("key_other"));
    println!("{} bytes", first.len());
    settings.publish_text(first);
    let gateway = gateway(&settings, &upstream).await;
    gateway.until_everywhere(&call("key_one"), 200).await;
    let of_org = Request::tools_list("/mcp/org-9999").api_key(&api_key("key_9999x9"));
    assert_eq!(gateway.send(&of_org).await.status, 200);
    let load = Load::start(gateway.client(), vec![call("key_stays"), of_org]);
    load.until_answered(1_000).await;
    let started = Instant::now();
    settings.publish_text(second);
    gateway.until_everywhere(&call("key_other"), 200).await;
    println!("in force everywhere after {:?}", started.elapsed());
    gateway.until_everywhere(&call("key_one"), 401).await;
    load.until_answered(1_000).await;
    let (sent, refused) = load.stop().await;
    // Only Envoy's main thread reads the document, not the threads that serve requests. The id of the main thread is
    // the id of the process.
    let main_thread = format!("[{}]", gateway.process_id());
    let log = gateway.log();
    let changes = log.lines().filter(|line| line.contains("bytes, and is published"));
    assert!(changes.clone().count() > 1 && changes.skip(1).all(|line| line.contains(&main_thread)), "{log}");
    println!("{sent} requests during the change, Envoy's VmRSS is {} kB", gateway.memory_kb());
    assert_eq!(refused.len(), 0, "some of {sent} requests were refused, the first: {:?}", refused.first());
}
