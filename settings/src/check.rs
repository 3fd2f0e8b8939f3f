//! Checks a file that an operator wrote: for errors that a gateway refuses, and for unwise settings.

use std::collections::{BTreeMap, BTreeSet};

use apexmcp_core::config::{Config, DEFAULT_SEPARATOR};
use apexmcp_core::jwks::Clusters;
use apexmcp_core::mcp::address;
use apexmcp_core::policy::issuer::is_url;
use apexmcp_core::policy::publication::Publication;
use apexmcp_core::problem::Problem;
use serde_json::Value;

use crate::advice::audience_of_many;
use crate::chain;
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::json::{each_object, list, plugins_in};
use crate::report::Report;
use crate::yaml;

/// The note for a provider without `default_scopes`.
const ABSENT_DEFAULT_SCOPES: &str = "is absent: a token without any mcp: scope is granted mcp:call. If a value in the token only \
     contains mcp:call, such as apexmcp/mcp:call:github or a role, the token is granted nothing. To choose another default, \
     write the scopes, or [] for none";

/// What is known of the Envoy that will use the file.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The names of its clusters. Empty: unknown.
    pub clusters: BTreeSet<String>,
    /// The ids of its connectors. Empty: unknown.
    pub connectors: BTreeSet<String>,
    /// Whether a control plane adds clusters.
    pub discovers_clusters: bool,
}

/// Checks a policy document, a plugin configuration, or a configuration of Envoy, Istio or Envoy Gateway that contains one.
/// A configuration of Envoy also names its clusters and connectors, and its filter chains are checked.
///
/// # Errors
/// If the file is none of them.
pub fn check(bytes: &[u8], surroundings: &Surroundings, now: Moment) -> Result<Report, Failure> {
    // JSON first, because a policy can have 20 MB, for which the YAML parser needs seconds.
    let (documents, is_json): (Vec<Value>, bool) = match serde_json::from_slice(bytes) {
        Ok(document) => (vec![document], true),
        Err(error) if bytes.trim_ascii_start().starts_with(b"{") => {
            let problem = Problem { path: ".".to_owned(), message: error.to_string() };
            return Ok(Report { errors: vec![problem], ..Report::default() });
        }
        Err(_) => {
            let text = str::from_utf8(bytes).map_err(Failure::during(Reason::FileInvalid, "neither JSON nor YAML"))?;
            (yaml::read(text).map_err(Failure::during(Reason::FileInvalid, "neither JSON nor YAML"))?, false)
        }
    };
    // JSON is checked from its own bytes: the parsed value has lost repeated members, which are an error.
    let as_json = |document: &Value, is_whole: bool| match is_json && is_whole {
        true => bytes.to_vec(),
        false => document.to_string().into_bytes(),
    };
    let mut report = Report::default();
    let mut surroundings = surroundings.clone();
    documents.iter().for_each(|document| surroundings.learn(document));
    if let [policy] = documents.as_slice()
        && ["version", "signing_keys", "orgs"].iter().any(|member| policy.get(member).is_some())
    {
        let clusters = Clusters { https: Some(String::new()), http: Some(String::new()) };
        match Publication::of(&as_json(policy, true), &clusters, DEFAULT_SEPARATOR) {
            Ok(publication) => {
                let conflicts = publication.conflicts();
                report.errors.extend_from_slice(conflicts);
                let others = publication.warnings().iter().filter(|warning| !conflicts.contains(warning));
                report.warnings.extend(others.cloned());
            }
            Err(problems) => report.take(problems),
        }
        Lint { report: &mut report, surroundings: &surroundings, now }.policy("policy", policy);
        return Ok(report);
    }
    let chains: usize = documents.iter().map(|document| chain::check(document, &mut report)).sum();
    let plugins: Vec<Value> = documents.iter().flat_map(plugins_in).collect();
    if plugins.is_empty() && chains == 0 {
        return Err(Failure::new(
            Reason::FileInvalid,
            "the file contains neither a policy document (version, signing_keys, orgs), nor a plugin configuration (gateway, \
             policy), nor a filter chain of Envoy with the filter. For ECDS, check the file that 'ecds enable' names, not the template",
        ));
    }
    let is_the_file = plugins.first() == documents.first();
    for plugin in plugins {
        match Config::parse(&as_json(&plugin, is_the_file), &|name| std::env::var(name).ok()) {
            Ok((config, _)) => report.warnings.extend(config.warnings),
            Err(problems) => report.take(problems),
        }
        Lint { report: &mut report, surroundings: &surroundings, now }.plugin(&plugin);
    }
    Ok(report)
}

