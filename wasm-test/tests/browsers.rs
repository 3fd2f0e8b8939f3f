//! Web pages as clients: CORS, the check of `Origin`, and a page in a real browser.

use http_body_util::Full;
use hyper::Response;
use serde_json::{Value, json};
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, ORIGIN, Setup, plugin};
use wasm_test::http::{Reply, Request};
use wasm_test::oauth::{ORG, PrivateKey, SECRET, Site, WITH_SECRET, token_request};
use wasm_test::policy::{api_key, api_key_record, merged, sha256};
use wasm_test::process::{Folder, argument, free_port, run};
use wasm_test::server::Server;
use wasm_test::upstream::{self, Arrived};

const PAGE: &str = "https://app.example";
const ATTACKER: &str = "https://evil.example";
const EXPOSED: [&str; 6] =
    ["WWW-Authenticate", "Mcp-Session-Id", "Mcp-Protocol-Version", "Retry-After", "RateLimit", "RateLimit-Policy"];

/// A configuration that allows pages of [`PAGE`], with one org that has a signing key and two API keys.
fn configuration(change: impl FnOnce(&mut Value)) -> Value {
    let narrow = merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]}));
    let client = json!({"client_id": WITH_SECRET, "secret_sha256": [sha256(SECRET)], "scopes": ["mcp:call"]});
    let acme = json!({"api_keys": [api_key_record("key_all"), narrow], "oauth_clients": [client]});
    let mut plugin = plugin(&json!({"acme": acme}));
    plugin["gateway"]["allowed_origins"] = json!([PAGE]);
    plugin["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("a")]);
    change(&mut plugin);
    plugin
}

fn call(origin: &str) -> Request {
    Request::tools_list("/mcp/acme").api_key(&api_key("key_all")).header("origin", origin)
}

/// Whether a browser shows this answer to a page of `origin`, with the headers that MCP clients need.
fn is_shown(reply: &Reply, origin: &str) -> bool {
    let exposed = reply.header("access-control-expose-headers").unwrap_or_default();
    let has = |wanted: &&str| exposed.split(", ").any(|name| name == *wanted);
    reply.header("access-control-allow-origin") == Some(origin) && EXPOSED.iter().all(has)
}

fn varies(reply: &Reply) -> bool {
    reply.header("vary").is_some_and(|vary| vary.split(", ").any(|name| name.eq_ignore_ascii_case("origin")))
}

async fn start(change: impl FnOnce(&mut Value)) -> (Server, Gateway) {
    let upstream = upstream::start().await;
    let gateway = Setup::new(configuration(change)).start(&upstream).await;
    (upstream, gateway)
}

#[tokio::test]
async fn an_allowed_page_can_read_every_answer_and_other_pages_none() {
    let (upstream, gateway) = start(|_| {}).await;
    let page = |request: Request| request.header("origin", PAGE);
    for (status, request) in [
        (200, call(PAGE)),
        (200, call("https://APP.example:443")),
        (200, call(ORIGIN)),
        (401, page(Request::tools_list("/mcp/acme"))),
        (401, page(Request::tools_list("/mcp/acme").api_key("wrong"))),
        (403, page(Request::tools_list("/mcp/acme/clock").api_key(&api_key("key_notes")))),
        (415, page(Request::post("/mcp/acme").api_key(&api_key("key_notes")).body("{}"))),
        (404, page(Request::get("/elsewhere"))),
        (200, page(token_request(SECRET))),
        (401, page(token_request("apx_secret_wrong"))),
        (400, page(Request::get("/oauth/authorize"))),
    ] {
        let reply = gateway.send(&request).await;
        let origin = if reply.status == 200 { reply.header("access-control-allow-origin").unwrap_or_default() } else { PAGE };
        assert!([PAGE, "https://APP.example:443", ORIGIN].contains(&origin), "{request:?}: {reply:?}");
        assert!(reply.status == status && is_shown(&reply, origin) && varies(&reply), "{request:?}: {reply:?}");
    }
    let without = gateway.send(&Request::tools_list("/mcp/acme").api_key(&api_key("key_all"))).await;
    assert!(without.status == 200 && without.header("access-control-allow-origin").is_none() && without.header("vary").is_none());

    let before = upstream.requests();
    for origin in [ATTACKER, "null", "", "https://app.example/", "https://app.example.evil.example", "http://app.example"] {
        for request in [call(origin), Request::tools_list("/mcp/acme").header("origin", origin)] {
            let refusal = gateway.refuses(origin, &request).await;
            let got = (refusal.status, refusal.error.as_str(), refusal.reason.as_str(), refusal.challenge);
            assert_eq!(got, (403, "origin_not_allowed", "origin_not_allowed", None), "{origin}");
        }
        let reply = gateway.send(&token_request(SECRET).header("origin", origin)).await;
        assert_eq!((reply.status, &reply.json()["reason"]), (403, &json!("origin_not_allowed")), "{origin}");
        assert!(reply.header("access-control-allow-origin").is_none(), "{origin}");
    }
    // Two `Origin` headers are refused, because the connector could read the other one.
    let reply = gateway.send(&call(PAGE).header("origin", ATTACKER)).await;
    assert_eq!((reply.status, upstream.requests()), (403, before));
}

