//! Key sets and tokens in the forms that correct identity providers use: content negotiation, optional parts of RFC 7515 and
//! RFC 7517, and rotations that stale tokens must not delay.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Full;
use hyper::Response;
use serde_json::{Value, json};
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::server::Server;
use wasm_test::token::{Key, now};
use wasm_test::upstream;

fn trusting(records: &[Value], jwks: &Value) -> Setup {
    let orgs = json!({"acme": {"identity_providers": records, "api_keys": [api_key_record("key_all")]}});
    let jwks = merged(json!({"http_cluster": "jwks_http"}), jwks);
    Setup::new(merged(plugin(&orgs), &json!({ "jwks": jwks })))
}

fn call(token: &str) -> Request {
    Request::tools_list("/mcp/acme").bearer(token)
}

/// A token that no cache knows.
fn fresh(issuer: &Issuer, key: &Key) -> Request {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let sub = format!("agent-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    call(&key.token(&issuer.claims_with(&json!({ "sub": sub }))))
}

fn claims(issuer: &str) -> Value {
    json!({"iss": issuer, "sub": "agent-7", "aud": "apexmcp", "iat": now(), "exp": now() + 3600})
}

/// Whether the value `accept` of an `Accept` header allows the media type `offered` (RFC 9110 §12.5.1).
fn is_acceptable(accept: &str, offered: &str) -> bool {
    let kind = offered.split('/').next().expect("a type");
    let ranges = accept.split(',').map(|range| range.split(';').next().expect("a range").trim().to_owned());
    ranges.into_iter().any(|range| range == offered || range == format!("{kind}/*") || range == "*/*")
}

/// A provider that offers its key set in one media type. It compresses the answer unless the client accepts only `identity`.
async fn negotiating(key: &Key, offered: &'static str) -> Server {
    let body = json!({"keys": [key.jwk()]}).to_string();
    Server::start(move |request| {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let is_good = header("accept").is_none_or(|accept| is_acceptable(&accept, offered));
        let is_plain = header("accept-encoding").is_some_and(|coding| coding == "identity");
        let answer = match (is_good, is_plain) {
            (false, _) => Response::builder().status(406).body(Full::from("")),
            (true, false) => Response::builder().header("content-encoding", "x").body(Full::from("compressed")),
            (true, true) => Response::builder().header("content-type", offered).body(Full::from(body.clone())),
        };
        async move { answer.ok() }
    })
    .await
}

#[tokio::test]
async fn key_sets_are_fetched_from_providers_that_negotiate_content() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let mut servers = Vec::new();
    // The media types of a Kubernetes API server, most providers, a file server, and an object store.
    for offered in ["application/jwk-set+json", "application/json", "text/plain", "application/octet-stream"] {
        servers.push((offered, negotiating(&key, offered).await));
    }
    let url = |server: &Server| format!("http://{}", server.authority());
    let record =
        |server: &Server| json!({"issuer": url(server), "jwks_uri": format!("{}/keys", url(server)), "audience": "apexmcp"});
    let records: Vec<Value> = servers.iter().map(|(_, server)| record(server)).collect();
    let gateway = trusting(&records, &json!({})).start(&upstream).await;
    for (offered, server) in &servers {
        gateway.admits(offered, &call(&key.token(&claims(&url(server))))).await;
    }
}

