//! Attacks with requests that wait. Clients send long heads, which HTTP/2 makes cheap, and never finish the requests. The
//! gateway holds a limited number of them, for every reason to wait. Its memory stays small, the module does not trap, and
//! other organizations are served meanwhile.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::sync::Mutex;
use wasm_test::apexmcp::Apexmcp;
use wasm_test::attack::{Attack, Padding, Tally, Unfinished, Version};
use wasm_test::eventually;
use wasm_test::front::{Front, Way};
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::load::Load;
use wasm_test::oauth::{self, PrivateKey};
use wasm_test::policy::{api_key, api_key_record, merged, sha256};
use wasm_test::settings::TOKEN;
use wasm_test::token::Key;
use wasm_test::upstream;

/// Envoy's limit on streams of a connection in `envoy/envoy.yaml`.
const STREAMS: usize = 100;
/// Connections that are opened at the same time.
const WAVE: usize = 10;
/// Connections of an attack over HTTP/2: 30,000 requests in total. The variants have fewer.
const CONNECTIONS: usize = 300;
const VARIANT: usize = 60;
/// Connections of an attack over HTTP/1.1.
const HTTP1: usize = 2_000;
/// Connections of an attack with several pipelined requests on each.
const PIPELINED: usize = 600;
/// Length of a held body in bytes, just below the limit for messages.
const MIB: usize = 1_000_000;
/// Connections and streams of an attack with bodies of this length, 800 MB in total.
const LONG_BODIES: (usize, usize) = (20, 40);
/// Maximum resident memory of Envoy during an attack.
const MAX_MEMORY_KB: u64 = 600_000;
/// Identity providers of one organization.
const PROVIDERS: usize = 8;
/// Clients of the neighbor. Each may take 10 tokens a second.
const CLIENTS: usize = 128;
/// Rounds of the attack whose requests lose their places.
const ROUNDS: usize = 32;

/// The tests run one after the other, because each needs much of the machine's memory.
static TURN: Mutex<()> = Mutex::const_new(());

/// An attack, and the expected answers.
struct Case {
    what: &'static str,
    version: Version,
    /// The connections use these requests in turn.
    requests: Vec<Unfinished>,
    connections: usize,
    streams: usize,
    hangs_up: bool,
    /// The allowed statuses of answers.
    statuses: &'static [u16],
}

impl Case {
    /// The attack at its full size over HTTP/2.
    fn new(what: &'static str, request: &Unfinished, statuses: &'static [u16]) -> Self {
        let requests = vec![request.clone().padded(Padding::Repeated)];
        Self { what, version: Version::Http2, requests, connections: CONNECTIONS, streams: STREAMS, hangs_up: false, statuses }
    }

    /// A smaller attack with this padding.
    fn variant(what: &'static str, request: &Unfinished, padding: Padding, statuses: &'static [u16]) -> Self {
        let requests = vec![request.clone().padded(padding)];
        Self { requests, connections: VARIANT, ..Self::new(what, request, statuses) }
    }

    /// Runs the attack over HTTP/1.1, with this many requests on each connection.
    fn http1(self, streams: usize) -> Self {
        Self { version: Version::Http1, connections: HTTP1, streams, ..self }
    }

    /// Closes the connections as soon as their requests wait.
    fn hanging_up(self) -> Self {
        Self { hangs_up: true, ..self }
    }

