//! Operators drain a running Envoy, restart it, and change its configuration repeatedly.

use std::time::Duration;

use serde_json::{Value, json};
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::issuer::Issuer;
use wasm_test::load::{CLIENTS, Loads, Stranger, strangers};
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::token::Key;
use wasm_test::upstream;

fn by_key(id: &str) -> Request {
    Request::tools_list("/mcp/acme").api_key(&api_key(id))
}

fn configuration(issuer: &Issuer, version: usize) -> Value {
    let keys = [api_key_record("key_all"), api_key_record(&format!("key_{version}"))];
    let jwks = json!({"jwks": {"http_cluster": "jwks_http", "refresh_interval": "1h"}});
    merged(plugin(&json!({"acme": {"api_keys": keys, "identity_providers": [issuer.record()]}})), &jwks)
}

/// Requests that must be admitted, and requests that must be refused.
fn both(key: &Key, issuer: &Issuer) -> (Vec<Request>, Vec<Stranger>) {
    let call = Request::tools_list("/mcp/acme");
    let good = vec![by_key("key_all"), call.clone().bearer(&key.token(&issuer.claims()))];
    (good, strangers(&call, [(key, issuer.claims())]))
}

fn start_loads(gateway: &Gateway, key: &Key, issuer: &Issuer) -> Loads {
    let (good, bad) = both(key, issuer);
    Loads::start(gateway.client(), good, bad)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_envoy_answers_as_usual() {
    let (key, upstream) = (Key::first("a"), upstream::start().await);
    let issuer = Issuer::start(&[&key]).await;
    let gateway = Setup::new(configuration(&issuer, 0)).workers(2).start(&upstream).await;
    let loads = start_loads(&gateway, &key, &issuer);
    for path in ["/healthcheck/fail", "/healthcheck/ok"] {
        loads.until_answered(500).await;
        assert_eq!(gateway.admin().send(&Request::post(path)).await.status, 200);
    }
    loads.until_answered(500).await;
    assert_eq!(loads.stop("health check failed and recovered").await, 0);

    let loads = start_loads(&gateway, &key, &issuer);
    loads.until_answered(500).await;
    assert_eq!(gateway.admin().send(&Request::post("/drain_listeners?graceful")).await.status, 200);
    // Envoy drains for two seconds. Until then, it also answers requests on new connections.
    let newcomer = Client::new(gateway.client().authority());
    assert_eq!(newcomer.send(&by_key("key_all")).await.status, 200);
    assert_eq!(newcomer.send(&by_key("key_none")).await.status, 401);
    loads.until_answered(50).await;
    let is_closed = async || {
        let client = Client::new(gateway.client().authority());
        client.try_send(&by_key("key_all")).await.is_none().then_some(())
    };
    eventually("its listener is closed", is_closed).await;
    loads.stop("drained").await;
}

#[cfg(target_os = "linux")] // Envoy has no hot restart on other systems.
#[tokio::test(flavor = "multi_thread")]
async fn a_hot_restart_under_load_causes_no_wrong_decision() {
    let (key, upstream) = (Key::first("a"), upstream::start().await);
    let issuer = Issuer::start(&[&key]).await;
    let mut parent = Setup::new(configuration(&issuer, 0)).workers(2).restartable().start(&upstream).await;
    let loads = start_loads(&parent, &key, &issuer);
    loads.until_answered(500).await;
    let parent_failures = parent.fetched("failure").await;
    let child = parent.restart(&upstream).await;
    assert_eq!(child.client().authority(), parent.client().authority());
    eventually("the first Envoy ends", async || parent.has_ended().then_some(())).await;
    loads.until_answered(500).await;
    let (good, bad) = both(&key, &issuer);
    for request in &good {
        child.admits("after the first Envoy ended", request).await;
    }
    for (request, reason) in &bad {
        let refusal = child.refuses(reason, request).await;
        assert_eq!((refusal.status, &*refusal.reason), (401, *reason), "after the first Envoy ended");
    }
    let lost = loads.stop("hot restart").await;
    assert!(lost <= 2 * CLIENTS, "{lost} requests were lost, but each client had only one connection to the first Envoy");
    // On a busy machine, a fetch may take longer than its timeout. Then it is retried.
    let failures = parent_failures + child.fetched("failure").await;
    assert_eq!(issuer.requests() as u64, 2 + failures, "each Envoy fetched the keys once, and once more after a failed fetch");
}

/// `RECONFIGURATIONS=300` changes the configuration 300 times, once a second. The default is 20 times, without pauses.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_reconfiguration_refuses_no_valid_request() {
    let count = std::env::var("RECONFIGURATIONS").ok().map(|count| count.parse().expect("a number"));
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    let (key, upstream) = (Key::first("a"), upstream::start().await);
    let issuer = Issuer::start(&[&key]).await;
    let gateway = Setup::new(configuration(&issuer, 0)).workers(2).start(&upstream).await;
    let loads = start_loads(&gateway, &key, &issuer);
    loads.until_answered(500).await;
    let mut memory = vec![gateway.memory_kb()];
    let changes: usize = count.unwrap_or(20);
    for version in 1..=changes {
        if count.is_some() {
            seconds.tick().await;
        }
        assert!(gateway.reconfigure(&configuration(&issuer, version)).await);
        gateway.until_everywhere(&by_key(&format!("key_{version}")), 200).await;
        gateway.until_everywhere(&by_key(&format!("key_{}", version - 1)), 401).await;
        if version % 5 == 0 {
            assert!(!gateway.reconfigure(&json!({"mode": "shadow"})).await, "this configuration is not valid");
        }
        if version % changes.div_ceil(5) == 0 {
            memory.push(gateway.memory_kb());
        }
    }
    loads.until_answered(500).await;
    assert_eq!(loads.stop(&format!("{changes} configurations")).await, 0);
    println!("Envoy's VmRSS during the changes, in kB: {memory:?}");
    assert_eq!(issuer.requests(), 1, "the key set outlives the configuration");
}