#[tokio::test]
async fn preflights_reach_no_connector_and_count_toward_no_limit() {
    let limits = json!({"rate": {"requests": 1, "per": "day", "burst": 1}});
    let (upstream, gateway) = start(|plugin| plugin["policy"]["inline"]["orgs"]["acme"]["limits"] = limits).await;
    for path in ["/mcp/acme", "/mcp/acme/notes", "/mcp/nobody", "/oauth/token", "/oauth/authorize"] {
        for _ in 0..3 {
            let reply = gateway.send(&Request::preflight(path, PAGE)).await;
            assert!(reply.status == 204 && is_shown(&reply, PAGE) && varies(&reply), "{path}: {reply:?}");
            let names = reply.header("access-control-allow-headers").expect("names").to_lowercase();
            for name in ["authorization", "x-api-key", "content-type", "mcp-session-id", "mcp-protocol-version", "*"] {
                assert!(names.split(", ").any(|it| it == name), "{name} is not in {names}");
            }
            assert!(reply.header("access-control-allow-methods").expect("methods").contains("POST"));
            let reply = gateway.send(&Request::preflight(path, ATTACKER)).await;
            assert!(reply.status == 403 && reply.header("access-control-allow-origin").is_none(), "{path}: {reply:?}");
        }
    }
    assert_eq!(upstream.requests(), 0);
    let within = gateway.send(&call(PAGE)).await;
    assert!(within.status == 200 && within.header("ratelimit").is_some(), "{within:?}");
    let beyond = gateway.send(&call(PAGE)).await;
    assert!(beyond.status == 429 && is_shown(&beyond, PAGE) && beyond.header("retry-after").is_some(), "{beyond:?}");
}

#[tokio::test]
async fn every_page_can_read_the_metadata() {
    let (_upstream, gateway) = start(|_| {}).await;
    for (status, path) in [
        (200, "/.well-known/oauth-protected-resource/mcp/acme"),
        (200, "/.well-known/oauth-protected-resource/mcp/acme/notes"),
        (200, "/.well-known/oauth-authorization-server"),
        (200, "/.well-known/openid-configuration"),
        (200, "/.well-known/jwks.json"),
        (404, "/.well-known/oauth-protected-resource/mcp/nobody"),
    ] {
        for origin in [PAGE, ATTACKER, "null", ORIGIN] {
            let reply = gateway.send(&Request::get(path).header("origin", origin)).await;
            assert!(reply.status == status && is_shown(&reply, "*"), "{path} {origin}: {reply:?}");
            let reply = gateway.send(&Request::preflight(path, origin)).await;
            assert!(reply.status == 204 && is_shown(&reply, "*"), "{path} {origin}: {reply:?}");
        }
    }
    let reply = gateway.send(&Request::get("/.well-known/jwks.json")).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some("*")));
}

