//! The effects of the path, the route and the mode on a request.

use serde_json::{Value, json};
use wasm_test::gateway::{Setup, plugin};
use wasm_test::http::Request;
use wasm_test::issuer::Issuer;
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::token::Key;
use wasm_test::upstream::{self, Arrived};

fn acme() -> Value {
    json!({"acme": {"api_keys": [
        api_key_record("key_all"),
        merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]})),
    ]}})
}

/// Other spellings of /mcp/acme. Some server or router treats each of them as that path.
const DISGUISED: [&str; 22] = [
    "/mcp",
    "/mcp/",
    "/mcp/acme/",
    "/mcp/acme/notes/",
    "/mcp/acme/notes/more",
    "//mcp/acme",
    "/mcp//acme",
    "/mcp/./acme",
    "/./mcp/acme",
    "/public/../mcp/acme",
    "/public/..;/mcp/acme",
    "/public/..;a=b/mcp/acme",
    "/public/%2e%2e/mcp/acme",
    "/public/%2E./mcp/acme",
    "/public%2f..%2fmcp/acme",
    "/mcp%2Facme",
    "/mcp%5Cacme",
    "/%6dcp/acme",
    "/%256dcp/acme",
    "/MCP/acme",
    "/mcp;v=1/acme",
    "/mcp/acme%00",
];

#[tokio::test]
async fn other_paths_are_denied() {
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin(&acme())).start(&upstream).await;
    for path in ["/", "/public", "/mcpx/acme", "/mcp?org=acme", "/healthz"].iter().chain(&DISGUISED) {
        let request = Request::get(path).api_key(&api_key("key_all"));
        let refusal = gateway.refuses(path, &request).await;
        assert_eq!((refusal.status, &*refusal.reason, refusal.challenge), (404, "path_unmatched", None), "{path}");
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn other_paths_may_be_allowed_but_disguised_ones_may_not() {
    let upstream = upstream::start().await;
    let allow = json!({"gateway": {"origin": "https://gateway.example", "unmatched_paths": "allow"}});
    let gateway = Setup::new(merged(plugin(&acme()), &allow)).start(&upstream).await;
    for path in DISGUISED {
        let refusal = gateway.refuses(path, &Request::get(path)).await;
        assert_eq!((refusal.status, &*refusal.reason), (404, "path_unmatched"), "{path}");
    }
    assert_eq!(gateway.refuses("the real path", &Request::get("/mcp/acme")).await.reason, "credential_missing");
    assert_eq!(upstream.requests(), 0);
    // A path that does not belong to the filter passes unchanged and without a decision.
    for path in ["/", "/public", "/mcpx/acme", "/public/mcp/acme", "/a%20b", "/public?next=/mcp/acme"] {
        let request = Request::get(path).api_key("theirs").header("authorization", "Basic YTpi").header("x-apexmcp-org", "a");
        let reply = gateway.send(&request).await;
        let arrived = Arrived::of(&reply).unwrap_or_else(|| panic!("{path}: {reply:?}"));
        assert_eq!(arrived.path, path);
        assert!(arrived.has("x-api-key") && arrived.has("authorization") && arrived.has("x-apexmcp-org"), "{path}");
        assert_eq!(gateway.logged(&reply).await["reason"], Value::Null, "{path}");
    }
}

#[tokio::test]
async fn the_path_of_the_endpoint_can_be_configured() {
    let upstream = upstream::start().await;
    let elsewhere = json!({"gateway": {"origin": "https://gateway.example", "mcp_path": "/v1/{org}/mcp"}});
    let gateway = Setup::new(merged(plugin(&acme()), &elsewhere)).start(&upstream).await;
    for path in ["/v1/acme/mcp", "/v1/acme/mcp/notes"] {
        gateway.admits(path, &Request::get(path).api_key(&api_key("key_all"))).await;
    }
    assert_eq!(gateway.refuses("the default", &Request::get("/mcp/acme").api_key(&api_key("key_all"))).await.status, 404);
}

#[tokio::test]
async fn shadow_mode_records_and_forwards_every_request() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[&key]).await;
    let orgs = json!({"acme": {
        "api_keys": [api_key_record("key_all")],
        "identity_providers": [issuer.record()],
    }});
    let gateway = Setup::new(merged(plugin(&orgs), &json!({"mode": "shadow"}))).start(&upstream).await;
    let to = || Request::tools_list("/mcp/acme").header("x-apexmcp-org", "spoofed").header("x-apexmcp-principal", "spoofed");
    let token = key.token(&issuer.claims());
    for (reason, method, request) in [
        ("credential_missing", "none", to()),
        ("api_key_unknown", "api_key", to().api_key(&api_key("key_never"))),
        ("signature_invalid", "byoidp", to().bearer(&format!("{}AAAA", &token[..token.len() - 4]))),
        ("path_unmatched", "none", Request::get("/elsewhere").header("x-apexmcp-org", "spoofed")),
    ] {
        let reply = gateway.send(&request).await;
        let arrived = Arrived::of(&reply).unwrap_or_else(|| panic!("{reason}: the request was not forwarded: {reply:?}"));
        assert_eq!(gateway.logged(&reply).await["reason"], reason);
        assert_eq!(gateway.counted("refused", reason, method).await, 1, "{reason}");
        assert_eq!(arrived.headers_below("x-apexmcp-").len(), 0, "{reason}: the filter adds no identity and removes forged ones");
    }
    for request in [to().api_key(&api_key("key_all")), to().bearer(&token)] {
        let arrived = gateway.admits("a good one", &request).await;
        assert_eq!(arrived.headers_below("x-apexmcp-")["org"], "acme");
        assert!(!arrived.has("x-api-key") && !arrived.has("authorization"));
    }
}

