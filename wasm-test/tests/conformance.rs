//! The official conformance suite of MCP: the gateway as an authorization server, and what the gateway does to a server.

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

/// Runs the suite, and returns how each check of each scenario ended.
async fn checks(before: &[&str], arguments: &[&str]) -> BTreeMap<String, Vec<String>> {
    let folder = Folder::new().expect("a folder");
    let results = folder.file("results");
    let arguments = [before, &[SUITE], arguments, &["--output-dir", argument(&results)]].concat();
    let mut process = Process::start("node", &arguments, &folder).expect("the suite starts");
    // It ends with 1 where any check failed, and with 0 otherwise: what it wrote tells more.
    eventually("the suite", async || process.has_ended().then_some(())).await;
    let scenarios = fs::read_dir(&results).unwrap_or_else(|error| panic!("{error}: {}", folder.read("stderr")));
    scenarios.map(|scenario| ended(&scenario.expect("a scenario's folder").path())).collect()
}

/// The scenario of a folder of results, and how its checks ended.
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
    // The other scenario, the authorization code grant, needs a person with a browser. The gateway has no such grant.
    let scenario = ["--scenario", "authorization-server-metadata-endpoint"];
    let results = checks(&[], &[&["authorization", "--url", site.origin()], &scenario[..]].concat()).await;
    // What it would like to see, not what a server must have: clients known by the address of their metadata. Those of the
    // gateway are created in its settings.
    let wish = "authorization-server-metadata-cimd WARNING";
    let ended: Vec<&str> = results.values().flatten().map(String::as_str).collect();
    assert_eq!(ended, ["authorization-server-metadata SUCCESS", wish]);
}

#[tokio::test]
async fn a_server_behind_the_gateway_is_the_server_itself() {
    let server = Connector::start("wasm-test/oauth-clients/streaming_server.py").await;
    let url = server.url();
    // By its own path, where Envoy's mcp_router is not in between.
    let site = Site::before(vec![server], &json!([PrivateKey::new().record("a")])).await;
    let endpoint = site.endpoint(Some("notes"));
    let suite = |url| ["server", "--suite", "all", "--url", url];
    // The suite knows no credential, so its requests are given one.
    let hook = repository().canonicalize().expect("the repository").join("wasm-test/oauth-clients/key_header.mjs");
    let hook = format!("file://{}?origin={}&key={}", hook.display(), site.origin(), api_key("key_all"));
    let direct = checks(&[], &suite(&url)).await;
    let through = checks(&["--import", &hook], &suite(&endpoint)).await;
    // Not everything that the suite asks for is there, but all that is hard for what stands between.
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
