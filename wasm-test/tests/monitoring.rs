//! `envoy/alerts.yaml` and `envoy/dashboard.json`: promtool checks them, and a real Prometheus scrapes a gateway that has
//! the problems which they report.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::module::Module;
use wasm_test::policy::{api_key, api_key_record};
use wasm_test::process::{Folder, Process, argument, free_port, run};
use wasm_test::rate_limit::RateLimitService;
use wasm_test::settings::{Settings, TOKEN};
use wasm_test::token::Key;
use wasm_test::{eventually, repository, upstream};

#[tokio::test]
async fn each_alert_fires_only_for_its_problem() {
    run("promtool", &["check", "rules", "envoy/alerts.yaml"]).await;
    run("promtool", &["test", "rules", "wasm-test/alerts.test.yaml"]).await;
}

/// The name of Envoy's own metric for traps contains the name of the filter. Control planes change that name to
/// `<namespace>.<name>`.
#[tokio::test]
async fn the_trap_alert_works_for_every_filter_name() {
    let selector = r#"{__name__=~"envoy_wasm_(.+_)?apexmcp(_.+)?_vm_reload"#;
    assert!(text("envoy/alerts.yaml").contains(selector));
    assert!(text("envoy/dashboard.json").contains(&selector.replace('"', "\\\"")), "the dashboard must use the same selector");
    for (name, alerts) in
        [("apexmcp", 1), ("apexmcp_apexmcp", 1), ("apexmcp_apexmcp_waypoint", 1), ("mesh_apexmcp_2", 1), ("other", 0)]
    {
        let alert = json!({
            "exp_labels": {"severity": "critical", "instance": "a"},
            "exp_annotations": {
                "summary": "The module trapped in a worker of a and was restarted",
                "description":
                    r#"The worker refused requests meanwhile. The log of Envoy shows the call stack after "in-VM backtrace"."#,
            },
        });
        let test = json!({
            "rule_files": [repository().canonicalize().expect("the repository").join("envoy/alerts.yaml")],
            "evaluation_interval": "1m",
            "tests": [{
                "name": name,
                "interval": "1m",
                "input_series": [{"series": format!(r#"envoy_wasm_{name}_vm_reload{{instance="a"}}"#), "values": "0x5 1x5"}],
                "alert_rule_test":
                    [{"eval_time": "8m", "alertname": "ApexmcpModuleTrapped", "exp_alerts": vec![alert; alerts]}],
            }],
        });
        let folder = Folder::new().expect("a folder");
        folder.write("test.json", &test.to_string()).expect("the test is written");
        run("promtool", &["test", "rules", argument(&folder.file("test.json"))]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_alerts_and_the_dashboard_exists() {
    let alerts: Value = serde_saphyr::from_str(&text("envoy/alerts.yaml")).expect("YAML");
    let dashboard: Value = serde_json::from_str(&text("envoy/dashboard.json")).expect("JSON");
    let rules = alerts["groups"][0]["rules"].as_array().expect("rules").iter();
    let targets =
        dashboard["panels"].as_array().expect("panels").iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let of = |object: &Value| object["expr"].as_str().expect("an expression").to_owned();
    let (alerts, panels): (Vec<String>, Vec<String>) = (rules.map(of).collect(), targets.map(of).collect());
    assert!(alerts.len() == 7 && panels.len() == 11, "{alerts:?} {panels:?}");

    let trouble = Trouble::start().await;
    let prometheus = Prometheus::scraping(&trouble.gateway).await;
    // Only a VM is loaded again.
    let exists = |expression: &str| Module::under_test() == Module::Wasm || !expression.contains("vm_reload");
    for panel in panels.iter().filter(|panel| exists(panel)) {
        let expression = panel.replace("$__rate_interval", "1m").replace("$instance", ".*");
        eventually(&expression, async || prometheus.finds(&expression).await.then_some(())).await;
    }
    let selectors: BTreeSet<&str> = alerts.iter().flat_map(|expression| selectors(expression)).collect();
    assert_eq!(selectors.len(), 8, "{selectors:?}");
    for selector in selectors.into_iter().filter(|selector| exists(selector)) {
        eventually(selector, async || prometheus.finds(selector).await.then_some(())).await;
    }
    prometheus.evaluates_every_rule().await;
}

/// A gateway on which every event has occurred that the metrics count.
struct Trouble {
    gateway: Gateway,
    _settings: Settings,
}

impl Trouble {
    async fn start() -> Self {
        let (upstream, settings) = (upstream::start().await, Settings::start().await);
        let mut service = RateLimitService::start().await;
        let key = Key::first("first");
        let (issuer, broken) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
        broken.behave(Behaviour::HangUp);
        let acme = json!({
            "api_keys": [api_key_record("key_all")],
            "identity_providers": [issuer.record(), broken.record()],
            "limits": {"monthly_quota": 1000},
        });
        settings.publish(&json!({"version": "1", "orgs": {"acme-corp": acme}}));
        let mut plugin = plugin(&json!({}));
        plugin["jwks"]["timeout"] = json!("1s");
        plugin["policy"] = json!({"remote": {"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN"}});
        plugin["limits"] =
            json!({"store": "rate_limit_service", "rate_limit_service": {"cluster": "ratelimit", "timeout": "5s"}});
        let gateway =
            Setup::new(plugin).settings(settings.port(), TOKEN).rate_limit_service(service.port()).start(&upstream).await;

        let call = Request::tools_list("/mcp/acme-corp");
        gateway.admits("a key", &call.clone().api_key(&api_key("key_all"))).await;
        let token = key.token(&issuer.claims());
        for what in ["a new token", "the same token again"] {
            gateway.admits(what, &call.clone().bearer(&token)).await;
        }
        gateway.refuses("a made-up key", &call.clone().api_key(&api_key("key_none"))).await;
        let refusal =
            gateway.refuses("a token of a provider without keys", &call.clone().bearer(&key.token(&broken.claims()))).await;
        assert_eq!(refusal.reason, "jwks_unavailable");
        assert_eq!(gateway.send(&Request::get("/.well-known/oauth-protected-resource/mcp/acme-corp")).await.status, 200);
        service.stop_service();
        gateway.admits("a request that could not be counted", &call.api_key(&api_key("key_all"))).await;
        settings.publish_text("no document");
        let is_refused = async || (gateway.metric("apexmcp_policy_fetches", &[("outcome", "invalid")]).await > 0).then_some(());
        eventually("the document is refused", is_refused).await;
        Self { gateway, _settings: settings }
    }
}

/// A Prometheus that scrapes and evaluates every second.
struct Prometheus {
    url: String,
    api: Client,
    _process: Process,
}

impl Prometheus {
    async fn scraping(gateway: &Gateway) -> Self {
        let folder = Folder::new().expect("a folder");
        let configuration = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [repository().canonicalize().expect("the repository").join("envoy/alerts.yaml")],
            "scrape_configs": [{
                "job_name": "envoy",
                "metrics_path": "/stats/prometheus",
                "static_configs": [{"targets": [gateway.admin().authority()]}],
            }],
        });
        folder.write("prometheus.yml", &configuration.to_string()).expect("the configuration is written");
        let authority = format!("127.0.0.1:{}", free_port());
        let (file, data) = (folder.file("prometheus.yml"), folder.file("data"));
        let arguments = [
            format!("--config.file={}", argument(&file)),
            format!("--storage.tsdb.path={}", argument(&data)),
            format!("--web.listen-address={authority}"),
        ];
        let process = Process::start("prometheus", &arguments.each_ref().map(String::as_str), &folder).expect("it starts");
        let api = Client::new(authority.clone());
        eventually("Prometheus is ready", async || (api.try_send(&Request::get("/-/ready")).await?.status == 200).then_some(()))
            .await;
        Self { url: format!("http://{authority}"), api, _process: process }
    }

    /// Whether an expression returns any series.
    async fn finds(&self, expression: &str) -> bool {
        !run("promtool", &["query", "instant", &self.url, expression]).await.trim().is_empty()
    }

    /// Waits until each rule was evaluated without an error.
    async fn evaluates_every_rule(&self) {
        eventually("the rules are evaluated", async || {
            let rules = self.api.send(&Request::get("/api/v1/rules")).await.json();
            let rules = rules["data"]["groups"][0]["rules"].as_array()?.clone();
            assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
            rules.iter().all(|rule| rule["health"] == "ok").then_some(())
        })
        .await;
    }
}

fn text(file: &str) -> String {
    std::fs::read_to_string(repository().join(file)).expect("the file")
}

/// The selectors in an expression. A selector is a metric of the filter, a set of matchers, or both.
fn selectors(expression: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find("apexmcp_").into_iter().chain(rest.find('{')).min() {
        rest = &rest[start..];
        let name = rest.find(|character: char| !character.is_ascii_alphanumeric() && character != '_').unwrap_or(rest.len());
        let end = if rest[name..].starts_with('{') { name + rest[name..].find('}').expect("its end") + 1 } else { name };
        found.push(&rest[..end]);
        rest = &rest[end..];
    }
    found
}
