//! A minimal gateway: Envoy with only this filter, in front of one upstream. The complete gateway is
//! `envoy/envoy.yaml`.
//!
//! One file, although it is over 500 lines: the options of a gateway, the Envoy configuration that they produce, and
//! the checks on the running gateway refer to each other.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::dns::NameServer;
use crate::envoy::{Envoy, GATEWAY_LISTENER, complete_gateway};
use crate::http::{CASE_HEADER, Client, Reply, Request};
use crate::module::Module;
use crate::policy::merged;
use crate::process::{Folder, free_port};
use crate::server::Server;
use crate::upstream::Arrived;
use crate::{eventually, repository};

/// The value of `gateway.origin` in the tests. No test sends a request to it.
pub const ORIGIN: &str = "https://gateway.example";

/// The file with the filter's configuration. Envoy watches it and reloads it.
const FILTER: &str = "filter.json";
const FILTER_NAME: &str = "apexmcp";

/// A plugin configuration with these organizations in its policy.
pub fn plugin(orgs: &Value) -> Value {
    json!({
        "gateway": {"origin": ORIGIN},
        "jwks": {"http_cluster": "jwks_http"},
        "policy": {"inline": {"version": "1", "orgs": orgs}},
    })
}

/// The options of a [`Gateway`].
#[derive(Clone, Debug)]
pub struct Setup {
    plugin: Value,
    module: Module,
    workers: usize,
    routes: Option<Value>,
    holds_headers_alone: bool,
    passes_trailers: bool,
    upgrade_types: Vec<&'static str>,
    request_timeout: &'static str,
    has_shipped_limits: bool,
    names: Value,
    questions: u32,
    /// Keys and values of Envoy's runtime.
    runtime: Value,
    clusters: Vec<Value>,
    environment: Vec<(&'static str, String)>,
    /// The environment variables that Envoy passes to the module's VM.
    host_env_keys: Vec<&'static str>,
    filter_file: Option<PathBuf>,
    restart: Option<Restart>,
}

/// The place of an Envoy in a sequence of hot restarts.
#[derive(Clone, Debug)]
struct Restart {
    line: Arc<Line>,
    epoch: u32,
}

/// A sequence of Envoys that listen on the same port, one after the other. Envoy's `--base-id` is the port number,
/// because a free port is also an unused id.
#[derive(Debug)]
struct Line {
    port: u16,
}

impl Drop for Line {
    /// Removes the shared memory that Envoy leaves behind. Its name contains ten times the `--base-id`.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(format!("/dev/shm/envoy_shared_memory_{}0", self.port));
    }
}

/// The drain time of an Envoy, and its lifetime after a hot restart, in seconds.
const DRAIN_TIME: &str = "2";
const SHUTDOWN_TIME: &str = "4";

impl Setup {
    /// A gateway with this plugin configuration, one worker, and one route to the upstream.
    pub fn new(plugin: Value) -> Self {
        Self {
            plugin,
            module: Module::under_test(),
            workers: 1,
            routes: None,
            holds_headers_alone: true,
            passes_trailers: false,
            upgrade_types: Vec::new(),
            request_timeout: "0s",
            has_shipped_limits: false,
            names: json!({}),
            questions: 1_024,
            runtime: json!({}),
            clusters: Vec::new(),
            environment: Vec::new(),
            host_env_keys: Vec::new(),
            filter_file: None,
            restart: None,
        }
    }

    /// Selects the module, whatever the environment selects.
    pub fn module(self, module: Module) -> Self {
        Self { module, ..self }
    }

    pub fn plugin(&self) -> &Value {
        &self.plugin
    }

    /// Sets the number of workers.
    pub fn workers(self, workers: usize) -> Self {
        Self { workers, ..self }
    }

    /// Replaces the default route. Each route has a match and metadata of the filter; the first match wins.
    pub fn routes(self, routes: impl IntoIterator<Item = (Value, Value)>) -> Self {
        let route = |(matching, metadata)| {
            json!({
                "match": matching,
                "route": {"cluster": "upstream"},
                "metadata": {"filter_metadata": {"apexmcp": metadata}},
            })
        };
        Self { routes: Some(routes.into_iter().map(route).collect()), ..self }
    }

    /// Turns off `allow_on_headers_stop_iteration`. Then Envoy holds the body back as long as it holds the headers
    /// back.
    pub fn holding_bodies(self) -> Self {
        Self { holds_headers_alone: false, ..self }
    }

    /// Forwards trailers in HTTP/1.1. In HTTP/2, Envoy always forwards them.
    pub fn passing_trailers(self) -> Self {
        Self { passes_trailers: true, ..self }
    }

