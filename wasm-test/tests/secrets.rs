//! Whatever is written by the filter, and by Envoy of it, holds no secret: at the highest level of logging, in refusals,
//! metrics and the dump of Envoy's configuration.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use wasm_test::apexmcp::Apexmcp;
use wasm_test::eventually;
use wasm_test::gateway::{ORIGIN, Setup};
use wasm_test::http::Request;
use wasm_test::settings::TOKEN;
use wasm_test::upstream::{self, Arrived};

#[tokio::test]
async fn nothing_that_is_written_holds_a_secret() {
    let mut settings = Apexmcp::new();
    let (_, key) = settings.create_key();
    let client = settings.run("client create --org acme --name test --scope mcp:call");
    let text = |name: &str| client[name].as_str().expect("a text").to_owned();
    let (client_id, client_secret) = (text("client_id"), text("client_secret"));
    let policy = settings.run("policy export");
    let private_key = policy["signing_keys"][0]["private_key_pem"].as_str().expect("a key").to_owned();
    let upstream = upstream::start().await;
    let remote = json!({"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN"});
    let plugin = json!({"gateway": {"origin": ORIGIN}, "policy": {"remote": remote}});
    let port = settings.serve().await;
    let gateway = Setup::new(plugin).settings(port, TOKEN).start(&upstream).await;
    gateway.admin().send(&Request::post("/logging?wasm=trace")).await;

    let call = || Request::tools_list("/mcp/acme");
    eventually("the policy", async || Arrived::of(&gateway.send(&call().api_key(&key)).await)).await;
    let token_request = |secret: &str| {
        let form = format!("grant_type=client_credentials&client_id={client_id}&client_secret={secret}");
        Request::post("/oauth/token").header("content-type", "application/x-www-form-urlencoded").body(form)
    };
    let issued = gateway.send(&token_request(&client_secret)).await.json();
    let token = issued["access_token"].as_str().expect("a token").to_owned();
    gateway.admits("its token", &call().bearer(&token)).await;
    let changed = |secret: &str| format!("{}{}", &secret[..secret.len() - 1], if secret.ends_with('A') { "Q" } else { "A" });
    let (wrong_key, wrong_secret, forged) = (changed(&key), changed(&client_secret), changed(&token));

    let wrong_basic = BASE64_STANDARD.encode(format!("{client_id}:{wrong_secret}"));

    let mut written = Vec::new();
    for request in [
        call().api_key(&wrong_key),
        call().api_key(&format!(" {key}x")),
        call().api_key(&key).bearer(&token),
        call().bearer(&forged),
        call().bearer(&key),
        call().header("authorization", format!("Basic {token}")),
        Request::post("/mcp/other").bearer(&token),
        token_request(&wrong_secret),
        token_request(&key),
        Request::post("/oauth/token")
            .header("content-type", "application/x-www-form-urlencoded")
            .header("authorization", format!("Basic {wrong_basic}"))
            .body("grant_type=client_credentials".to_owned()),
    ] {
        let reply = gateway.send(&request).await;
        assert!(reply.status >= 400, "{reply:?}");
        written.push(("a refusal", format!("{reply:?}")));
    }
    for page in ["/config_dump", "/stats/prometheus", "/stats", "/clusters", "/listeners"] {
        let reply = gateway.admin().send(&Request::get(page)).await;
        written.push((page, String::from_utf8_lossy(&reply.body).into_owned()));
    }
    // A configuration with all of them in wrong places is refused, and said to be wrong. (Envoy's dump shows what an
    // operator gives it, refused or not: hence the pages are from before.)
    let wrong = json!({"gateway": {"origin": key, "token_path": token}, "policy": {"inline": {"signing_keys": [
        {"kid": "a", "private_key_pem": private_key.replace("PRIVATE", "SECRET")},
    ], "orgs": {"acme": {"oauth_clients": [{"client_id": client_secret, "secret_sha256": client_secret}]}}}}});
    assert!(!gateway.reconfigure(&wrong).await);
    written.push(("the log", gateway.log()));
    written.push(("the access log", gateway.folder().read("stdout")));

    let signature = token.rsplit('.').next().expect("a part");
    let lines = private_key.lines().filter(|line| line.len() == 64);
    let secrets = [&key, &client_secret, &token, &wrong_key, &wrong_secret, &wrong_basic, &forged].map(String::as_str);
    for secret in secrets.into_iter().chain([signature, TOKEN]).chain(lines) {
        for (what, text) in &written {
            // This test, not an operator, writes that token into the VM's environment: README has `host_env_keys`.
            let is_ours = secret == TOKEN && *what == "/config_dump";
            assert!(is_ours || !text.contains(secret), "a secret of {} characters is in {what}", secret.len());
        }
    }
    assert!(written.iter().any(|(what, text)| *what == "the log" && text.contains("[vm->host]")), "the trace was read");
}
