//! `envoy/envoy.yaml`, unchanged except for ports, policy and the addresses of the connectors. The demo connectors are
//! behind it. A real identity provider and the official MCP client are in front of it.

use serde_json::{Value, json};
use wasm_test::demo::{Demo, in_front_of, on_free_ports};
use wasm_test::envoy::{Envoy, complete_gateway, configuration};
use wasm_test::gateway::{http2, local_cluster};
use wasm_test::http::Request;
use wasm_test::module::Module;
use wasm_test::policy::{api_key, api_key_record};
use wasm_test::process::Folder;
use wasm_test::rate_limit::RateLimitService;
use wasm_test::settings::{Settings, TOKEN};
use wasm_test::upstream;

#[tokio::test]
async fn the_shipped_configuration_starts_without_a_warning_and_admits_nobody() {
    let envoy = Envoy::start(&on_free_ports(), 1, Folder::new().expect("a folder")).await;
    let request = Request::tools_list("/mcp/acme-corp").api_key(&api_key("key_all"));
    assert_eq!(envoy.client().send(&request).await.json()["reason"], "api_key_unknown");
    let log = envoy.log();
    let is_ours = |line: &&str| {
        let is_warning = ["[warning]", "[error]", "[critical]"].iter().any(|level| line.contains(level));
        // Envoy warns that its own MCP filters are work in progress.
        is_warning && !(line.contains("envoy.extensions.filters.http.mcp") && line.contains("work-in-progress"))
    };
    let warnings: Vec<&str> = log.lines().filter(is_ours).collect();
    assert_eq!(warnings, [""; 0]);
    assert!(log.contains("work-in-progress"), "the log contains Envoy's own warning");
}

/// So everything that these tests show for the dynamic module holds for `envoy/native.yaml`.
#[test]
fn the_file_of_the_native_module_is_the_complete_gateway_with_another_filter() {
    let mut expected = Module::Native.configuration(&complete_gateway());
    // The module gives Envoy labels, and it never needs to learn whether Envoy holds bodies.
    expected.as_object_mut().expect("an object").remove("stats_config");
    let filter = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config";
    let gateway = expected.pointer_mut(&format!("{filter}/filter_config/value/gateway")).expect("the configuration");
    gateway.as_object_mut().expect("an object").remove("host_holds_bodies");
    assert_eq!(configuration("envoy/native.yaml"), expected);
}

#[tokio::test]
async fn func_e_starts_the_shipped_configuration() {
    let connector = upstream::start().await;
    let acme = json!({"api_keys": [api_key_record("key_all")]});
    let configuration = in_front_of(connector.port(), connector.port(), &acme);
    let envoy = Envoy::start_by_func_e(&configuration, Folder::new().expect("a folder")).await;
    let call = |key: &str| Request::tools_list("/mcp/acme-corp/notes").api_key(&api_key(key));
    assert_eq!(envoy.client().send(&call("key_all")).await.status, 200);
    assert_eq!(envoy.client().send(&call("key_other")).await.status, 401);
}

#[tokio::test]
async fn the_official_client_works_with_a_key_and_with_a_token() {
    let demo = Demo::start().await;
    let key = format!("X-API-Key: {}", api_key("key_all"));
    let token = format!("Authorization: Bearer {}", demo.provider.token("scope=mcp:call").await);
    for (mode, credential) in [("auto", &key), ("legacy", &key), ("auto", &token), ("legacy", &token)] {
        let seen = demo.client("/mcp/acme-corp", mode, "clock__days_between", &days(), credential).await;
        let tools = json!(["clock__days_between", "clock__now", "notes__read", "notes__titles", "notes__write"]);
        assert_eq!((&seen["tools"], &seen["text"], &seen["is_error"]), (&tools, &json!(["30"]), &json!(false)), "{mode}: {seen}");
    }
    let by_notes = format!("X-API-Key: {}", api_key("key_notes"));
    let seen = demo.client("/mcp/acme-corp/notes", "auto", "titles", &json!({}), &by_notes).await;
    assert_eq!(seen["tools"], json!(["read", "titles", "write"]), "the path of one connector shows only its tools: {seen}");

    let lines = demo.envoy.access_log();
    let admitted = |principal: &str, method: &str| {
        lines.iter().any(|line| {
            line["reason"] == "ok"
                && line["org"] == "acme-corp"
                && line["auth_method"] == method
                && line["principal"].as_str().is_some_and(|found| found.starts_with(principal))
        })
    };
    assert!(admitted("acme-corp/key/key_all", "api_key"), "{lines:?}");
    assert!(admitted("acme-corp/key/key_notes", "api_key"), "{lines:?}");
    assert!(admitted("acme-corp/idp/http://127.0.0.1:", "byoidp"), "{lines:?}");
    assert!(demo.envoy.counted("allowed", "ok", "api_key").await > 0);
}

