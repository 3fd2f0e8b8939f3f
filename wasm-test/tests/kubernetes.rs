//! `envoy/istio` and `envoy/envoy-gateway`: the checks of an API server, and Envoy with the configuration that the control
//! planes generate from these files.

use std::path::PathBuf;

use serde_json::{Value, json};
use wasm_test::demo::in_front_of;
use wasm_test::envoy::{Envoy, complete_gateway};
use wasm_test::gateway::local_cluster;
use wasm_test::http::Request;
use wasm_test::module::Module;
use wasm_test::oauth::{PrivateKey, SECRET, WITH_SECRET, token_request};
use wasm_test::policy::{api_key, api_key_record, merged, sha256};
use wasm_test::process::{Folder, Process, argument, run};
use wasm_test::settings::{Settings, TOKEN};
use wasm_test::upstream::{self, Arrived};
use wasm_test::{eventually, repository};

const ISTIO_CRDS: &str = ".tools/crds/istio.yaml";
const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

#[tokio::test]
async fn an_api_server_accepts_every_file() {
    let files: Vec<PathBuf> = ["istio", "envoy-gateway"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(repository().join("envoy").join(folder)).expect("the folder"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert!(files.len() >= 6, "{files:?}");
    let arguments: Vec<&str> = std::iter::once(ISTIO_CRDS).chain(files.iter().map(|file| argument(file))).collect();
    run("kubernetes", &arguments).await;
}

/// Shows that the check finds errors.
#[tokio::test]
async fn an_api_server_refuses_misspelt_files() {
    for (file, right, wrong, problem) in [
        ("istio/wasm-plugin.yaml", "phase: AUTHN", "phase: AUTH", "spec.phase: Unsupported value"),
        ("istio/wasm-plugin.yaml", "failStrategy:", "failureStrategy:", "unknown field spec.failureStrategy"),
        ("istio/wasm-plugin.yaml", "number: 443", "number: 99443", "port must be between 1-65535"),
        ("istio/envoy-filter.yaml", "operation: INSERT_FIRST", "operation: FIRST", "patch.operation: Unsupported value"),
        ("istio/gateway.yaml", "containers:", "container:", r#"unknown field "container""#),
        ("envoy-gateway/gateway.yaml", "hostKeys:", "hostkeys:", "unknown field spec.wasm[0].env.hostkeys"),
        ("envoy-gateway/gateway.yaml", "type: Image", "type: HTTP", "If type is HTTP, http field needs to be set"),
        ("envoy-gateway/patch-policy.yaml", "op: add", "op: put", "operation.op: Unsupported value"),
    ] {
        let folder = Folder::new().expect("a folder");
        let text = std::fs::read_to_string(repository().join("envoy").join(file)).expect("the file");
        assert!(text.contains(right), "{file} has {right}");
        folder.write("wrong.yaml", &text.replacen(right, wrong, 1)).expect("the file is written");
        let wrong_file = folder.file("wrong.yaml");
        let mut check = Process::start("kubernetes", &[ISTIO_CRDS, argument(&wrong_file)], &folder).expect("it starts");
        eventually("the check ends", async || check.has_ended().then_some(())).await;
        let said = folder.read("stderr");
        assert!(said.contains(problem), "{file}, {wrong}: {said}");
    }
}

/// A policy that names no Gateway protects nothing, and a patch that finds no listener changes nothing.
#[test]
fn every_envoy_gateway_policy_targets_the_gateway() {
    let file = "envoy-gateway/gateway.yaml";
    let (gateway, policy) = (only("Gateway", file), only("EnvoyExtensionPolicy", file));
    let printed = std::fs::read_to_string(repository().join("settings/templates/envoy-gateway.yaml")).expect("the template");
    let printed: Value = serde_saphyr::from_str(&printed).expect("YAML");
    assert_eq!(
        printed["metadata"], policy["metadata"],
        "the printed policy must replace the one in the file, or the patches do not apply"
    );
    for policy in [&printed, &policy, &only("ClientTrafficPolicy", file), &only("BackendTrafficPolicy", file)] {
        let target = json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway["metadata"]["name"]}]);
        assert_eq!(
            (&policy["spec"]["targetRefs"], &policy["metadata"]["namespace"]),
            (&target, &gateway["metadata"]["namespace"])
        );
    }
    let of = |value: &Value| value.as_str().expect("text").to_owned();
    let listener = [&gateway["metadata"]["namespace"], &gateway["metadata"]["name"], &gateway["spec"]["listeners"][0]["name"]];
    let patches = only("EnvoyPatchPolicy", "envoy-gateway/patch-policy.yaml");
    for patch in patches["spec"]["jsonPatches"].as_array().expect("patches") {
        assert_eq!(of(&patch["name"]), listener.map(of).join("/"));
    }
}

