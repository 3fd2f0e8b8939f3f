//! The rate limit service breaks while the gateway works. An unusable answer counts as no answer, and the operator's
//! `on_error` decides.

use apexmcp_core::limits::service::MAX_ANSWER_LENGTH;
use serde_json::json;
use wasm_test::attack::{Attack, Unfinished, Version};
use wasm_test::eventually;
use wasm_test::front::{Front, Way};
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::load::{Load, Loads, strangers};
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::rate_limit::RateLimitService;
use wasm_test::upstream;

fn call() -> Request {
    Request::tools_list("/mcp/acme").api_key(&api_key("key_all"))
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A header block with these fields, none of them indexed or compressed (RFC 7541 §6.2.2).
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
/// The flag that acknowledges the peer's settings. Before that, the peer accepts at most 64 KiB of an answer.
const ACK: u8 = 1;

/// The default limit of a frame's payload in bytes (RFC 9113 §6.5.2).
const MAX_FRAME_SIZE: usize = 16_384;

/// An HTTP/2 answer to the first request of a connection.
fn http2(head: &[(&str, &str)], body: &[u8], trailers: &[(&str, &str)]) -> Way {
    let mut bytes = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat();
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &fields(head)));
    bytes.extend(body.chunks(MAX_FRAME_SIZE).flat_map(|part| frame(0, 0, 1, part)));
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(trailers)));
    Way::answer(bytes)
}

/// A gRPC answer with this message and status.
fn grpc(message: &[u8], status: &str) -> Way {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    let body = [&[0], length.as_slice(), message].concat();
    http2(&[(":status", "200"), ("content-type", "application/grpc")], &body, &[("grpc-status", status)])
}

/// A `RateLimitResponse` with the code OK.
const OK: [u8; 2] = [8, 1];

/// A `RateLimitResponse` of this length in bytes, with the code OK and a `raw_body` (field 5).
fn of_length(length: usize) -> Vec<u8> {
    let mut tag_and_length = vec![0x2a];
    // Encoded in four bytes, whatever its size, so that the total length is known.
    let body = length - OK.len() - tag_and_length.len() - 4;
    tag_and_length.extend((0..4).map(|digit| (body >> (7 * digit) & 0x7f) as u8 | if digit < 3 { 0x80 } else { 0 }));
    [&OK[..], &tag_and_length, &vec![b'<'; body]].concat()
}

/// Unusable answers, each with its name.
fn useless() -> Vec<(&'static str, Way)> {
    let http1 = |status: &str, body: &str| {
        Way::answer(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()))
    };
    let grpc_head = [(":status", "200"), ("content-type", "application/grpc")];
    vec![
        ("silent", Way::Silent),
        ("hanging up", Way::Closed),
        ("HTTP/1.1 500", http1("500 Internal Server Error", "")),
        ("HTTP/1.1 and HTML", http1("200 OK", "<html>Log in</html>")),
        ("HTTP/2 500", http2(&[(":status", "500"), ("content-type", "application/grpc")], &[0, 0, 0, 0, 2, 8, 1], &[("x", "y")])),
        ("HTTP/2 and HTML", http2(&[(":status", "200"), ("content-type", "text/html")], b"<html>Log in</html>", &[("x", "y")])),
        ("OK without a status", http2(&grpc_head, &[0, 0, 0, 0, 2, 8, 1], &[("x", "y")])),
        ("OK, and status INTERNAL", grpc(&OK, "13")),
        ("OK, and a status that is no number", grpc(&OK, "fine")),
        ("OK, compressed as it says", http2(&grpc_head, &[1, 0, 0, 0, 2, 8, 1], &[("grpc-status", "0")])),
        (
            "OK, in gzip as it says",
            http2(
                &[grpc_head[0], grpc_head[1], ("content-encoding", "gzip"), ("grpc-encoding", "gzip")],
                &[1, 0, 0, 0, 2, 8, 1],
                &[("grpc-status", "0")],
            ),
        ),
        (
            "redirecting, with OK",
            http2(&[(":status", "302"), ("location", "/"), grpc_head[1]], &[0, 0, 0, 0, 2, 8, 1], &[("grpc-status", "0")]),
        ),
        ("a byte a second", grpc(&OK, "0").dripping()),
        ("OK, cut off", http2(&grpc_head, &[0, 0, 0, 0, 9, 8, 1], &[("grpc-status", "0")])),
        ("no message", http2(&grpc_head, &[], &[("grpc-status", "0")])),
        ("empty", grpc(&[], "0")),
        ("UNKNOWN", grpc(&[8, 0], "0")),
        ("a code that is none", grpc(&[8, 3], "0")),
        ("OK and garbage", grpc(&[8, 1, 0xff], "0")),
        ("HTML as a message", grpc(b"<html>Log in</html>", "0")),
        ("no HTTP", Way::answer("OK")),
    ]
}

