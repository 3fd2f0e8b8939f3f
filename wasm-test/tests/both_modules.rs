//! Sends the same requests to a gateway with the wasm module and to one with the native module. Their answers, and what
//! arrives at the upstream, must not differ in any byte.

use fastrand::Rng;
use serde_json::{Value, json};
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::{Reply, Request};
use wasm_test::issuer::Issuer;
use wasm_test::module::Module;
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::token::Key;
use wasm_test::upstream;

/// Number of requests. The environment variable `REQUESTS` sets another one.
const REQUESTS: usize = 3000;
/// The environment variable with the seed of the requests. Without it, each run has the same requests.
const SEED: &str = "BOTH_MODULES_SEED";

/// Headers that differ for each answer, or depend on which bytes arrived first.
const OF_ONE_ANSWER: [&str; 3] = ["date", "x-envoy-upstream-service-time", "connection"];
/// Headers that differ for each request at the upstream.
const OF_ONE_REQUEST: [&str; 3] = ["x-request-id", "x-case", "host"];

#[tokio::test]
async fn both_modules_give_the_same_answers() {
    let count = std::env::var("REQUESTS").map_or(REQUESTS, |count| count.parse().expect("a number"));
    let seed = std::env::var(SEED).map_or(0, |seed| seed.parse().expect("a number"));
    let upstream = upstream::start().await;
    let key = Key::first("first");
    let issuer = Issuer::start(&[&key]).await;
    let scoped = merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]}));
    let acme = json!({"api_keys": [api_key_record("key_all"), scoped], "identity_providers": [issuer.record()]});
    let orgs = json!({"acme": acme, "other": {"api_keys": [api_key_record("key_other")]}});
    let settings = json!({"gateway": {"origin": "https://gw.example", "allowed_origins": ["https://app.example"], "host_holds_bodies": false}});
    let plugin = merged(plugin(&orgs), &settings);
    let start = async |module| Setup::new(plugin.clone()).module(module).start(&upstream).await;
    let (wasm, native) = (start(Module::Wasm).await, start(Module::Native).await);

    let tokens = Tokens::of(&key, &issuer);
    let mut rng = Rng::with_seed(seed);
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for number in 0..count {
        let request = random(&mut rng, &tokens);
        let (one, other) = (seen(&wasm, &request).await, seen(&native, &request).await);
        assert_eq!(one, other, "request {number} of seed {seed}: {request:?}");
        *statuses.entry(one.status).or_default() += 1;
    }
    println!("{count} requests, by status: {statuses:?}");
    assert!(statuses.len() >= 6, "too few kinds of answers: {statuses:?}");
}

/// An answer without what always differs.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Value,
}

async fn seen(gateway: &Gateway, request: &Request) -> Seen {
    let reply: Reply = gateway.send(request).await;
    let headers = reply.headers.iter().filter(|(name, _)| !OF_ONE_ANSWER.contains(&name.as_str()));
    let mut headers: Vec<_> = headers.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    // RFC 9110 §5.3: the order of headers with different names means nothing.
    headers.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut body = reply.json();
    if let Some(arrived) = body.get_mut("headers").and_then(Value::as_array_mut) {
        arrived.sort_by_key(|header| header[0].to_string());
        arrived.retain(|header| !OF_ONE_REQUEST.contains(&header[0].as_str().unwrap_or_default()));
        // The length of the answer depends on those headers.
        headers.retain(|(name, _)| name != "content-length");
    } else if body.is_null() {
        body = json!(String::from_utf8_lossy(&reply.body));
    }
    Seen { status: reply.status, headers, body }
}

struct Tokens(Vec<String>);

