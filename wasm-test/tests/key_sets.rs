//! The life of a key set. It is fetched once for all workers, awaited, refreshed, and kept while the provider fails. Clients
//! cannot use it to overload the provider.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::{Reply, Request};
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::token::Key;
use wasm_test::upstream::{self, Arrived};

fn trusting(issuer: &Issuer, jwks: &Value) -> Setup {
    let orgs = json!({
        "acme": {"identity_providers": [issuer.record()], "api_keys": [api_key_record("key_all")]},
        "other": {"identity_providers": [issuer.record()]},
    });
    let jwks = merged(json!({"http_cluster": "jwks_http"}), jwks);
    Setup::new(merged(plugin(&orgs), &json!({ "jwks": jwks })))
}

fn call(token: &str) -> Request {
    Request::tools_list("/mcp/acme").bearer(token)
}

/// A request with a new token, which no cache contains.
fn fresh(issuer: &Issuer, key: &Key) -> Request {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let sub = format!("agent-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    call(&key.token(&issuer.claims_with(&json!({ "sub": sub }))))
}

/// Sends requests at the same time, each on its own connection.
fn send_all(gateway: &Gateway, requests: impl IntoIterator<Item = Request>) -> JoinSet<Reply> {
    let mut sent = JoinSet::new();
    for request in requests {
        let client = gateway.client().clone();
        sent.spawn(async move { client.send(&request).await });
    }
    sent
}

#[tokio::test]
async fn requests_wait_for_the_first_fetch_which_all_workers_share() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    for holding_bodies in [false, true] {
        let issuer = Issuer::start(&[]).await;
        issuer.behave(Behaviour::Hang);
        let setup = trusting(&issuer, &json!({"timeout": "60s"})).workers(3);
        let gateway = if holding_bodies { setup.holding_bodies() } else { setup }.start(&upstream).await;
        let arrived_before = upstream.requests();

        let body = |index: usize| vec![b'x'; index * 20_000];
        let requests: Vec<Request> = (0..12).map(|index| fresh(&issuer, &key).body(body(index))).collect();
        let forged = call(&Key::second("a").token(&issuer.claims()));
        let waiting = send_all(&gateway, requests.into_iter().chain([forged]));
        gateway.until_active(13).await;
        gateway.admits("a request that needs no key set", &Request::post("/mcp/acme").api_key(&api_key("key_all"))).await;
        let expired = call(&key.token(&issuer.claims_with(&json!({"exp": 1}))));
        assert_eq!(gateway.refuses("an expired token, which needs no key set", &expired).await.reason, "token_expired");
        assert_eq!(upstream.requests(), arrived_before + 1, "no request is forwarded before it is decided");

        issuer.publish(&[&key]);
        let replies = waiting.join_all().await;
        let mut arrived: Vec<usize> = replies.iter().filter_map(Arrived::of).map(|arrived| arrived.body.len()).collect();
        arrived.sort_unstable();
        let refused: Vec<u16> = replies.iter().map(|reply| reply.status).filter(|status| *status != 200).collect();
        assert_eq!(arrived, (0..12).map(|index| body(index).len()).collect::<Vec<_>>(), "all bodies arrive whole");
        assert_eq!(refused, [401], "the forged one");
        let elsewhere = Request::tools_list("/mcp/other").bearer(&key.token(&issuer.claims()));
        gateway.admits("another org that trusts the same provider", &elsewhere).await;
        assert_eq!(issuer.requests(), 1, "one fetch for two orgs, three workers and all requests");
        assert_eq!(gateway.fetched("success").await, 1);
    }
}

#[tokio::test]
async fn the_waiting_time_is_limited() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[]).await;
    issuer.behave(Behaviour::Hang);
    let gateway = trusting(&issuer, &json!({"timeout": "300ms"})).start(&upstream).await;
    let refusal = gateway.refuses("no keys in time", &fresh(&issuer, &key)).await;
    assert_eq!((refusal.status, &*refusal.reason, refusal.challenge), (503, "jwks_unavailable", None));
    assert!(refusal.retry_after.is_some());
    issuer.publish(&[&key]);
    eventually("the provider answers in time", async || Arrived::of(&gateway.send(&fresh(&issuer, &key)).await)).await;
}

#[tokio::test]
async fn the_number_of_waiting_requests_is_limited() {
    const MOST: usize = 1024;
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[]).await;
    issuer.behave(Behaviour::Hang);
    let gateway = trusting(&issuer, &json!({"timeout": "60s"})).start(&upstream).await;
    let token = call(&key.token(&issuer.claims()));
    let mut waiting = send_all(&gateway, vec![token; MOST + 50]);
    for _ in 0..50 {
        let reply = waiting.join_next().await.expect("a reply").expect("no panic");
        assert_eq!((reply.status, reply.json()["reason"].as_str()), (503, Some("overloaded")));
    }
    gateway.until_active(MOST as u64).await;
    issuer.publish(&[&key]);
    assert!(waiting.join_all().await.iter().all(|reply| reply.status == 200), "the others passed");
}

