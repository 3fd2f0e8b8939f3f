//! Credentials for some connectors, at the endpoint of all connectors: the tools that they may call, and the lists
//! that they see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use apexmcp_core::mcp::message::{Body, Message, Target};
use http_body_util::Full;
use hyper::Response;
use serde_json::{Value, json};
use wasm_test::demo::{Demo, api_keys, in_front_of};
use wasm_test::envoy::Envoy;
use wasm_test::gateway::{Setup, plugin};
use wasm_test::http::{CASE_HEADER, Request};
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::module::Module;
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::process::Folder;
use wasm_test::server::Server;
use wasm_test::token::Key;
use wasm_test::upstream::{self, Arrived};
use wasm_test::{eventually, messages};

fn message(body: impl Into<String>) -> Request {
    Request::post("/mcp/acme-corp")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(body.into())
}

fn call(name: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": {}}}).to_string()
}

#[tokio::test]
async fn the_official_client_sees_and_calls_only_what_its_key_covers() {
    let demo = Demo::start().await;
    let all = ["clock__days_between", "clock__now", "notes__read", "notes__titles", "notes__write"];
    for mode in ["auto", "legacy"] {
        for (key, tools, prompts) in [("key_all", &all[..], 1), ("key_notes", &all[2..], 1), ("key_clock", &all[..2], 0)] {
            let header = format!("X-API-Key: {}", api_key(key));
            for (tool, arguments, answer) in [
                ("notes__titles", json!({}), "welcome"),
                ("clock__days_between", json!({"first": "2026-11-01", "second": "2026-12-01"}), "30"),
            ] {
                let seen = demo.client("/mcp/acme-corp", mode, tool, &arguments, &header).await;
                let what = format!("{mode} {key} {tool}: {seen}");
                assert_eq!(seen["tools"], json!(tools), "{what}");
                assert_eq!(seen["prompts"].as_array().map(Vec::len), Some(prompts), "{what}");
                assert_eq!(seen["resources"].as_array().map(Vec::len), Some(prompts), "{what}");
                if tools.contains(&tool) {
                    assert_eq!((&seen["text"], &seen["is_error"]), (&json!([answer]), &json!(false)), "{what}");
                } else {
                    assert!(seen["refused"].is_string() && seen["text"].is_null(), "{what}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_refused_message_reaches_no_connector_in_either_buffering_mode() {
    for holding_bodies in [false, true] {
        let upstream = upstream::start().await;
        let setup = Setup::new(plugin(&json!({"acme-corp": {"api_keys": api_keys()}})));
        let setup = if holding_bodies { setup.holding_bodies() } else { setup };
        let gateway = setup.start(&upstream).await;
        let sent = |body: &str| message(body).api_key(&api_key("key_notes"));

        let arrived = gateway.admits("its own tool", &sent(&call("notes__read")).header("accept-encoding", "gzip, br")).await;
        assert_eq!(arrived.body, call("notes__read"));
        assert!(arrived.headers.contains(&("accept-encoding".into(), "identity".into())), "{arrived:?}");
        assert!(!arrived.has("x-api-key"), "{arrived:?}");
        assert_eq!(arrived.headers_below("x-apexmcp-")["principal"], "acme-corp/key/key_notes");
        let unscoped = message(call("clock__now")).api_key(&api_key("key_all")).header("accept-encoding", "gzip");
        let arrived = gateway.admits("a full key", &unscoped).await;
        assert!(arrived.headers.contains(&("accept-encoding".into(), "gzip".into())), "{arrived:?}");

        for (what, request, status, reason) in [
            ("a foreign tool", sent(&call("clock__now")), 403, "scope_insufficient"),
            ("a tool without a connector", sent(&call("now")), 403, "scope_insufficient"),
            ("a batch", sent(&format!("[{},{}]", call("notes__read"), call("clock__now"))), 403, "scope_insufficient"),
            ("nothing", sent(""), 400, "message_malformed"),
            ("no JSON", sent("{"), 400, "message_malformed"),
            (
                "two names",
                sent(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"notes__a","name":"clock__a"}}"#),
                400,
                "message_malformed",
            ),
            (
                "another type",
                Request::post("/mcp/acme-corp").api_key(&api_key("key_notes")).body(call("notes__read")),
                415,
                "media_type_unsupported",
            ),
            ("compressed", sent(&call("notes__read")).header("content-encoding", "gzip"), 415, "media_type_unsupported"),
            (
                "the stream of a GET",
                Request::get("/mcp/acme-corp").header("accept", "text/event-stream").api_key(&api_key("key_notes")),
                405,
                "method_not_allowed",
            ),
        ] {
            let refusal = gateway.refuses(what, &request).await;
            assert_eq!((refusal.status, refusal.reason.as_str()), (status, reason), "{what}");
        }
        // Envoy's own buffer has the same limit, and either of the two may answer first.
        let reply = gateway.send(&sent(&format!("{}{}", call("notes__read"), " ".repeat(1 << 20)))).await;
        assert!(reply.status == 413 && Arrived::of(&reply).is_none(), "a long one: {reply:?}");
        let refusal = gateway.refuses("a foreign tool", &sent(&call("clock__now"))).await;
        let challenge = r#"Bearer error="insufficient_scope", scope="mcp:call:clock""#;
        assert_eq!(refusal.challenge.as_deref(), Some(challenge));
        let refusal = gateway.refuses("a batch", &sent(&format!("[{},{}]", call("notes__read"), call("clock__now")))).await;
        assert_eq!(refusal.challenge.as_deref(), Some(r#"Bearer error="insufficient_scope", scope="mcp:call""#));

        let mismatch = sent(&call("notes__read")).header("mcp-method", "tools/call").header("mcp-name", "clock__now");
        let reply = gateway.send(&mismatch).await;
        assert!(Arrived::of(&reply).is_none(), "{reply:?}");
        assert_eq!((reply.status, &reply.json()["error"]["code"], &reply.json()["id"]), (400, &json!(-32020), &json!(1)));
        gateway
            .admits(
                "headers that agree",
                &sent(&call("notes__read")).header("mcp-method", "tools/call").header("mcp-name", "notes__read"),
            )
            .await;

        let named = |method: &str, params: Value| {
            let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
            sent(&body).header("mcp-method", method)
        };
        let prompt = || named("prompts/get", json!({"name": "notes__p", "uri": "clock+n://p", "taskId": "t"}));
        let resource = || named("resources/read", json!({"uri": "notes+n://a", "name": "clock__a"}));
        let task = named("tasks/get", json!({"taskId": "t", "name": "notes__p"}));
        gateway.admits("the name of a prompt", &prompt().header("mcp-name", "notes__p")).await;
        gateway.admits("the URI of a resource", &resource().header("mcp-name", "notes+n://a")).await;
        for (what, request, status) in [
            ("the task of a prompt", prompt().header("mcp-name", "t"), 400),
            ("the name of a resource", resource().header("mcp-name", "clock__a"), 400),
            // The scope is insufficient, so the values of the headers do not matter.
            ("another method", sent(&call("clock__now")).header("mcp-method", "tools/list"), 403),
            ("another name", sent(&call("clock__now")).header("mcp-name", "notes__read"), 403),
            ("a task", task.clone().header("mcp-name", "t"), 403),
            ("another task", task.header("mcp-name", "notes__p"), 403),
        ] {
            let reply = gateway.send(&request).await;
            assert!(Arrived::of(&reply).is_none() && reply.status == status, "{what}: {reply:?}");
        }

        for method in [r"tools\/call", r"\u0074ools/call", r"tools\u002Fcall"] {
            let escaped = |name: &str| call(name).replace("tools/call", method);
            let arrived = gateway.admits(method, &sent(&escaped("notes__read")).header("mcp-method", "tools/call")).await;
            assert_eq!(arrived.body, escaped("notes__read"), "{method}");
            assert_eq!(gateway.refuses(method, &sent(&escaped("clock__now"))).await.reason, "scope_insufficient");
        }
        let escaped_name = sent(&call("notes__read").replace("notes__read", r"notes\u005f_read"));
        assert_eq!(gateway.refuses("an escaped name", &escaped_name).await.reason, "message_malformed");
    }
}

#[tokio::test]
async fn a_message_that_waits_for_keys_is_inspected() {
    for holding_bodies in [false, true] {
        let upstream = upstream::start().await;
        let key = Key::first("a");
        let issuer = Issuer::start(&[]).await;
        issuer.behave(Behaviour::Hang);
        let orgs = json!({"acme-corp": {"identity_providers": [issuer.record()]}});
        let plugin = merged(plugin(&orgs), &json!({"jwks": {"http_cluster": "jwks_http", "timeout": "60s"}}));
        let setup = Setup::new(plugin);
        let gateway = if holding_bodies { setup.holding_bodies() } else { setup }.start(&upstream).await;
        let token = key.token(&issuer.claims_with(&json!({"scope": "mcp:call:notes"})));
        let long = format!("{}{}", call("notes__read"), " ".repeat(100_000));
        let waiting: Vec<_> = [call("notes__read"), call("clock__now"), long]
            .into_iter()
            .map(|body| {
                let (client, request) = (gateway.client().clone(), message(body).bearer(&token));
                tokio::spawn(async move { client.send(&request).await })
            })
            .collect();
        let are_held = async || gateway.stat("http.gateway.downstream_rq_active").await == 3 && issuer.requests() == 1;
        eventually("the requests are held", async || are_held().await.then_some(())).await;
        issuer.publish(&[&key]);
        let mut replies = Vec::new();
        for reply in waiting {
            replies.push(reply.await.expect("a reply"));
        }
        let arrived: Vec<Option<usize>> =
            replies.iter().map(|reply| Arrived::of(reply).map(|arrived| arrived.body.len())).collect();
        assert_eq!(arrived, [Some(call("notes__read").len()), None, Some(call("notes__read").len() + 100_000)]);
        assert_eq!((replies[1].status, &replies[1].json()["reason"]), (403, &json!("scope_insufficient")), "{:?}", replies[1]);
    }
}

#[tokio::test]
async fn a_message_is_inspected_whole_if_the_keys_arrive_in_its_middle() {
    for (scope, body, is_admitted) in [
        ("mcp:call:notes", call("notes__read"), true),
        ("mcp:call:notes", call("clock__now"), false),
        // The filter does not inspect this message, because the scope covers all connectors.
        ("mcp:call", call("clock__now"), true),
    ] {
        let upstream = upstream::start().await;
        let key = Key::first("a");
        let issuer = Issuer::start(&[]).await;
        issuer.behave(Behaviour::Hang);
        let orgs = json!({"acme-corp": {"identity_providers": [issuer.record()]}});
        let gateway = Setup::new(merged(plugin(&orgs), &json!({"jwks": {"http_cluster": "jwks_http", "timeout": "60s"}})));
        let gateway = gateway.start(&upstream).await;
        let token = key.token(&issuer.claims_with(&json!({ "scope": scope })));
        let (first, second) = body.split_at(60);
        let head = format!(
            "POST /mcp/acme-corp HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let first = format!("{head}{first}");
        let length = u64::try_from(first.len()).expect("a length");
        let reply = gateway
            .client()
            .send_halves(first.as_bytes(), second.as_bytes(), async || {
                let came = async || gateway.stat("http.gateway.downstream_cx_rx_bytes_total").await == length;
                eventually("the first half arrived", async || came().await.then_some(())).await;
                issuer.publish(&[&key]);
                let fetched = async || gateway.log().contains("1 usable keys");
                eventually("the keys are fetched", async || fetched().await.then_some(())).await;
            })
            .await;
        let (arrived, refused) = (reply.contains("x-upstream: 1"), reply.contains("scope_insufficient"));
        assert_eq!((arrived, refused), (is_admitted, !is_admitted), "{reply}");
        assert!(!arrived || reply.contains(&json!(body).to_string()), "the whole body arrived: {reply}");
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_message_passes_only_if_it_is_an_error() {
    if Module::is_native("it forwards no head before it has read the message") {
        return;
    }
    for (status, passes) in [("200 OK", false), ("503 Service Unavailable", true)] {
        let hasty = Server::answering_heads(format!("HTTP/1.1 {status}\r\ncontent-length: 6\r\n\r\nsecret")).await;
        let gateway = Setup::new(plugin(&json!({"acme-corp": {"api_keys": api_keys()}}))).start(&hasty).await;
        let key = api_key("key_notes");
        let head = format!(
            "POST /mcp/acme-corp HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n\
             content-length: 100\r\n\r\n"
        );
        let reply = gateway.client().send_bytes(head.as_bytes()).await;
        assert_eq!(reply.contains("secret"), passes, "{reply}");
        assert_eq!(reply.contains("502 Bad Gateway") && reply.contains("message_unread"), !passes, "{reply}");
    }
}

/// A connector that gives the same answer to every request.
async fn answering(status: u16, headers: &'static [(&'static str, &'static str)], body: String) -> Server {
    Server::start(move |_| {
        let body = body.clone();
        async move {
            let response =
                headers.iter().fold(Response::builder().status(status), |response, (name, value)| response.header(*name, *value));
            response.body(Full::from(body)).ok()
        }
    })
    .await
}

fn list(tools: usize) -> Value {
    let tool = |number: usize| {
        let connector = ["notes", "clock"][number % 2];
        json!({"name": format!("{connector}__{number}"), "description": "x".repeat(200), "inputSchema": {"type": "object"}})
    };
    json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": (0..tools).map(tool).collect::<Vec<_>>()}})
}

#[tokio::test]
async fn lists_are_filtered_in_json_and_in_event_streams() {
    const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
    const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];
    const GZIP: &[(&str, &str)] = &[("content-type", "application/json"), ("content-encoding", "gzip")];
    let events = |message: &Value| format!(": hello\n\nevent: message\r\nid: 1\r\ndata: {message}\r\n\r\ndata: {{\"a\":1}}\n\n");
    let request = |method: &str| json!({"jsonrpc": "2.0", "id": 1, "method": method}).to_string();
    let long = list(3000);
    for (what, status, headers, body, is_cut) in [
        ("a short list", 200, JSON, list(4).to_string(), true),
        ("a list in many chunks", 200, JSON, long.to_string(), true),
        ("events", 200, EVENTS, events(&list(4)), true),
        ("an event in many chunks", 200, EVENTS, events(&long), true),
        ("an error", 500, JSON, list(4).to_string(), false),
    ] {
        let connector = answering(status, headers, body.clone()).await;
        let gateway = Setup::new(plugin(&json!({"acme-corp": {"api_keys": api_keys()}}))).start(&connector).await;
        for (key, method, is_cut) in
            [("key_notes", "tools/list", is_cut), ("key_all", "tools/list", false), ("key_notes", "initialize", false)]
        {
            let reply = gateway.send(&message(request(method)).api_key(&api_key(key))).await;
            let passed = String::from_utf8(reply.body.to_vec()).expect("UTF-8");
            assert_eq!(reply.status, status, "{what}");
            if is_cut {
                assert!(!passed.contains("clock__"), "{what} {key} {method}: {passed:.200}");
                assert_eq!(passed.matches("notes__").count(), body.matches("notes__").count(), "{what}");
                assert_eq!(reply.header("content-length"), None, "{what}");
                assert_eq!(passed.contains(": hello\n\nevent: message\nid: 1\n"), headers == EVENTS, "{passed:.200}");
            } else {
                assert_eq!(passed, body, "{what} {key} {method}");
                assert_eq!(reply.header("content-length"), Some(body.len().to_string().as_str()), "{what}");
            }
        }
    }
    for (what, headers, body) in [
        ("compressed though asked not to be", GZIP, list(4).to_string()),
        ("no JSON", JSON, "clock__1".to_owned()),
        ("cut off", JSON, list(4).to_string().trim_end_matches('}').to_owned()),
    ] {
        let connector = answering(200, headers, body).await;
        let gateway = Setup::new(plugin(&json!({"acme-corp": {"api_keys": api_keys()}}))).start(&connector).await;
        let reply = gateway.send(&message(request("tools/list")).api_key(&api_key("key_notes"))).await;
        assert_eq!((&reply.json()["id"], &reply.json()["error"]["code"]), (&json!(1), &json!(-32603)), "{what}: {reply:?}");
        assert_eq!(reply.header("content-encoding"), None, "{what}");
    }
}

#[tokio::test]
async fn no_shared_cache_may_keep_a_list() {
    const HEADERS: &[(&str, &str)] = &[("content-type", "application/json"), ("cache-control", "public, max-age=60")];
    const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream"), ("cache-control", "no-cache, no-transform")];
    let mut public = list(4);
    public["result"]["ttlMs"] = json!(60_000);
    public["result"]["cacheScope"] = json!("public");
    for (headers, body, cache_control) in [
        (HEADERS, public.to_string(), "private, max-age=60"),
        (EVENTS, format!("data: ping\n\ndata: {public}\n\ndata: ping\n\n"), "private, no-cache, no-transform"),
    ] {
        let connector = answering(200, headers, body.clone()).await;
        let gateway = Setup::new(plugin(&json!({"acme-corp": {"api_keys": api_keys()}}))).start(&connector).await;
        for method in ["tools/list", "prompts/list", "resources/list", "resources/templates/list"] {
            let sent = message(json!({"jsonrpc": "2.0", "id": 1, "method": method}).to_string()).header("mcp-method", method);
            for key in ["key_all", "key_notes"] {
                let reply = gateway.send(&sent.clone().header("accept-encoding", "gzip").api_key(&api_key(key))).await;
                let passed = String::from_utf8(reply.body.to_vec()).expect("UTF-8");
                let what = format!("{key} {method}: {passed}");
                assert!(passed.contains(r#""cacheScope":"private""#) && !passed.contains("public"), "{what}");
                assert_eq!(passed.contains("clock__"), key == "key_all", "{what}");
                assert_eq!(passed.matches("data: ping\n\n").count(), body.matches("data: ping\n\n").count(), "{what}");
                assert_eq!(reply.header("cache-control"), Some(cache_control), "{what}");
            }
        }
        // For a credential that covers all connectors, the filter reads only lists.
        let call = message(call("clock__now")).header("mcp-method", "tools/call").api_key(&api_key("key_all"));
        assert_eq!(gateway.send(&call).await.body, body.as_bytes());
    }
}

#[tokio::test]
async fn shadow_mode_forwards_and_records_every_message() {
    let connector = answering(200, &[("content-type", "application/json")], list(4).to_string()).await;
    let shadow = merged(plugin(&json!({"acme-corp": {"api_keys": api_keys()}})), &json!({"mode": "shadow"}));
    let gateway = Setup::new(shadow).start(&connector).await;
    let lists = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    for (body, reason) in [(call("clock__now"), "scope_insufficient"), ("{".to_owned(), "message_malformed"), (lists, "ok")] {
        let reply = gateway.send(&message(body).api_key(&api_key("key_notes"))).await;
        assert_eq!(reply.json(), list(4), "{reason}");
        assert_eq!(gateway.logged(&reply).await["reason"], reason);
    }
}

/// The connectors that each request reached, by the request's [`CASE_HEADER`].
type Reached = Arc<Mutex<BTreeMap<String, BTreeSet<&'static str>>>>;

/// The status, and the connectors that the request reached.
type Outcome = (u16, BTreeSet<&'static str>);

/// A message, and its outcomes with a key for all connectors and with a key for `notes`.
type Sent = (String, Outcome, Outcome);

/// The complete gateway in front of two servers that record the requests they get.
struct Watched {
    envoy: Envoy,
    reached: Reached,
    _connectors: [Server; 2],
}

impl Watched {
    async fn start() -> Self {
        let reached = Reached::default();
        let connector = async |name: &'static str| {
            let reached = Arc::clone(&reached);
            Server::start(move |request: hyper::Request<_>| {
                let case = request.headers().get(CASE_HEADER).map(|case| String::from_utf8_lossy(case.as_bytes()).into_owned());
                reached.lock().expect("no panic").entry(case.unwrap_or_default()).or_default().insert(name);
                let answer = Response::builder().header("content-type", "application/json");
                async move { answer.body(Full::from(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#)).ok() }
            })
            .await
        };
        let connectors = [connector("notes").await, connector("clock").await];
        let acme = json!({"api_keys": [api_key_record("key_all"), merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]}))]});
        let mut configuration = in_front_of(connectors[0].port(), connectors[1].port(), &acme);
        let router = "/static_resources/listeners/1/filter_chains/0/filters/0/typed_config/http_filters/1/typed_config/servers";
        for server in configuration.pointer_mut(router).and_then(Value::as_array_mut).expect("the router's servers") {
            let forwarded = server.pointer_mut("/header_forwarding/allowed_headers/patterns").and_then(Value::as_array_mut);
            forwarded.expect("the forwarded headers").push(json!({"exact": CASE_HEADER}));
        }
        let envoy = Envoy::start(&configuration, 2, Folder::new().expect("a folder")).await;
        Self { envoy, reached, _connectors: connectors }
    }

    /// Sends each message with a key for all connectors and with a key for `notes`. Several clients share the
    /// messages.
    async fn send_all(self: &Arc<Self>, bodies: Vec<String>) -> Vec<Sent> {
        const CLIENTS: usize = 8;
        let mut clients = tokio::task::JoinSet::new();
        for part in bodies.chunks(bodies.len().div_ceil(CLIENTS)) {
            let (watched, part) = (Arc::clone(self), part.to_vec());
            clients.spawn(async move {
                let mut sent = Vec::new();
                for body in part {
                    let (full, scoped) =
                        (watched.reached_by("key_all", &body).await, watched.reached_by("key_notes", &body).await);
                    sent.push((body, full, scoped));
                }
                sent
            });
        }
        clients.join_all().await.concat()
    }

    /// Sends a message with this key.
    async fn reached_by(&self, key: &str, body: &str) -> Outcome {
        let reply = self.envoy.client().send(&message(body).api_key(&api_key(key))).await;
        let reached = self.reached.lock().expect("no panic").remove(&reply.case).unwrap_or_default();
        (reply.status, reached)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filter_and_mcp_router_find_the_same_connector() {
    const PLAIN: usize = 10_000;
    const HOSTILE: usize = 10_000;
    const ATTEMPTS: usize = 3;
    const SENT_AGAIN: &str = "sent again";
    let watched = Arc::new(Watched::start().await);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let plain: Vec<String> = (0..PLAIN).map(|_| messages::plain(&mut rng)).collect();
    let hostile: Vec<String> = (0..HOSTILE).map(|_| messages::hostile(&mut rng)).collect();

    let mut tally = BTreeMap::<String, usize>::new();
    for (kind, bodies) in [("plain", plain), ("hostile", hostile)] {
        for (body, (status, mut reached), (scoped_status, mut reached_by_scoped)) in watched.send_all(bodies).await {
            let ours = Body::parse(body.as_bytes(), "__");
            let served = |connector: &str| kind == "plain" && ["notes", "clock"].contains(&connector);
            // The router joins the answers of all connectors, so a lost call looks like a call that was never made. It
            // reads a message in the same way each time, so the message is sent again.
            for _ in 0..ATTEMPTS {
                let lacks_one = match ours.as_ref().map(|body| body.messages.as_slice()) {
                    Ok([Message { target: Target::Connector(connector), .. }]) => {
                        served(connector.as_str()) && reached.is_empty()
                    }
                    Ok(_) => reached.len() == 1 || reached_by_scoped.len() == 1,
                    Err(_) => false,
                };
                if lacks_one {
                    *tally.entry(SENT_AGAIN.to_owned()).or_default() += 1;
                    reached.append(&mut watched.reached_by("key_all", &body).await.1);
                    reached_by_scoped.append(&mut watched.reached_by("key_notes", &body).await.1);
                }
            }
            let what = format!(
                "{body}\nours: {ours:?}\nreached: {status} {reached:?}, by the scoped key: {scoped_status} {reached_by_scoped:?}"
            );
            let one = (reached.len() == 1).then(|| reached.first().copied()).flatten();
            let verdict = match ours.as_ref().map(|body| body.messages.as_slice()) {
                Ok([Message { target: Target::Connector(connector), .. }]) => {
                    assert!(reached.is_empty() || one == Some(connector.as_str()), "mcp_router chose another connector: {what}");
                    assert!(!served(connector.as_str()) || one.is_some(), "mcp_router chose no connector: {what}");
                    if one.is_some() { "one connector, the same" } else { "one connector, not served" }
                }
                Ok([Message { target: Target::Nothing | Target::Lists, .. }]) => {
                    assert!(one.is_none(), "mcp_router chose a single connector: {what}");
                    "all or none"
                }
                Ok(_) => {
                    assert!(one.is_none(), "mcp_router chose a single connector: {what}");
                    "untied"
                }
                Err(_) => {
                    assert!(kind == "hostile", "a plain message was refused: {what}");
                    if one.is_some() { "refused, though routed" } else { "refused" }
                }
            };
            let clock_alone = reached_by_scoped.contains("clock") && !reached_by_scoped.contains("notes");
            assert!(!clock_alone, "a bypass: {what}");
            let reached_both = reached_by_scoped.len() == 2;
            assert!(!reached_both || verdict == "all or none", "a bypass: {what}");
            *tally.entry(format!("{kind}: {verdict}")).or_default() += 1;
        }
    }
    println!("{tally:#?}");
    assert!(tally.get(SENT_AGAIN).is_none_or(|lost| *lost < (PLAIN + HOSTILE) / 100), "{tally:?}");
    assert!(tally["plain: one connector, the same"] > PLAIN / 5, "{tally:?}");
    assert!(tally["plain: all or none"] > PLAIN / 10, "{tally:?}");
    assert!(tally["hostile: refused, though routed"] > HOSTILE / 20, "{tally:?}");
}
