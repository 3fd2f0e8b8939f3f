//! Starts Envoy with any configuration in which all ports are 0.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::http::{CASE_HEADER, Client, Reply, Request};
use crate::module::Module;
use crate::process::{Folder, Process, argument};
use crate::{eventually, repository};

/// The name of the listener that receives the requests of the tests.
pub const GATEWAY_LISTENER: &str = "gateway";

/// A running Envoy. It writes its access log to standard output, one JSON object a line.
#[derive(Debug)]
pub struct Envoy {
    folder: Folder,
    client: Client,
    admin: Client,
    process: Process,
    may_trap: AtomicBool,
}

impl Drop for Envoy {
    /// Fails a test during which the module trapped: no request may end the module's VM.
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.may_trap.load(Ordering::Relaxed) {
            assert!(!self.has_trapped(), "the module trapped:\n{}", self.log());
        }
    }
}

impl Envoy {
    /// Starts Envoy with this bootstrap configuration and waits until it is ready. The environment variable
    /// `ENVOY_PATH` selects another Envoy program. If Envoy does not start, the panic message contains its log.
    pub async fn start(bootstrap: &Value, workers: usize, folder: Folder) -> Self {
        Self::start_with(&["--disable-hot-restart"], &[], bootstrap, workers, folder).await
    }

    /// Like [`Self::start`], with additional arguments and environment variables.
    pub async fn start_with(
        arguments: &[&str],
        environment: &[(&str, &str)],
        bootstrap: &Value,
        workers: usize,
        folder: Folder,
    ) -> Self {
        Self::start_with_module(Module::under_test(), arguments, environment, bootstrap, workers, folder).await
    }

    /// Like [`Self::start_with`], with this module.
    pub async fn start_with_module(
        module: Module,
        arguments: &[&str],
        environment: &[(&str, &str)],
        bootstrap: &Value,
        workers: usize,
        folder: Folder,
    ) -> Self {
        let envoy = std::env::var("ENVOY_PATH").unwrap_or_else(|_| "envoy".to_owned());
        let environment: Vec<_> = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let environment = [environment, module.environment(bootstrap)].concat();
        let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Self::start_by(&envoy, arguments, &environment, &module.configuration(bootstrap), workers, folder).await
    }

    /// Like [`Self::start`], through func-e, which is told to use the installed Envoy.
    pub async fn start_by_func_e(bootstrap: &Value, folder: Folder) -> Self {
        let envoy = repository().join(".tools/bin/envoy").canonicalize().expect("Envoy");
        let home = folder.file("");
        let homes = ["FUNC_E_CONFIG_HOME", "FUNC_E_DATA_HOME", "FUNC_E_STATE_HOME", "FUNC_E_RUNTIME_DIR"];
        let mut environment = vec![("ENVOY_PATH", argument(&envoy))];
        environment.extend(homes.map(|name| (name, argument(&home))));
        let bootstrap = Module::under_test().configuration(bootstrap);
        Self::start_by("func-e", &["run", "--disable-hot-restart"], &environment, &bootstrap, 1, folder).await
    }

    async fn start_by(
        tool: &str,
        words: &[&str],
        environment: &[(&str, &str)],
        bootstrap: &Value,
        workers: usize,
        folder: Folder,
    ) -> Self {
        folder.write("envoy.json", &bootstrap.to_string()).expect("the configuration is written");
        let (configuration, admin_address) = (folder.file("envoy.json"), folder.file("admin"));
        let workers = workers.to_string();
        let arguments = [
            "--config-path",
            argument(&configuration),
            "--admin-address-path",
            argument(&admin_address),
            "--concurrency",
            &workers,
            "--component-log-level",
            "wasm:debug,dynamic_modules:debug",
            "--file-flush-interval-msec",
            "10",
        ];
        let arguments = [words, &arguments].concat();
        let modules = repository().join("dist");
        let environment = [environment, &[("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", argument(&modules))]].concat();
        let mut process = Process::start_with(tool, &arguments, &environment, &folder).expect("Envoy starts");
        let admin = eventually("Envoy is ready", async || {
            assert!(!process.has_ended(), "Envoy ended:\n{}", folder.read("stderr"));
            let admin = Client::new(Some(folder.read("admin")).filter(|address| !address.is_empty())?);
            (admin.try_send(&Request::get("/ready")).await?.status == 200).then_some(admin)
        })
        .await;
        let client = client_of(&admin, GATEWAY_LISTENER).await;
        Self { folder, client, admin, process, may_trap: AtomicBool::new(false) }
    }

    /// A client of another listener.
    pub async fn client_of(&self, listener: &str) -> Client {
        client_of(&self.admin, listener).await
    }

    /// Accepts a trap from now on. For tests that load a module that traps.
    pub fn may_trap(&self) {
        self.may_trap.store(true, Ordering::Relaxed);
    }

