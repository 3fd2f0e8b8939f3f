//! The console in Chromium, with and without its script: every page on a screen, in the dark and on a phone, a key that the
//! gateway admits as soon as a person has created it, and people who sign in with a real OpenID provider.

use serde_json::{Value, json};
use wasm_test::apexmcp::Apexmcp;
use wasm_test::eventually;
use wasm_test::gateway::{Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::process::{Folder, Process, argument, free_port, run};
use wasm_test::settings::TOKEN;
use wasm_test::upstream;

const WALK: &str = "wasm-test/console/walk.mjs";
const SIGN_IN: &str = "wasm-test/console/sign_in.mjs";
const PROVIDER: &str = "wasm-test/console/provider.mjs";

#[tokio::test(flavor = "multi_thread")]
async fn a_person_walks_through_the_console() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    settings.run("org create other");
    settings.run("key create --org acme --name <b>first</b> --connector notes --connector clock --expires 90d");
    let client = settings.run("client create --org acme --name billing --scope mcp:call:notes");
    settings.run(&format!("client rotate-secret {}", client["client_id"].as_str().expect("an id")));
    settings.run("signing-key create --kid next");
    settings.run(
        "sso configure --org acme --issuer http://127.0.0.1:1 --jwks-uri http://127.0.0.1:1/keys --audience apexmcp --force \
         --allow-private-address",
    );
    let (port, console) = settings.serve_console().await;
    let mut plugin = plugin(&json!({}));
    plugin["policy"] = json!({"remote": {"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN"}});
    let gateway = Setup::new(plugin).settings(port, TOKEN).start(&upstream).await;
    let endpoint = format!("http://{}/mcp/acme", gateway.client().authority());
    let folder = Folder::new().expect("a folder");
    for (profile, more) in [("with", &[][..]), ("without", &["without-scripts"])] {
        let url = settings.run(&format!("sign-in --console {console}"))["url"].as_str().expect("a link").to_owned();
        let profile = folder.file(profile);
        let arguments = [&[WALK, &console, &url, &endpoint, argument(&profile)][..], more].concat();
        let found: Value = serde_json::from_str(&run("node", &arguments).await).expect("a list of problems");
        assert_eq!(found, json!([]), "{more:?}");
    }
    let token = settings.run("admin-token create --name test --role operator")["token"].as_str().expect("a token").to_owned();
    let api = Client::new(console.strip_prefix("http://").expect("an http URL"));
    let gateways = api.send(&Request::get("/api/v1/gateways").bearer(&token)).await.json()["items"].clone();
    let id = gateways[0]["id"].as_str().expect("an id");
    assert!(id.len() == 8 && id != "00000000", "{gateways}");
    for (member, expected) in [("address", json!("127.0.0.1")), ("is_connected", json!(true)), ("is_current", json!(true))] {
        assert_eq!(gateways[0][member], expected, "{gateways}");
    }
    assert_eq!(gateways.as_array().map(Vec::len), Some(1), "one gateway, whatever its number of threads");
}

/// A member, an operator, who chooses a role, and somebody whose address the provider has not verified.
#[tokio::test(flavor = "multi_thread")]
async fn people_sign_in_with_the_provider_of_the_operator() {
    let console = format!("127.0.0.1:{}", free_port());
    let origin = format!("http://{console}");
    let of_provider = Folder::new().expect("a folder");
    let redirect = format!("{origin}/sign-in/callback");
    let mut process = Process::start("node", &[PROVIDER, &redirect], &of_provider).expect("node starts");
    let provider: Value = eventually("the provider is ready", async || {
        assert!(!process.has_ended(), "the provider ended:\n{}", of_provider.read("stderr"));
        of_provider.read("stdout").lines().find_map(|line| serde_json::from_str(line).ok())
    })
    .await;
    let text = |name: &str| provider[name].as_str().expect("a text");

    let mut settings = Apexmcp::new();
    let token = settings.run("admin-token create --name test --role operator")["token"].as_str().expect("a token").to_owned();
    let options = [
        ("--console", console.as_str()),
        ("--console-url", &origin),
        ("--sign-in-issuer", text("issuer")),
        ("--sign-in-client-id", text("client_id")),
        ("--sign-in-scope", "email"),
        ("--sign-in-scope", "groups"),
        ("--sign-in-operator", "groups=platform"),
    ];
    settings.serve_with_sign_in(&options, text("client_secret")).await;
    for (email, role) in [("ada@example.com", "admin"), ("olga@example.com", "viewer")] {
        let member = json!({"email": email, "role": role}).to_string();
        let request = Request::post("/api/v1/orgs/acme/members").bearer(&token).header("content-type", "application/json");
        let added = Client::new(&console).send(&request.body(member)).await;
        assert_eq!(added.status, 201, "{added:?}");
    }
    let folder = Folder::new().expect("a folder");
    let seen: Value = serde_json::from_str(&run("node", &[SIGN_IN, &origin, argument(&folder.file(""))]).await).expect("JSON");
    assert_eq!(seen["ada"], json!(["/orgs/acme/keys", "ada@example.com"]));
    assert_eq!(seen["cookies"], json!([["apexmcp_session", true, "Lax"]]));
    assert_eq!(seen["choices"], json!(["Operator of all organizations", "Member of acme"]));
    assert_eq!(seen["olga"], json!(["/orgs", "Operator"]));
    let words = |name: &str| seen[name].as_str().expect("a text").to_owned();
    assert!(words("mallory").contains("you are neither an operator nor a member"), "{seen}");
    assert!(words("forged").contains("The sign-in with your identity provider failed."), "{seen}");
    assert_eq!(seen["after"], "/sign-in");
    let log = settings.output();
    assert!(log.contains("#mallory is neither an operator nor a member of an org"), "{log}");
    assert!(!log.contains(text("client_secret")) && !log.contains("stolen"), "{log}");
}