#[tokio::test]
async fn keys_that_a_token_names_are_neither_used_nor_a_reason_to_refuse_it() {
    let upstream = upstream::start().await;
    let (key, foreign) = (Key::first("a"), Key::second("a"));
    let issuer = Issuer::start(&[&key]).await;
    let elsewhere = Issuer::start(&[&foreign]).await;
    let gateway = trusting(&[issuer.record()], &json!({"refetch_cooldown": "1h"})).start(&upstream).await;
    let certificate = json!(["MIIB"]);
    for (what, members) in [
        ("jku, as of UAA and SAP XSUAA", json!({"jku": elsewhere.jwks_uri()})),
        ("jku that is a relative URL", json!({"jku": "/keys"})),
        ("jwk", json!({"jwk": foreign.jwk()})),
        ("x5u", json!({"x5u": format!("{}/certificate.pem", elsewhere.url())})),
        ("x5c", json!({ "x5c": certificate })),
        ("x5t and x5t#S256", json!({"x5t": "dGh1bWJwcmludA", "x5t#S256": "dGh1bWJwcmludA"})),
        ("a member of its own", json!({"tenant": ["a", {"b": 1}]})),
    ] {
        let header = merged(key.header(), &members);
        gateway.admits(what, &call(&key.token_with(&header, &issuer.claims_with(&json!({"sub": what}))))).await;
        let refusal = gateway.refuses(what, &call(&foreign.token_with(&header, &issuer.claims()))).await;
        assert_eq!((refusal.status, &*refusal.reason), (401, "signature_invalid"), "{what}, signed by a foreign key");
        let header = merged(header, &json!({"kid": "foreign"}));
        let refusal = gateway.refuses(what, &call(&foreign.token_with(&header, &issuer.claims()))).await;
        assert_eq!((refusal.status, &*refusal.reason), (401, "key_unknown"), "{what}, by a foreign key of another id");
        let header = merged(header, &json!({"kid": null}));
        let refusal = gateway.refuses(what, &call(&foreign.token_with(&header, &issuer.claims()))).await;
        assert_eq!((refusal.status, &*refusal.reason), (401, "signature_invalid"), "{what}, without kid");
    }
    assert_eq!(elsewhere.requests(), 0, "nothing that a token names is fetched");
    for (what, members) in [("crit", json!({"crit": ["exp"]})), ("b64", json!({"b64": true}))] {
        let token = key.token_with(&merged(key.header(), &members), &issuer.claims());
        assert_eq!(gateway.refuses(what, &call(&token)).await.reason, "token_malformed", "{what}");
    }
}

/// A number of a key in the alphabet of RFC 4648 §4, with padding.
fn plain_base64(jwk: &Value, name: &str) -> String {
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    let number = jwk[name].as_str().expect("a number");
    BASE64_STANDARD.encode(BASE64_URL_SAFE_NO_PAD.decode(number).expect("base64url"))
}