impl Surroundings {
    /// Adds the clusters and connectors that a configuration of Envoy names.
    fn learn(&mut self, document: &Value) {
        let names = |list: Option<&Value>| -> Vec<String> {
            let entries = list.and_then(Value::as_array).into_iter().flatten();
            entries.filter_map(|entry| Some(entry.get("name")?.as_str()?.to_owned())).collect()
        };
        self.clusters.extend(names(document.pointer("/static_resources/clusters")));
        self.discovers_clusters |= document.pointer("/dynamic_resources/cds_config").is_some();
        each_object(document, &mut |object| {
            if object.get("@type").and_then(Value::as_str).is_some_and(|name| name.ends_with(".McpRouter")) {
                self.connectors.extend(names(object.get("servers")));
            }
        });
    }
}

struct Lint<'a> {
    report: &'a mut Report,
    surroundings: &'a Surroundings,
    now: Moment,
}

impl Lint<'_> {
    fn warn(&mut self, path: String, message: impl Into<String>) {
        self.report.warnings.push(Problem { path, message: message.into() });
    }

    fn note(&mut self, path: String, message: impl Into<String>) {
        self.report.notes.push(Problem { path, message: message.into() });
    }

    fn plugin(&mut self, plugin: &Value) {
        for pointer in
            ["/jwks/https_cluster", "/jwks/http_cluster", "/policy/remote/cluster", "/limits/rate_limit_service/cluster"]
        {
            let known = &self.surroundings.clusters;
            if let Some(cluster) = plugin.pointer(pointer).and_then(Value::as_str)
                && !known.is_empty()
                && !known.contains(cluster)
            {
                let path = pointer.trim_start_matches('/').replace('/', ".");
                match self.surroundings.discovers_clusters {
                    true => self.warn(path, format!("there is no cluster {cluster:?} in this file: cds_config must provide it")),
                    false => self.report.errors.push(Problem { path, message: format!("there is no cluster {cluster:?}") }),
                }
            }
        }
        let separator = plugin.pointer("/gateway/connector_separator").and_then(Value::as_str).unwrap_or(DEFAULT_SEPARATOR);
        let known = &self.surroundings.connectors;
        for connector in known {
            let Some(other) = address::misread_as(connector, separator).filter(|other| known.contains(*other)) else { continue };
            let message = format!(
                "the connectors {connector:?} and {other:?} cannot be told apart: a tool name is split at its first \
                 {separator:?}, so the tools of {connector:?} look like tools of {other:?}. Rename one of the two connectors"
            );
            self.report.errors.push(Problem { path: "gateway.connector_separator".to_owned(), message });
        }
        let origin = plugin.pointer("/gateway/origin").and_then(Value::as_str).unwrap_or_default();
        if is_plain_http(origin)
            && !["http://127.0.0.1", "http://localhost"].iter().any(|local| origin.to_ascii_lowercase().starts_with(local))
        {
            self.warn("gateway.origin".to_owned(), "is not https: clients send their credentials unencrypted");
        }
        if let Some(policy) = plugin.pointer("/policy/inline") {
            for (index, key) in list(policy, "signing_keys") {
                if key.get("private_key_pem").is_some() {
                    let path = format!("policy.inline.signing_keys[{index}].private_key_pem");
                    self.warn(
                        path,
                        "is visible in Envoy's /config_dump. Use private_key_env to keep the key out of the configuration",
                    );
                }
            }
            self.policy("policy.inline", policy);
        }
    }

    fn policy(&mut self, path: &str, policy: &Value) {
        let mut providers: BTreeMap<(String, String), &str> = BTreeMap::new();
        for (name, org) in policy.get("orgs").and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{path}.orgs.{name}");
            for (index, key) in in_force(org, "api_keys") {
                self.api_key(&format!("{path}.api_keys[{index}]"), key);
            }
            for (index, client) in in_force(org, "oauth_clients") {
                self.scopes(&format!("{path}.oauth_clients[{index}].scopes"), client.get("scopes"));
            }
            for (index, provider) in in_force(org, "identity_providers") {
                let path = format!("{path}.identity_providers[{index}]");
                self.scopes(&format!("{path}.default_scopes"), provider.get("default_scopes"));
                if provider.get("default_scopes").is_none_or(Value::is_null) {
                    self.note(format!("{path}.default_scopes"), ABSENT_DEFAULT_SCOPES);
                }
                if provider.get("jwks_uri").and_then(Value::as_str).is_some_and(is_plain_http) {
                    self.warn(
                        format!("{path}.jwks_uri"),
                        "is not https: an attacker on the network can replace the keys. Use https",
                    );
                }
                let issuer = provider.get("issuer").and_then(Value::as_str).unwrap_or_default();
                if !issuer.is_empty() && !is_url(issuer) {
                    let text = "is not a URL: clients cannot discover this provider, so the resource metadata does not name it";
                    self.note(format!("{path}.issuer"), text);
                }
                if let Some(uri) = provider.get("jwks_uri").and_then(Value::as_str) {
                    let path = format!("{path}.jwks_uri");
                    self.report.key_sets.entry(uri.to_owned()).or_insert(path);
                }
                for audience in texts(provider.get("audience")) {
                    if let Some(why) = audience_of_many(issuer, audience) {
                        self.warn(format!("{path}.audience"), format!("{audience:?}: {why}"));
                    }
                    match providers.insert((issuer.to_owned(), audience.to_owned()), name) {
                        Some(other) if other != name => {
                            let both = format!(
                                "names {audience:?}, as the org {other} does for the same issuer: a token for one of the two orgs is accepted in both"
                            );
                            self.warn(format!("{path}.audience"), both);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn api_key(&mut self, path: &str, key: &Value) {
        let expires_at = key.get("expires_at").and_then(Value::as_str);
        match expires_at.map(Moment::parse) {
            None => self.warn(path.to_owned(), "never expires: set expires_at"),
            Some(Ok(moment)) if moment <= self.now => {
                self.warn(format!("{path}.expires_at"), "has passed: the key is refused. Remove it")
            }
            Some(_) => {}
        }
        for connector in texts(key.get("connectors")) {
            self.connector(format!("{path}.connectors"), connector);
        }
    }

    fn scopes(&mut self, path: &str, scopes: Option<&Value>) {
        for connector in texts(scopes).into_iter().filter_map(|scope| scope.strip_prefix("mcp:call:")) {
            self.connector(path.to_owned(), connector);
        }
    }

    fn connector(&mut self, path: String, connector: &str) {
        let known = &self.surroundings.connectors;
        if !known.is_empty() && !known.contains(connector) {
            self.warn(path, format!("there is no connector {connector:?}"));
        }
    }
}

/// Whether the scheme of `uri` is `http`. The case of a scheme is not significant (RFC 3986 §3.1).
fn is_plain_http(uri: &str) -> bool {
    uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
}

/// The records of a list that are not revoked, with their indexes.
fn in_force<'a>(org: &'a Value, member: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    list(org, member).filter(|(_, record)| record.get("revoked") != Some(&Value::Bool(true)))
}

/// The value of a member that is a string or a list of strings.
fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::is_plain_http;

    #[test]
    fn the_case_of_a_scheme_does_not_matter() {
        for uri in ["http://idp.example", "HTTP://idp.example", "hTTp://"] {
            assert!(is_plain_http(uri), "{uri}");
        }
        for uri in ["https://idp.example", "http:", "", "xhttp://idp.example", "é://idp.example"] {
            assert!(!is_plain_http(uri), "{uri}");
        }
    }
}