#[tokio::test]
async fn route_metadata_configures_the_filter() {
    let upstream = upstream::start().await;
    let on = json!({"gateway": {"origin": "https://gateway.example", "route_metadata": true}});
    let at = |path: &str| json!({"prefix": path});
    let gateway = Setup::new(merged(plugin(&acme()), &on))
        .routes([
            (at("/of-acme"), json!({"org": "acme"})),
            (at("/of-notes"), json!({"org": "acme", "connector": "notes"})),
            (at("/mcp/acme/by-path"), json!({"connector": "notes"})),
            (at("/open"), json!({"mode": "disabled"})),
            (at("/mcp/acme/open"), json!({"mode": "disabled"})),
            (at("/watched"), json!({"org": "acme", "mode": "shadow"})),
            (at("/broken"), json!({"org": "acme", "mode": "off"})),
            (at("/number"), json!({"org": 7})),
            // YAML reads a member without a value as null. Then Envoy gives the filter no map.
            (at("/null"), json!({"org": "acme", "connector": null})),
            (at("/"), json!({})),
        ])
        .start(&upstream)
        .await;
    let (all, notes) = (api_key("key_all"), api_key("key_notes"));
    for (path, key, expected) in [
        ("/of-acme", Some(&all), Ok("acme")),
        ("/of-acme/anything", Some(&all), Ok("acme")),
        ("/of-acme", Some(&notes), Err("method_not_allowed")),
        ("/of-acme", None, Err("credential_missing")),
        ("/of-notes", Some(&notes), Ok("acme")),
        ("/of-notes", Some(&all), Ok("acme")),
        ("/of-notes", None, Err("credential_missing")),
        ("/mcp/acme/by-path", Some(&notes), Ok("acme")),
        ("/mcp/acme", Some(&all), Ok("acme")),
        ("/mcp/acme", Some(&notes), Err("method_not_allowed")),
        ("/elsewhere", Some(&all), Err("path_unmatched")),
    ] {
        let mut request = Request::get(path);
        if let Some(key) = key {
            request = request.api_key(key);
        }
        match expected {
            Ok(org) => assert_eq!(gateway.admits(path, &request).await.headers_below("x-apexmcp-")["org"], org, "{path}"),
            Err(reason) => assert_eq!(gateway.refuses(path, &request).await.reason, reason, "{path}"),
        }
    }
    for path in ["/open", "/mcp/acme/open"] {
        let reply = gateway.send(&Request::get(path).api_key("theirs")).await;
        assert!(Arrived::of(&reply).is_some_and(|arrived| arrived.has("x-api-key")), "{path}: {reply:?}");
    }
    let reply = gateway.send(&Request::get("/watched")).await;
    assert!(Arrived::of(&reply).is_some(), "{reply:?}");
    assert_eq!(gateway.logged(&reply).await["reason"], "credential_missing");
    // Metadata that cannot be understood must not open a route.
    for path in ["/broken", "/number", "/null"] {
        assert_eq!(gateway.refuses(path, &Request::get(path).api_key(&all)).await.reason, "route_invalid");
    }
}

#[tokio::test]
async fn route_metadata_is_ignored_by_default() {
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin(&acme()))
        .routes([(json!({"prefix": "/"}), json!({"mode": "disabled", "org": "acme"}))])
        .start(&upstream)
        .await;
    assert_eq!(gateway.refuses("off", &Request::get("/mcp/acme")).await.reason, "credential_missing");
    assert_eq!(gateway.refuses("off", &Request::get("/elsewhere")).await.reason, "path_unmatched");
}
