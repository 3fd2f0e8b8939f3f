//! The Settings token as a secret of Envoy, which only the native module can read.

use serde_json::{Value, json};
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, local_cluster, plugin};
use wasm_test::http::Request;
use wasm_test::module::Module;
use wasm_test::policy::{api_key, api_key_record};
use wasm_test::process::Folder;
use wasm_test::settings::{Settings, TOKEN};
use wasm_test::upstream;

fn with_token(source: &Value) -> Value {
    let mut plugin = plugin(&json!({}));
    plugin["policy"] = json!({"remote": {"cluster": "settings", "interval": "100ms", "token_sds": source}});
    plugin
}

fn call() -> Request {
    Request::tools_list("/mcp/acme").api_key(&api_key("key_a"))
}

/// Writes the secret as Envoy wants it: another file is moved to the path that Envoy watches.
fn write_secret(folder: &Folder, token: &str) {
    let secret = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "settings-token",
        "generic_secret": {"secret": {"inline_string": format!("{token}\n")}},
    });
    folder.write("new.json", &json!({"resources": [secret]}).to_string()).expect("the secret is written");
    std::fs::rename(folder.file("new.json"), folder.file("secret.json")).expect("the file is moved");
}

#[tokio::test]
async fn a_new_token_takes_effect_and_is_in_no_dump() {
    let upstream = upstream::start().await;
    let settings = Settings::start().await;
    settings.publish(&json!({"version": "1", "orgs": {"acme": {"api_keys": [api_key_record("key_a")]}}}));
    let folder = Folder::new().expect("a folder");
    write_secret(&folder, "an-old-token");
    let sds_config = json!({"path_config_source": {"path": folder.file("secret.json")}});
    let plugin = with_token(&json!({"name": "settings-token", "sds_config": sds_config}));
    let setup = Setup::new(plugin).module(Module::Native).cluster(local_cluster("settings", settings.port()));
    let gateway: Gateway = setup.start(&upstream).await;
    eventually("Settings refuses the old token", async || gateway.log().contains("401").then_some(())).await;

    write_secret(&folder, TOKEN);
    gateway.until_everywhere(&call(), 200).await;
    let dump = gateway.admin().send(&Request::get("/config_dump?include_eds")).await;
    let dump = String::from_utf8_lossy(&dump.body).into_owned();
    assert!(dump.contains("token_sds") && !dump.contains(TOKEN), "{dump}");
    assert!(!gateway.log().contains(TOKEN));

    // Envoy's bootstrap has no such secret.
    let before = gateway.log().len();
    assert!(!gateway.reconfigure(&with_token(&json!({"name": "unknown"}))).await);
    let log = gateway.log().split_off(before);
    assert!(log.contains("invalid configuration: policy.remote.token_sds: "), "{log}");
    assert_eq!(gateway.send(&call()).await.status, 200, "the configuration before stays in force");
}

#[tokio::test]
async fn the_wasm_module_refuses_such_a_token() {
    let upstream = upstream::start().await;
    let orgs = json!({"acme": {"api_keys": [api_key_record("key_a")]}});
    let gateway = Setup::new(plugin(&orgs)).module(Module::Wasm).start(&upstream).await;
    assert!(!gateway.reconfigure(&with_token(&json!({"name": "settings-token"}))).await);
    let expected = "invalid configuration: policy.remote.token_sds: only the native module can read a secret of Envoy";
    assert!(gateway.log().contains(expected), "{}", gateway.log());
    assert_eq!(gateway.send(&call()).await.status, 200);
}
