//! A real identity provider. Its keys are rotated, and it is killed, while requests run.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use wasm_test::eventually;
use wasm_test::gateway::{Setup, plugin};
use wasm_test::http::Request;
use wasm_test::load::{Loads, Stranger, strangers};
use wasm_test::policy::merged;
use wasm_test::provider::Provider;
use wasm_test::token::Key;
use wasm_test::upstream::{self, Arrived};

fn call(token: &str) -> Request {
    Request::tools_list("/mcp/acme").bearer(token)
}

/// Requests that must be refused, with the claims of this token of the provider. Another key signs all of them, because the
/// provider does not give out its private key.
fn all_strangers(token: &str) -> Vec<Stranger> {
    let part = |index| {
        let part = token.split('.').nth(index).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok());
        serde_json::from_slice::<Value>(&part.expect("base64url")).expect("JSON")
    };
    let key = Key::first(part(0)["kid"].as_str().expect("a kid"));
    strangers(&Request::tools_list("/mcp/acme"), [(&key, part(1))])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_rotation_refuses_no_valid_request() {
    const ROTATIONS: usize = 5;
    let upstream = upstream::start().await;
    let provider = Provider::start().await;
    let orgs = json!({"acme": {"identity_providers": [provider.record()]}});
    let gateway = Setup::new(plugin(&orgs)).workers(2).start(&upstream).await;

    let first = provider.token("scope=mcp:call").await;
    let loads = Loads::start(gateway.client(), vec![call(&first)], all_strangers(&first));
    loads.until_answered(500).await;
    for _ in 0..ROTATIONS {
        provider.rotate().await;
        let token = provider.token("scope=mcp:call").await;
        loads.add(call(&token));
        loads.until_answered(500).await;
    }
    assert_eq!(loads.stop(&format!("{ROTATIONS} rotations")).await, 0);
    let fetches = provider.jwks_requests().await;
    assert_eq!(fetches, 1 + ROTATIONS as u64, "one fetch for each key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_known_keys_pass_while_their_provider_is_down() {
    let upstream = upstream::start().await;
    let mut provider = Provider::start().await;
    let orgs = json!({"acme": {"identity_providers": [provider.record()]}});
    let jwks = json!({"jwks": {"http_cluster": "jwks_http", "refresh_interval": "1s", "refetch_cooldown": "10ms"}});
    let gateway = Setup::new(merged(plugin(&orgs), &jwks)).workers(2).start(&upstream).await;

    let known = provider.token("scope=mcp:call").await;
    let loads = Loads::start(gateway.client(), vec![call(&known)], all_strangers(&known));
    let unused = provider.token("scope=mcp:call").await;
    loads.until_answered(500).await;
    provider.kill();
    let failures = async || gateway.fetched("failure").await;
    eventually("failed refreshes", async || (failures().await >= 2).then_some(())).await;
    gateway.admits("a token not seen before", &call(&unused)).await;

    provider.revive().await;
    provider.rotate().await;
    let token = provider.token("scope=mcp:call").await;
    gateway.admits("a token of the new key", &call(&token)).await;
    loads.add(call(&token));
    loads.until_answered(500).await;
    assert_eq!(loads.stop("killed and revived").await, 0);
}

#[tokio::test]
async fn a_provider_that_is_down_at_start_is_used_when_it_returns() {
    let upstream = upstream::start().await;
    let mut provider = Provider::start().await;
    let token = provider.token("scope=mcp:call").await;
    provider.kill();
    let orgs = json!({"acme": {"identity_providers": [provider.record()]}});
    let gateway = Setup::new(plugin(&orgs)).start(&upstream).await;
    let refusal = gateway.refuses("no key set", &call(&token)).await;
    assert_eq!((refusal.status, &*refusal.reason, refusal.challenge), (503, "jwks_unavailable", None));
    assert!(refusal.retry_after.is_some());
    provider.revive().await;
    eventually("the key set is fetched", async || Arrived::of(&gateway.send(&call(&token)).await)).await;
}

#[tokio::test]
async fn scopes_and_audiences_of_a_provider_are_enforced() {
    let upstream = upstream::start().await;
    let provider = Provider::start().await;
    let orgs = json!({"acme": {"identity_providers": [provider.record()]}});
    let gateway = Setup::new(plugin(&orgs)).start(&upstream).await;
    let at = |path: &str, token: &str| Request::tools_list(path).bearer(token);
    let notes = provider.token("scope=mcp:call:notes").await;
    gateway.admits("its connector", &at("/mcp/acme/notes", &notes)).await;
    let foreign = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "clock__now"}}).to_string();
    for request in [at("/mcp/acme/clock", &notes), at("/mcp/acme", &notes).body(foreign)] {
        assert_eq!(gateway.refuses(request.path(), &request).await.reason, "scope_insufficient");
    }
    let elsewhere = provider.token("scope=mcp:call&resource=urn:elsewhere").await;
    assert_eq!(gateway.refuses("another audience", &call(&elsewhere)).await.reason, "audience_mismatch");
}
