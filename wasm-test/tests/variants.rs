//! Every file of `envoy/` for plain Envoy: Envoy finds it valid as it is, and it does what it is for. `envoy/envoy.yaml` itself
//! is the subject of `complete_gateway.rs`, `envoy/ecds` of `settings.rs`.

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

/// A file of `envoy/`, with what is around it.
struct Variant {
    settings: Apexmcp,
    key: String,
    upstream: Server,
    configuration: Value,
}

impl Variant {
    /// With an org `acme-corp`, a key of it, and a connector. The file's ports are others, and so is the module's path.
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

    /// With this cluster in the place of the one of its name.
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

/// Puts `value` in the place of each object that has the member `sign`.
fn replace(within: &mut Value, sign: &str, value: &Value) {
    match within {
        Value::Object(members) if members.contains_key(sign) => *within = value.clone(),
        Value::Object(members) => members.values_mut().for_each(|member| replace(member, sign, value)),
        Value::Array(elements) => elements.iter_mut().for_each(|element| replace(element, sign, value)),
        _ => {}
    }
}

/// A certificate for localhost and its key, as the header of `envoy/tls.yaml` makes them.
async fn certificate(folder: &Folder) {
    let [key, certificate] = ["gateway.key", "gateway.crt"].map(|name| folder.file(name));
    let words = "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost";
    let mut arguments: Vec<&str> = words.split(' ').collect();
    arguments.extend(["-keyout", argument(&key), "-out", argument(&certificate)]);
    run("openssl", &arguments).await;
}

/// Whether the file is what Envoy takes, as it stands. What a reader makes first, by its header, is in `folder`.
async fn validate(file: &str, folder: &Folder) {
    let text = std::fs::read_to_string(repository().join(file)).expect("the file");
    let made = |name: &str| argument(&folder.file(name)).to_owned();
    let text = ["gateway.crt", "gateway.key", "filter.json"]
        .iter()
        .fold(text, |text, name| text.replace(&format!("dist/{name}"), &made(name)));
    let text = text.replace("{ path: dist }", &format!("{{ path: {} }}", made("")));
    folder.write("valid.yaml", &text).expect("the file is written");
    let envoy = std::env::var("ENVOY_PATH").unwrap_or_else(|_| ".tools/bin/envoy".to_owned());
    run("env", &["APEXMCP_SETTINGS_TOKEN=token", &envoy, "--mode", "validate", "-c", argument(&folder.file("valid.yaml"))]).await;
}

#[tokio::test]
async fn envoy_finds_each_file_valid() {
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
    ] {
        validate(file, &folder).await;
    }
}

/// The protected route refuses and admits, the other one is left alone.
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
    // The keys are the filter's to answer; they are there, since `init` made one.
    let keys = envoy.client().send(&Request::get("/.well-known/jwks.json")).await;
    assert_eq!(keys.json()["keys"].as_array().map(Vec::len), Some(1), "{file}");
}

#[tokio::test]
async fn a_route_switches_it_on() {
    one_route_is_guarded("envoy/routes/disabled.yaml").await;
}

#[tokio::test]
async fn a_route_has_its_own_chain() {
    one_route_is_guarded("envoy/routes/filter-chain.yaml").await;
}

#[tokio::test]
async fn routes_say_of_themselves_what_it_does_there() {
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
        // Not counted, for it is refused.
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

#[tokio::test]
async fn over_tls_and_http_2() {
    let mut variant = Variant::of("envoy/tls.yaml").await;
    let folder = Folder::new().expect("a folder");
    certificate(&folder).await;
    let [key, certificate] = ["gateway.key", "gateway.crt"].map(|name| folder.file(name));
    let files = json!({"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}});
    replace(&mut variant.configuration, "watched_directory", &files);
    let envoy = variant.start().await;
    let port = envoy.client().authority().rsplit(':').next().expect("its port").to_owned();
    let url = format!("https://localhost:{port}/mcp/acme-corp");
    let host = format!("localhost:{port}:127.0.0.1");
    let credential = format!("x-api-key: {}", variant.key);
    for (version, name) in [("--http2", "2"), ("--http1.1", "1.1")] {
        for (header, status) in [("x-other: 1", "401"), (&credential, "200")] {
            let format = ["--silent", "--output", "/dev/null", "--write-out", "%{http_version} %{http_code}", "--data", "{}"];
            let target = ["--cacert", argument(&certificate), "--resolve", &host, "--header", header, version, &url];
            let said = run("curl", &[format.as_slice(), &target].concat()).await;
            assert_eq!(said, format!("{name} {status}"));
        }
    }
}
