//! Every file of `envoy/` for plain Envoy: Envoy accepts it unchanged, and it does its job. `complete_gateway.rs`
//! tests `envoy/envoy.yaml` itself, and `settings.rs` tests `envoy/ecds`.

use serde_json::{Value, json};
use wasm_test::apexmcp::Apexmcp;
use wasm_test::envoy::{Envoy, configuration};
use wasm_test::gateway::{http2, local_cluster};
use wasm_test::http::Request;
use wasm_test::process::{Folder, argument, run};
use wasm_test::rate_limit::RateLimitService;
use wasm_test::server::Server;
use wasm_test::settings::TOKEN;
use wasm_test::upstream::{self, Arrived};
use wasm_test::{eventually, repository};

/// A file of `envoy/`, with Settings and an upstream.
struct Variant {
    settings: Apexmcp,
    key: String,
    upstream: Server,
    configuration: Value,
}

impl Variant {
    /// Prepares a file: with an org `acme-corp`, a key of that org, and a connector. Changes the ports and the
    /// environment.
    async fn of(file: &str) -> Self {
        let settings = Apexmcp::new();
        settings.run("org create acme-corp");
        let key = settings.run("key create --org acme-corp --name test")["key"].as_str().expect("a key").to_owned();
        let upstream = upstream::start().await;
        let mut configuration = configuration(file);
        for port in ["/admin/address", "/static_resources/listeners/0/address"] {
            *configuration.pointer_mut(&format!("{port}/socket_address/port_value")).expect("a port") = json!(0);
        }
        replace(&mut configuration, "host_env_keys", &json!({"key_values": {"APEXMCP_SETTINGS_TOKEN": TOKEN}}));
        let mut variant = Self { settings, key, upstream, configuration };
        let (connector, port) = (variant.upstream.port(), variant.settings.serve().await);
        variant.cluster(local_cluster("connector", connector));
        variant.cluster(local_cluster("settings", port));
        variant
    }

    /// Replaces the cluster of the same name.
    fn cluster(&mut self, cluster: Value) {
        let clusters = self.configuration["static_resources"]["clusters"].as_array_mut().expect("clusters");
        let place = clusters.iter_mut().find(|other| other["name"] == cluster["name"]);
        *place.expect("the cluster") = cluster;
    }

    async fn start(&self) -> Envoy {
        Envoy::start(&self.configuration, 1, Folder::new().expect("a folder")).await
    }

    fn call(&self, path: &str) -> Request {
        Request::tools_list(path).api_key(&self.key)
    }
}

/// Replaces each object that has the member `sign` by `value`.
fn replace(within: &mut Value, sign: &str, value: &Value) {
    match within {
        Value::Object(members) if members.contains_key(sign) => *within = value.clone(),
        Value::Object(members) => members.values_mut().for_each(|member| replace(member, sign, value)),
        Value::Array(elements) => elements.iter_mut().for_each(|element| replace(element, sign, value)),
        _ => {}
    }
}

/// Creates a certificate for localhost and its key, as the header of `envoy/tls.yaml` describes, and the secret that
/// names them.
async fn certificate(folder: &Folder) {
    issue(folder, "gateway").await;
    let secret = std::fs::read_to_string(repository().join("envoy/tls-certificate.yaml")).expect("the file");
    folder.write("tls-certificate.yaml", &in_folder(&secret, folder)).expect("the file is written");
}

/// Creates only the certificate and its key, with this file name.
async fn issue(folder: &Folder, name: &str) {
    let [key, certificate] = ["key", "crt"].map(|kind| folder.file(&format!("{name}.{kind}")));
    let words = "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost";
    let mut arguments: Vec<&str> = words.split(' ').collect();
    arguments.extend(["-keyout", argument(&key), "-out", argument(&certificate)]);
    run("openssl", &arguments).await;
}

/// The text of a file. `folder` replaces the places of the files that its header tells a reader to create.
fn in_folder(text: &str, folder: &Folder) -> String {
    let made = |name: &str| argument(&folder.file(name)).to_owned();
    let text = ["dist/gateway.crt", "dist/gateway.key", "dist/filter.json", "envoy/tls-certificate.yaml"]
        .iter()
        .fold(text.to_owned(), |text, file| text.replace(file, &made(file.rsplit('/').next().expect("a name"))));
    text.replace("{ path: dist }", &format!("{{ path: {} }}", made("")))
}