    /// Whether the module trapped in any thread.
    pub fn has_trapped(&self) -> bool {
        let log = self.log();
        ["panicked at", "in-VM backtrace"].iter().any(|sign| log.contains(sign))
    }

    /// A client of the listener [`GATEWAY_LISTENER`].
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A client of the admin interface.
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Whether Envoy ended without being stopped by the test.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }

    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Resident memory in kB. Zero if the system does not report it.
    pub fn memory_kb(&self) -> u64 {
        self.process.memory_kb()
    }

    /// The peak of resident memory since [`Self::forget_peak_memory`], in kB. Zero if the system does not report it.
    pub fn peak_memory_kb(&self) -> u64 {
        self.process.peak_memory_kb()
    }

    /// Resets the peak of resident memory to its present size.
    pub fn forget_peak_memory(&self) {
        self.process.forget_peak_memory();
    }

    pub fn log(&self) -> String {
        self.folder.read("stderr")
    }

    /// The lines of the access log that were written until now.
    pub fn access_log(&self) -> Vec<Value> {
        let text = self.folder.read("stdout");
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the access log line of a request.
    pub async fn logged(&self, reply: &Reply) -> Value {
        let is_its = |line: &Value| line[CASE_HEADER] == reply.case;
        eventually("the access log", async || self.access_log().into_iter().find(is_its)).await
    }

    /// The value of one of Envoy's own counters or gauges. Zero if it does not exist yet.
    pub async fn stat(&self, name: &str) -> u64 {
        let stats = self.admin.send(&Request::get(&format!("/stats?format=json&filter={name}"))).await.json();
        let mut stats = stats["stats"].as_array().into_iter().flatten();
        stats.find(|stat| stat["name"] == name).and_then(|stat| stat["value"].as_u64()).unwrap_or(0)
    }

    /// Waits until the gateway has this number of active requests.
    pub async fn until_active(&self, requests: u64) {
        let are_active = async || self.stat("http.gateway.downstream_rq_active").await == requests;
        eventually("the expected number of active requests", async || are_active().await.then_some(())).await;
    }

    /// The value of one of the filter's counters or gauges, read from Envoy's Prometheus page. Zero if there is none
    /// with these labels yet.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        if Module::under_test() == Module::Native {
            // The module tells Envoy in batches. The second batch has everything that was counted before the first mark.
            for _ in 0..2 {
                self.until_told().await;
            }
        }
        self.metric_told(name, labels).await
    }

    /// Sends a request that is counted, and waits until Envoy has been told of one.
    async fn until_told(&self) {
        let counted = async || self.metric_told("apexmcp_endpoints", &[]).await + self.metric_told("apexmcp_requests", &[]).await;
        let before = counted().await;
        self.client.send(&Request::get("/.well-known/jwks.json")).await;
        eventually("a counted request", async || (counted().await > before).then_some(())).await;
    }

    /// The sum of all series with these labels.
    async fn metric_told(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let page = self.admin.send(&Request::get("/stats/prometheus?filter=apexmcp_")).await.body;
        let page = String::from_utf8_lossy(&page);
        let wanted: Vec<String> = labels.iter().map(|(label, value)| format!(r#"{label}="{value}""#)).collect();
        let value = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
            let is_wanted = found == name && wanted.iter().all(|label| labels.contains(&label.as_str()));
            is_wanted.then(|| value.parse::<u64>().expect("a number"))
        };
        page.lines().filter_map(value).sum()
    }

    /// The number of counted requests with this result, reason and method.
    pub async fn counted(&self, result: &str, reason: &str, method: &str) -> u64 {
        self.metric("apexmcp_requests", &[("result", result), ("reason", reason), ("method", method)]).await
    }

    /// The number of JWKS fetches with this outcome: `success` or `failure`.
    pub async fn fetched(&self, outcome: &str) -> u64 {
        self.metric("apexmcp_jwks_fetches", &[("outcome", outcome)]).await
    }
}

async fn client_of(admin: &Client, name: &str) -> Client {
    let listeners = admin.send(&Request::get("/listeners?format=json")).await.json();
    let mut listeners = listeners["listener_statuses"].as_array().into_iter().flatten();
    let listener = listeners.find(|listener| listener["name"] == name).unwrap_or_else(|| panic!("the listener {name}"));
    let port = listener["local_address"]["socket_address"]["port_value"].as_u64().expect("its port");
    Client::new(format!("127.0.0.1:{port}"))
}

/// The complete gateway, `envoy/envoy.yaml`.
pub fn complete_gateway() -> Value {
    configuration("envoy/envoy.yaml")
}

/// Reads a YAML file of the repository.
pub fn configuration(path: &str) -> Value {
    let text = std::fs::read_to_string(repository().join(path)).expect("the file");
    serde_saphyr::from_str(&text).expect("YAML")
}
