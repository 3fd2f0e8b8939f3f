//! Gateway tokens of the minimal gateway. These tests run with every Envoy, including those in which the module itself
//! must sign.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use wasm_test::gateway::{Gateway, ORIGIN, Setup, plugin};
use wasm_test::http::{Client, Reply, Request};
use wasm_test::oauth::{
    self, ORG, PrivateKey, SECRET, WITH_KEY, WITH_SECRET, assertion_request, token_request, token_request_of,
};
use wasm_test::policy::{merged, sha256};
use wasm_test::server::Server;
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
async fn an_assertion_that_is_sent_many_times_at_once_is_accepted_once() {
    const AT_ONCE: usize = 64;
    const CLIENTS: usize = 10;
    let (key, upstream) = (Key::first("a"), upstream::start().await);
    let id = |number: usize| format!("apx_client_{number}");
    let record = |number| json!({"client_id": id(number), "jwks": {"keys": [key.jwk()]}, "scopes": ["mcp:call"]});
    let records: Vec<Value> = (0..CLIENTS).map(record).collect();
    let mut issuing = plugin(&json!({ ORG: {"oauth_clients": records}}));
    issuing["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("k")]);
    let gateway = Setup::new(issuing).workers(4).start(&upstream).await;
    // Each client has a connection already. There are so many that each worker has some.
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

/// After ten wrong secrets for a client id, the next one must wait. An attacker that knows the id must not block the
/// client's other method. The answers must not reveal which ids exist.
#[tokio::test]
async fn wrong_secrets_block_no_assertion_and_forged_assertions_block_nothing() {
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
        let told = ["ratelimit-policy", "ratelimit"].map(|name| reply.header(name).is_some());
        assert_eq!(told, [reply.status == 429; 2], "{reply:?}");
        (reply.status, reply.header("retry-after").map(str::to_owned), reply.json()["error_description"].clone())
    };

    // Forged assertions come first, while no secret has to wait.
    for id in [WITH_KEY, WITH_BOTH, UNKNOWN] {
        for number in 0..30 {
            let forged = assertion(&foreign, id, &number.to_string());
            assert_eq!(post(&assertion_request(&forged)).await.0, 401, "{id}");
        }
        let good = assertion(&key, id, "after forged ones");
        assert_eq!(post(&assertion_request(&good)).await.0, if id == UNKNOWN { 401 } else { 200 }, "{id}");
    }
    assert_eq!(post(&token_request_of(WITH_BOTH, SECRET)).await.0, 200, "forged assertions block no secret");

    // Wrong secrets, in the form and in Basic. The number of seconds to wait depends on the time.
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

/// A secret with characters that a form must escape.
const ODD_SECRET: &str = "a b+c%d:e\u{fc}";

/// A gateway with two clients. One has [`SECRET`] and [`ODD_SECRET`], the other one has a key.
async fn issuing(key: &Key, upstream: &Server) -> Gateway {
    let clients = json!([
        {"client_id": WITH_SECRET, "secret_sha256": [sha256(SECRET), sha256(ODD_SECRET)], "scopes": ["mcp:call"]},
        {"client_id": WITH_KEY, "jwks": {"keys": [key.jwk()]}, "scopes": ["mcp:call:notes", "mcp:call:clock"]},
    ]);
    let mut plugin = plugin(&json!({ORG: {"oauth_clients": clients}, "other": {}}));
    plugin["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("k")]);
    Setup::new(plugin).start(upstream).await
}

/// The claims of an issued token, or the OAuth error.
fn issued(reply: &Reply) -> Result<Value, String> {
    let answer = reply.json();
    let Some(token) = answer["access_token"].as_str() else {
        return Err(answer["error"].as_str().unwrap_or_default().to_owned());
    };
    let claims = token.split('.').nth(1).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok()).expect("claims");
    Ok(serde_json::from_slice(&claims).expect("JSON"))
}

fn form(text: &str) -> Request {
    Request::post("/oauth/token").header("content-type", "application/x-www-form-urlencoded").body(text.to_owned())
}

/// The value in a form, with every byte percent-encoded.
fn escaped(value: &str) -> String {
    value.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn all_spellings_of_a_url_name_the_same_resource() {
    let (key, upstream) = (Key::first("a"), upstream::start().await);
    let gateway = issuing(&key, &upstream).await;
    let own = format!("{ORIGIN}/mcp/{ORG}");
    for (spelling, is_own) in [
        (own.clone(), true),
        (format!("HTTPS://Gateway.EXAMPLE/mcp/{ORG}"), true),
        (format!("https://gateway.example:443/mcp/{ORG}"), true),
        // An empty port, escapes of plain characters, and dot segments.
        (format!("https://gateway.example:/mcp/{ORG}"), true),
        ("https://gateway.example/mcp/%61cme%2dcorp".to_owned(), true),
        (format!("https://gateway.example/x/../mcp/./{ORG}"), true),
        (format!("https://gateway.example:80/mcp/{ORG}"), false),
        (format!("https://gateway.example/MCP/{ORG}"), false),
        (format!("https://gateway.example/mcp/{ORG}/%2e%2e/other"), false),
    ] {
        let request = form(&format!(
            "grant_type=client_credentials&client_id={WITH_SECRET}&client_secret={SECRET}&resource={}",
            escaped(&spelling)
        ));
        let audience = issued(&gateway.send(&request).await).map(|claims| claims["aud"].clone());
        assert_eq!(audience, if is_own { Ok(json!(own)) } else { Err("invalid_target".to_owned()) }, "{spelling}");
    }
    for (number, (audience, is_own)) in [
        ("https://gateway.example", true),
        ("https://GATEWAY.example:443/", true),
        ("https://gateway.example:/oauth/token", true),
        ("https://gateway.example/oauth/../oauth/%74oken", true),
        ("https://gateway.example:8443", false),
        ("http://gateway.example/oauth/token", false),
    ]
    .into_iter()
    .enumerate()
    {
        let times = json!({"jti": number.to_string(), "iat": now(), "exp": now() + 300});
        let claims = merged(json!({"iss": WITH_KEY, "sub": WITH_KEY, "aud": audience}), &times);
        let status = gateway.send(&assertion_request(&key.token(&claims))).await.status;
        assert_eq!(status, if is_own { 200 } else { 401 }, "{audience}");
    }
}

#[tokio::test]
async fn a_client_may_name_several_resources() {
    let (key, upstream) = (Key::first("a"), upstream::start().await);
    let gateway = issuing(&key, &upstream).await;
    let url = |path: &str| format!("{ORIGIN}/mcp/{path}");
    let own = |connector: &str| url(&format!("{ORG}/{connector}"));
    let ask = async |more: &str| {
        let request = form(&format!("grant_type=client_credentials&client_id={WITH_SECRET}&client_secret={SECRET}{more}"));
        let reply = gateway.send(&request).await;
        (issued(&reply), reply.json()["access_token"].as_str().unwrap_or_default().to_owned())
    };
    for (resources, expected) in [
        (vec![own("notes"), own("clock")], Ok(vec![own("clock"), own("notes")])),
        // The org beside one of its connectors, one resource in two spellings, and empty values.
        (vec![url(ORG), own("notes")], Ok(vec![url(ORG), own("notes")])),
        (vec![own("notes"), own("%6eotes")], Ok(vec![own("notes")])),
        (vec![String::new(), own("clock"), String::new()], Ok(vec![own("clock")])),
        (vec![own("notes"), url("other")], Err("invalid_target")),
        (vec![url("other/notes"), own("notes")], Err("invalid_target")),
        (vec![own("notes"), "https://elsewhere.example/mcp".to_owned()], Err("invalid_target")),
    ] {
        let more: String = resources.iter().map(|resource| format!("&resource={}", escaped(resource))).collect();
        let (claims, token) = ask(&more).await;
        let audiences = claims.map(|claims| {
            let audience = claims["aud"].clone();
            let mut audiences: Vec<String> = match audience.as_str() {
                Some(one) => vec![one.to_owned()],
                None => serde_json::from_value(audience).expect("texts"),
            };
            audiences.sort();
            audiences
        });
        assert_eq!(audiences, expected.map_err(str::to_owned), "{resources:?}");
        // The token is accepted only for the resources that it names.
        for connector in ["notes", "clock"] {
            let Ok(audiences) = &audiences else { continue };
            let is_named = [url(ORG), own(connector)].iter().any(|wanted| audiences.contains(wanted));
            let status = gateway.send(&Request::tools_list(&format!("/mcp/{ORG}/{connector}")).bearer(&token)).await.status;
            assert_eq!(status, if is_named { 200 } else { 401 }, "{resources:?} at {connector}");
        }
    }
    for repeated in ["scope=mcp:call&scope=mcp:call", "client_id=a", "audience=a&audience=b"] {
        assert_eq!(ask(&format!("&{repeated}")).await.0, Err("invalid_request".to_owned()), "{repeated}");
    }
}

#[tokio::test]
async fn credentials_in_basic_are_form_decoded() {
    let upstream = upstream::start().await;
    let gateway = issuing(&Key::first("a"), &upstream).await;
    for (id, secret, is_right) in [
        (WITH_SECRET.to_owned(), SECRET.to_owned(), true),
        (WITH_SECRET.to_owned(), "a+b%2Bc%25d%3Ae%C3%BC".to_owned(), true),
        // Lower case digits, an escaped space, every byte escaped, and a colon that is not escaped.
        (WITH_SECRET.to_owned(), "a%20b%2bc%25d%3ae%c3%bc".to_owned(), true),
        (escaped(WITH_SECRET), escaped(ODD_SECRET), true),
        (WITH_SECRET.to_owned(), "a+b%2Bc%25d:e%C3%BC".to_owned(), true),
        (WITH_SECRET.to_owned(), escaped(SECRET), true),
        (WITH_SECRET.to_owned(), "a+b+c%25d%3Ae%C3%BC".to_owned(), false),
        (WITH_SECRET.to_owned(), "a%2Bb%2Bc%25d%3Ae%C3%BC".to_owned(), false),
        (WITH_SECRET.to_owned(), "a+b%252Bc%2525d%253Ae%25C3%25BC".to_owned(), false),
    ] {
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}")));
        let reply = gateway.send(&form("grant_type=client_credentials").header("authorization", basic)).await;
        assert_eq!(reply.status, if is_right { 200 } else { 401 }, "{id} {secret}: {reply:?}");
    }
}
