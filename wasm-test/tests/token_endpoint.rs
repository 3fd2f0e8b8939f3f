//! Gateway tokens from the smallest gateway: what there is to see in each Envoy, also where the module has to sign itself.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use wasm_test::gateway::{ORIGIN, Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::oauth::{self, ORG, PrivateKey, SECRET, WITH_SECRET, token_request};
use wasm_test::token::{Key, now};
use wasm_test::upstream;

#[tokio::test]
async fn a_token_is_issued_and_admitted() {
    let upstream = upstream::start().await;
    let policy = oauth::policy(&json!([PrivateKey::new().record("a")]), &PrivateKey::new());
    let plugin = json!({"gateway": {"origin": ORIGIN}, "policy": {"inline": policy}});
    let gateway = Setup::new(plugin).start(&upstream).await;

    let reply = gateway.send(&token_request(SECRET)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let token = reply.json();
    assert_eq!((&token["token_type"], &token["expires_in"]), (&json!("Bearer"), &json!(3600)));
    let token = token["access_token"].as_str().expect("a token");
    let path = format!("/mcp/{ORG}");
    let arrived = gateway.admits("its token", &Request::tools_list(&path).bearer(token)).await;
    assert_eq!(arrived.headers_below("x-apexmcp-")["principal"], format!("{ORG}/client/{WITH_SECRET}"));

    let (rest, signature) = token.rsplit_once('.').expect("three parts");
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{rest}.{other}{}", signature.get(1..).expect("a signature"));
    let refusal = gateway.refuses("a forged one", &Request::tools_list(&path).bearer(&forged)).await;
    assert_eq!(refusal.reason, "signature_invalid");
    assert_eq!(gateway.send(&token_request("apx_secret_zzzzzzzzzzzzzzzzzzzzzzzz")).await.status, 401);
    let keys = gateway.send(&Request::get("/.well-known/jwks.json")).await.json();
    assert_eq!(keys["keys"][0]["kid"], "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assertion_that_comes_many_times_at_once_serves_once() {
    const AT_ONCE: usize = 64;
    // Each client has its own: who fails ten times in a worker has to wait there.
    const CLIENTS: usize = 10;
    let (key, upstream) = (Key::first("a"), upstream::start().await);
    let id = |number: usize| format!("apx_client_{number}");
    let record = |number| json!({"client_id": id(number), "jwks": {"keys": [key.jwk()]}, "scopes": ["mcp:call"]});
    let records: Vec<Value> = (0..CLIENTS).map(record).collect();
    let mut issuing = plugin(&json!({ ORG: {"oauth_clients": records}}));
    issuing["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("k")]);
    let gateway = Setup::new(issuing).workers(4).start(&upstream).await;
    // Each has a connection already, and with so many each worker has some.
    let clients: Vec<Client> = (0..AT_ONCE).map(|_| Client::new(gateway.client().authority())).collect();
    for client in &clients {
        assert_eq!(client.send(&Request::get("/.well-known/jwks.json")).await.status, 200);
    }
    let (mut refused, mut held_up) = (0, 0);
    for id in (0..CLIENTS).map(id) {
        let assertion = key.token(&json!({"iss": id, "sub": id, "aud": ORIGIN, "jti": "once", "iat": now(), "exp": now() + 300}));
        let (all_are_ready, mut sent) = (Arc::new(Barrier::new(AT_ONCE)), JoinSet::new());
        for client in clients.clone() {
            let (all_are_ready, request) = (Arc::clone(&all_are_ready), oauth::assertion_request(&assertion));
            sent.spawn(async move {
                all_are_ready.wait().await;
                client.send(&request).await
            });
        }
        let replies = sent.join_all().await;
        let count = |status: u16, error: &str| {
            replies.iter().filter(|reply| reply.status == status && reply.json()["error"].as_str().unwrap_or("") == error).count()
        };
        let counts = [count(200, ""), count(401, "invalid_client"), count(429, "rate_limited")];
        assert_eq!((counts[0], counts.iter().sum::<usize>()), (1, AT_ONCE), "{counts:?}: {replies:?}");
        refused += counts[1];
        held_up += counts[2];
    }
    println!("{CLIENTS} assertions, each {AT_ONCE} times at once: {CLIENTS} served, {refused} refused, {held_up} held up");
}
