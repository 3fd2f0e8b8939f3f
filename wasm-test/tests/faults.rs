//! Services around the filter break while it works. The filter admits no invalid credential, and refuses no credential
//! whose key is known.
//!
//! Other files test other faults:
//! - `key_sets.rs`: answers that are not a key set, and providers that are down.
//! - `hang_ups.rs`: clients that hang up.
//! - `identity_provider.rs`: a real provider that is killed.
//! - `settings_faults.rs` and `rate_limit_faults.rs`: faults of Settings and of the rate limit service.
//! - `clocks.rs`: wrong clocks.
//! - `operations.rs` and `configuration.rs`: actions of operators.

use http_body_util::Full;
use hyper::Response;
use serde_json::{Value, json};
use walrus::ir::{BinaryOp, Value as Constant};
use walrus::{ConstExpr, ExportItem, FunctionBuilder, InstrSeqBuilder, LocalId, Module, ValType};
use wasm_test::dns::{Failure, NameServer};
use wasm_test::front::{Front, Way};
use wasm_test::gateway::{Gateway, ORIGIN, Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::load::{Load, Loads, Stranger, strangers};
use wasm_test::oauth::{PrivateKey, SECRET, WITH_KEY, WITH_SECRET, assertion_request, token_request};
use wasm_test::policy::{api_key, api_key_record, merged, sha256};
use wasm_test::process::{Folder, argument, run};
use wasm_test::server::Server;
use wasm_test::token::{Key, now};
use wasm_test::upstream::{self, Arrived};
use wasm_test::{eventually, repository};

fn call(token: &str) -> Request {
    Request::tools_list("/mcp/acme").bearer(token)
}

/// Requests that must be refused. The provider's key is the first one, as in this file, and the broken answers contain
/// the second one.
fn all_strangers(key: &Key, claims: impl IntoIterator<Item = Value>) -> Vec<Stranger> {
    strangers(&Request::tools_list("/mcp/acme"), claims.into_iter().map(|claims| (key, claims)))
}

fn document(body: &Value) -> Behaviour {
    Behaviour::Document { status: 200, body: body.to_string() }
}

/// The policy record of the provider at this URL.
fn provider(url: &str) -> Value {
    json!({"issuer": url, "jwks_uri": format!("{url}/keys"), "audience": "apexmcp"})
}

#[tokio::test]
async fn tokens_of_known_keys_pass_while_their_provider_is_broken() {
    let (key, other) = (Key::first("a"), Key::second("a"));
    let set = |keys: Vec<Value>| json!({ "keys": keys });
    let elsewhere = Issuer::start(&[&other]).await;
    let short = set([vec![json!({"kty": "EC"}); 10_000], vec![other.jwk()]].concat());
    assert!(short.to_string().len() < 256 << 10, "it is not refused for its length");
    let faults = [
        ("slow", Behaviour::Hang),
        ("dead", Behaviour::HangUp),
        ("500", Behaviour::Document { status: 500, body: set(vec![other.jwk()]).to_string() }),
        ("redirecting", Behaviour::Redirect { location: elsewhere.jwks_uri(), body: set(vec![other.jwk()]).to_string() }),
        ("HTML", Behaviour::Document { status: 200, body: "<html>Log in</html>".to_owned() }),
        ("emptied", document(&set(Vec::new()))),
        ("10,000 keys", document(&set(vec![other.jwk(); 10_000]))),
        ("10,000 short keys", document(&short)),
        ("50 MB", document(&merged(set(vec![other.jwk()]), &json!({"pad": "x".repeat(50_000_000)})))),
    ];
    let mut issuers = Vec::new();
    for (what, fault) in faults {
        issuers.push((what, fault, Issuer::start(&[&key]).await));
    }
    let upstream = upstream::start().await;
    let records: Vec<Value> = issuers.iter().map(|(.., issuer)| issuer.record()).collect();
    let jwks = json!({"jwks": {"http_cluster": "jwks_http", "refresh_interval": "1s", "timeout": "1s"}});
    let configuration = merged(plugin(&json!({"acme": {"identity_providers": records}})), &jwks);
    let gateway = Setup::new(configuration).workers(2).start(&upstream).await;
    for (.., issuer) in &issuers {
        gateway.until_everywhere(&call(&key.token(&issuer.claims())), 200).await;
    }

    for (_, fault, issuer) in &issuers {
        issuer.behave(fault.clone());
    }
    let good = issuers.iter().map(|(.., issuer)| call(&key.token(&issuer.claims()))).collect();
    let bad = all_strangers(&key, issuers.iter().map(|(.., issuer)| issuer.claims()));
    let failures = |issuer: &Issuer, problem: &str| {
        let line = format!("key set {} could not be fetched: {problem}", issuer.jwks_uri());
        gateway.log().matches(&line).count()
    };
    let before: Vec<usize> = issuers.iter().map(|(.., issuer)| failures(issuer, "")).collect();
    let loads = Loads::start(gateway.client(), good, bad);
    // Wait until each provider has shown its fault at least twice.
    for ((what, _, issuer), before) in issuers.iter().zip(before) {
        eventually(what, async || {
            // The key in the broken answers signed this token, under the id of the good key.
            let reply = gateway.send(&call(&other.token(&issuer.claims()))).await;
            assert_eq!((reply.status, &reply.json()["reason"]), (401, &json!("signature_invalid")), "{what}");
            (failures(issuer, "") >= before + 2).then_some(())
        })
        .await;
    }
    for (what, _, issuer) in issuers.iter().filter(|(what, ..)| *what == "10,000 short keys") {
        assert!(failures(issuer, "the set has over 100 keys") >= 2, "{what}: {}", gateway.log());
    }
    assert_eq!(elsewhere.requests(), 0, "no redirect is followed");
    assert_eq!(loads.stop(&format!("{} faults of providers", issuers.len())).await, 0);
}

#[tokio::test]
async fn two_keys_with_the_same_id_are_both_tried() {
    let (first, second, third) = (Key::first("a"), Key::second("a"), Key::third("b"));
    let issuer = Issuer::start(&[&first, &third, &second]).await;
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin(&json!({"acme": {"identity_providers": [issuer.record()]}}))).start(&upstream).await;
    for key in [&first, &second, &third] {
        gateway.admits("a token of each key", &call(&key.token(&issuer.claims()))).await;
    }
    for (what, key, reason) in [
        ("signed by a key of the set that has another id", Key::third("a"), "signature_invalid"),
        ("signed by a key with the id of the third", Key::first("b"), "signature_invalid"),
        ("no key of this id", Key::first("c"), "key_unknown"),
    ] {
        assert_eq!(gateway.refuses(what, &call(&key.token(&issuer.claims()))).await.reason, reason, "{what}");
    }
    let of_none = first.token_signed_by(&issuer.claims(), |_, _| vec![1; 256]);
    assert_eq!(gateway.refuses("signed by none", &call(&of_none)).await.reason, "signature_invalid");
}

