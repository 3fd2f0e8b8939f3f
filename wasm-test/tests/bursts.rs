//! A burst does not switch off the limits of its own org, even if it exceeds the capacity of Envoy and of the rate
//! limit service.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wasm_test::attack::{Attack, Unfinished, Version};
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::load::Load;
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::rate_limit::RateLimitService;
use wasm_test::upstream;

/// Connections, and requests on each connection: 5,000 concurrent requests.
const BURST: (usize, usize) = (50, 100);

/// Two orgs. One of them may send a single request a day. The service counts requests; if it does not answer, requests
/// pass.
fn limited() -> Value {
    let limits = json!({"rate": {"requests": 1, "per": "day", "burst": 1}});
    let orgs = json!({
        "limited": {"api_keys": [api_key_record("key_limited")], "limits": limits},
        "neighbor": {"api_keys": [api_key_record("key_all")], "limits": {"monthly_quota": 1_000_000_000}},
    });
    // The timeout is long, so that a busy machine does not cause errors.
    let service = json!({"cluster": "ratelimit", "timeout": "10s", "on_error": "allow"});
    merged(plugin(&orgs), &json!({"limits": {"store": "rate_limit_service", "rate_limit_service": service}}))
}

fn neighbor() -> Request {
    Request::tools_list("/mcp/neighbor").api_key(&api_key("key_all"))
}

fn of_limited() -> Unfinished {
    Unfinished::post("/mcp/limited", 0).header("x-api-key", &api_key("key_limited"))
}

async fn burst(gateway: &Gateway) -> BTreeMap<u16, usize> {
    let mut attack = Attack::new(gateway.client().authority(), Version::Http2);
    attack.wave(&[of_limited()], BURST.0, BURST.1).await;
    eventually("all requests are answered", async || (attack.tally().waiting() == 0).then_some(())).await;
    attack.tally().answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_counted_and_delays_no_other_org() {
    let service = RateLimitService::start().await;
    let upstream = upstream::start().await;
    let gateway = Setup::new(limited()).rate_limit_service(service.port()).start(&upstream).await;
    gateway.until_everywhere(&neighbor(), 200).await;
    let load = Load::start(gateway.client(), vec![neighbor()]);

    // The first request of the day passes. The others exceed the limit, or too many requests to the service are open.
    assert_eq!(burst(&gateway).await, BTreeMap::from([(200, 1), (429, 4_999)]));
    // When a client leaves, its request to the service stays open, and counts until the service answers.
    for _ in 0..5 {
        let mut attack = Attack::new(gateway.client().authority(), Version::Http2);
        attack.wave(&[of_limited()], 10, 100).await;
        attack.hang_up().await;
        assert_eq!(attack.tally().answers.get(&200), None);
    }
    assert_eq!(burst(&gateway).await, BTreeMap::from([(429, 5_000)]));

    let (sent, refused) = load.stop().await;
    assert!(sent > 0 && refused.is_empty(), "of {sent} requests, these were refused: {refused:?}");
    gateway.until_active(0).await;
}

/// Many workers together may send more requests to the service than the circuit breaker allows. A small circuit
/// breaker has the same effect.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_passes_uncounted_while_the_circuit_breaker_is_full() {
    let mut service = RateLimitService::start().await;
    let upstream = upstream::start().await;
    let gateway = Setup::new(limited()).circuit_breaker(20).rate_limit_service(service.port()).start(&upstream).await;
    gateway.until_everywhere(&neighbor(), 200).await;
    assert_eq!(burst(&gateway).await, BTreeMap::from([(200, 1), (429, 4_999)]));

    // If the service is not available, requests pass.
    service.stop_service();
    gateway.until_everywhere(&Request::tools_list("/mcp/limited").api_key(&api_key("key_limited")), 200).await;
}