#[tokio::test]
async fn the_curl_lines_of_the_documentation_work() {
    let demo = Demo::start().await;
    // The request that curl sends.
    let call = || {
        Request::post("/mcp/acme-corp")
            .header("accept", "*/*")
            .header("content-type", "application/json")
            .body(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}"#)
    };
    let token = demo.provider.token("scope=mcp:call").await;
    for request in [call().api_key(&api_key("key_all")), call().bearer(&token)] {
        let reply = demo.envoy.client().send(&request).await;
        let listed = reply.json()["result"]["tools"].to_string();
        assert!(listed.contains("notes__read") && listed.contains("clock__now"), "{reply:?}");
    }
    let changed = api_key("key_all").replace("keyall", "keyalL");
    let reply = demo.envoy.client().send(&call().api_key(&changed)).await;
    let challenge = r#"Bearer error="invalid_token", error_description="The API key is not valid here.", resource_metadata="http://127.0.0.1:10000/.well-known/oauth-protected-resource/mcp/acme-corp""#;
    assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some(challenge)));
    assert_eq!(reply.json()["reason"], "api_key_unknown");
}

#[tokio::test]
async fn paths_are_normalized_before_they_are_checked() {
    let demo = Demo::start().await;
    for (path, status) in [
        ("//mcp/acme-corp", 200),
        ("/public/../mcp/acme-corp", 200),
        ("/mcp/acme-corp/notes/../../other", 401),
        ("/mcp%2facme-corp", 400),
        ("/mcp/acme-corp/nothing", 404),
        ("/", 404),
    ] {
        let reply = demo.envoy.client().send(&Request::tools_list(path).api_key(&api_key("key_all"))).await;
        assert_eq!(reply.status, status, "{path}: {reply:?}");
    }
}

/// The configuration restricts what the module may call. The rate limit service and Settings need some of these calls.
#[tokio::test]
async fn the_restrictions_allow_the_rate_limit_service_and_settings() {
    let connector = upstream::start().await;
    let (service, settings) = (RateLimitService::start().await, Settings::start().await);
    let mut configuration = in_front_of(connector.port(), connector.port(), &json!({}));
    let clusters = configuration["static_resources"]["clusters"].as_array_mut().expect("clusters");
    clusters.push(http2(local_cluster("ratelimit", service.port())));
    let theirs = clusters.iter_mut().find(|cluster| cluster["name"] == "settings").expect("the cluster of Settings");
    *theirs = local_cluster("settings", settings.port());
    let filter = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config/config";
    let config = configuration.pointer_mut(filter).expect("the filter");
    config["vm_config"]["environment_variables"] = json!({"key_values": {"APEXMCP_SETTINGS_TOKEN": TOKEN}});
    let plugin = &mut config["configuration"]["value"];
    plugin["policy"] = json!({"remote": {"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN"}});
    plugin["limits"] = json!({"store": "rate_limit_service", "rate_limit_service": {
        "cluster": "ratelimit", "timeout": "5s", "on_error": "deny",
    }});
    let acme = json!({"api_keys": [api_key_record("key_all")], "limits": {"monthly_quota": 2}});
    settings.publish(&json!({"version": "1", "orgs": {"acme-corp": acme}}));
    let envoy = Envoy::start(&configuration, 1, Folder::new().expect("a folder")).await;
    let request = Request::tools_list("/mcp/acme-corp/notes").api_key(&api_key("key_all"));
    for (status, remaining) in [(200, r#""month";r=1;"#), (200, r#""month";r=0;"#), (429, r#""month";r=0;"#)] {
        let reply = envoy.client().send(&request).await;
        assert_eq!(reply.status, status, "{reply:?}");
        assert!(reply.header("ratelimit").is_some_and(|field| field.starts_with(remaining)), "{reply:?}");
    }
}

fn days() -> Value {
    json!({"first": "2026-11-01", "second": "2026-12-01"})
}
