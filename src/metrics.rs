//! Counters and gauges in Envoy's stats.
//!
//! The labels precede the name as `label=.=value;.;`, as in Istio's own modules. A `stats_tags` regex of Envoy, or Istio's
//! `extraStatTags`, turns them into Prometheus labels.

use proxy_wasm::types::MetricType;
use rustc_hash::FxHashMap;

use crate::hostcalls;
use apexmcp_core::denial::Denial;
use apexmcp_core::exchange::{Record, ServiceOutcome};
use apexmcp_core::gateway::CacheOutcome;
use apexmcp_core::policy::version_number;
use apexmcp_core::principal::Method;
use apexmcp_core::reason::{OK, Reason};
use apexmcp_core::time::UnixTime;

/// A metric with its labels.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Metric {
    /// Requests to connectors. The reason is `None` for admitted requests.
    Requests(Option<Reason>, Option<Method>),
    /// Requests to an endpoint of the filter, with the endpoint and the outcome.
    Endpoints(&'static str, &'static str),
    TokenCache(CacheOutcome),
    RateLimitService(ServiceOutcome),
    /// Fetches of key sets, and whether they succeeded.
    JwksFetches(bool),
    PolicyFetches(&'static str),
    PolicyConfirmedAt,
    PolicyVersion,
    JwksKeys,
}

impl Metric {
    fn kind(self) -> MetricType {
        match self {
            Self::PolicyConfirmedAt | Self::PolicyVersion | Self::JwksKeys => MetricType::Gauge,
            _ => MetricType::Counter,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Requests(refused, method) => {
                let (result, reason) = refused.map_or(("allowed", OK), |reason| ("refused", reason.word()));
                let method = method.map_or("none", Method::word);
                format!("result=.={result};.;reason=.={reason};.;method=.={method};.;apexmcp_requests")
            }
            Self::Endpoints(endpoint, outcome) => format!("endpoint=.={endpoint};.;outcome=.={outcome};.;apexmcp_endpoints"),
            Self::TokenCache(outcome) => {
                let outcome = match outcome {
                    CacheOutcome::Hit => "hit",
                    CacheOutcome::Miss => "miss",
                };
                format!("outcome=.={outcome};.;apexmcp_token_cache")
            }
            Self::RateLimitService(outcome) => {
                let outcome = match outcome {
                    ServiceOutcome::Ok => "ok",
                    ServiceOutcome::OverLimit => "over_limit",
                    ServiceOutcome::Error => "error",
                    ServiceOutcome::Overloaded => "overloaded",
                };
                format!("outcome=.={outcome};.;apexmcp_rate_limit_service")
            }
            Self::JwksFetches(success) => {
                format!("outcome=.={};.;apexmcp_jwks_fetches", if success { "success" } else { "failure" })
            }
            Self::PolicyFetches(outcome) => format!("outcome=.={outcome};.;apexmcp_policy_fetches"),
            Self::PolicyConfirmedAt => "apexmcp_policy_confirmed_at_seconds".to_owned(),
            Self::PolicyVersion => "apexmcp_policy_version".to_owned(),
            Self::JwksKeys => "apexmcp_jwks_keys".to_owned(),
        }
    }
}

/// Envoy's numbers for the metrics, in one thread. A metric is defined when it is used for the first time.
#[derive(Default)]
pub(crate) struct Metrics(FxHashMap<Metric, Option<u32>>);

impl Metrics {
    pub(crate) fn decided(&mut self, record: &Record) {
        match record {
            Record::Endpoint { endpoint, outcome } => self.count(Metric::Endpoints(endpoint, outcome)),
            Record::Resource { refused, findings } => {
                self.count(Metric::Requests(refused.as_ref().map(Denial::reason), findings.method));
                if let Some(outcome) = findings.token_cache {
                    self.count(Metric::TokenCache(outcome));
                }
            }
        }
    }

    /// Counts a question to the rate limit service by its outcome.
    pub(crate) fn counted(&mut self, outcome: ServiceOutcome) {
        self.count(Metric::RateLimitService(outcome));
    }

    pub(crate) fn jwks_fetched(&mut self, success: bool) {
        self.count(Metric::JwksFetches(success));
    }

    /// Counts a request to the Settings service by its outcome.
    pub(crate) fn policy_fetched(&mut self, outcome: &'static str) {
        self.count(Metric::PolicyFetches(outcome));
    }

    /// Records the time at which the Settings service last confirmed the policy in force, in seconds since the epoch.
    pub(crate) fn policy_confirmed(&mut self, at: UnixTime) {
        self.record(Metric::PolicyConfirmedAt, at.as_secs());
    }

    /// Records the version of the policy in force. If the version is not a number, the gauge is zero, so that it does not show
    /// the previous version.
    pub(crate) fn policy_in_force(&mut self, version: &str) {
        self.record(Metric::PolicyVersion, version_number(version).unwrap_or_default());
    }

    /// Records the number of keys that this thread knows.
    pub(crate) fn jwks_keys(&mut self, keys: usize) {
        self.record(Metric::JwksKeys, keys.try_into().unwrap_or(u64::MAX));
    }

    fn count(&mut self, metric: Metric) {
        if let Some(number) = self.number(metric) {
            hostcalls::increment(number);
        }
    }

    fn record(&mut self, metric: Metric, value: u64) {
        if let Some(number) = self.number(metric) {
            hostcalls::record(number, value);
        }
    }

    fn number(&mut self, metric: Metric) -> Option<u32> {
        *self.0.entry(metric).or_insert_with(|| hostcalls::metric(metric.kind(), &metric.name()))
    }
}
