//! The console in Chromium, with and without its script: every page on a screen, in the dark and on a phone, and a key that the
//! gateway admits as soon as a person has created it.

use serde_json::{Value, json};
use wasm_test::apexmcp::Apexmcp;
use wasm_test::gateway::{Setup, plugin};
use wasm_test::process::{Folder, argument, run};
use wasm_test::settings::TOKEN;
use wasm_test::upstream;

const WALK: &str = "wasm-test/console/walk.mjs";

#[tokio::test(flavor = "multi_thread")]
async fn a_person_walks_through_the_console() {
    let upstream = upstream::start().await;
    let mut settings = Apexmcp::new();
    settings.run("org create other");
    settings.run("key create --org acme --name <b>first</b> --connector notes --connector clock --expires 90d");
    settings.run("client create --org acme --name billing --scope mcp:call:notes");
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
}