#[tokio::test]
async fn cors_headers_of_a_connector_are_not_doubled() {
    let upstream = Server::start(async |_| {
        Response::builder()
            .header("access-control-allow-origin", "*")
            .header("access-control-allow-origin", "https://other.example")
            .header("access-control-allow-credentials", "true")
            .header("access-control-expose-headers", "X-Own, mcp-session-id")
            .header("vary", "accept-encoding")
            .header("vary", "origin")
            .header("mcp-session-id", "1")
            .body(Full::default())
            .ok()
    })
    .await;
    let gateway = Setup::new(configuration(|_| {})).start(&upstream).await;
    let reply = gateway.send(&call(PAGE)).await;
    let expected = "X-Own, mcp-session-id, WWW-Authenticate, Mcp-Protocol-Version, Retry-After, RateLimit, RateLimit-Policy";
    assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(reply.header("access-control-expose-headers"), Some(expected));
    assert_eq!(reply.header("vary"), Some("accept-encoding, origin"));
    assert_eq!(reply.header("access-control-allow-credentials"), None);
    // The request has no origin, so nothing changes.
    let reply = gateway.send(&Request::tools_list("/mcp/acme").api_key(&api_key("key_all"))).await;
    // Envoy joins the two headers.
    assert_eq!(reply.header("access-control-allow-origin"), Some("*,https://other.example"));
}

#[tokio::test]
async fn an_allowed_page_can_read_answers_of_envoy_itself() {
    let gateway = Setup::new(configuration(|_| {})).start_at(free_port()).await;
    let reply = gateway.send(&call(PAGE)).await;
    assert!(reply.status == 503 && is_shown(&reply, PAGE), "{reply:?}");
}

#[tokio::test]
async fn an_asterisk_allows_every_page() {
    let (_upstream, gateway) = start(|plugin| plugin["gateway"]["allowed_origins"] = json!("*")).await;
    for origin in [PAGE, ATTACKER, "null"] {
        let reply = gateway.send(&call(origin)).await;
        assert!(reply.status == 200 && is_shown(&reply, "*") && varies(&reply), "{origin}: {reply:?}");
        assert_eq!(gateway.send(&Request::preflight("/mcp/acme", origin)).await.status, 204, "{origin}");
    }
    for (wrong, path) in [(json!(["null"]), "[0]"), (json!(["https://*.example"]), "[0]"), (json!([PAGE, "app.example"]), "[1]")]
    {
        assert!(!gateway.reconfigure(&configuration(|plugin| plugin["gateway"]["allowed_origins"] = wrong)).await);
        let line = format!("gateway.allowed_origins{path}: must");
        eventually("the log names the entry", async || gateway.folder().read("stderr").contains(&line).then_some(())).await;
    }
}

#[tokio::test]
async fn shadow_mode_forwards_and_records_requests_of_other_pages() {
    let (upstream, gateway) = start(|plugin| plugin["mode"] = json!("shadow")).await;
    for request in [call(ATTACKER), Request::preflight("/mcp/acme", ATTACKER)] {
        let reply = gateway.send(&request).await;
        let arrived = Arrived::of(&reply).unwrap_or_else(|| panic!("the request was not forwarded: {reply:?}"));
        assert!(!arrived.has("x-apexmcp-org") && reply.header("access-control-allow-origin").is_none());
        assert_eq!(gateway.logged(&reply).await["reason"], "origin_not_allowed");
    }
    assert_eq!(upstream.requests(), 2);
    assert_eq!(gateway.send(&Request::preflight("/mcp/acme", PAGE)).await.status, 204);
    assert_eq!(gateway.send(&token_request(SECRET).header("origin", ATTACKER)).await.status, 403);
}

/// The tools of both demo connectors.
const TOOLS: [&str; 5] = ["clock__days_between", "clock__now", "notes__read", "notes__titles", "notes__write"];

