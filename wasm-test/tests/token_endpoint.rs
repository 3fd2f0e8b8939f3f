//! Gateway tokens from the smallest gateway: what there is to see in each Envoy, also where the module has to sign itself.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use wasm_test::gateway::{ORIGIN, Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::oauth::{
    self, ORG, PrivateKey, SECRET, WITH_KEY, WITH_SECRET, assertion_request, token_request, token_request_of,
};
use wasm_test::policy::sha256;
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
    let mut refused = 0;
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
        let counts = [count(200, ""), count(401, "invalid_client")];
        assert_eq!(counts, [1, AT_ONCE - 1], "{replies:?}");
        refused += counts[1];
    }
    println!("{CLIENTS} assertions, each {AT_ONCE} times at once: {CLIENTS} served, {refused} refused");
}

/// After ten wrong secrets for a client id, the next one must wait. An attacker that knows the id must not stop the client's
/// other method with them. The answers must not reveal which ids exist.
#[tokio::test]
async fn wrong_secrets_stop_no_assertion_and_forged_assertions_stop_nothing() {
    const WITH_BOTH: &str = "apx_client_both0000";
    const UNKNOWN: &str = "apx_client_unknown0";
    let (key, foreign, upstream) = (Key::first("a"), Key::second("a"), upstream::start().await);
    let jwks = json!({"keys": [key.jwk()]});
    let clients = json!([
        {"client_id": WITH_SECRET, "secret_sha256": [sha256(SECRET)], "scopes": ["mcp:call"]},
        {"client_id": WITH_KEY, "jwks": jwks, "scopes": ["mcp:call"]},
        {"client_id": WITH_BOTH, "secret_sha256": [sha256(SECRET)], "jwks": jwks, "scopes": ["mcp:call"]},
    ]);
    let mut issuing = plugin(&json!({ ORG: {"oauth_clients": clients}}));
    issuing["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("k")]);
    let gateway = Setup::new(issuing).start(&upstream).await;
    let assertion = |key: &Key, id: &str, jti: &str| {
        key.token(&json!({"iss": id, "sub": id, "aud": ORIGIN, "jti": jti, "iat": now(), "exp": now() + 300}))
    };
    let post = async |request: &Request| {
        let reply = gateway.send(request).await;
        (reply.status, reply.header("retry-after").map(str::to_owned), reply.json()["error_description"].clone())
    };

    // Forged assertions come first, while no secret has to wait yet.
    for id in [WITH_KEY, WITH_BOTH, UNKNOWN] {
        for number in 0..30 {
            let forged = assertion(&foreign, id, &number.to_string());
            assert_eq!(post(&assertion_request(&forged)).await.0, 401, "{id}");
        }
        let good = assertion(&key, id, "after forged ones");
        assert_eq!(post(&assertion_request(&good)).await.0, if id == UNKNOWN { 401 } else { 200 }, "{id}");
    }
    assert_eq!(post(&token_request_of(WITH_BOTH, SECRET)).await.0, 200, "forged assertions stop no secret");

    // Wrong secrets, in the form and by Basic. The number of seconds to wait depends on the moment.
    let mut answers = Vec::new();
    for id in [WITH_SECRET, WITH_KEY, WITH_BOTH, UNKNOWN] {
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:apx_secret_zzzzzzzzzzzzzzzzzzzzzzzz")));
        let form = Request::post("/oauth/token").header("content-type", "application/x-www-form-urlencoded");
        let by_basic = form.header("authorization", basic).body("grant_type=client_credentials");
        let by_form = token_request_of(id, "apx_secret_zzzzzzzzzzzzzzzzzzzzzzzz");
        let mut statuses = Vec::new();
        for request in [&by_form, &by_basic].repeat(6) {
            let (status, retry_after, description) = post(request).await;
            statuses.push((status, retry_after.is_some(), description));
        }
        answers.push(statuses);
        for number in 0..12 {
            let good = assertion(&key, id, &format!("after wrong secrets {number}"));
            let expected = if [WITH_KEY, WITH_BOTH].contains(&id) { 200 } else { 401 };
            assert_eq!(post(&assertion_request(&good)).await.0, expected, "{id} {number}");
        }
    }
    let statuses: Vec<u16> = answers[0].iter().map(|(status, ..)| *status).collect();
    assert_eq!(statuses, [vec![401; 10], vec![429; 2]].concat());
    assert!(answers.iter().all(|one| *one == answers[0]), "{answers:#?}");
}