/// HTTP answers with this key set: one as plain text, and one compressed with gzip.
async fn answers(set: &str) -> [Vec<u8>; 2] {
    let folder = Folder::new().expect("a folder");
    folder.write("keys", set).expect("a file");
    run("gzip", &[argument(&folder.file("keys"))]).await;
    let zipped = std::fs::read(folder.file("keys.gz")).expect("what gzip wrote");
    let head = |more: &str, length: usize| format!("HTTP/1.1 200 OK\r\n{more}content-length: {length}\r\n\r\n").into_bytes();
    let plain = [head("", set.len()), set.into()].concat();
    [plain, [head("content-encoding: gzip\r\n", zipped.len()), zipped].concat()]
}

#[tokio::test]
async fn tokens_of_known_keys_pass_while_answers_are_broken() {
    let (key, other) = (Key::first("a"), Key::second("a"));
    let issuer = Issuer::start(&[&key]).await;
    let [plain, zipped] = answers(&json!({"keys": [other.jwk()]}).to_string()).await;
    let cut_off = plain[..plain.len() - 1].to_vec();
    let mut fronts = Vec::new();
    for (what, fault) in [
        ("gzip", Way::answer(zipped)),
        ("a byte a second", Way::answer(plain).dripping()),
        ("cut off", Way::answer(cut_off)),
        ("no HTTP", Way::answer("{}")),
    ] {
        fronts.push((what, fault, Front::of(issuer.port()).await));
    }
    let url = |front: &Front| format!("http://127.0.0.1:{}", front.port());
    let records: Vec<Value> = fronts.iter().map(|(.., front)| provider(&url(front))).collect();
    let jwks = json!({"jwks": {"http_cluster": "jwks_http", "refresh_interval": "1s", "timeout": "1s"}});
    let upstream = upstream::start().await;
    let configuration = merged(plugin(&json!({"acme": {"identity_providers": records}})), &jwks);
    let gateway = Setup::new(configuration).workers(2).start(&upstream).await;
    let by = |key: &Key, front: &Front| call(&key.token(&issuer.claims_with(&json!({"iss": url(front)}))));
    for (.., front) in &fronts {
        gateway.until_everywhere(&by(&key, front), 200).await;
    }
    let asked: Vec<usize> = fronts.iter().map(|(.., front)| front.met()).collect();
    for (_, fault, front) in &fronts {
        front.lead(fault.clone());
    }
    let good = fronts.iter().map(|(.., front)| by(&key, front)).collect();
    let bad = all_strangers(&key, fronts.iter().map(|(.., front)| issuer.claims_with(&json!({"iss": url(front)}))));
    let loads = Loads::start(gateway.client(), good, bad);
    for ((what, _, front), asked) in fronts.iter().zip(asked) {
        eventually(what, async || {
            let reply = gateway.send(&by(&other, front)).await;
            assert_eq!((reply.status, &reply.json()["reason"]), (401, &json!("signature_invalid")), "{what}");
            (front.met() >= asked + 3).then_some(())
        })
        .await;
    }
    assert_eq!(loads.stop(&format!("{} broken answers", fronts.len())).await, 0);
}