#[tokio::test]
async fn a_page_in_chromium_uses_the_official_typescript_sdk() {
    let signing_keys = json!([PrivateKey::new().record("a")]);
    let mut site = Site::start(&signing_keys).await;
    let page_port = free_port();
    site.allow_origin(&format!("http://127.0.0.1:{page_port}"));
    let mut policy = site.policy(&signing_keys);
    let keys = policy["orgs"][ORG]["api_keys"].as_array_mut().expect("keys");
    keys.push(merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]})));
    site.enforce(&policy).await;
    let settings = json!({
        "browser": browser(),
        "page_port": page_port,
        "url": site.endpoint(None),
        "issuer": site.origin(),
        "key": api_key("key_all"),
        "narrow_key": api_key("key_notes"),
        "client_id": WITH_SECRET,
        "client_secret": SECRET,
        "tool": "notes__read",
        "arguments": {"title": "welcome"},
        "forbidden_tool": "clock__now",
    });
    let folder = Folder::new().expect("a folder");
    folder.write("settings.json", &settings.to_string()).expect("the settings are written");
    let (settings, profile) = (folder.file("settings.json"), folder.file("profile"));
    let said = run("node", &["wasm-test/oauth-clients/browser.mjs", argument(&settings), argument(&profile)]).await;
    let found: Value = serde_json::from_str(&said).expect("JSON");

    let page = &found["allowed"];
    let worked = json!({"tools": TOOLS, "said": "This note came through the gateway."});
    assert_eq!((&page["by_key"], &page["by_token"]), (&worked, &worked), "{page}");
    assert!(page["refused"].as_str().is_some_and(|text| text.contains("scope_insufficient")), "{page}");
    let challenge = page["without_credential"]["challenge"].as_str().unwrap_or_default();
    assert!(page["without_credential"]["status"] == 401 && challenge.contains("resource_metadata="), "{page}");
    assert_eq!((&page["token_error"]["status"], &page["no_document"]["status"]), (&json!(401), &json!(404)), "{page}");
    let kept_back = json!({"kept_back": "TypeError"});
    let expected = json!({"call": kept_back, "simple_call": kept_back, "token": kept_back, "documents": [200, 200, 200, 200]});
    assert_eq!(found["foreign"], expected);
    let log = site.envoy().access_log();
    assert!(log.iter().any(|line| line["reason"] == "origin_not_allowed"), "{log:?}");
    site.assert_keeps_secrets();
}

/// The Chromium in `.tools/bin`, or the one in `PATH`.
fn browser() -> String {
    let own = wasm_test::repository().join(".tools/bin/chromium");
    if own.exists() { argument(&own).to_owned() } else { "chromium".to_owned() }
}

#[tokio::test]
async fn mcp_authlab_gives_the_gateway_grade_a() {
    let site = Site::start(&json!([PrivateKey::new().record("a")])).await;
    let token = site.token().await;
    let scan = ["-m", "mcp_authlab", "scan", &site.endpoint(None), "--token", &token, "--no-login", "--format", "json"];
    let report: Value = serde_json::from_str(&run("python", &scan).await).expect("JSON");
    assert_eq!((&report["grade"], &report["must_failures"]), (&json!("A"), &json!([])), "{report:#}");
    let failed: Vec<&Value> =
        report["results"].as_array().expect("results").iter().filter(|result| result["status"] == "fail").collect();
    assert!(failed.is_empty(), "{failed:?}");
    site.assert_keeps_secrets();
}

/// MCP, Transports: a server answers an unsupported version with 400. The gateway does not know which versions a
/// server supports, but no version is older than the first one.
#[tokio::test]
async fn protocol_versions_older_than_the_first_are_refused() {
    let (_upstream, gateway) = start(|_| {}).await;
    for (version, is_spoken) in [
        ("1999-01-01", false),
        ("2024-10-06", false),
        ("0000-00-00", false),
        ("2024-11-05", true),
        ("2026-07-28", true),
        ("DRAFT-2026-v1", true),
    ] {
        for path in ["/mcp/acme", "/mcp/acme/notes"] {
            let request = Request::tools_list(path).api_key(&api_key("key_all")).header("mcp-protocol-version", version);
            if is_spoken {
                gateway.admits(version, &request).await;
            } else {
                let refusal = gateway.refuses(version, &request).await;
                assert_eq!((refusal.status, &*refusal.reason), (400, "protocol_version_unsupported"), "{version} {path}");
            }
        }
    }
}