/// By default, Envoy ends every call after 15 seconds, including event streams.
#[test]
fn responses_of_connectors_have_no_time_limit() {
    let routes = only("HTTPRoute", "envoy-gateway/gateway.yaml");
    let rules = routes["spec"]["rules"].as_array().expect("rules").iter();
    let connectors: Vec<&Value> = rules.filter(|rule| rule["backendRefs"].is_array()).collect();
    assert_eq!(connectors.len(), 2);
    assert!(connectors.iter().all(|rule| rule["timeouts"]["request"] == "0s"), "{connectors:?}");
}

#[tokio::test]
async fn the_module_has_the_same_restrictions_in_every_file() {
    let complete = complete_gateway();
    let expected = &complete.pointer(&format!("{MANAGER}/http_filters/0/typed_config/config")).expect("the filter")["vm_config"];
    let filters = [Rendered::of_envoy_filter(), Rendered::of_envoy_gateway(true)];
    for Rendered { filter, .. } in filters {
        assert_eq!(filter["capability_restriction_config"], expected["capability_restriction_config"]);
    }
}

/// If istiod sends gateways only the clusters of their routes (`PILOT_FILTER_GATEWAY_CLUSTER_CONFIG`), an annotation must name
/// each service whose cluster the filter calls. Waypoints always need the annotation.
#[test]
fn the_istio_annotation_names_every_service_that_the_filter_calls() {
    for file in ["istio/wasm-plugin.yaml", "istio/envoy-filter.yaml", "istio/waypoint.yaml"] {
        let documents = documents(file);
        let is_annotated = |document: &&Value| document["kind"] == "EnvoyFilter";
        let annotations: Vec<&Value> = documents
            .iter()
            .filter(is_annotated)
            .map(|filter| &filter["metadata"]["annotations"]["envoyfilter.istio.io/referenced-services"])
            .collect();
        let [Value::String(named)] = annotations[..] else { panic!("{file}: {annotations:?}") };
        let mut named: Vec<&str> = named.split(',').map(|service| service.rsplit('/').next().expect("a host")).collect();
        named.sort_unstable();

        let whole = Value::Array(documents.clone()).to_string();
        let mut called: Vec<&str> =
            whole.split("\"outbound|").skip(1).map(|rest| rest.split(['|', '"']).nth(2).expect("a host")).collect();
        called.sort_unstable();
        called.dedup();
        assert_eq!(named, called, "{file}");
    }
}

#[tokio::test]
async fn the_wasm_plugin_at_a_gateway_authenticates() {
    if Module::is_native("the files for control planes load the wasm module") {
        return;
    }
    Rendered::of_wasm_plugin("istio/wasm-plugin.yaml").serves(408).await;
}

#[tokio::test]
async fn the_wasm_plugin_at_a_waypoint_authenticates() {
    if Module::is_native("the files for control planes load the wasm module") {
        return;
    }
    Rendered::of_wasm_plugin("istio/waypoint.yaml").serves(408).await;
}

#[tokio::test]
async fn the_envoy_filter_makes_a_complete_gateway() {
    if Module::is_native("the files for control planes load the wasm module") {
        return;
    }
    Rendered::of_envoy_filter().serves(200).await;
}

#[tokio::test]
async fn envoy_gateway_authenticates() {
    if Module::is_native("the files for control planes load the wasm module") {
        return;
    }
    Rendered::of_envoy_gateway(false).serves(408).await;
}

#[tokio::test]
async fn envoy_gateway_with_patches_makes_a_complete_gateway() {
    if Module::is_native("the files for control planes load the wasm module") {
        return;
    }
    Rendered::of_envoy_gateway(true).serves(200).await;
}

/// The Envoy configuration that a control plane generates from a file.
struct Rendered {
    /// The plugin's configuration, `envoy.extensions.wasm.v3.PluginConfig`.
    filter: Value,
    /// Clusters that the file adds, without those that the control plane generates from other objects.
    clusters: Vec<Value>,
    /// Members to merge into the connection manager.
    manager: Value,
    /// Regular expressions that turn parts of metric names into labels.
    stats_tags: Value,
}

