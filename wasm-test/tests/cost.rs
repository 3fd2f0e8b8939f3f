//! The cost of a request, counted instead of timed: the calls between Envoy and the module, and the size of the
//! module. The counts come from Envoy's trace log. A higher number is not a fault, but it must be intended.

use std::collections::BTreeMap;

use serde_json::json;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::issuer::Issuer;
use wasm_test::module::Module;
use wasm_test::policy::{api_key, api_key_record};
use wasm_test::token::Key;
use wasm_test::{eventually, repository, upstream};

/// Detects growth that nobody intended.
const MAX_MODULE_BYTES: u64 = 2_180_000;
/// The first and the last callback of a stream. The other callbacks of its request lie between them.
const BEGIN: &str = "proxy_on_context_create";
const END: &str = "proxy_on_delete";

/// The hostcalls of the module during one request, by name.
async fn hostcalls(gateway: &Gateway, request: &Request) -> BTreeMap<String, u32> {
    let start = gateway.log().len();
    gateway.send(request).await;
    let log = eventually("the stream's end in the trace", async || {
        let log = gateway.log().split_off(start);
        log.contains(&format!("[host<-vm] {END}")).then_some(log)
    })
    .await;
    assert!(log.contains(&format!("[host->vm] {BEGIN}")), "{log}");
    let (mut hostcalls, mut callback) = (BTreeMap::new(), "");
    for line in log.lines() {
        let call = |sign: &str| Some(line.split_once(sign)?.1.split(['(', ' ']).next()?.trim_start_matches("env.proxy_"));
        // Envoy allocates memory inside a hostcall, so this callback does not replace the current one.
        if let Some(name) = call("[host->vm] ").filter(|name| *name != "proxy_on_memory_allocate") {
            callback = name;
        } else if let Some(name) = call("[vm->host] ").filter(|_| callback != "proxy_on_tick") {
            *hostcalls.entry(name.to_owned()).or_insert(0) += 1;
        } else if callback == END && call("[host<-vm] ") == Some(END) {
            break;
        }
    }
    hostcalls
}

fn counts<const N: usize>(counts: [(&str, u32); N]) -> BTreeMap<String, u32> {
    counts.map(|(name, count)| (name.to_owned(), count)).into()
}

#[tokio::test]
async fn a_request_makes_only_the_expected_hostcalls() {
    if Module::is_native("it makes no hostcalls") {
        return;
    }
    let key = Key::first("first");
    let issuer = Issuer::start(&[&key]).await;
    let upstream = upstream::start().await;
    let policy = json!({"acme": {"api_keys": [api_key_record("key_all")], "identity_providers": [issuer.record()]}});
    let gateway = Setup::new(plugin(&policy)).start(&upstream).await;
    let with_key = Request::tools_list("/mcp/acme").api_key(&api_key("key_all"));
    let with_token = Request::tools_list("/mcp/acme").bearer(&key.token(&issuer.claims()));
    let refused = Request::tools_list("/mcp/acme").api_key(&api_key("key_none"));
    // Each thread does some work only once: it defines metrics, fetches keys, and verifies the token.
    for request in [&with_key, &with_token, &with_token, &refused] {
        gateway.send(request).await;
    }
    gateway.admin().send(&Request::post("/logging?wasm=trace")).await;

    let admitted = [
        ("get_header_map_pairs", 1),
        ("get_current_time_nanoseconds", 1),
        ("remove_header_map_value", 1),
        ("add_header_map_value", 5),
        ("set_property", 6),
    ];
    let with = |more| counts(admitted).into_iter().chain(counts([more])).collect::<BTreeMap<_, _>>();
    assert_eq!(hostcalls(&gateway, &with_key).await, with(("increment_metric", 1)));
    assert_eq!(hostcalls(&gateway, &with_token).await, with(("increment_metric", 2)));
    let expected = [
        ("get_header_map_pairs", 1),
        ("get_current_time_nanoseconds", 1),
        ("increment_metric", 1),
        ("set_property", 1),
        ("send_local_response", 1),
    ];
    assert_eq!(hostcalls(&gateway, &refused).await, counts(expected));
}

#[test]
fn the_module_stays_within_its_size_limit() {
    let bytes = repository().join("dist/apexmcp_auth.wasm").metadata().expect("the module").len();
    assert!(bytes <= MAX_MODULE_BYTES, "the module has {bytes} bytes, the limit is {MAX_MODULE_BYTES}");
}