    /// Sets the time limit for receiving a request and passing it through the filters. The default is no limit.
    pub fn request_timeout(self, request_timeout: &'static str) -> Self {
        Self { request_timeout, ..self }
    }

    /// Uses the limits of `envoy/envoy.yaml` for connections, headers, streams and memory.
    pub fn shipped_limits(self) -> Self {
        Self { has_shipped_limits: true, ..self }
    }

    /// Resolves the names of identity providers with this name server. Envoy looks a name up every second, and forgets
    /// its address if the lookup fails.
    pub fn name_server(self, name_server: &NameServer) -> Self {
        let resolver = json!({
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [address(name_server.port())],
            "dns_resolver_options": {"no_default_search_domain": true},
            "query_timeout_seconds": 1,
            "query_tries": 1,
        });
        let names = json!({
            "typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": resolver},
            "dns_refresh_rate": "1s",
            "dns_min_refresh_rate": "1s",
            "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "1s"},
            // Without this, Envoy keeps an address that it cannot resolve again for as long as it is in use.
            "host_ttl": "0.001s",
        });
        Self { names, ..self }
    }

    /// Sets keys of Envoy's runtime.
    pub fn runtime(self, runtime: Value) -> Self {
        Self { runtime, ..self }
    }

    /// Adds the cluster `ratelimit` with an endpoint at this port.
    pub fn rate_limit_service(self, port: u16) -> Self {
        let mut cluster = http2(local_cluster("ratelimit", port));
        cluster["circuit_breakers"] =
            json!({"thresholds": [{"max_requests": self.questions, "max_pending_requests": self.questions}]});
        self.cluster(cluster)
    }

    /// Sets the circuit breaker for requests to the rate limit service. Call it before [`Setup::rate_limit_service`].
    /// Envoy's default is 1,024.
    pub fn circuit_breaker(self, questions: u32) -> Self {
        Self { questions, ..self }
    }

    /// Adds the cluster `settings` with an endpoint at this port, and the token of that service.
    pub fn settings(self, port: u16, token: &str) -> Self {
        self.secret("APEXMCP_SETTINGS_TOKEN", token).cluster(local_cluster("settings", port))
    }

    /// Sets a variable in Envoy's environment and passes it to the module's VM.
    pub fn secret(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self.host_env_keys.push(name);
        self
    }

    /// Reads the filter from this file, which the test writes itself.
    pub fn filter_file(self, file: PathBuf) -> Self {
        Self { filter_file: Some(file), ..self }
    }

    /// Listens on a fixed port, so that another Envoy can replace this one by a hot restart.
    pub fn restartable(self) -> Self {
        Self { restart: Some(Restart { line: Arc::new(Line { port: free_port() }), epoch: 0 }), ..self }
    }

    /// Uses this clock instead of the system clock.
    pub fn clock(mut self, clock: &Clock) -> Self {
        self.environment.extend(clock.environment());
        self
    }

    /// Adds a cluster.
    pub fn cluster(mut self, cluster: Value) -> Self {
        self.clusters.push(cluster);
        self
    }

    /// Allows upgrades to WebSocket.
    pub fn websockets(self) -> Self {
        Self { upgrade_types: vec!["websocket"], ..self }
    }

    /// Starts the gateway in front of `upstream`.
    pub async fn start(self, upstream: &Server) -> Gateway {
        self.start_at(upstream.port()).await
    }

    /// Starts the gateway in front of the server at this port.
    pub async fn start_at(self, upstream: u16) -> Gateway {
        let folder = Folder::new().expect("a folder");
        if self.filter_file.is_none() {
            folder
                .write(FILTER, &self.module.configuration(&self.filter(&self.plugin)).to_string())
                .expect("the filter is written");
        }
        let bootstrap = self.bootstrap(upstream, &folder);
        let environment: Vec<(&str, &str)> = self.environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let arguments = match &self.restart {
            None => vec!["--disable-hot-restart".to_owned()],
            Some(Restart { line, epoch }) => ["--base-id", &line.port.to_string(), "--restart-epoch", &epoch.to_string()]
                .into_iter()
                .chain(["--parent-shutdown-time-s", SHUTDOWN_TIME])
                .map(str::to_owned)
                .collect(),
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--drain-time-s", DRAIN_TIME]).collect();
        let envoy = Envoy::start_with_module(self.module, &arguments, &environment, &bootstrap, self.workers, folder).await;
        Gateway { envoy, setup: self }
    }

    /// The filter as Envoy reads it from a file (ECDS). The plugin configuration is passed as text.
    pub fn filter(&self, plugin: &Value) -> Value {
        let text = plugin.as_str().map_or_else(|| plugin.to_string(), str::to_owned);
        json!({"resources": [{
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": FILTER_NAME,
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": {
                    "name": FILTER_NAME,
                    "vm_config": {
                        "vm_id": FILTER_NAME,
                        "runtime": "envoy.wasm.runtime.v8",
                        "environment_variables": {"host_env_keys": self.host_env_keys},
                        "code": {"local": {"filename": repository().join("dist/apexmcp_auth.wasm")}},
                    },
                    "configuration": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": text},
                    "failure_policy": "FAIL_RELOAD",
                    "allow_on_headers_stop_iteration": self.holds_headers_alone,
                },
            },
        }]})
    }

    fn bootstrap(&self, upstream: u16, folder: &Folder) -> Value {
        let any = json!([{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}]);
        let state = |name: &str| format!("%FILTER_STATE(wasm.apexmcp_{name}:PLAIN)%");
        let mut connection_manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "gateway",
            "http_protocol_options": {"enable_trailers": self.passes_trailers},
            "upgrade_configs": self.upgrade_types.iter().map(|kind| json!({"upgrade_type": kind})).collect::<Vec<_>>(),
            "request_timeout": self.request_timeout,
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"], "routes": self.routes.as_ref().unwrap_or(&any),
            }]},
            "http_filters": [
                {
                    "name": FILTER_NAME,
                    "config_discovery": {
                        "config_source": watched(&self.filter_file.clone().unwrap_or_else(|| folder.file(FILTER))),
                        "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
                    },
                },
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                },
            ],
            "access_log": [{
                "name": "envoy.access_loggers.stdout",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
                    "log_format": {"json_format": {
                        CASE_HEADER: format!("%REQ({CASE_HEADER})%"),
                        "status": "%RESPONSE_CODE%",
                        "reason": state("reason"),
                        "org": state("org"),
                        "principal": state("principal"),
                        "subject": state("subject"),
                        "method": state("method"),
                        "scope": state("scope"),
                        "mcp_method": state("mcp_method"),
                        "mcp_name": state("mcp_name"),
                    }},
                },
            }],
        });
        let mut listener = json!({
            "name": GATEWAY_LISTENER,
            "address": address(self.restart.as_ref().map_or(0, |restart| restart.line.port)),
        });
        let shipped = complete_gateway();
        if self.has_shipped_limits {
            let shipped = &shipped["static_resources"]["listeners"][0];
            let manager = &shipped["filter_chains"][0]["filters"][0]["typed_config"];
            for limits in ["common_http_protocol_options", "http2_protocol_options", "request_headers_timeout"] {
                connection_manager[limits] = manager[limits].clone();
            }
            let buffer_limit = "per_connection_buffer_limit_bytes";
            listener[buffer_limit] = shipped[buffer_limit].clone();
        }
        listener["filter_chains"] = json!([{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": connection_manager,
        }]}]);
        let mut to_upstream = local_cluster("upstream", upstream);
        to_upstream["typed_extension_protocol_options"] =
            http_options(&json!({"http_protocol_options": {"enable_trailers": self.passes_trailers}}));
        let clusters: Vec<Value> = [to_upstream, jwks_cluster(&self.names)].into_iter().chain(self.clusters.clone()).collect();
        json!({
            "node": {"id": "gateway", "cluster": "gateway"},
            "admin": {"address": address(0)},
            "layered_runtime": {"layers": [{"name": "test", "static_layer": self.runtime}]},
            // These rules turn parts of the filter's metric names into labels.
            "stats_config": shipped["stats_config"],
            "overload_manager": if self.has_shipped_limits { &shipped["overload_manager"] } else { &Value::Null },
            "static_resources": {"listeners": [listener], "clusters": clusters},
        })
    }
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// A cluster with one endpoint on 127.0.0.1, at this port.
pub fn local_cluster(name: &str, port: u16) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{
            "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}},
        }]}]},
    })
}