/// Two gateways, one for each value of `on_error`, and the number of requests at the last report.
struct Site {
    allowing: Gateway,
    denying: Gateway,
    sent: usize,
}

impl Site {
    async fn is_denied(&self) -> bool {
        let reply = self.denying.send(&call()).await;
        let is_denied = reply.status == 503 && reply.json()["reason"] == "rate_limit_unavailable";
        assert!(is_denied || reply.status == 200, "{reply:?}");
        is_denied
    }

    /// Waits until 20 requests in a row are denied. Until then, connections from before may still bring answers. A
    /// fault that counts as an answer would never lead to 20 denials.
    async fn until_missed(&self, what: &str) {
        let is_missed = async || {
            for _ in 0..20 {
                if !self.is_denied().await {
                    return None;
                }
            }
            Some(())
        };
        eventually(what, is_missed).await;
    }

    /// Waits until the service is used again, and prints the number of requests since the last report.
    async fn until_back(&mut self, what: &str, loads: &[&Load]) {
        eventually(what, async || (!self.is_denied().await).then_some(())).await;
        let sent = loads.iter().map(|load| load.sent()).sum();
        println!("{what}: {} requests", sent - self.sent);
        self.sent = sent;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_answer_is_an_error() {
    let upstream = upstream::start().await;
    let mut service = RateLimitService::start().await;
    let front = Front::of(service.port()).await;
    let orgs = json!({"acme": {"api_keys": [api_key_record("key_all")], "limits": {"monthly_quota": 1_000_000_000}}});
    let setup = |on_error| {
        let service = json!({"cluster": "ratelimit", "timeout": "250ms", "on_error": on_error});
        let limits = json!({"limits": {"store": "rate_limit_service", "rate_limit_service": service}});
        Setup::new(merged(plugin(&orgs), &limits)).workers(2).rate_limit_service(front.port())
    };
    let (allowing, denying) = (setup("allow").start(&upstream).await, setup("deny").start(&upstream).await);
    let mut site = Site { allowing, denying, sent: 0 };
    let strangers = strangers(&Request::tools_list("/mcp/acme"), []);
    let allowed = Load::start(site.allowing.client(), vec![call()]);
    let denied = Load::start(site.denying.client(), vec![call()]);
    let unknown = [&site.allowing, &site.denying].map(|gateway| Load::refused(gateway.client(), strangers.clone()));
    let loads = [&allowed, &denied, &unknown[0], &unknown[1]];
    site.until_back("at first", &loads).await;

    for (what, fault) in useless() {
        front.lead(fault);
        site.until_missed(what).await;
        front.lead(Way::Open);
        site.until_back(what, &loads).await;
    }
    service.stop_service();
    site.until_missed("the service killed").await;
    service.start_service().await;
    site.until_back("the service killed", &loads).await;
    service.signal_service("STOP").await;
    site.until_missed("the service stopped").await;
    service.signal_service("CONT").await;
    site.until_back("the service stopped", &loads).await;
    service.stop_redis();
    site.until_missed("Redis killed").await;
    service.start_redis().await;
    site.until_back("Redis killed", &loads).await;
    // The message of the faults above is a valid answer if nothing else is wrong with it.
    let met = front.met();
    front.lead(grpc(&OK, "0"));
    eventually("the service is asked", async || (front.met() > met + 1).then_some(())).await;
    eventually("the answer is accepted", async || (!site.is_denied().await).then_some(())).await;

    let (sent_allowed, wrong) = allowed.stop().await;
    assert!(wrong.is_empty(), "one of {sent_allowed} requests got a wrong answer: {:?}", wrong.first());
    let (sent_denied, refused) = denied.stop().await;
    let wrong = refused.iter().find(|reply| reply.status != 503 || reply.json()["reason"] != "rate_limit_unavailable");
    assert!(wrong.is_none(), "one of {sent_denied} requests got a wrong answer: {wrong:?}");
    let mut sent = sent_allowed + sent_denied;
    for unknown in unknown {
        let (sent_unknown, wrong) = unknown.stop().await;
        assert!(
            wrong.is_empty(),
            "{} of {sent_unknown} invalid requests got a wrong answer, the first: {:?}",
            wrong.len(),
            wrong.first()
        );
        sent += sent_unknown;
    }
    println!("{sent} requests, 0 wrong decisions; {} refused because of on_error", refused.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_that_comes_in_time_is_an_error() {
    const LARGE: usize = 50_000_000;
    let upstream = upstream::start().await;
    let front = Front::of(0).await;
    front.lead(grpc(&of_length(LARGE), "0"));
    let limited = json!({"api_keys": [api_key_record("key_all")], "limits": {"monthly_quota": 1_000_000_000}});
    let orgs = json!({"acme": limited, "other": {"api_keys": [api_key_record("key_other")]}});
    let at_other = |key: &str| Request::tools_list("/mcp/other").api_key(&api_key(key));
    for (on_error, status) in [("allow", 200), ("deny", 503)] {
        let service = json!({"cluster": "ratelimit", "timeout": "60s", "on_error": on_error});
        let limits = json!({"limits": {"store": "rate_limit_service", "rate_limit_service": service}});
        let setup = Setup::new(merged(plugin(&orgs), &limits)).workers(2).rate_limit_service(front.port());
        let gateway = setup.start(&upstream).await;
        let bad = strangers(&Request::tools_list("/mcp/acme"), []);
        let loads = Loads::start(gateway.client(), vec![at_other("key_other")], bad);
        loads.until_answered(50).await;
        for _ in 0..5 {
            assert_eq!(gateway.send(&call()).await.status, status);
        }
        // Some answers may be incomplete, because this server ignores flow control.
        assert!(gateway.stat("cluster.ratelimit.upstream_cx_rx_bytes_total").await >= LARGE as u64);
        assert!(gateway.metric("apexmcp_rate_limit_service", &[("outcome", "error")]).await >= 5);
        loads.until_answered(50).await;
        assert_eq!(loads.stop(&format!("50 MB for an answer, on_error {on_error}")).await, 0);
        front.lead(grpc(&of_length(MAX_ANSWER_LENGTH), "0"));
        // A connection may end while a request uses it.
        eventually("an answer of the maximum length is accepted", async || {
            (gateway.send(&call()).await.status == 200).then_some(())
        })
        .await;
        front.lead(grpc(&of_length(MAX_ANSWER_LENGTH + 1), "0"));
        for _ in 0..5 {
            assert_eq!(gateway.send(&call()).await.status, status, "a byte too long, {on_error}");
        }
        front.lead(grpc(&of_length(LARGE), "0"));
    }
}

/// Maximum number of open requests to the service of one org, in each worker.
const MAX_QUESTIONS: usize = 128;

/// Every 429 names a limit, even if the true counts are not known.
#[tokio::test]
async fn a_refusal_without_known_counts_names_a_limit() {
    let upstream = upstream::start().await;
    for (limits, policy, state) in [
        (json!({"monthly_quota": 1_000}), r#""month";q=1000"#, r#""month";r=0;t=1"#),
        (json!({"rate": {"requests": 600, "per": "minute"}}), r#""rate";q=600;w=60"#, r#""rate";r=0;t=1"#),
        (json!({"rate": {"requests": 9, "per": "hour"}, "monthly_quota": 7}), r#""rate";q=9;w=3600"#, r#""rate";r=0;t=1"#),
    ] {
        let front = Front::of(0).await;
        front.lead(Way::Silent);
        let orgs = json!({"acme": {"api_keys": [api_key_record("key_all")], "limits": limits}});
        let service = json!({"cluster": "ratelimit", "timeout": "60s", "on_error": "allow"});
        let store = json!({"limits": {"store": "rate_limit_service", "rate_limit_service": service}});
        let setup = |questions| {
            let setup = Setup::new(merged(plugin(&orgs), &store));
            setup.circuit_breaker(questions).rate_limit_service(front.port())
        };
        let refused = async |what: &str, gateway: &Gateway| {
            let reply = gateway.send(&call()).await;
            assert_eq!((reply.status, &reply.json()["reason"]), (429, &json!("rate_limit")), "{what} {limits}: {reply:?}");
            let told = ["retry-after", "ratelimit-policy", "ratelimit"].map(|name| reply.header(name));
            assert_eq!(told, [Some("1"), Some(policy), Some(state)], "{what} {limits}");
        };
        // The requests to the service stay open, because it does not answer.
        for (what, circuit_breaker, open) in
            [("the gateway's limit of open requests", 1_024, MAX_QUESTIONS), ("Envoy's circuit breaker", 1, 1)]
        {
            let gateway = setup(circuit_breaker).start(&upstream).await;
            let mut attack = Attack::new(gateway.client().authority(), Version::Http2);
            attack.wave(&[Unfinished::post("/mcp/acme", 0).header("x-api-key", &api_key("key_all"))], 1, open).await;
            gateway.until_active(open as u64).await;
            refused(what, &gateway).await;
        }
        let gateway = setup(1_024).start(&upstream).await;
        front.lead(grpc(&[8, 2], "0"));
        refused("a service that only says OVER_LIMIT", &gateway).await;
    }
}