impl Rendered {
    /// Renders a WasmPlugin like Istio (`pilot/pkg/model/extensions.go`), with the cluster that an EnvoyFilter in the same
    /// file adds.
    fn of_wasm_plugin(file: &str) -> Self {
        let plugin = only("WasmPlugin", file);
        let spec = &plugin["spec"];
        let variables = spec["vmConfig"]["env"].as_array().expect("variables").iter().map(|variable| {
            assert_eq!(variable["valueFrom"], "HOST");
            variable["name"].clone()
        });
        let policy = match spec["failStrategy"].as_str() {
            Some("FAIL_RELOAD") => "FAIL_RELOAD",
            other => panic!("{other:?}"),
        };
        let filter = json!({
            "name": "apexmcp.apexmcp",
            "failure_policy": policy,
            "configuration": text(&spec["pluginConfig"]),
            "vm_config": {
                "runtime": "envoy.wasm.runtime.v8",
                "environment_variables": {"host_env_keys": variables.collect::<Vec<_>>()},
            },
        });
        Self { filter, clusters: patches(file, "CLUSTER"), manager: json!({}), stats_tags: istio_stats_tags() }
    }

    fn of_envoy_filter() -> Self {
        let file = "istio/envoy-filter.yaml";
        let [filter] = &patches(file, "HTTP_FILTER")[..] else { panic!("one filter") };
        let [extension] = &patches(file, "EXTENSION_CONFIG")[..] else { panic!("one extension") };
        let [manager] = &patches(file, "NETWORK_FILTER")[..] else { panic!("one connection manager") };
        assert_eq!(filter["name"], extension["name"]);
        let mut manager = manager["typed_config"].clone();
        // If the agent cannot fetch the image, it sends an RBAC filter that denies all requests.
        manager["http_filters"] = json!([filter, {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }]);
        let filter = extension["typed_config"]["config"].clone();
        Self { filter, clusters: patches(file, "CLUSTER"), manager, stats_tags: istio_stats_tags() }
    }

    /// Renders an EnvoyExtensionPolicy like Envoy Gateway (`internal/xds/translator/wasm.go`).
    fn of_envoy_gateway(patched: bool) -> Self {
        let file = "envoy-gateway/gateway.yaml";
        let policy = only("EnvoyExtensionPolicy", file);
        let wasm = &policy["spec"]["wasm"][0];
        assert_eq!(wasm["failOpen"], false);
        let of = |member: &str| policy["metadata"][member].as_str().expect("metadata").to_owned();
        let name = format!("envoyextensionpolicy/{}/{}/wasm/0", of("namespace"), of("name"));
        let mut filter = json!({
            "name": wasm["name"],
            "configuration": text(&wasm["config"]),
            "vm_config": {
                "vm_id": name,
                "runtime": "envoy.wasm.runtime.v8",
                "environment_variables": {"host_env_keys": wasm["env"]["hostKeys"]},
            },
        });
        if patched {
            let patches = only("EnvoyPatchPolicy", "envoy-gateway/patch-policy.yaml");
            for patch in patches["spec"]["jsonPatches"].as_array().expect("patches") {
                let operation = &patch["operation"];
                let path = format!("..http_filters[?(@.name=='envoy.filters.http.wasm/{name}')].typed_config.config");
                assert_eq!((&operation["op"], &operation["jsonPath"]), (&json!("add"), &json!(path)));
                filter[operation["path"].as_str().expect("a path")] = operation["value"].clone();
            }
        }
        let proxy = only("EnvoyProxy", file);
        let bootstrap = proxy["spec"]["bootstrap"]["value"].as_str().expect("a bootstrap");
        let bootstrap: Value = serde_saphyr::from_str(bootstrap).expect("YAML");
        let clusters = bootstrap["static_resources"]["clusters"].as_array().expect("clusters").clone();
        let stats_tags = bootstrap["stats_config"]["stats_tags"].clone();
        Self { filter, clusters, manager: json!({}), stats_tags }
    }

    /// Replaces the filter and the clusters of the complete gateway by these, and sends requests. The token endpoint must
    /// answer with the status `token_status`.
    async fn serves(self, token_status: u16) {
        let (connector, settings) = (upstream::start().await, Settings::start().await);
        let acme = json!({
            "api_keys": [api_key_record("key_all")],
            "oauth_clients": [{"client_id": WITH_SECRET, "secret_sha256": [sha256(SECRET)], "scopes": ["mcp:call"]}],
        });
        let signing_keys = json!([PrivateKey::new().record("first")]);
        settings.publish(&json!({"version": "1", "signing_keys": signing_keys, "orgs": {"acme-corp": acme}}));
        let folder = Folder::new().expect("a folder");
        let bootstrap = self.bootstrap(connector.port(), settings.port(), &folder);
        let envoy = Envoy::start(&bootstrap, 1, folder).await;

        let call = Request::tools_list("/mcp/acme-corp/notes");
        let admitted = envoy.client().send(&call.clone().api_key(&api_key("key_all"))).await;
        let arrived = Arrived::of(&admitted).unwrap_or_else(|| panic!("{admitted:?}\n{}", envoy.log()));
        assert_eq!(arrived.headers_below("x-apexmcp-")["principal"], "acme-corp/key/key_all");
        let refused = envoy.client().send(&call).await;
        assert_eq!((refused.status, &refused.json()["reason"]), (401, &json!("credential_missing")), "{refused:?}");
        assert_eq!(envoy.client().send(&token_request(SECRET)).await.status, token_status);
        assert_eq!(envoy.client().send(&Request::get("/.well-known/jwks.json")).await.status, 200);
        assert_eq!(envoy.counted("allowed", "ok", "api_key").await, 1);
    }

