//! Counters and gauges in Envoy's stats. Labels stand before the name as `label=.=value;.;`, the form of Istio's own
//! modules: a `stats_tags` regex, or Istio's `extraStatTags`, makes Prometheus labels of them.


use proxy_wasm::types::MetricType;
use rustc_hash::FxHashMap;

use crate::hostcalls;
use apexmcp_core::exchange::{Record, ServiceOutcome};
use apexmcp_core::gateway::CacheOutcome;
use apexmcp_core::policy::version_number;
use apexmcp_core::principal::Method;
use apexmcp_core::reason::{OK, Reason};
use apexmcp_core::time::UnixTime;

/// What is counted, each with its labels.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Metric {
    /// Requests to connectors; `None` where they were admitted.
    Requests(Option<Reason>, Option<Method>),
    /// Requests to an endpoint of the filter's own, by outcome.
    Endpoints(&'static str, &'static str),
    TokenCache(CacheOutcome),
    RateLimitService(ServiceOutcome),
    /// Whether the fetch brought a key set.
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

/// The metrics of one thread, by Envoy's numbers for them. Each is defined when it first counts.
#[derive(Default)]
pub(crate) struct Metrics(FxHashMap<Metric, Option<u32>>);

impl Metrics {
    /// Counts a decided request.
    pub(crate) fn decided(&mut self, record: &Record) {
        match record {
            Record::Endpoint { endpoint, outcome } => self.count(Metric::Endpoints(endpoint, outcome)),
            Record::Resource { refused, findings } => {
                self.count(Metric::Requests(*refused, findings.method));
                if let Some(outcome) = findings.token_cache {
                    self.count(Metric::TokenCache(outcome));
                }
            }
        }
    }

    /// Counts an answer of the rate limit service, or the lack of one.
    pub(crate) fn counted(&mut self, outcome: ServiceOutcome) {
        self.count(Metric::RateLimitService(outcome));
    }

    /// Counts a fetch of a key set.
    pub(crate) fn jwks_fetched(&mut self, success: bool) {
        self.count(Metric::JwksFetches(success));
    }

    /// Counts an answer of the Settings service, or the lack of one.
    pub(crate) fn policy_fetched(&mut self, outcome: &'static str) {
        self.count(Metric::PolicyFetches(outcome));
    }

    /// When the policy was last known to be the one in force, in seconds since the epoch.
    pub(crate) fn policy_confirmed(&mut self, at: UnixTime) {
        self.record(Metric::PolicyConfirmedAt, at.as_secs());
    }

    /// Which policy is in force. Zero stands for a version that is no number: the one before is not in force any more.
    pub(crate) fn policy_in_force(&mut self, version: &str) {
        self.record(Metric::PolicyVersion, version_number(version).unwrap_or_default());
    }

    /// How many keys this Envoy knows now.
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