#[tokio::test]
async fn clients_may_hang_up_while_they_wait() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[]).await;
    issuer.behave(Behaviour::Hang);
    let gateway = trusting(&issuer, &json!({"timeout": "60s"})).workers(2).start(&upstream).await;
    let token = call(&key.token(&issuer.claims()));
    let mut leaving = send_all(&gateway, vec![token.clone(); 20]);
    gateway.until_active(20).await;
    let staying = send_all(&gateway, vec![token.clone(); 5]);
    gateway.until_active(25).await;
    leaving.shutdown().await;
    gateway.until_active(5).await;
    issuer.publish(&[&key]);
    assert!(staying.join_all().await.iter().all(|reply| reply.status == 200));
    gateway.admits("a request after the hang-ups", &token).await;
    assert_eq!(upstream.requests(), 6, "requests of clients that left are not forwarded");
}

#[tokio::test]
async fn an_answer_that_is_no_key_set_is_rejected() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let answer = |status, body: &str| Behaviour::Document { status, body: body.to_owned() };
    let keys = |count: usize| json!({"keys": vec![key.jwk(); count]}).to_string();
    let huge = json!({"keys": [key.jwk()], "pad": "x".repeat(300_000)}).to_string();
    let table = [
        ("hangs up", Behaviour::HangUp),
        ("500", answer(500, &keys(1))),
        ("404", answer(404, &keys(1))),
        ("302", answer(302, &keys(1))),
        ("204", answer(204, "")),
        ("HTML", answer(200, "<html><body>Log in</body></html>")),
        ("empty", answer(200, "")),
        ("no keys", answer(200, r#"{"keys":[]}"#)),
        ("no set", answer(200, r#"{"issuer":"https://idp.example"}"#)),
        ("an array", answer(200, &json!([key.jwk()]).to_string())),
        ("cut off", answer(200, &keys(1)[..100])),
        ("oversized", answer(200, &huge)),
        ("too many keys", answer(200, &keys(101))),
        ("keys named twice", answer(200, &format!(r#"{{"keys":[],{}"#, &keys(1)[1..]))),
    ];
    let mut issuers = Vec::new();
    for (what, behaviour) in table {
        let issuer = Issuer::start(&[]).await;
        issuer.behave(behaviour.clone());
        issuers.push((what, behaviour, issuer));
    }
    let records: Vec<Value> = issuers.iter().map(|(.., issuer)| issuer.record()).collect();
    let orgs = json!({"acme": {"identity_providers": records}});
    let jwks = json!({"jwks": {"http_cluster": "jwks_http", "refresh_interval": "1s"}});
    let gateway = Setup::new(merged(plugin(&orgs), &jwks)).workers(2).start(&upstream).await;
    for (what, _, issuer) in &issuers {
        let refusal = gateway.refuses(what, &fresh(issuer, &key)).await;
        assert_eq!((refusal.status, &*refusal.reason), (503, "jwks_unavailable"), "{what}");
    }
    // A provider that recovers is used. When it breaks again, the fetched keys stay in use.
    for (_, _, issuer) in &issuers {
        issuer.publish(&[&key]);
    }
    for (what, _, issuer) in &issuers {
        eventually(what, async || Arrived::of(&gateway.send(&fresh(issuer, &key)).await)).await;
    }
    let successes = gateway.fetched("success").await;
    for (_, behaviour, issuer) in &issuers {
        issuer.behave(behaviour.clone());
    }
    let before: Vec<usize> = issuers.iter().map(|(.., issuer)| issuer.requests()).collect();
    for ((what, _, issuer), before) in issuers.iter().zip(before) {
        // The second attempt begins after the first one was evaluated.
        eventually("two attempts", async || (issuer.requests() >= before + 2).then_some(())).await;
        gateway.admits(what, &fresh(issuer, &key)).await;
    }
    assert!(successes >= issuers.len() as u64);
    assert!(gateway.fetched("failure").await >= 2 * issuers.len() as u64);
}

#[tokio::test]
async fn stale_keys_are_used_for_a_limited_time() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[&key]).await;
    let jwks = json!({"refresh_interval": "1s", "max_stale": "20s"});
    let gateway = trusting(&issuer, &jwks).start(&upstream).await;
    let known = fresh(&issuer, &key);
    gateway.admits("at first", &known).await;
    issuer.behave(Behaviour::HangUp);
    let failures = async || gateway.fetched("failure").await;
    eventually("a failed refresh", async || (failures().await > 0).then_some(())).await;
    gateway.admits("with stale keys", &fresh(&issuer, &key)).await;
    let is_refused = async |request: &Request| {
        let reply = gateway.send(request).await;
        (reply.json()["reason"] == "jwks_unavailable").then_some(())
    };
    eventually("the stale keys are refused", async || is_refused(&fresh(&issuer, &key)).await).await;
    eventually("tokens that were verified before are refused", async || is_refused(&known).await).await;
    issuer.publish(&[&key]);
    eventually("the provider is back", async || Arrived::of(&gateway.send(&fresh(&issuer, &key)).await)).await;
}

#[tokio::test]
async fn a_refresh_brings_new_keys_and_drops_old_ones() {
    let upstream = upstream::start().await;
    let (old, new) = (Key::first("old"), Key::second("new"));
    let issuer = Issuer::start(&[&old]).await;
    let gateway = trusting(&issuer, &json!({"refresh_interval": "1s"})).workers(2).start(&upstream).await;
    let by_old = fresh(&issuer, &old);
    gateway.admits("the old key", &by_old).await;
    issuer.publish(&[&new]);
    let reason = async |request: &Request| gateway.send(request).await.json()["reason"].as_str().map(str::to_owned);
    let is_unknown = async || (reason(&by_old).await? == "key_unknown").then_some(());
    eventually("the old key is refused, verified before or not", is_unknown).await;
    gateway.admits("the new key", &fresh(&issuer, &new)).await;
}

#[tokio::test]
async fn an_unknown_kid_causes_one_fetch_and_then_a_cool_down() {
    let upstream = upstream::start().await;
    let (old, new) = (Key::first("old"), Key::second("new"));
    let issuer = Issuer::start(&[&old]).await;
    let gateway = trusting(&issuer, &json!({"refetch_cooldown": "1h"})).workers(2).start(&upstream).await;
    gateway.admits("the old key", &fresh(&issuer, &old)).await;
    assert_eq!(issuer.requests(), 1);
    issuer.publish(&[&old, &new]);
    let requests: Vec<Request> = (0..20).map(|_| fresh(&issuer, &new)).collect();
    let replies = send_all(&gateway, requests).join_all().await;
    assert!(replies.iter().all(|reply| reply.status == 200), "all requests with the new key are admitted");
    assert_eq!(issuer.requests(), 2, "one fetch serves all");
    let made_up = Key::first("made-up");
    for _ in 0..5 {
        assert_eq!(gateway.refuses("a made-up kid", &fresh(&issuer, &made_up)).await.reason, "key_unknown");
    }
    assert_eq!(issuer.requests(), 3, "one more fetch, which found nothing, and none during the cool-down");
    gateway.admits("the known key is still accepted", &fresh(&issuer, &old)).await;
}

#[tokio::test]
async fn a_rotated_key_without_kid_is_fetched() {
    let upstream = upstream::start().await;
    let (old, new) = (Key::first("old"), Key::second("new"));
    let issuer = Issuer::start(&[&old]).await;
    let gateway = trusting(&issuer, &json!({})).start(&upstream).await;
    let nameless = |key: &Key| call(&key.token_with(&json!({"alg": "RS256"}), &issuer.claims()));
    gateway.admits("the old key", &nameless(&old)).await;
    issuer.publish(&[&new]);
    gateway.admits("the new key", &nameless(&new)).await;
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test]
async fn ten_thousand_made_up_kids_cause_few_fetches() {
    const REQUESTS: usize = 10_000;
    const COOLDOWN: Duration = Duration::from_secs(2);
    let upstream = upstream::start().await;
    let key = Key::first("real");
    let issuer = Issuer::start(&[&key]).await;
    let gateway = trusting(&issuer, &json!({"refetch_cooldown": "2s"})).workers(2).start(&upstream).await;
    gateway.admits("the real key", &fresh(&issuer, &key)).await;
    // The signature is never checked, so one signature serves all tokens.
    let good = key.token(&issuer.claims());
    let (_, rest) = good.split_once('.').expect("a token");
    let rest = rest.to_owned();

    let began = Instant::now();
    let mut attackers = JoinSet::new();
    for attacker in 0..20 {
        let (client, rest, good) = (gateway.client().clone(), rest.clone(), call(&good));
        attackers.spawn(async move {
            for index in 0..REQUESTS / 20 {
                let header = json!({"alg": "RS256", "kid": format!("{attacker}-{index}")});
                let token = format!("{}.{rest}", wasm_test::token::base64url(header.to_string()));
                let reply = client.send(&call(&token)).await;
                assert_eq!((reply.status, reply.json()["reason"].as_str()), (401, Some("key_unknown")));
                if index % 50 == 0 {
                    assert_eq!(client.send(&good).await.status, 200, "a valid token passes during the attack");
                }
            }
        });
    }
    attackers.join_all().await;
    let took = began.elapsed();
    let allowed = 1 + 1 + (took.as_secs_f64() / COOLDOWN.as_secs_f64()).ceil() as usize;
    println!("{REQUESTS} made-up kids in {took:?}: {} fetches, {allowed} allowed", issuer.requests());
    assert!((2..=allowed).contains(&issuer.requests()), "{} fetches, {allowed} allowed", issuer.requests());
    assert_eq!(gateway.fetched("success").await, issuer.requests() as u64);
}