#[tokio::test]
async fn a_provider_without_usable_answer_or_address_causes_503() {
    let key = Key::first("a");
    let set = json!({"keys": [key.jwk()]}).to_string();
    let [plain, zipped] = answers(&set).await;
    let (gzip, drip, good) = (Front::of(0).await, Front::of(0).await, Front::of(0).await);
    gzip.lead(Way::answer(zipped));
    drip.lead(Way::answer(plain.clone()).dripping());
    good.lead(Way::answer(plain));

    let uris = [
        ("gzip", format!("http://127.0.0.1:{}/keys", gzip.port())),
        ("a byte a second", format!("http://127.0.0.1:{}/keys", drip.port())),
        ("no such host", "http://no-such-host.invalid/keys".to_owned()),
        ("good", format!("http://127.0.0.1:{}/keys", good.port())),
    ];
    let record = |(_, uri): &(&str, String)| json!({"issuer": uri, "jwks_uri": uri, "audience": "apexmcp"});
    let records: Vec<Value> = uris.iter().map(record).collect();
    let jwks = json!({"jwks": {"http_cluster": "jwks_http", "timeout": "1s"}});
    let upstream = upstream::start().await;
    let gateway = Setup::new(merged(plugin(&json!({"acme": {"identity_providers": records}})), &jwks)).start(&upstream).await;
    let any = Issuer::start(&[]).await;
    let claims = |uri: &str| any.claims_with(&json!({"iss": uri}));
    let of = |uri: &str| call(&key.token(&claims(uri)));
    let [broken @ .., (_, good)] = &uris;
    gateway.until_everywhere(&of(good), 200).await;
    let loads = Loads::start(gateway.client(), vec![of(good)], all_strangers(&key, [claims(good)]));
    for (what, uri) in broken {
        let refusal = gateway.refuses(what, &of(uri)).await;
        assert_eq!((refusal.status, &*refusal.reason), (503, "jwks_unavailable"), "{what}");
    }
    loads.until_answered(100).await;
    assert_eq!(loads.stop(&format!("{} providers without keys", broken.len())).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_known_keys_pass_while_their_provider_has_no_address() {
    let (key, new) = (Key::first("a"), Key::second("new"));
    let issuer = Issuer::start(&[&key]).await;
    let faults = [
        ("no-name.test", Failure::NoName),
        ("no-address.test", Failure::NoAddress),
        ("broken.test", Failure::Broken),
        ("refusing.test", Failure::Refusing),
        ("garbage.test", Failure::Garbage),
        ("silent.test", Failure::Silent),
    ];
    let url = |name: &str| format!("http://{name}:{}", issuer.port());
    let records: Vec<Value> = faults.iter().map(|(name, _)| provider(&url(name))).collect();
    let jwks = json!({"jwks": {"http_cluster": "jwks_http", "refresh_interval": "1s", "timeout": "1s"}});
    let (upstream, name_server) = (upstream::start().await, NameServer::start().await);
    let configuration = merged(plugin(&json!({"acme": {"identity_providers": records}})), &jwks);
    let gateway = Setup::new(configuration).workers(2).name_server(&name_server).start(&upstream).await;
    let of = |key: &Key, name: &str, sub: &str| call(&key.token(&issuer.claims_with(&json!({"iss": url(name), "sub": sub}))));
    let by = |key: &Key, name: &str| of(key, name, "agent-7");
    for (name, _) in faults {
        gateway.until_everywhere(&by(&key, name), 200).await;
    }

    let good = faults.map(|(name, _)| by(&key, name)).to_vec();
    let bad = all_strangers(&key, faults.map(|(name, _)| issuer.claims_with(&json!({"iss": url(name)}))));
    let loads = Loads::start(gateway.client(), good, bad);
    let failures = |name: &str| gateway.log().matches(&format!("key set {}/keys could not be fetched", url(name))).count();
    let before = faults.map(|(name, _)| failures(name));
    for (name, failure) in faults {
        name_server.fail(name, failure);
    }
    for ((name, _), before) in faults.into_iter().zip(before) {
        eventually(name, async || (failures(name) >= before + 2).then_some(())).await;
        assert!(Arrived::of(&gateway.send(&of(&key, name, "not seen before")).await).is_some(), "{name}");
        let refusal = gateway.send(&by(&new, name)).await;
        assert_eq!((refusal.status, &refusal.json()["reason"]), (503, &json!("jwks_unavailable")), "{name}");
    }
    issuer.publish(&[&key, &new]);
    name_server.recover();
    for (name, _) in faults {
        eventually(name, async || Arrived::of(&gateway.send(&by(&new, name)).await)).await;
    }
    assert_eq!(loads.stop("names lost in six ways and found again").await, 0);
}

/// The module with a wrapper around one callback of the type `(i32, i32, i32) -> i32`. The wrapper runs the code of
/// `traps` on the callback's arguments, and traps if the result is not zero.
fn trapping(callback: &str, traps: impl FnOnce(&mut Module, &mut InstrSeqBuilder<'_>, [LocalId; 3])) -> Vec<u8> {
    let mut module = Module::from_file(repository().join("dist/apexmcp_auth.wasm")).expect("the module");
    let export = module.exports.iter().find(|export| export.name == callback).expect("the callback");
    let (export, ExportItem::Function(callback)) = (export.id(), export.item) else { panic!("a function") };
    let arguments = [(); 3].map(|()| module.locals.add(ValType::I32));
    let mut builder = FunctionBuilder::new(&mut module.types, &[ValType::I32; 3], &[ValType::I32]);
    let mut body = builder.func_body();
    traps(&mut module, &mut body, arguments);
    body.if_else(None, |then| _ = then.unreachable(), |_| {});
    arguments.iter().for_each(|argument| _ = body.local_get(*argument));
    body.call(callback);
    let wrapped = builder.finish(arguments.to_vec(), &mut module.funcs);
    module.exports.get_mut(export).item = wrapped.into();
    module.emit_wasm()
}

/// Loads a module that traps in each call of this callback, beginning with call number `call` (the first is 1). The
/// returned folder contains the module and must outlive the gateway.
async fn load_trapping(gateway: &Gateway, callback: &str, call: i32) -> Folder {
    let module = trapping(callback, |module, body, _| {
        let calls = module.globals.add_local(ValType::I32, true, false, ConstExpr::Value(Constant::I32(0)));
        body.global_get(calls).i32_const(1).binop(BinaryOp::I32Add).global_set(calls);
        body.global_get(calls).i32_const(call).binop(BinaryOp::I32GeS);
    });
    load(gateway, module).await
}

async fn load(gateway: &Gateway, module: Vec<u8>) -> Folder {
    gateway.may_trap();
    let modules = Folder::new().expect("a folder");
    std::fs::write(modules.file("trapping.wasm"), module).expect("a module");
    assert!(gateway.load_module(Some(&modules.file("trapping.wasm"))).await);
    modules
}

async fn until_back(gateway: &Gateway, request: &Request) {
    eventually("the module is back", async || Arrived::of(&gateway.send(request).await)).await;
}

#[tokio::test]
async fn a_module_that_traps_refuses_requests_and_recovers() {
    if wasm_test::module::Module::is_native("it has no VM that can trap") {
        return;
    }
    const TRAPS: usize = 5;
    let key = Key::first("a");
    let issuer = Issuer::start(&[&key]).await;
    let upstream = upstream::start().await;
    let acme = json!({"api_keys": [api_key_record("key_all")], "identity_providers": [issuer.record()]});
    let gateway = Setup::new(plugin(&json!({ "acme": acme }))).workers(2).start(&upstream).await;
    let _modules = load_trapping(&gateway, "proxy_on_request_body", 1).await;

    // A request with a body traps after its head was judged. Requests without a body work as usual.
    let get = || Request::get("/mcp/acme");
    let token = key.token(&issuer.claims());
    let good = vec![get().api_key(&api_key("key_all")), get().bearer(&token)];
    let bad = strangers(&get(), [(&key, issuer.claims())]);
    let fatal = Request::tools_list("/mcp/acme").api_key(&api_key("key_all"));
    let until_served = async || {
        for request in &good {
            gateway.until_everywhere(request, 200).await;
        }
    };
    until_served().await;
    let (admitted, refused) = (Load::start(gateway.client(), good.clone()), Load::refused(gateway.client(), bad.clone()));
    let mut right_after = Vec::new();
    for _ in 0..TRAPS {
        admitted.until_answered(100).await;
        assert_eq!(gateway.send(&fatal).await.status, 503);
        // Send requests on enough new connections to reach both workers: the other worker continues to decide.
        let mut statuses = [0; 3];
        for (good, (bad, reason)) in good.iter().cycle().zip(bad.iter().cycle()).take(32) {
            let client = Client::new(gateway.client().authority());
            let [passed, refused] = [client.send(good).await, client.send(bad).await];
            let is_refused = refused.status == 401 && refused.json()["reason"] == *reason;
            for (index, is_right, reply) in [(0, passed.status == 200, passed), (1, is_refused, refused)] {
                assert!(is_right || reply.status == 503, "{reply:?}");
                statuses[if is_right { index } else { 2 }] += 1;
            }
        }
        assert!(statuses[0] > 0 && statuses[1] > 0, "no worker decided: {statuses:?}");
        right_after.push(statuses);
        until_served().await;
    }
    let ((sent, others), (unwanted, no_refusals)) = (admitted.stop().await, refused.stop().await);
    let gone = others.len() + no_refusals.len();
    println!("{TRAPS} traps, {sent} valid and {unwanted} invalid requests: {gone} got 503");
    println!("answers 200, 401 and 503 of 64 requests right after each trap: {right_after:?}");
    // While the module is gone, every answer is 503. Before and after, every decision is right.
    assert!(others.iter().chain(&no_refusals).all(|reply| reply.status == 503), "{others:?} {no_refusals:?}");
    assert!(gateway.load_module(None).await);
    eventually("the right module", async || Arrived::of(&gateway.send(&fatal).await)).await;
    assert_eq!(gateway.stat("wasm.apexmcp.vm_reload_success").await, TRAPS as u64, "each trap ends one worker's VM");
    let log = gateway.log();
    assert!(log.contains("in-VM backtrace"), "{log}");
    assert!(
        ![api_key("key_all"), api_key("key_none"), token].iter().any(|secret| log.contains(secret)),
        "the log of a trap contains no secret"
    );
}

#[tokio::test]
async fn envoys_timeout_ends_a_request_that_waits_in_a_trapped_module() {
    if wasm_test::module::Module::is_native("it has no VM that can trap") {
        return;
    }
    let (key, upstream) = (Key::first("a"), upstream::start().await);
    let issuer = Issuer::start(&[&key]).await;
    issuer.behave(Behaviour::Hang);
    let acme = json!({"api_keys": [api_key_record("key_all")], "identity_providers": [issuer.record()]});
    let jwks = json!({"jwks": {"http_cluster": "jwks_http", "timeout": "60s"}});
    let setup = Setup::new(merged(plugin(&json!({ "acme": acme })), &jwks)).request_timeout("3s");
    let gateway = setup.start(&upstream).await;
    let _modules = load_trapping(&gateway, "proxy_on_request_body", 1).await;
    until_back(&gateway, &Request::get("/mcp/acme").api_key(&api_key("key_all"))).await;

    let waiting = tokio::spawn({
        let (client, request) = (gateway.client().clone(), Request::get("/mcp/acme").bearer(&key.token(&issuer.claims())));
        async move { client.send(&request).await }
    });
    gateway.until_active(1).await;
    assert_eq!(gateway.send(&Request::tools_list("/mcp/acme").api_key(&api_key("key_all"))).await.status, 503);
    // Envoy makes no callbacks to a VM that is gone, and does not tell it about streams that were paused in it.
    let reply = waiting.await.expect("an answer");
    assert!(Arrived::of(&reply).is_none() && [408, 503].contains(&reply.status), "{reply:?}");
    assert_eq!(gateway.logged(&reply).await["principal"], Value::Null);
    assert_eq!(gateway.stat("http.gateway.downstream_rq_timeout").await, 1);
}

#[tokio::test]
async fn a_module_that_traps_while_it_filters_a_list_reveals_nothing() {
    if wasm_test::module::Module::is_native("it has no VM that can trap") {
        return;
    }
    let tools: Vec<Value> =
        (0..3_000).map(|number| json!({"name": format!("{}__{number}", ["notes", "clock"][number % 2])})).collect();
    let list = json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}}).to_string();
    let connector = Server::start(move |_| {
        let list = list.clone();
        async move { Response::builder().header("content-type", "application/json").body(Full::from(list)).ok() }
    })
    .await;
    let for_notes = merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]}));
    let gateway = Setup::new(plugin(&json!({"acme": {"api_keys": [for_notes]}}))).start(&connector).await;
    let (key, body) = (api_key("key_notes"), r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#);
    let headers = format!("connection: close\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n");
    let request = format!("POST /mcp/acme HTTP/1.1\r\nhost: x\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
    // The received bytes, even if they are no complete answer.
    let listed = async || {
        let reply = gateway.client().send_bytes(request.as_bytes()).await;
        assert!(!reply.contains("clock__"), "{reply:.300}");
        reply
    };
    assert_eq!(listed().await.matches("notes__").count(), 1_500);
    // The module traps on the first part of the answer, or on the second one.
    for call in [1, 2] {
        let _modules = load_trapping(&gateway, "proxy_on_response_body", call).await;
        let traps = async || gateway.log().matches("in-VM backtrace").count();
        let before = traps().await;
        let mut begun = 0;
        eventually("traps", async || {
            begun += usize::from(listed().await.starts_with("HTTP/1.1 200"));
            (traps().await >= before + 3).then_some(())
        })
        .await;
        assert!(begun > 0, "no answer had begun");
        assert!(gateway.load_module(None).await);
        eventually("the right module", async || (listed().await.matches("notes__").count() == 1_500).then_some(())).await;
    }
}

#[tokio::test]
async fn a_module_that_always_traps_admits_nobody() {
    if wasm_test::module::Module::is_native("it has no VM that can trap") {
        return;
    }
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin(&json!({"acme": {"api_keys": [api_key_record("key_all")]}}))).start(&upstream).await;
    let good = Request::tools_list("/mcp/acme").api_key(&api_key("key_all"));
    until_back(&gateway, &good).await;
    let _modules = load_trapping(&gateway, "proxy_on_request_headers", 1).await;
    eventually("the worker has the new module", async || (gateway.send(&good).await.status == 503).then_some(())).await;
    let arrived = upstream.requests();
    for request in [&good, &Request::get("/mcp/acme"), &Request::get("/"), &Request::post("/oauth/token")].repeat(5) {
        assert_eq!(gateway.send(request).await.status, 503);
    }
    assert_eq!(upstream.requests(), arrived);
    assert!(gateway.load_module(None).await);
    until_back(&gateway, &good).await;
}