/// Uses HTTP/2 for this cluster.
pub fn http2(mut cluster: Value) -> Value {
    cluster["typed_extension_protocol_options"] = http_options(&json!({"http2_protocol_options": {}}));
    cluster
}

fn http_options(explicit: &Value) -> Value {
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": explicit,
    }})
}

/// The cluster for requests to identity providers. `names` are its options for name resolution.
fn jwks_cluster(names: &Value) -> Value {
    json!({
        "name": "jwks_http",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.dynamic_forward_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
                "dns_cache_config": merged(json!({"name": "jwks", "dns_lookup_family": "V4_ONLY"}), names),
            },
        },
    })
}

fn watched(file: &Path) -> Value {
    json!({
        "path_config_source": {"path": file, "watched_directory": {"path": file.parent()}},
        "resource_api_version": "V3",
    })
}

#[derive(Debug)]
pub struct Gateway {
    envoy: Envoy,
    setup: Setup,
}

impl Deref for Gateway {
    type Target = Envoy;

    fn deref(&self) -> &Envoy {
        &self.envoy
    }
}

impl Gateway {
    pub async fn send(&self, request: &Request) -> Reply {
        self.client().send(request).await
    }

    /// Replaces the plugin configuration, which may be any text. Returns whether Envoy accepted it.
    pub async fn reconfigure(&self, plugin: &Value) -> bool {
        self.take(&self.setup.filter(plugin)).await
    }