#[tokio::test]
async fn key_sets_are_read_in_every_published_form() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let jwk = key.jwk();
    let set = |keys: Value| json!({ "keys": keys }).to_string();
    let with = |changes: Value| {
        let mut changed = jwk.clone();
        changed.as_object_mut().expect("a key").extend(changes.as_object().expect("changes").clone());
        changed
    };
    let nameless = merged(jwk.clone(), &json!({"kid": null}));
    let others = |count: usize| -> Vec<Value> {
        (0..count)
            .map(|index| merged(Key::second(&format!("other-{index}")).jwk(), &json!({"x5t": format!("other{index}")})))
            .collect()
    };
    let among = |own: Value, count: usize| [others(count), vec![own]].concat();
    let kid = json!({});
    let padded = with(json!({"n": format!("{}==", jwk["n"].as_str().expect("a number"))}));
    let plain = with(json!({"n": plain_base64(&jwk, "n"), "e": plain_base64(&jwk, "e")}));
    let nulls = with(json!({"use": null, "alg": null, "key_ops": null, "x5c": null, "x5t": null, "x5u": null}));
    let table = [
        ("padded base64", set(json!([padded])), kid.clone()),
        ("plain base64", set(json!([plain])), kid.clone()),
        ("members that are null", set(json!([nulls])), kid.clone()),
        ("a kid that is null", set(json!([with(json!({"kid": null}))])), kid.clone()),
        ("the use of SPIFFE", set(json!([with(json!({"use": "jwt-svid"}))])), json!({"typ": "JOSE"})),
        ("a byte order mark", format!("\u{feff}{}", set(json!([jwk]))), kid.clone()),
        ("lines before", format!("\r\n\n \t{}\n", set(json!([jwk]))), kid.clone()),
        ("both", format!("\n\u{feff}\n{}", set(json!([jwk]))), kid.clone()),
        ("a key without kid", set(json!([nameless])), kid.clone()),
        ("a key without kid among others", set(json!(among(nameless.clone(), 8))), kid.clone()),
        ("x5t", set(json!(among(with(json!({"x5t": "bWluZQ"})), 8))), json!({"kid": null, "x5t": "bWluZQ"})),
        ("x5t#S256", set(json!(among(with(json!({"x5t#S256": "bWluZQ=="})), 8))), json!({"kid": null, "x5t#S256": "bWluZQ"})),
        ("x5t that no key has", set(json!([jwk])), json!({"kid": null, "x5t": "b3RoZXI"})),
        ("typ with its prefix", set(json!([jwk])), json!({"typ": "application/at+jwt"})),
        ("typ in another case", set(json!([jwk])), json!({"typ": "Application/AT+JWT"})),
        ("typ JWT with its prefix", set(json!([jwk])), json!({"typ": "application/jwt"})),
    ];
    let mut issuers = Vec::new();
    for (what, document, header) in table {
        let issuer = Issuer::start(&[]).await;
        issuer.behave(Behaviour::Document { status: 200, body: document });
        issuers.push((what, header, issuer));
    }
    let records: Vec<Value> = issuers.iter().map(|(.., issuer)| issuer.record()).collect();
    let gateway = trusting(&records, &json!({"refetch_cooldown": "1h"})).workers(2).start(&upstream).await;
    for (what, changes, issuer) in &issuers {
        let header = merged(key.header(), changes);
        gateway.admits(what, &call(&key.token_with(&header, &issuer.claims()))).await;
        let forged = Key::third("a").token_with(&header, &issuer.claims());
        assert_eq!(gateway.refuses(what, &call(&forged)).await.status, 401, "{what}, signed by another key");
    }
}

#[tokio::test]
async fn the_log_says_why_each_key_cannot_be_used() {
    let upstream = upstream::start().await;
    let issuer = Issuer::start(&[]).await;
    let key = |changes: Value| merged(Key::first("k").jwk(), &changes);
    let body = json!({"keys": [key(json!({"use": "enc"})), key(json!({"alg": "PS256"})), Key::short("s").jwk(), {"kty": "EC"}]});
    issuer.behave(Behaviour::Document { status: 200, body: body.to_string() });
    let gateway = trusting(&[issuer.record()], &json!({})).start(&upstream).await;
    let expected = [
        r#"keys[0] (kid "k"): "use" is "enc", expected "sig" or "jwt-svid""#,
        r#"keys[1] (kid "k"): "alg" is "PS256", expected "RS256""#,
        r#"keys[2] (kid "s"): the modulus "n" has 1024 bits, expected 2048 to 8192"#,
        r#"keys[3]: "kty" is "EC", expected "RSA""#,
    ];
    let is_told = |log: &str| expected.iter().all(|part| log.contains(part)).then_some(());
    eventually("the reasons are logged", async || is_told(&gateway.log())).await;
}

#[tokio::test]
async fn a_stale_token_delays_no_rotation() {
    let upstream = upstream::start().await;
    let keys = [Key::first("1"), Key::second("2"), Key::third("3")];
    let issuer = Issuer::start(&[&keys[0]]).await;
    // If any step starts a cool-down, the rest of the test fails.
    let gateway = trusting(&[issuer.record()], &json!({"refetch_cooldown": "1h"})).workers(2).start(&upstream).await;
    gateway.admits("the first key", &fresh(&issuer, &keys[0])).await;
    issuer.publish(&[&keys[1]]);
    gateway.admits("the second key", &fresh(&issuer, &keys[1])).await;
    // A worker uses its copy of the key set for less than a second, so it may still accept the first key.
    gateway.until_everywhere(&fresh(&issuer, &keys[0]), 401).await;
    for _ in 0..20 {
        let client = Client::new(gateway.client().authority());
        let reply = client.send(&fresh(&issuer, &keys[0])).await;
        assert_eq!((reply.status, reply.json()["reason"].as_str()), (401, Some("key_unknown")), "its key is retired");
    }
    assert_eq!(issuer.requests(), 2, "a retired key causes no fetch just after one");
    issuer.publish(&[&keys[1], &keys[2]]);
    gateway.admits("the third key", &fresh(&issuer, &keys[2])).await;
    assert_eq!(issuer.requests(), 3);
}

