//! Counters and gauges in Envoy's stats. Labels stand before the name as `label=.=value;.;`, the form of Istio's own
//! modules: a `stats_tags` regex, or Istio's `extraStatTags`, makes Prometheus labels of them.

use std::collections::HashMap;

use proxy_wasm::types::MetricType;

use super::hostcalls;
use crate::denial::OK;
use crate::exchange::{Record, ServiceOutcome};
use crate::gateway::CacheOutcome;
use crate::principal::Method;
use crate::time::UnixTime;

/// The metrics of one thread. Each is defined when it first counts.
#[derive(Default)]
pub(super) struct Metrics(HashMap<String, Option<u32>>);

impl Metrics {
    /// Counts a decided request.
    pub(super) fn decided(&mut self, record: &Record) {
        let findings = match record {
            Record::Endpoint { endpoint, outcome } => {
                return self.count(&format!("endpoint=.={endpoint};.;outcome=.={outcome};.;apexmcp_endpoints"));
            }
            Record::Resource { findings, .. } => findings,
        };
        let reason = record.reason();
        let result = if reason == OK { "allowed" } else { "refused" };
        let method = findings.method.map_or("none", Method::word);
        self.count(&format!("result=.={result};.;reason=.={reason};.;method=.={method};.;apexmcp_requests"));
        if let Some(outcome) = findings.token_cache {
            let outcome = match outcome {
                CacheOutcome::Hit => "hit",
                CacheOutcome::Miss => "miss",
            };
            self.count(&format!("outcome=.={outcome};.;apexmcp_token_cache"));
        }
    }

    /// Counts an answer of the rate limit service, or the lack of one.
    pub(super) fn counted(&mut self, outcome: ServiceOutcome) {
        let outcome = match outcome {
            ServiceOutcome::Ok => "ok",
            ServiceOutcome::OverLimit => "over_limit",
            ServiceOutcome::Error => "error",
        };
        self.count(&format!("outcome=.={outcome};.;apexmcp_rate_limit_service"));
    }

    /// Counts a fetch of a key set.
    pub(super) fn jwks_fetched(&mut self, success: bool) {
        let outcome = if success { "success" } else { "failure" };
        self.count(&format!("outcome=.={outcome};.;apexmcp_jwks_fetches"));
    }

    /// Counts an answer of the Settings service, or the lack of one.
    pub(super) fn policy_fetched(&mut self, outcome: &str) {
        self.count(&format!("outcome=.={outcome};.;apexmcp_policy_fetches"));
    }

    /// When the policy was last known to be the one in force, in seconds since the epoch.
    pub(super) fn policy_confirmed(&mut self, at: UnixTime) {
        if let Some(metric) = self.of(MetricType::Gauge, "apexmcp_policy_confirmed_at_seconds") {
            hostcalls::record(metric, at.as_secs());
        }
    }

    /// How many keys this Envoy knows now.
    pub(super) fn jwks_keys(&mut self, keys: usize) {
        if let Some(metric) = self.of(MetricType::Gauge, "apexmcp_jwks_keys") {
            hostcalls::record(metric, keys.try_into().unwrap_or(u64::MAX));
        }
    }

    fn count(&mut self, name: &str) {
        if let Some(metric) = self.of(MetricType::Counter, name) {
            hostcalls::increment(metric);
        }
    }

    fn of(&mut self, kind: MetricType, name: &str) -> Option<u32> {
        if let Some(metric) = self.0.get(name) {
            return *metric;
        }
        let metric = hostcalls::metric(kind, name);
        self.0.insert(name.to_owned(), metric);
        metric
    }
}
