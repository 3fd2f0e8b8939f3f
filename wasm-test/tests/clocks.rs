//! Envoy's clock jumps under load. Every decision uses the time that the clock shows at that moment, and times that
//! were recorded with a wrong clock block nothing later. Runs only on Linux, where a preloaded library can shift the
//! clock.
#![cfg(target_os = "linux")]

use serde_json::{Value, json};
use wasm_test::clock::Clock;
use wasm_test::gateway::{Gateway, ORIGIN, Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::load::{Loads, strangers};
use wasm_test::policy::{api_key, api_key_record, merged, sha256};
use wasm_test::settings::{Settings, TOKEN};
use wasm_test::token::{Key, now};
use wasm_test::{eventually, oauth, upstream};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const AHEAD: i64 = HOUR - 600;
/// 2019-01-01T00:00:00Z
const LONG_AGO: i64 = 1_546_300_800;
/// Validity of tokens that are valid at every time to which the clock jumps.
const EVER: [i64; 2] = [1_000_000_000, 4_000_000_000];

fn by_token(token: &str) -> Request {
    Request::tools_list("/mcp/acme").bearer(token)
}

fn by_key(id: &str) -> Request {
    Request::tools_list("/mcp/acme").api_key(&api_key(id))
}

/// A token of `issuer` that is valid between these times. Each call returns a different token.
fn token(key: &Key, issuer: &Issuer, [iat, exp]: [i64; 2]) -> String {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let id = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
    key.token(&issuer.claims_with(&json!({"iat": iat, "exp": exp, "jti": id})))
}

fn assertion(key: &Key, id: &str, iat: i64, life: i64) -> Request {
    let claims = json!({
        "iss": oauth::WITH_KEY, "sub": oauth::WITH_KEY, "aud": ORIGIN, "jti": id, "iat": iat, "exp": iat + life,
    });
    oauth::assertion_request(&key.token(&claims))
}

/// Checks the status of a request and the reason of a refusal, on several connections, so that each worker answers.
async fn is_everywhere(gateway: &Gateway, what: &str, request: &Request, status: u16, reason: &str) {
    for _ in 0..8 {
        let reply = Client::new(gateway.client().authority()).send(request).await;
        let told = reply.json()["reason"].as_str().unwrap_or_default().to_owned();
        assert_eq!((reply.status, told.as_str()), (status, reason), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_follow_the_clock() {
    let clock = Clock::new().await;
    let (key, other) = (Key::first("a"), Key::second("a"));
    let issuer = Issuer::start(&[&key]).await;
    let until = jiff::Timestamp::from_second(now() + HOUR / 2).expect("a moment").to_string();
    let mut configuration = plugin(&json!({"acme": {
        "api_keys": [api_key_record("key_ever"), merged(api_key_record("key_short"), &json!({"expires_at": until}))],
        "oauth_clients": [
            {"client_id": oauth::WITH_SECRET, "secret_sha256": [sha256(oauth::SECRET)], "scopes": ["mcp:call"]},
            {"client_id": oauth::WITH_KEY, "jwks": {"keys": [key.jwk()]}, "scopes": ["mcp:call"]},
        ],
        "identity_providers": [issuer.record()],
        "limits": {"rate": {"requests": 1_000_000, "per": "second"}, "monthly_quota": 1_000_000_000},
    }}));
    configuration["policy"]["inline"]["signing_keys"] = json!([oauth::PrivateKey::new().record("k")]);
    let upstream = upstream::start().await;
    let gateway = Setup::new(configuration).workers(2).clock(&clock).start(&upstream).await;

    let short = token(&key, &issuer, [now(), now() + HOUR / 2]);
    let ever = token(&key, &issuer, EVER);
    let own =
        gateway.send(&oauth::token_request(oauth::SECRET)).await.json()["access_token"].as_str().expect("a token").to_owned();
    let first = assertion(&key, "first", now(), 300);
    assert_eq!(gateway.send(&first).await.status, 200);
    // Every worker caches these credentials.
    for request in [by_token(&short), by_token(&ever), by_token(&own), by_key("key_short")] {
        is_everywhere(&gateway, "at first", &request, 200, "").await;
    }

    let good = vec![by_key("key_ever"), by_token(&ever)];
    let expired = token(&key, &issuer, [EVER[0], EVER[0] + 1]);
    let forged = token(&other, &issuer, EVER);
    let mut bad = strangers(&Request::tools_list("/mcp/acme"), []);
    bad.extend([(by_token(&expired), "token_expired"), (by_token(&forged), "signature_invalid")]);
    let loads = Loads::start(gateway.client(), good, bad);
    // The jump ahead is shorter than one hour, the lifetime of a gateway token. With a whole hour, the token would
    // expire during the test.
    let jumps = [AHEAD, 0, -HOUR, 0, -DAY, 0, LONG_AGO - now(), 0, 2 * DAY, 0, AHEAD, -DAY, AHEAD, 0];
    for offset in jumps {
        clock.set(offset);
        let judged = |from: i64, until: i64| match offset {
            _ if offset < from => (401, "token_not_yet_valid"),
            _ if offset >= until => (401, "token_expired"),
            _ => (200, ""),
        };
        let what = format!("the clock is {offset} s off");
        let key_now = if offset >= HOUR / 2 { (401, "api_key_expired") } else { (200, "") };
        for (request, (status, reason)) in [
            (by_token(&short), judged(-60, HOUR / 2 + 60)),
            (by_token(&token(&key, &issuer, [now() - 1, now() + HOUR / 2])), judged(-60, HOUR / 2 + 60)),
            (by_token(&own), judged(-60, HOUR + 60)),
            (by_token(&token(&key, &issuer, EVER)), (200, "")),
            (by_key("key_short"), key_now),
            // Valid only according to this clock.
            (by_token(&token(&key, &issuer, [Clock::at(offset) - 1, Clock::at(offset) + 60])), (200, "")),
        ] {
            is_everywhere(&gateway, &what, &request, status, reason).await;
        }
        // A new assertion makes the gateway look through the used ones. No used assertion becomes valid again.
        let fresh = assertion(&key, &format!("at {offset} {}", loads.sent()), Clock::at(offset), 600);
        assert_eq!(gateway.send(&fresh).await.status, 200, "{what}");
        if offset == 0 {
            assert_eq!(gateway.send(&first).await.status, 401, "{what}: the assertion was used before");
        }
        assert_eq!(gateway.send(&oauth::token_request(oauth::SECRET)).await.status, 200, "{what}");
        loads.until_answered(200).await;
    }
    assert_eq!(loads.stop(&format!("{} jumps", jumps.len())).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_recorded_with_a_fast_clock_block_nothing_later() {
    let clock = Clock::new().await;
    let (key, other, third) = (Key::first("a"), Key::second("b"), Key::second("c"));
    let (issuer, late) = (Issuer::start(&[&key]).await, Issuer::start(&[]).await);
    late.behave(Behaviour::Hang);
    let settings = Settings::start().await;
    let client = json!({"client_id": oauth::WITH_SECRET, "secret_sha256": [sha256(oauth::SECRET)], "scopes": ["mcp:call"]});
    let signing = oauth::PrivateKey::new().record("k");
    let document = |keys: &[&str]| {
        let keys: Vec<Value> = keys.iter().map(|id| api_key_record(id)).collect();
        let providers = [issuer.record(), late.record()];
        let acme = json!({"api_keys": keys, "oauth_clients": [client], "identity_providers": providers});
        json!({"version": "1", "signing_keys": [signing], "orgs": {"acme": acme}})
    };
    settings.publish(&document(&["key_ever"]));
    let mut configuration = merged(plugin(&json!({})), &json!({"jwks": {"http_cluster": "jwks_http", "timeout": "2s"}}));
    let remote = json!({"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN", "long_poll": "1s"});
    configuration["policy"] = json!({ "remote": remote });
    let upstream = upstream::start().await;
    let setup = Setup::new(configuration).workers(2).settings(settings.port(), TOKEN).clock(&clock);
    let gateway = setup.start(&upstream).await;
    gateway.until_everywhere(&by_key("key_ever"), 200).await;

    clock.set(HOUR);
    is_everywhere(&gateway, "a key", &by_token(&token(&key, &issuer, EVER)), 200, "").await;
    // The cool-down of unknown keys, the backoff after wrong secrets, and the time of a poll are recorded one hour
    // ahead.
    is_everywhere(&gateway, "no such key", &by_token(&token(&third, &issuer, EVER)), 401, "key_unknown").await;
    let guess = oauth::token_request("apx_secret_wrong");
    eventually("wrong secrets must wait", async || (gateway.send(&guess).await.status == 429).then_some(())).await;
    let polls = settings.requests();
    eventually("further polls", async || (settings.requests() > polls + 2).then_some(())).await;
    // A request is held while the clock is set back.
    let waiting = {
        let (client, request) = (gateway.client().clone(), by_token(&token(&key, &late, EVER)));
        tokio::spawn(async move { client.send(&request).await })
    };
    gateway.until_active(1).await;
    clock.set(0);

    let refused = waiting.await.expect("a reply");
    assert_eq!((refused.status, &refused.json()["reason"]), (503, &json!("jwks_unavailable")));
    issuer.publish(&[&key, &other]);
    let rotated = by_token(&token(&other, &issuer, EVER));
    eventually("the new key is accepted", async || (gateway.send(&rotated).await.status == 200).then_some(())).await;
    let right = oauth::token_request(oauth::SECRET);
    eventually("the right secret is accepted", async || (gateway.send(&right).await.status == 200).then_some(())).await;
    settings.publish(&document(&["key_ever", "key_new"]));
    gateway.until_everywhere(&by_key("key_new"), 200).await;
    late.publish(&[&key]);
    let known = by_token(&token(&key, &late, EVER));
    eventually("the late provider is used", async || (gateway.send(&known).await.status == 200).then_some(())).await;
}