/// Checks that Envoy accepts the file unchanged. `folder` contains the files that a reader creates first.
async fn validate(file: &str, folder: &Folder) {
    let text = std::fs::read_to_string(repository().join(file)).expect("the file");
    folder.write("valid.yaml", &in_folder(&text, folder)).expect("the file is written");
    let envoy = std::env::var("ENVOY_PATH").unwrap_or_else(|_| ".tools/bin/envoy".to_owned());
    run("env", &["APEXMCP_SETTINGS_TOKEN=token", &envoy, "--mode", "validate", "-c", argument(&folder.file("valid.yaml"))]).await;
}

#[tokio::test]
async fn envoy_accepts_each_file() {
    let folder = Folder::new().expect("a folder");
    certificate(&folder).await;
    let settings = Apexmcp::new();
    let filter = folder.file("filter.json");
    settings.run(&format!("ecds enable --template envoy/ecds/filter.yaml --file {}", argument(&filter)));
    for file in [
        "envoy/envoy.yaml",
        "envoy/ecds/envoy.yaml",
        "envoy/routes/disabled.yaml",
        "envoy/routes/filter-chain.yaml",
        "envoy/routes/metadata.yaml",
        "envoy/fleet-limits.yaml",
        "envoy/tls.yaml",
        "envoy/settings-tls.yaml",
    ] {
        validate(file, &folder).await;
    }
}

/// Envoy's default is one minute. A provider's keys would be out of reach that long if its name was not found once.
#[test]
fn a_name_that_was_not_found_is_looked_up_again_within_ten_seconds() {
    let folders = ["", "ecds", "envoy-gateway", "istio", "routes"].map(|folder| repository().join("envoy").join(folder));
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).expect("the folder"));
    let files = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
    let mut caches = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).expect("text");
        let count = text.matches("dns_cache_config:").count();
        assert_eq!(text.matches("dns_refresh_rate: 10s").count(), count, "{}", file.display());
        caches += count;
    }
    assert!(caches >= 10, "found only {caches} DNS caches");
}

/// Checks that the protected route refuses and admits, and that the other route is unchanged.
async fn one_route_is_guarded(file: &str) {
    let variant = Variant::of(file).await;
    let envoy = variant.start().await;
    let refused = envoy.client().send(&Request::tools_list("/mcp/acme-corp").api_key("apx_live_sk_no")).await;
    assert_eq!((refused.status, &refused.json()["reason"]), (401, &json!("credential_malformed")), "{file}");
    let reply = envoy.client().send(&variant.call("/mcp/acme-corp").header("x-apexmcp-org", "spoofed")).await;
    let arrived = Arrived::of(&reply).unwrap_or_else(|| panic!("{file}: {reply:?}"));
    assert_eq!((arrived.path.as_str(), arrived.headers_below("x-apexmcp-")["org"].as_str()), ("/mcp", "acme-corp"), "{file}");
    assert!(!arrived.has("x-api-key"));
    let other = envoy.client().send(&Request::get("/")).await;
    assert_eq!((other.status, other.body.as_ref()), (200, b"not the filter's\n".as_slice()), "{file}");
    // The filter itself answers with the keys. There is one key, because `init` created it.
    let keys = envoy.client().send(&Request::get("/.well-known/jwks.json")).await;
    assert_eq!(keys.json()["keys"].as_array().map(Vec::len), Some(1), "{file}");
}

#[tokio::test]
async fn a_route_enables_the_filter() {
    one_route_is_guarded("envoy/routes/disabled.yaml").await;
}

#[tokio::test]
async fn a_route_has_its_own_filter_chain() {
    one_route_is_guarded("envoy/routes/filter-chain.yaml").await;
}