impl Tokens {
    /// A valid token, and tokens that are wrong in one way each.
    fn of(key: &Key, issuer: &Issuer) -> Self {
        let claims = issuer.claims();
        let with = |changes: Value| key.token(&merged(claims.clone(), &changes));
        let valid = key.token(&claims);
        let (head, signature) = valid.rsplit_once('.').expect("a signature");
        Self(vec![
            with(json!({"aud": "elsewhere"})),
            with(json!({"iss": "https://unknown.example"})),
            with(json!({"exp": 1})),
            with(json!({"nbf": 9_999_999_999_u64})),
            with(json!({"sub": null})),
            with(json!({"scope": "mcp:call:notes"})),
            with(json!({"scope": "mcp:call:clock"})),
            with(json!({"scope": ["mcp:call"]})),
            Key::first("second").token(&claims),
            format!("{head}.{}", signature.chars().rev().collect::<String>()),
            format!("{valid}="),
            "opaque".to_owned(),
            String::new(),
            valid,
        ])
    }
}

fn random(rng: &mut Rng, tokens: &Tokens) -> Request {
    let paths = [
        "/mcp/acme",
        "/mcp/acme",
        "/mcp/acme",
        "/mcp/acme/notes",
        "/mcp/acme/clock",
        "/mcp/other",
        "/mcp/none",
        "/mcp/acme/",
        "/mcp",
        "/",
        "/mcp/acme?x=1",
        "/mcp/a%63me",
        "/mcp/acme/notes/more",
        "/oauth/token",
        "/oauth/authorize",
        "/.well-known/jwks.json",
        "/.well-known/oauth-authorization-server",
        "/.well-known/openid-configuration",
        "/.well-known/oauth-protected-resource/mcp/acme",
        "/.well-known/oauth-protected-resource/mcp/acme/notes",
    ];
    let methods = ["POST", "POST", "POST", "POST", "GET", "DELETE", "OPTIONS", "PUT", "HEAD"];
    let method = pick(rng, &methods);
    let mut request = Request::of(method, pick(rng, &paths));
    for _ in 0..pick(rng, &[0, 1, 1, 1, 1, 1, 1, 2]) {
        request = match rng.u8(..8) {
            0..3 => request.api_key(&api_key(pick(rng, &["key_all", "key_notes", "key_other", "key_none"]))),
            3 => request.header("authorization", pick(rng, &["Basic YTpi", "Bearer", "bearer  x", "Negotiate x"])),
            _ => request.bearer(&tokens.0[rng.usize(..tokens.0.len())]),
        };
    }
    let others = [
        ("origin", "https://app.example"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("accept-encoding", "gzip"),
        ("x-apexmcp-org", "forged"),
        ("x_apexmcp_scope", "forged"),
        ("x-api_key", "forged"),
        ("access-control-request-method", "POST"),
        ("mcp-protocol-version", "2025-06-18"),
        ("mcp-protocol-version", "2020-01-01"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "notes__read"),
        ("content-type", "application/json"),
        ("content-type", "text/plain"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-encoding", "gzip"),
        ("x-plain", "\u{e4}"),
        ("x-empty", ""),
        ("cookie", "a=b"),
        ("content-type", "application/grpc"),
    ];
    for _ in 0..rng.usize(..4) {
        let (name, value) = pick(rng, &others);
        request = request.header(name, value);
    }
    if ["GET", "HEAD"].contains(&method) {
        return request;
    }
    let call = |name: &str| json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name}}).to_string();
    let bodies = [
        call("notes__read"),
        call("clock__now"),
        call("read"),
        format!("[{},{}]", call("notes__read"), call("clock__now")),
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}).to_string(),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string(),
        json!({"jsonrpc": "2.0", "id": "notes__1", "result": {}}).to_string(),
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"tools/list"}"#.to_owned(),
        "grant_type=client_credentials&client_id=a&client_secret=b".to_owned(),
        "grant_type=password".to_owned(),
        "{".to_owned(),
        String::new(),
        " ".repeat(rng.usize(..20_000)),
    ];
    let body = bodies[rng.usize(..bodies.len())].clone();
    match rng.bool() {
        true => request.header("content-type", "application/json").body(body),
        false => request.body(body),
    }
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}
