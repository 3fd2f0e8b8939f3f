//! Real OAuth clients. Each knows only the endpoint and its credential, and discovers the rest from a bare 401.

use serde_json::{Value, json};
use wasm_test::eventually;
use wasm_test::http::Request;
use wasm_test::oauth::{METHODS, ORG, PrivateKey, Site, WITH_SECRET, Worker, run_client, try_client};
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::process::{Folder, Process, argument};
use wasm_test::provider::Provider;

const TOOLS: [&str; 5] = ["clock__days_between", "clock__now", "notes__read", "notes__titles", "notes__write"];
const WELCOME: &str = "This note came through the gateway.";

#[tokio::test]
async fn the_official_python_sdk_works() {
    let site = Site::start(&json!([PrivateKey::new().record("a")])).await;
    for method in METHODS {
        // `legacy` begins with `initialize`, and `auto` with `server/discover`.
        for mode in ["legacy", "auto"] {
            let got = run_client(&site, "mcp_client.py", method, &json!({ "mode": mode })).await;
            assert_eq!(got, json!({"tools": TOOLS, "said": WELCOME}), "{method} {mode}");
        }
    }
    site.assert_keeps_secrets();
}

#[tokio::test]
async fn the_official_typescript_sdk_works() {
    let site = Site::start(&json!([PrivateKey::new().record("a")])).await;
    // This SDK has no provider for client_secret_post.
    for method in ["client_secret_basic", "private_key_jwt"] {
        let got = run_client(&site, "mcp_client.mjs", method, &json!({})).await;
        assert_eq!(got, json!({"tools": TOOLS, "said": WELCOME}), "{method}");
    }
    site.assert_keeps_secrets();
}

#[tokio::test]
async fn oauth_libraries_get_and_use_tokens() {
    let site = Site::start(&json!([PrivateKey::new().record("a")])).await;
    for method in METHODS {
        for (program, discovery) in [("openid_client.mjs", "oauth2"), ("openid_client.mjs", "oidc"), ("authlib_client.py", "")] {
            let got = run_client(&site, program, method, &json!({ "discovery": discovery })).await;
            let what = format!("{program} {discovery} {method}");
            assert_eq!((&got["status"], &got["lists"]), (&json!(200), &json!(true)), "{what}: {got}");
            assert_eq!((&got["token"]["scope"], &got["token"]["expires_in"]), (&json!("mcp:call"), &json!(3600)), "{what}");
        }
    }
    site.assert_keeps_secrets();
}

/// The official Python client requests the scopes that the gateway names. A real provider refuses a client that requests a
/// scope which it may not have.
#[tokio::test]
async fn client_scopes_name_the_scopes_that_clients_request() {
    let key = PrivateKey::new();
    let site = Site::start(&json!([key.record("a")])).await;
    let own = ["read", "titles", "write"];
    // Columns: the scopes that the client may request; the member client_scopes; the connector in the called path; the tools
    // that the client gets, or its error.
    for (scopes, client_scopes, connector, expected) in [
        ("mcp:call:notes", json!(null), Some("notes"), Ok(&own[..])),
        ("mcp:call:notes", json!(null), None, Err("invalid_scope")),
        ("mcp:call:notes", json!(["mcp:call:notes"]), None, Ok(&TOOLS[2..])),
        ("mcp:call:notes mcp:call", json!(null), None, Ok(&TOOLS)),
        ("api.default", json!(null), None, Err("invalid_scope")),
        ("api.default", json!(["api.default"]), None, Ok(&TOOLS)),
        ("api.default", json!(["api.default"]), Some("notes"), Ok(&own)),
    ] {
        let what = format!("{scopes} {client_scopes} {connector:?}");
        let provider = Provider::with_scopes(scopes).await;
        let audience = [site.endpoint(None), site.endpoint(Some("notes"))];
        let record = merged(provider.record(), &json!({"audience": audience, "client_scopes": client_scopes}));
        site.enforce(&json!({"orgs": {ORG: {"identity_providers": [record]}}})).await;
        let tool = if connector.is_some() { "read" } else { "notes__read" };
        let settings = merged(provider.client(), &json!({"url": site.endpoint(connector), "tool": tool}));
        let got = try_client(&site, "mcp_client.py", "client_secret_basic", &settings).await;
        match (got, expected) {
            (Ok(said), Ok(tools)) => {
                let said: Value = serde_json::from_str(said.trim()).unwrap_or_default();
                assert_eq!(said, json!({"tools": tools, "said": WELCOME}), "{what}");
            }
            (Err(said), Err(part)) => assert!(said.contains(part), "{what}: {said}"),
            (got, _) => panic!("{what}: {got:?}"),
        }
    }
}