#[tokio::test]
async fn route_metadata_sets_the_org_and_the_mode() {
    one_route_is_guarded("envoy/routes/metadata.yaml").await;
    let variant = Variant::of("envoy/routes/metadata.yaml").await;
    let envoy = variant.start().await;
    let reply = envoy.client().send(&variant.call("/notes")).await;
    assert_eq!(Arrived::of(&reply).expect("admitted").headers_below("x-apexmcp-")["org"], "acme-corp");
    assert_eq!(envoy.client().send(&Request::tools_list("/notes")).await.status, 401);
    let tried = envoy.client().send(&Request::tools_list("/trial").header("x-apexmcp-org", "spoofed")).await;
    assert!(!Arrived::of(&tried).expect("let through").has("x-apexmcp-org"));
}

#[tokio::test]
async fn a_fleet_shares_its_limits() {
    let service = RateLimitService::start().await;
    let mut variant = Variant::of("envoy/fleet-limits.yaml").await;
    variant.settings.run("limits set --org acme-corp --rate 5/minute");
    variant.cluster(http2(local_cluster("ratelimit", service.port())));
    let envoys = [variant.start().await, variant.start().await];
    for envoy in &envoys {
        // A refused request does not count.
        eventually("the policy", async || {
            (envoy.client().send(&Request::tools_list("/mcp/acme-corp")).await.status == 401).then_some(())
        })
        .await;
    }
    let mut statuses = Vec::new();
    for envoy in envoys.iter().cycle().take(8) {
        statuses.push(envoy.client().send(&variant.call("/mcp/acme-corp")).await.status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 5, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 3, "{statuses:?}");
}

/// A gateway with `envoy/tls.yaml` and a certificate in `folder`. Returns its port, too.
async fn with_tls(folder: &Folder) -> (Variant, Envoy, String) {
    certificate(folder).await;
    let mut variant = Variant::of("envoy/tls.yaml").await;
    let configuration = in_folder(&variant.configuration.to_string(), folder);
    variant.configuration = serde_json::from_str(&configuration).expect("JSON");
    let envoy = variant.start().await;
    let port = envoy.client().authority().rsplit(':').next().expect("its port").to_owned();
    (variant, envoy, port)
}

/// Sends a POST with curl. `body` is the body, or `@` and a file name. Returns the HTTP version and the status.
async fn curl(folder: &Folder, port: &str, options: &[&str], credential: &str, body: &str) -> String {
    let (url, host) = (format!("https://localhost:{port}/mcp/acme-corp"), format!("localhost:{port}:127.0.0.1"));
    let certificate = folder.file("gateway.crt");
    let format = ["--silent", "--output", "/dev/null", "--write-out", "%{http_version} %{http_code}", "--data-binary", body];
    let target = ["--cacert", argument(&certificate), "--resolve", &host, "--header", credential, &url];
    run("curl", &[format.as_slice(), options, &target].concat()).await
}

#[tokio::test]
async fn the_gateway_works_over_tls_and_http_2() {
    let folder = Folder::new().expect("a folder");
    let (variant, _envoy, port) = with_tls(&folder).await;
    let credential = format!("x-api-key: {}", variant.key);
    for (version, name) in [("--http2", "2"), ("--http1.1", "1.1")] {
        for (header, status) in [("x-other: 1", "401"), (&credential, "200")] {
            let said = curl(&folder, &port, &[version], header, "{}").await;
            assert_eq!(said, format!("{name} {status}"));
        }
    }
}

/// Envoy buffers at most one window of a stream. With 64 KiB, which is often recommended, Envoy would answer 413.
#[tokio::test]
async fn the_longest_message_is_read_over_http_2() {
    let folder = Folder::new().expect("a folder");
    let (variant, _envoy, port) = with_tls(&folder).await;
    let key = variant.settings.run("key create --org acme-corp --name one --connector notes")["key"].clone();
    let credential = format!("x-api-key: {}", key.as_str().expect("a key"));
    let message =
        |length| json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"text": "x".repeat(length)}}).to_string();
    let around = message(0).len();
    let options = |version| [version, "--header", "content-type: application/json", "--header", "expect:"];
    // A long message that is refused early is reset, and curl may then not report the status.
    eventually("the key is known", async || {
        let said = curl(&folder, &port, &options("--http1.1"), &credential, &message(0)).await;
        (!said.ends_with("401")).then_some(())
    })
    .await;
    for (length, status) in [(100_000, "200"), (1024 * 1024, "200"), (1024 * 1024 + 1, "413")] {
        folder.write("message", &message(length - around)).expect("the message is written");
        let body = format!("@{}", argument(&folder.file("message")));
        for (version, name) in [("--http2", "2"), ("--http1.1", "1.1")] {
            let said = curl(&folder, &port, &options(version), &credential, &body).await;
            assert_eq!(said, format!("{name} {status}"), "{length}");
        }
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_loaded() {
    let folder = Folder::new().expect("a folder");
    let (_variant, envoy, port) = with_tls(&folder).await;
    let shown = "openssl x509 -noout -fingerprint -sha256";
    let served = async || {
        let connect = format!("openssl s_client -connect 127.0.0.1:{port} -servername localhost");
        run("sh", &["-c", &format!("{connect} </dev/null 2>/dev/null | {shown}")]).await
    };
    let of_file = async |name| run("sh", &["-c", &format!("{shown} -in {}", argument(&folder.file(name)))]).await;
    let first = served().await;
    assert_eq!(first, of_file("gateway.crt").await);

    issue(&folder, "next").await;
    let next = of_file("next.crt").await;
    let rename = |kind| std::fs::rename(folder.file(&format!("next.{kind}")), folder.file(&format!("gateway.{kind}")));
    rename("key").expect("the key is renamed");
    // The new key does not fit the old certificate.
    eventually("Envoy tried to load it", async || envoy.log().contains("KEY_VALUES_MISMATCH").then_some(())).await;
    assert_eq!(served().await, first);
    rename("crt").expect("the certificate is renamed");
    eventually("new connections get it", async || (served().await == next).then_some(())).await;
}

/// `envoy/settings-tls.yaml` in front of Settings. The gateway connects to it with the TLS settings of
/// `envoy/envoy-gateway/gateway.yaml`.
#[tokio::test]
async fn settings_is_reached_over_tls() {
    let folder = Folder::new().expect("a folder");
    certificate(&folder).await;
    let mut variant = Variant::of("envoy/tls.yaml").await;
    let text = std::fs::read_to_string(repository().join("envoy/settings-tls.yaml")).expect("the file");
    let mut before: Value = serde_saphyr::from_str(&in_folder(&text, &folder)).expect("YAML");
    before["admin"] = variant.configuration["admin"].clone();
    let listener = &mut before["static_resources"]["listeners"][0];
    listener["name"] = json!("gateway");
    listener["address"] = json!({"socket_address": {"address": "127.0.0.1", "port_value": 0}});
    let clusters = variant.configuration["static_resources"]["clusters"].as_array().expect("clusters");
    let settings = clusters.iter().find(|cluster| cluster["name"] == "settings").expect("the cluster of Settings");
    before["static_resources"]["clusters"][0]["load_assignment"] = settings["load_assignment"].clone();
    let before = Envoy::start(&before, 1, Folder::new().expect("a folder")).await;
    let port = before.client().authority().rsplit(':').next().and_then(|port| port.parse().ok()).expect("its port");

    let gateway = std::fs::read_to_string(repository().join("envoy/envoy-gateway/gateway.yaml")).expect("the file");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&gateway).expect("YAML");
    let bootstrap = documents.iter().find_map(|document| document["spec"]["bootstrap"]["value"].as_str()).expect("a bootstrap");
    let certificate = folder.file("gateway.crt");
    for (name, status) in [("localhost", 200), ("other.example", 503)] {
        let bootstrap = bootstrap.replace("/etc/apexmcp/ca.crt", argument(&certificate));
        let bootstrap = bootstrap.replace("exact: settings.apexmcp.svc.cluster.local", &format!("exact: {name}"));
        let bootstrap: Value = serde_saphyr::from_str(&bootstrap).expect("YAML");
        let mut cluster = local_cluster("settings", port);
        cluster["transport_socket"] = bootstrap["static_resources"]["clusters"][0]["transport_socket"].clone();
        variant.cluster(cluster);
        let chain = variant.configuration.pointer_mut("/static_resources/listeners/0/filter_chains/0").expect("the chain");
        chain.as_object_mut().expect("an object").remove("transport_socket");
        let envoy = variant.start().await;
        let reply = envoy.client().send(&variant.call("/mcp/acme-corp")).await;
        assert_eq!(reply.status, status, "{name}: {reply:?}\n{}", envoy.log());
    }
}
