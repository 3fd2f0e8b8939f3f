//! The official conformance suite of MCP: once against the gateway as an authorization server, and once against a
//! server behind the gateway.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use wasm_test::connector::Connector;
use wasm_test::oauth::{PrivateKey, Site};
use wasm_test::policy::api_key;
use wasm_test::process::{Folder, Process, argument};
use wasm_test::{eventually, repository};

const SUITE: &str = "wasm-test/oauth-clients/node_modules/@modelcontextprotocol/conformance/dist/index.js";

/// Runs the suite. Returns the results of all checks by scenario.
async fn checks(before: &[&str], arguments: &[&str]) -> BTreeMap<String, Vec<String>> {
    let folder = Folder::new().expect("a folder");
    let results = folder.file("results");
    let arguments = [before, &[SUITE], arguments, &["--output-dir", argument(&results)]].concat();
    let mut process = Process::start("node", &arguments, &folder).expect("the suite starts");
    // The exit status tells only whether a check failed. The result files tell more.
    eventually("the suite ends", async || process.has_ended().then_some(())).await;
    let scenarios = fs::read_dir(&results).unwrap_or_else(|error| panic!("{error}: {}", folder.read("stderr")));
    scenarios.map(|scenario| ended(&scenario.expect("a scenario's folder").path())).collect()
}

/// Reads the results of one scenario: its name, and the id and status of each check.
fn ended(folder: &Path) -> (String, Vec<String>) {
    let name = folder.file_name().and_then(|name| name.to_str()).expect("a name");
    // The time of the run follows the name.
    let (name, _) = name.split_at(name.len() - "-2026-01-01T00-00-00-000Z".len());
    let checks = fs::read_to_string(folder.join("checks.json")).expect("its checks");
    let checks: Vec<Value> = serde_json::from_str(&checks).expect("an array");
    let text = |check: &Value, member: &str| check[member].as_str().unwrap_or_default().to_owned();
    (name.to_owned(), checks.iter().map(|check| format!("{} {}", text(check, "id"), text(check, "status"))).collect())
}

#[tokio::test]
async fn the_gateway_is_a_conforming_authorization_server() {
    let site = Site::start(&json!([PrivateKey::new().record("a")])).await;
    // The suite's other scenario is the authorization code grant, which needs a person with a browser. The gateway
    // does not offer that grant.
    let scenario = ["--scenario", "authorization-server-metadata-endpoint"];
    let results = checks(&[], &[&["authorization", "--url", site.origin()], &scenario[..]].concat()).await;
    // A wish of the suite, not a requirement: clients whose id is the URL of their metadata. The gateway's clients are
    // created in Settings.
    let wish = "authorization-server-metadata-cimd WARNING";
    let ended: Vec<&str> = results.values().flatten().map(String::as_str).collect();
    assert_eq!(ended, ["authorization-server-metadata SUCCESS", wish]);
}

#[tokio::test]
async fn a_server_behind_the_gateway_behaves_like_the_server_itself() {
    let server = Connector::start("wasm-test/oauth-clients/streaming_server.py").await;
    let url = server.url();
    // The server is called by the path of its connector, where Envoy's mcp_router is not involved.
    let site = Site::before(vec![server], &json!([PrivateKey::new().record("a")])).await;
    let endpoint = site.endpoint(Some("notes"));
    let suite = |url| ["server", "--suite", "all", "--url", url];
    // The suite sends no credential, so a hook adds one to its requests.
    let hook = repository().canonicalize().expect("the repository").join("wasm-test/oauth-clients/key_header.mjs");
    let hook = format!("file://{}?origin={}&key={}", hook.display(), site.origin(), api_key("key_all"));
    let direct = checks(&[], &suite(&url)).await;
    let through = checks(&["--import", &hook], &suite(&endpoint)).await;
    // The server does not offer everything that the suite tests, but it passes all scenarios that are hard for a
    // proxy.
    for scenario in [
        "server-server-session-lifecycle",
        "server-server-sse-multiple-streams",
        "server-tools-call-sampling",
        "server-tools-call-elicitation",
        "server-tools-call-with-progress",
        "server-dns-rebinding-protection",
        "server-http-header-validation",
    ] {
        let ended = &direct[scenario];
        assert!(ended.iter().all(|check| check.ends_with(" SUCCESS")), "{scenario}: {ended:?}");
    }
    let differences: Vec<_> = direct.iter().filter(|(name, ended)| through.get(*name) != Some(ended)).collect();
    for (name, ended) in &differences {
        eprintln!("{name}\n  direct  {ended:?}\n  through {:?}", through.get(*name));
    }
    assert!(differences.is_empty() && direct.len() == through.len());
    site.assert_keeps_secrets();
}