#[tokio::test]
async fn signing_keys_rotate_while_clients_work() {
    let [old, new] = ["old", "new"].map(|kid| PrivateKey::new().record(kid));
    let site = Site::start(&json!([old])).await;
    let mut workers = [
        Worker::start(&site, "mcp_client.py", "client_secret_basic", &json!({})),
        Worker::start(&site, "mcp_client.mjs", "private_key_jwt", &json!({})),
    ];
    // The new key is published before it signs. Otherwise a worker with the earlier policy would not know it. When the old
    // key is removed, its tokens are refused, and clients fetch new ones.
    let no_refusal = ["ok", "credential_missing"];
    let at_last = ["ok", "credential_missing", "key_unknown"];
    for (signing_keys, reasons) in [
        (json!([old]), &no_refusal[..]),
        (json!([old, new]), &no_refusal),
        (json!([new, old]), &no_refusal),
        (json!([new]), &at_last),
    ] {
        site.enforce(&site.policy(&signing_keys)).await;
        for worker in &mut workers {
            worker.until_answered(6).await;
        }
        for line in site.envoy().access_log() {
            assert!(reasons.iter().any(|reason| line["reason"] == *reason), "{line}");
        }
    }
    for worker in workers {
        assert!(worker.stop().await >= 24);
    }
    site.assert_keeps_secrets();
}

#[tokio::test]
async fn a_valid_token_of_a_revoked_client_is_refused_immediately() {
    let signing_keys = json!([PrivateKey::new().record("a")]);
    let site = Site::start(&signing_keys).await;
    let token = site.token().await;
    let call = Request::tools_list("/mcp/acme-corp").bearer(&token);
    let mut revoked = site.policy(&signing_keys);
    revoked["orgs"][ORG]["oauth_clients"][0]["revoked"] = json!(true);
    let mut gone = revoked.clone();
    gone["orgs"][ORG]["oauth_clients"].as_array_mut().expect("clients").remove(0);
    let mut logged_out = site.policy(&signing_keys);
    logged_out["orgs"][ORG]["revoked_tokens"] = json!({"issued_before": {WITH_SECRET: "2100-01-01T00:00:00Z"}});
    for (what, policy, reason) in
        [("revoked", revoked, "client_unknown"), ("gone", gone, "client_unknown"), ("token", logged_out, "token_revoked")]
    {
        // Enough requests for each worker to cache the token.
        for _ in 0..8 {
            assert_eq!(site.envoy().client().send(&call).await.status, 200, "{what}: before");
        }
        site.enforce(&policy).await;
        let reply = site.envoy().client().send(&call).await;
        assert_eq!((reply.status, &reply.json()["reason"]), (401, &json!(reason)), "{what}");
        site.enforce(&site.policy(&signing_keys)).await;
    }
    site.assert_keeps_secrets();
}

const INSPECTOR: &str = "wasm-test/inspector/node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js";

/// Runs the command line of MCP Inspector with this credential. Returns its result, or what it prints about the error.
async fn inspect(site: &Site, header: &str, arguments: &[&str]) -> Result<Value, String> {
    let folder = Folder::new().expect("a folder");
    // The Inspector keeps files in the home folder.
    let home = folder.file(".").canonicalize().expect("a path");
    let url = site.endpoint(None);
    let fixed = [INSPECTOR, "--cli", &url, "--transport", "http", "--stored-auth-only", "--quiet", "--header", header];
    let environment = [("HOME", argument(&home))];
    let mut process = Process::start_with("node", &[&fixed, arguments].concat(), &environment, &folder).expect("it starts");
    eventually("the Inspector ends", async || process.has_ended().then_some(())).await;
    serde_json::from_str(folder.read("stdout").trim()).map_err(|_| folder.read("stderr"))
}

#[tokio::test]
async fn mcp_inspector_works() {
    let signing_keys = json!([PrivateKey::new().record("a")]);
    let site = Site::start(&signing_keys).await;
    let mut policy = site.policy(&signing_keys);
    let keys = policy["orgs"][ORG]["api_keys"].as_array_mut().expect("keys");
    keys.push(merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]})));
    site.enforce(&policy).await;
    let key = |id: &str| format!("X-API-Key: {}", api_key(id));
    let by_token = format!("Authorization: Bearer {}", site.token().await);
    for era in ["legacy", "auto"] {
        let list = ["--method", "tools/list", "--protocol-era", era];
        for (header, tools) in [(&by_token, &TOOLS[..]), (&key("key_all"), &TOOLS), (&key("key_notes"), &TOOLS[2..])] {
            let listed = inspect(&site, header, &list).await.unwrap_or_else(|said| panic!("{era}: {said}"));
            let mut names: Vec<&str> =
                listed["tools"].as_array().expect("tools").iter().filter_map(|tool| tool["name"].as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, tools, "{era}");
            let read = ["--method", "tools/call", "--tool-name", "notes__read", "--tool-arg", "title=welcome"];
            let read = inspect(&site, header, &[&read[..], &["--protocol-era", era]].concat()).await;
            let read = read.unwrap_or_else(|said| panic!("{era}: {said}"));
            assert_eq!(read["content"][0]["text"], WELCOME, "{era}");
        }
        let said = inspect(&site, &key("key_of_nobody"), &list).await.expect_err("refused");
        // While it negotiates the version, the Inspector shows only the status.
        let shown = if era == "legacy" { "The API key is not valid here." } else { "HTTP 401" };
        assert!(said.contains(shown), "{era}: {said}");
    }
    site.assert_keeps_secrets();
}
