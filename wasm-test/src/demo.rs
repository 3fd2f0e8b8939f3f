//! The configuration `envoy/envoy.yaml`, unchanged except for ports, policy and the addresses of the connectors.

use serde_json::{Value, json};

use crate::connector::Connector;
use crate::envoy::{Envoy, complete_gateway};
use crate::policy::{api_key_record, merged};
use crate::process::{Folder, run};
use crate::provider::Provider;
use crate::repository;

/// The configuration of the complete gateway with port 0 everywhere, so that Envoy chooses free ports.
pub fn on_free_ports() -> Value {
    let mut gateway = complete_gateway();
    for address in ["/admin/address", "/static_resources/listeners/0/address"] {
        let port = gateway.pointer_mut(&format!("{address}/socket_address/port_value")).expect("a port");
        *port = json!(0);
    }
    gateway
}

/// The same configuration with connectors at these ports. The policy has one organization, `acme-corp`, with the
/// record `acme`.
pub fn in_front_of(notes: u16, clock: u16, acme: &Value) -> Value {
    let mut configuration = on_free_ports();
    for (name, port) in [("notes", notes), ("clock", clock)] {
        let clusters = configuration["static_resources"]["clusters"].as_array_mut().expect("clusters");
        let cluster = clusters.iter_mut().find(|cluster| cluster["name"] == name).expect("the connector's cluster");
        let address = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/port_value";
        *cluster.pointer_mut(address).expect("its port") = json!(port);
    }
    let manager = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config";
    let plugin = configuration.pointer_mut(&format!("{manager}/config/configuration/value")).expect("the plugin");
    plugin["jwks"]["http_cluster"] = json!("jwks_http");
    plugin["policy"]["inline"] = json!({"version": "test", "orgs": {"acme-corp": acme}});
    configuration
}

/// Two API keys for all connectors, and one key for each of the demo connectors.
pub fn api_keys() -> Value {
    let for_one = |id, connector| merged(api_key_record(id), &json!({"connectors": [connector]}));
    json!([api_key_record("key_all"), api_key_record("key_second"), for_one("key_notes", "notes"), for_one("key_clock", "clock")])
}

/// The complete gateway in front of the demo connectors. Its organization has [`api_keys`] and an identity provider.
#[derive(Debug)]
pub struct Demo {
    pub envoy: Envoy,
    pub provider: Provider,
    _connectors: [Connector; 2],
}

impl Demo {
    pub async fn start() -> Self {
        let provider = Provider::start().await;
        let connectors = [Connector::start("demo/connectors/notes.py").await, Connector::start("demo/connectors/clock.py").await];
        let [notes, clock] = connectors.each_ref().map(Connector::port);
        let acme = json!({"api_keys": api_keys(), "identity_providers": [provider.record()]});
        let folder = Folder::new().expect("a folder");
        let envoy = Envoy::start(&in_front_of(notes, clock, &acme), 2, folder).await;
        Self { envoy, provider, _connectors: connectors }
    }

    /// Runs the official MCP client at `path` with this credential header. Returns what the client sees, and the
    /// answer of `tool`.
    pub async fn client(&self, path: &str, mode: &str, tool: &str, arguments: &Value, header: &str) -> Value {
        let script = repository().join("wasm-test/clients/mcp_client.py");
        let script = script.to_str().expect("a path in UTF-8");
        let url = format!("http://{}{path}", self.envoy.client().authority());
        let printed = run("python", &[script, &url, mode, tool, &arguments.to_string(), header]).await;
        serde_json::from_str(&printed).expect("JSON")
    }
}