/// After a trap, the counts in the memory of a worker start again. Data that all workers share survives.
#[tokio::test]
async fn a_trap_resets_wrong_secrets_and_keeps_used_assertions_and_quotas() {
    if wasm_test::module::Module::is_native("it has no VM that can trap") {
        return;
    }
    const LONGEST: i32 = 20_000;
    let (key, upstream) = (Key::first("a"), upstream::start().await);
    let clients = json!([
        {"client_id": WITH_SECRET, "secret_sha256": [sha256(SECRET)], "scopes": ["mcp:call"]},
        {"client_id": WITH_KEY, "jwks": {"keys": [key.jwk()]}, "scopes": ["mcp:call"]},
    ]);
    let acme = json!({
        "api_keys": [api_key_record("key_all")], "oauth_clients": clients, "limits": {"monthly_quota": 3},
    });
    let mut issuing = plugin(&json!({"acme": acme, "other": {"api_keys": [api_key_record("key_other")]}}));
    issuing["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("k")]);
    let gateway = Setup::new(issuing).start(&upstream).await;
    let _modules = load(
        &gateway,
        trapping("proxy_on_request_body", |_, body, [_, length, _]| {
            body.local_get(length).i32_const(LONGEST).binop(BinaryOp::I32GeS);
        }),
    )
    .await;
    let elsewhere = || Request::tools_list("/mcp/other").api_key(&api_key("key_other"));
    until_back(&gateway, &elsewhere()).await;

    let claims = json!({"iss": WITH_KEY, "sub": WITH_KEY, "aud": ORIGIN, "jti": "once", "iat": now(), "exp": now() + 300});
    let assertion = assertion_request(&key.token(&claims));
    let (wrong, call) = (token_request("wrong"), Request::tools_list("/mcp/acme").api_key(&api_key("key_all")));
    let statuses = async |request: &Request, count: usize| {
        let mut statuses = Vec::new();
        for _ in 0..count {
            statuses.push(gateway.send(request).await.status);
        }
        statuses
    };
    assert_eq!(statuses(&assertion, 2).await, [200, 401]);
    assert_eq!(statuses(&call, 4).await, [200, 200, 200, 429]);
    assert_eq!(statuses(&wrong, 11).await, [vec![401; 10], vec![429]].concat());

    let fatal = elsewhere().body(vec![b'x'; LONGEST as usize]);
    assert_eq!(gateway.send(&fatal).await.status, 503);
    until_back(&gateway, &elsewhere()).await;
    assert_eq!(gateway.stat("wasm.apexmcp.vm_reload_success").await, 1, "one trap");
    assert_eq!(statuses(&assertion, 1).await, [401], "a used assertion stays used");
    assert_eq!(statuses(&call, 1).await, [429], "the month's count stays");
    assert_eq!(statuses(&wrong, 11).await, [vec![401; 10], vec![429]].concat(), "the count of wrong secrets starts again");
}