    fn bootstrap(self, connector: u16, settings: u16, folder: &Folder) -> Value {
        let Self { mut filter, clusters, manager, stats_tags } = self;
        // The module itself replaces the image, and fixed values replace the environment of the proxy.
        filter["vm_config"]["code"] = json!({"local": {"filename": repository().join("dist/apexmcp_auth.wasm")}});
        assert_eq!(filter["vm_config"]["environment_variables"], json!({"host_env_keys": ["APEXMCP_SETTINGS_TOKEN"]}));
        filter["vm_config"]["environment_variables"] = json!({"key_values": {"APEXMCP_SETTINGS_TOKEN": TOKEN}});
        let plugin = plugin_of(&filter);
        let settings_cluster = plugin["policy"]["remote"]["cluster"].as_str().expect("the cluster of Settings");
        let keys_cluster = &plugin["jwks"]["https_cluster"];

        let mut configuration = in_front_of(connector, connector, &json!({}));
        let typed = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "config": filter});
        configuration["node"] = json!({"id": "gateway", "cluster": "gateway"});
        configuration["stats_config"]["stats_tags"] = stats_tags;
        let found = configuration.pointer_mut(MANAGER).expect("the connection manager");
        found["http_filters"][0]["typed_config"] = typed.clone();
        *found = merged(found.clone(), &manager);
        let extension = json!({"resources": [{
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", "name": "apexmcp", "typed_config": typed,
        }]});
        folder.write("extension.json", &extension.to_string()).expect("the filter is written");
        if let Some(discovery) = configuration.pointer_mut(&format!("{MANAGER}/http_filters/0/config_discovery/config_source")) {
            *discovery = json!({"path_config_source": {"path": folder.file("extension.json")}, "resource_api_version": "V3"});
        }

        let all = configuration["static_resources"]["clusters"].as_array_mut().expect("clusters");
        all.retain(|cluster| !cluster["name"].as_str().is_some_and(|name| name.starts_with("jwks_")));
        all.extend(clusters);
        all.retain(|cluster| cluster["name"] != settings_cluster);
        all.push(local_cluster(settings_cluster, settings));
        let is_known = all.iter().any(|cluster| cluster["name"] == *keys_cluster);
        assert!(is_known || keys_cluster == "outbound|443||your-company.okta.com", "{keys_cluster}");
        configuration
    }
}

/// The YAML documents of a file.
fn documents(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(repository().join("envoy").join(file)).expect("the file");
    serde_saphyr::from_multiple(&text).expect("YAML")
}

fn only(kind: &str, file: &str) -> Value {
    let mut found = documents(file).into_iter().filter(|document| document["kind"] == kind);
    let (Some(document), None) = (found.next(), found.next()) else { panic!("one {kind} in {file}") };
    document
}

/// The values of all patches of this kind in the EnvoyFilters of a file.
fn patches(file: &str, apply_to: &str) -> Vec<Value> {
    let filters = documents(file).into_iter().filter(|document| document["kind"] == "EnvoyFilter");
    let patches = filters.flat_map(|filter| filter["spec"]["configPatches"].as_array().expect("patches").clone());
    patches.filter(|patch| patch["applyTo"] == apply_to).map(|patch| patch["patch"]["value"].clone()).collect()
}

/// The regular expressions that Istio generates from `extraStatTags` (`tools/packaging/common/envoy_bootstrap.json`).
fn istio_stats_tags() -> Value {
    let tags = ["result", "reason", "method", "outcome", "endpoint"];
    json!(tags.map(|tag| json!({"tag_name": tag, "regex": format!(r"({tag}=\.=(.*?);\.;)")})))
}

/// A plugin configuration in the form in which control planes send it.
fn text(plugin: &Value) -> Value {
    json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": plugin.to_string()})
}

fn plugin_of(filter: &Value) -> Value {
    let value = &filter["configuration"]["value"];
    value.as_str().map_or_else(|| value.clone(), |text| serde_json::from_str(text).expect("JSON"))
}
