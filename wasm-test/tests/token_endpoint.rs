//! Gateway tokens from the smallest gateway: what there is to see in each Envoy, also where the module has to sign itself.

use serde_json::json;
use wasm_test::gateway::{ORIGIN, Setup};
use wasm_test::http::Request;
use wasm_test::oauth::{self, ORG, PrivateKey, SECRET, WITH_SECRET, token_request};
use wasm_test::upstream;

#[tokio::test]
async fn a_token_is_issued_and_admitted() {
    let upstream = upstream::start().await;
    let policy = oauth::policy(&json!([PrivateKey::new().record("a")]), &PrivateKey::new());
    let plugin = json!({"gateway": {"origin": ORIGIN}, "policy": {"inline": policy}});
    let gateway = Setup::new(plugin).start(&upstream).await;

    let reply = gateway.send(&token_request(SECRET)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let token = reply.json();
    assert_eq!((&token["token_type"], &token["expires_in"]), (&json!("Bearer"), &json!(3600)));
    let token = token["access_token"].as_str().expect("a token");
    let path = format!("/mcp/{ORG}");
    let arrived = gateway.admits("its token", &Request::tools_list(&path).bearer(token)).await;
    assert_eq!(arrived.headers_below("x-apexmcp-")["principal"], format!("{ORG}/client/{WITH_SECRET}"));

    let (rest, signature) = token.rsplit_once('.').expect("three parts");
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{rest}.{other}{}", signature.get(1..).expect("a signature"));
    let refusal = gateway.refuses("a forged one", &Request::tools_list(&path).bearer(&forged)).await;
    assert_eq!(refusal.reason, "signature_invalid");
    assert_eq!(gateway.send(&token_request("apx_secret_zzzzzzzzzzzzzzzzzzzzzzzz")).await.status, 401);
    let keys = gateway.send(&Request::get("/.well-known/jwks.json")).await.json();
    assert_eq!(keys["keys"][0]["kid"], "a");
}