/// Sends each request on a new connection, so that every worker gets some of them.
async fn statuses(gateway: &Gateway, requests: impl IntoIterator<Item = Request>) -> Vec<u16> {
    let mut statuses = Vec::new();
    for request in requests {
        statuses.push(Client::new(gateway.client().authority()).send(&request).await.status);
    }
    statuses
}

/// Waits this many seconds. After that, every unused copy is older than a second.
async fn until_later(seconds: i64) {
    let moment = now() + seconds;
    eventually("time passes", async || (now() >= moment).then_some(())).await;
}

#[tokio::test]
async fn idle_workers_refuse_a_withdrawn_key() {
    const REQUESTS: usize = 48;
    let upstream = upstream::start().await;
    let (old, new) = (Key::first("old"), Key::second("new"));
    let issuer = Issuer::start(&[&old]).await;
    let gateway = trusting(&[issuer.record()], &json!({})).workers(4).start(&upstream).await;
    let remembered = fresh(&issuer, &old);
    let all = statuses(&gateway, vec![remembered.clone(); REQUESTS]).await;
    assert_eq!(all, [200; REQUESTS], "every worker has the old key");
    until_later(3).await;
    issuer.publish(&[&new]);
    gateway.admits("one worker fetches the new key", &fresh(&issuer, &new)).await;
    until_later(3).await;
    // Every second request has a token that was verified before.
    let tokens = (0..REQUESTS).map(|index| if index % 2 == 0 { remembered.clone() } else { fresh(&issuer, &old) });
    assert_eq!(statuses(&gateway, tokens).await, [401; REQUESTS], "no worker decides by its old copy");
    assert_eq!(statuses(&gateway, (0..8).map(|_| fresh(&issuer, &new))).await, [200; 8]);
}

#[tokio::test]
async fn a_refusal_of_an_api_key_in_authorization_names_the_right_header() {
    let upstream = upstream::start().await;
    let gateway = trusting(&[], &json!({})).start(&upstream).await;
    let (known, unknown) = (api_key("key_all"), api_key("key_of_nobody"));
    gateway.admits("the key where it belongs", &Request::tools_list("/mcp/acme").api_key(&known)).await;
    for scheme in ["Bearer ", "bearer  ", "", "ApiKey "] {
        let of = |key: &str| Request::tools_list("/mcp/acme").header("authorization", format!("{scheme}{key}"));
        let refusal = gateway.refuses(scheme, &of(&known)).await;
        assert_eq!((refusal.status, &*refusal.reason, &*refusal.error), (401, "credential_malformed", "invalid_token"));
        assert!(refusal.description.contains("X-API-Key"), "{}", refusal.description);
        assert!(refusal.challenge.as_ref().is_some_and(|challenge| challenge.contains("X-API-Key")));
        assert_eq!(
            gateway.refuses(scheme, &of(&unknown)).await,
            refusal,
            "{scheme}: the answer does not reveal whether a key exists"
        );
        assert_eq!(gateway.refuses(scheme, &of("apx_live_sk_short")).await, refusal, "{scheme}");
    }
    let in_basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{known}:")));
    let refusal = gateway.refuses("Basic", &Request::tools_list("/mcp/acme").header("authorization", in_basic)).await;
    assert!(refusal.description.contains("X-API-Key"));
    let other = gateway.refuses("another", &call("apx_secret_x")).await;
    assert!(!other.description.contains("X-API-Key"));
}