    /// Loads the module from another file, or from `dist` if `file` is `None`. Returns whether Envoy accepted it.
    pub async fn load_module(&self, file: Option<&Path>) -> bool {
        let mut filter = self.setup.filter(&self.setup.plugin);
        if let Some(file) = file {
            filter["resources"][0]["typed_config"]["config"]["vm_config"]["code"]["local"]["filename"] = json!(file);
        }
        self.take(&filter).await
    }

    async fn take(&self, filter: &Value) -> bool {
        let (taken, refused) = self.reloads().await;
        self.folder().write(FILTER, &self.setup.module.configuration(filter).to_string()).expect("the filter is written");
        eventually("Envoy's verdict on a configuration", async || match self.reloads().await {
            (now_taken, _) if now_taken > taken => Some(true),
            (_, now_refused) if now_refused > refused => Some(false),
            _ => None,
        })
        .await
    }

    /// Starts another Envoy that replaces this one by a hot restart, on the same port.
    pub async fn restart(&self, upstream: &Server) -> Self {
        let mut setup = self.setup.clone();
        setup.restart.as_mut().expect("restartable").epoch += 1;
        setup.start(upstream).await
    }

    /// Whether Envoy ended without being stopped by the test.
    pub fn has_ended(&mut self) -> bool {
        self.envoy.has_ended()
    }

    /// Sends a request on many new connections, and so to every worker, until all answers have this status. Returns
    /// the time that this took.
    pub async fn until_everywhere(&self, request: &Request, status: u16) -> Duration {
        let started = Instant::now();
        eventually("every worker agrees", async || {
            for _ in 0..self.setup.workers * 8 {
                let client = Client::new(self.client().authority());
                if client.send(request).await.status != status {
                    return None;
                }
            }
            Some(())
        })
        .await;
        started.elapsed()
    }

    async fn reloads(&self) -> (u64, u64) {
        let name = |outcome| format!("extension_config_discovery.http_filter.{FILTER_NAME}.update_{outcome}");
        (self.stat(&name("success")).await, self.stat(&name("rejected")).await)
    }

    /// Sends a request that must be admitted. Returns the request that arrived at the upstream.
    pub async fn admits(&self, what: &str, request: &Request) -> Arrived {
        let reply = self.send(request).await;
        let arrived = Arrived::of(&reply).unwrap_or_else(|| panic!("{what}: the request was not admitted: {reply:?}"));
        assert_eq!(self.logged(&reply).await["reason"], "ok", "{what}");
        arrived
    }

    /// Sends a request that must be refused, and checks the refusal and its access log line. Returns the refusal.
    pub async fn refuses(&self, what: &str, request: &Request) -> Refusal {
        let reply = self.send(request).await;
        assert!(Arrived::of(&reply).is_none(), "{what}: the request was not refused: {reply:?}");
        let refusal = Refusal::of(&reply).unwrap_or_else(|| panic!("{what}: the answer is not a valid refusal: {reply:?}"));
        let logged = self.logged(&reply).await;
        assert_eq!((&logged["reason"], &logged["status"]), (&json!(refusal.reason), &json!(refusal.status)), "{what}");
        refusal
    }
}

/// A refusal, in the form that all refusals have: a JSON object with three members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// The OAuth error code.
    pub error: String,
    /// The sentence for people, `error_description`.
    pub description: String,
    /// A word from the closed list of reasons.
    pub reason: String,
    /// The header `WWW-Authenticate`.
    pub challenge: Option<String>,
    /// The header `Retry-After`.
    pub retry_after: Option<String>,
}

impl Refusal {
    fn of(reply: &Reply) -> Option<Self> {
        let body = reply.json();
        let text = |name: &str| body.get(name)?.as_str().map(str::to_owned);
        let header = |name| reply.header(name).map(str::to_owned);
        let has_form = reply.header("content-type") == Some("application/json") && body.as_object()?.len() == 3;
        has_form.then_some(Self {
            status: reply.status,
            error: text("error")?,
            description: text("error_description")?,
            reason: text("reason")?,
            challenge: header("www-authenticate"),
            retry_after: header("retry-after"),
        })
    }
}