    /// Runs the attack. Returns what went wrong.
    async fn run(&self, gateway: &Gateway) -> Vec<String> {
        let before = gateway.memory_kb();
        gateway.forget_peak_memory();
        let mut attack = Attack::new(gateway.client().authority(), self.version);
        let mut opened = 0;
        while opened < self.connections {
            let connections = WAVE.min(self.connections - opened);
            attack.wave(&self.requests, connections, self.streams).await;
            opened += connections;
            if self.hangs_up {
                attack.hang_up().await;
            }
        }
        if self.version == Version::Http1 && !self.hangs_up {
            eventually("all connections wait, or are answered", async || {
                let active = gateway.stat("http.gateway.downstream_rq_active").await as usize;
                let answered: usize = attack.tally().answers.values().sum();
                (active + answered >= self.connections).then_some(())
            })
            .await;
        }
        let Tally { requests, bytes, answers, .. } = attack.tally();
        let peak = gateway.peak_memory_kb();
        println!(
            "{}: {requests} requests, {bytes} bytes sent, {before} kB before, {peak} kB at the peak, {} kB after, answers {answers:?}",
            self.what,
            gateway.memory_kb(),
        );
        let unexpected: BTreeMap<u16, usize> =
            answers.into_iter().filter(|(status, _)| !self.statuses.contains(status)).collect();
        [
            (peak > MAX_MEMORY_KB, format!("{peak} kB of memory")),
            (gateway.has_trapped(), "the module trapped".to_owned()),
            (!unexpected.is_empty(), format!("answers {unexpected:?}")),
        ]
        .into_iter()
        .filter(|(is_wrong, _)| *is_wrong)
        .map(|(_, problem)| format!("{}: {problem}", self.what))
        .collect()
    }
}

/// The neighbor's requests during an attack: `calls` to its connectors, and requests for tokens.
struct Neighbor {
    loads: [Load; 2],
}

impl Neighbor {
    fn start(gateway: &Gateway, calls: &[Request]) -> Self {
        let tokens = (0..CLIENTS).map(|client| token_request(&client_id(client))).collect();
        Self { loads: [Load::start(gateway.client(), calls.to_vec()), Load::start(gateway.client(), tokens)] }
    }

    /// Stops the requests. Returns a description of those that were refused or got no answer.
    async fn stop(self) -> Vec<String> {
        let mut problems = Vec::new();
        for load in self.loads {
            load.until_answered(1).await;
            let (sent, others, unanswered) = load.stop_broken().await;
            println!("  neighbor: {sent} requests, {} refused, {unanswered} without an answer", others.len());
            if !others.is_empty() || unanswered > 0 {
                problems.push(format!("{} of {sent} refused, {unanswered} unanswered: {:?}", others.len(), others.first()));
            }
        }
        problems
    }
}

fn client_id(number: usize) -> String {
    format!("apx_client_{number:08}")
}

fn token_request(client_id: &str) -> Request {
    let form = format!("grant_type=client_credentials&client_id={client_id}&client_secret={}", oauth::SECRET);
    Request::post("/oauth/token").header("content-type", "application/x-www-form-urlencoded").body(form)
}

fn form() -> Unfinished {
    Unfinished::post("/oauth/token", 100).header("content-type", "application/x-www-form-urlencoded")
}

/// A message with an API key for some of the connectors.
fn message() -> Unfinished {
    Unfinished::post("/mcp/attacker", 2_000_000)
        .header("content-type", "application/json")
        .header("x-api-key", &api_key("key_scoped"))
}

/// A request without a credential. The refusal of a short request waits for the rest of the request.
fn refused() -> Unfinished {
    Unfinished::post("/mcp/attacker", 16_000)
}

