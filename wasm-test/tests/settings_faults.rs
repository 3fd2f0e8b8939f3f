//! Settings breaks while the gateway works. The last good policy stays in force, whatever Settings answers instead of
//! the next one.

use serde_json::{Value, json};
use wasm_test::apexmcp::Apexmcp;
use wasm_test::eventually;
use wasm_test::front::{Front, Way};
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::load::{Loads, strangers};
use wasm_test::policy::{api_key, api_key_record};
use wasm_test::process::{Folder, argument, run};
use wasm_test::settings::TOKEN;
use wasm_test::upstream;

fn call(key: &str) -> Request {
    Request::tools_list("/mcp/acme").api_key(key)
}

fn setup(front: &Front) -> Setup {
    let remote = json!({
        "cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN", "timeout": "500ms", "interval": "100ms", "long_poll": "1s",
    });
    let mut plugin = plugin(&json!({}));
    plugin["policy"] = json!({ "remote": remote });
    Setup::new(plugin).workers(2).settings(front.port(), TOKEN)
}

/// An answer with this status, these headers and this body.
fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

async fn gzip(text: &str) -> Vec<u8> {
    let folder = Folder::new().expect("a folder");
    folder.write("text", text).expect("a file");
    run("gzip", &[argument(&folder.file("text"))]).await;
    std::fs::read(folder.file("text.gz")).expect("what gzip wrote")
}

/// Unusable answers, each with its name. Most of them contain a policy with which another key would be admitted, or
/// redirect to `elsewhere`, which has such a policy.
async fn useless(elsewhere: &Front) -> Vec<(&'static str, Way)> {
    let policy = json!({"version": "bad", "orgs": {"acme": {"api_keys": [api_key_record("key_bad")]}}}).to_string();
    let (whole, etag) = (policy.as_bytes(), "etag: \"bad\"\r\n");
    let location = format!("location: http://127.0.0.1:{}/v1/policy\r\n{etag}", elsewhere.port());
    elsewhere.lead(Way::answer(answer("200 OK", etag, whole)));
    let zipped = gzip(&policy).await;
    let padded = format!("{policy}{}", " ".repeat(32 << 20));
    let cut_off = answer("200 OK", etag, whole);
    let cut_off = cut_off.get(..cut_off.len() - 1).expect("a byte less").to_vec();
    let with = |status: &str, headers: &str, body: &[u8]| Way::answer(answer(status, headers, body));
    vec![
        ("slow", Way::Silent),
        ("hanging up", Way::Closed),
        ("500", with("500 Internal Server Error", etag, whole)),
        ("redirecting", with("302 Found", &location, whole)),
        ("206", with("206 Partial Content", etag, whole)),
        ("HTML", with("200 OK", "content-type: text/html\r\netag: \"html\"\r\n", b"<html>Log in</html>")),
        ("gzip", with("200 OK", "content-encoding: gzip\r\n", &zipped)),
        ("over 32 MiB", with("200 OK", etag, padded.as_bytes())),
        ("a byte a second", Way::answer(answer("200 OK", etag, whole)).dripping()),
        ("cut off", Way::answer(cut_off)),
        ("empty", with("200 OK", etag, b"")),
        ("a policy and more", with("200 OK", etag, format!("{policy}{policy}").as_bytes())),
        ("no HTTP", Way::answer(policy)),
        ("304", Way::answer("HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n")),
    ]
}

/// Waits for two further requests.
async fn until_shown(what: &str, front: &Front) {
    let before = front.met();
    eventually(what, async || (front.met() >= before + 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_policy_stays_in_force_while_settings_breaks() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    let (_, stays) = settings.create_key();
    let front = Front::of(settings.serve().await).await;
    let gateway = setup(&front).start(&upstream).await;
    gateway.until_everywhere(&call(&stays), 200).await;

    let mut bad = strangers(&Request::tools_list("/mcp/acme"), []);
    bad.push((call(&api_key("key_bad")), "api_key_unknown"));
    let loads = Loads::start(gateway.client(), vec![call(&stays)], bad);
    let mut before = 0;
    let mut shown = |what: &str| {
        let sent = loads.sent();
        println!("{what}: {} requests", sent - before);
        before = sent;
    };
    let elsewhere = Front::of(0).await;
    for (what, fault) in useless(&elsewhere).await {
        front.lead(fault);
        until_shown(what, &front).await;
        taken_again(&settings, &front, &gateway).await;
        shown(what);
    }
    settings.kill();
    front.lead(Way::Open);
    until_shown("dead", &front).await;
    settings.serve().await;
    taken_again(&settings, &front, &gateway).await;
    shown("dead");
    // This answer is usable. A document without an ETag is fetched whole each time.
    let document = settings.run("policy export").to_string();
    front.lead(Way::answer(answer("200 OK", "", document.as_bytes())));
    until_shown("without ETag", &front).await;
    taken_again(&settings, &front, &gateway).await;
    shown("without ETag");

    assert_eq!(elsewhere.met(), 0, "no redirect is followed");
    assert_eq!(loads.stop("all").await, 0);

    // A policy without orgs is valid and takes effect.
    front.lead(Way::answer(answer("200 OK", "etag: \"none\"\r\n", br#"{"orgs":{}}"#)));
    gateway.until_everywhere(&call(&stays), 401).await;
    taken_again(&settings, &front, &gateway).await;
    gateway.until_everywhere(&call(&stays), 200).await;
}

/// Checks that Settings works again, and that a change takes effect.
async fn taken_again(settings: &Apexmcp, front: &Front, gateway: &Gateway) {
    let (_, key) = settings.create_key();
    front.lead(Way::Open);
    gateway.until_everywhere(&call(&key), 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_first_policy_nobody_is_admitted() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    let (_, stays) = settings.create_key();
    let front = Front::of(settings.serve().await).await;
    let elsewhere = Front::of(0).await;
    let faults = ["500", "redirecting", "206", "304", "HTML", "gzip", "cut off"];
    for (what, fault) in useless(&elsewhere).await.into_iter().filter(|(what, _)| faults.contains(what)) {
        front.lead(fault);
        let gateway = setup(&front).start(&upstream).await;
        until_shown(what, &front).await;
        for key in [&stays, &api_key("key_bad")] {
            let refusal = gateway.refuses(what, &call(key)).await;
            assert_eq!((refusal.status, &*refusal.reason), (503, "policy_unavailable"), "{what}");
        }
        let confirmed: Value = json!(gateway.metric("apexmcp_policy_fetches", &[("outcome", "not_modified")]).await);
        assert_eq!(confirmed, 0, "{what}: without a policy, nothing can be unmodified");
        front.lead(Way::Open);
        eventually("the first policy", async || (gateway.send(&call(&stays)).await.status == 200).then_some(())).await;
    }
    assert_eq!(elsewhere.met(), 0, "no redirect is followed");
}