fn with_token(token: &str, length: usize) -> Unfinished {
    Unfinished::post("/mcp/attacker", length).header("authorization", &format!("Bearer {token}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_do_not_harm_other_organizations() {
    let _turn = TURN.lock().await;
    let key = Key::first("a");
    let known = Issuer::start(&[&key]).await;
    let mut silent = Vec::new();
    for _ in 0..PROVIDERS {
        let issuer = Issuer::start(&[]).await;
        issuer.behave(Behaviour::Hang);
        silent.push(issuer);
    }
    let providers: Vec<Value> = silent.iter().map(Issuer::record).collect();
    let clients: Vec<Value> = (0..CLIENTS)
        .map(|client| json!({"client_id": client_id(client), "secret_sha256": [sha256(oauth::SECRET)], "scopes": ["mcp:call"]}))
        .collect();
    let scoped = merged(api_key_record("key_scoped"), &json!({"connectors": ["notes"]}));
    let limited = json!({"api_keys": [api_key_record("key_limited")], "limits": {"monthly_quota": 1_000_000_000}});
    let mut plugin = plugin(&json!({
        "attacker": {"api_keys": [scoped, api_key_record("key_all")], "identity_providers": providers},
        "limited": limited,
        "neighbor": {
            "api_keys": [api_key_record("key_neighbor")],
            "identity_providers": [known.record()],
            "oauth_clients": clients,
        },
    }));
    plugin["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("k")]);
    plugin["jwks"]["timeout"] = json!("60s");
    // The rate limit service accepts requests and never answers.
    let service = Front::of(0).await;
    service.lead(Way::Silent);
    let asked = json!({"cluster": "ratelimit", "timeout": "20s", "on_error": "deny"});
    plugin["limits"] = json!({"store": "rate_limit_service", "rate_limit_service": asked});
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin).shipped_limits().rate_limit_service(service.port()).start(&upstream).await;
    let calls = [
        Request::tools_list("/mcp/neighbor").api_key(&api_key("key_neighbor")),
        Request::tools_list("/mcp/neighbor").bearer(&key.token(&known.claims())),
    ];
    for call in &calls {
        gateway.until_everywhere(call, 200).await;
    }

    let tokens: Vec<String> = silent.iter().map(|issuer| Key::second("a").token(&issuer.claims())).collect();
    let by_token = with_token(&tokens[0], 0);
    let limited = Unfinished::post("/mcp/limited", 0).header("x-api-key", &api_key("key_limited"));
    let several = |what, padding| Case {
        requests: tokens.iter().map(|token| with_token(token, 0).padded(padding)).collect(),
        ..Case::new(what, &by_token, &[503])
    };
    let long_bodies = |what, request: Unfinished| Case {
        requests: vec![request.sending(MIB)],
        connections: LONG_BODIES.0,
        streams: LONG_BODIES.1,
        ..Case::new(what, &message(), &[408, 503])
    };
    use Padding::{Cookie, Many, One, Query, Repeated, Trailers};
    let cases = [
        Case::new("forms", &form(), &[408, 503]),
        Case::variant("forms with one long header", &form(), One, &[408, 503]),
        Case::variant("forms that drip, with a cookie", &form().dripping(), Cookie, &[408, 503]),
        Case::variant("forms over HTTP/1.1", &form(), Repeated, &[408, 503]).http1(1),
        Case::new("a key set", &by_token, &[503]),
        // Envoy itself keeps the bytes of later requests on a connection, and closes connections with many unread bytes.
        Case { connections: PIPELINED, ..Case::variant("a key set, pipelined", &by_token, Repeated, &[0, 503]).http1(3) },
        Case::variant("a key set, with a long query", &by_token, Query, &[503]),
        Case::variant("a key set, with long trailers", &by_token, Trailers, &[503]),
        several("several key sets", Repeated),
        Case { connections: VARIANT, ..several("several key sets, many headers", Many) },
        Case { connections: VARIANT, ..several("several key sets, hanging up", Cookie) }.hanging_up(),
        Case::new("the rate limit service", &limited, &[429, 503]),
        Case::variant("the rate limit service over HTTP/1.1", &limited, One, &[429, 503]).http1(1),
        Case::variant("the rate limit service, with a long query", &limited, Query, &[429, 503]),
        Case::new("messages", &message(), &[408, 503]),
        Case::variant("messages with a cookie", &message(), Cookie, &[408, 503]),
        Case::variant("messages that drip", &message().dripping(), Many, &[408, 503]),
        long_bodies("messages of 1 MB", message()),
        Case { connections: 800, ..long_bodies("messages of 1 MB over HTTP/1.1", message()).http1(1) },
        long_bodies("messages of 1 MB, hanging up", message().padded(Repeated)).hanging_up(),
        Case::new("refusals", &refused(), &[401]),
        Case::variant("refusals over HTTP/1.1", &refused(), Repeated, &[401]).http1(1),
        Case::variant("refusals with many headers that drip", &refused().dripping(), Many, &[401]),
    ];
    let mut problems = Vec::new();
    for case in cases {
        let neighbor = Neighbor::start(&gateway, &calls);
        problems.extend(case.run(&gateway).await);
        let suffered = neighbor.stop().await;
        problems.extend(suffered.into_iter().map(|problem| format!("{}: the neighbor: {problem}", case.what)));
        gateway.until_active(0).await;
    }
    assert!(problems.is_empty(), "{problems:#?}");

    let of_attacker = Request::tools_list("/mcp/attacker");
    gateway.admits("the attacker's organization", &of_attacker.clone().api_key(&api_key("key_all"))).await;
    gateway.admits("a message", &of_attacker.clone().api_key(&api_key("key_scoped"))).await;
    for issuer in &silent {
        issuer.publish(&[&key]);
    }
    for issuer in &silent {
        gateway.until_everywhere(&of_attacker.clone().bearer(&key.token(&issuer.claims())), 200).await;
    }
    // The places for requests to the service are free again. So the gateway asks the service, and notices that it is gone.
    service.lead(Way::Closed);
    let asks = Request::tools_list("/mcp/limited").api_key(&api_key("key_limited"));
    eventually("the gateway asks the service again", async || {
        let reply = gateway.send(&asks).await;
        (reply.json()["reason"] == "rate_limit_unavailable").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_the_first_policy_are_limited() {
    let _turn = TURN.lock().await;
    let mut settings = Apexmcp::new();
    let (_, key) = settings.create_key();
    let front = Front::of(settings.serve().await).await;
    front.lead(Way::Silent);
    let mut plugin = plugin(&json!({}));
    plugin["policy"] = json!({"remote": {"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN", "timeout": "60s"}});
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin).shipped_limits().settings(front.port(), TOKEN).start(&upstream).await;

    let by_key = Unfinished::post("/mcp/acme", 0).header("x-api-key", &key);
    let cases = [
        Case::new("the first policy", &by_key, &[503]),
        Case::variant("the first policy, with a long query", &by_key, Padding::Query, &[503]),
        Case::variant("the first policy, with long trailers", &by_key, Padding::Trailers, &[503]),
        Case::variant("the first policy, at the token endpoint", &form(), Padding::Cookie, &[503]),
    ];
    let mut problems = Vec::new();
    for case in cases {
        problems.extend(case.run(&gateway).await);
        gateway.until_active(0).await;
    }
    assert!(problems.is_empty(), "{problems:#?}");
    front.lead(Way::Open);
    gateway.until_everywhere(&Request::tools_list("/mcp/acme").api_key(&key), 200).await;
}

/// To answer a request of another stream in a callback makes Envoy's wasm host stop the stream of this callback. A request that
/// took the place of an older one was held until a timeout, or lost a part of its body.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_the_place_of_an_older_one_is_served() {
    let _turn = TURN.lock().await;
    let clients: Vec<Value> = (0..ROUNDS)
        .map(|client| json!({"client_id": client_id(client), "secret_sha256": [sha256(oauth::SECRET)], "scopes": ["mcp:call"]}))
        .collect();
    let scoped = merged(api_key_record("key_scoped"), &json!({"connectors": ["notes"]}));
    let mut plugin = plugin(&json!({"attacker": {"api_keys": [scoped], "oauth_clients": clients}}));
    plugin["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("k")]);
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin).shipped_limits().start(&upstream).await;

    let mut attack = Attack::new(gateway.client().authority(), Version::Http2);
    let heads = [form().padded(Padding::Repeated), message().padded(Padding::Repeated)];
    let call = Request::tools_list("/mcp/attacker").api_key(&api_key("key_scoped"));
    for client in 0..ROUNDS {
        // Two connections have more heads than both shares have room for.
        attack.wave(&heads, 2, STREAMS).await;
        // Long heads, so that each of them needs the place of another.
        for request in
            [token_request(&client_id(client)), call.clone()].map(|request| request.header("x-padding", "x".repeat(50_000)))
        {
            let reply = gateway.send(&request).await;
            assert_eq!(reply.status, 200, "after {:?}: {reply:?}", attack.tally());
        }
    }
    assert!(attack.tally().answers.contains_key(&503), "nothing took a place of the attack: {:?}", attack.tally());
}
