//! The counters and gauges in Envoy's stats.

use apexmcp_core::denial::Denial;
use apexmcp_core::exchange::{Record, ServiceOutcome};
use apexmcp_core::gateway::CacheOutcome;
use apexmcp_core::policy::version_number;
use apexmcp_core::principal::Method;
use apexmcp_core::reason::{OK, Reason};
use apexmcp_core::time::UnixTime;

use crate::envoy::Envoy;

/// A metric with its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
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
    /// Faults of the native module that refused a request. A fault of the wasm module ends its VM.
    Panics,
}

/// All metrics that differ only by the values of their labels.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    pub name: &'static str,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// Whether these are gauges. Otherwise they are counters.
    pub is_gauge: bool,
}

impl Family {
    const fn counter(name: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, labels, is_gauge: false }
    }

    const fn gauge(name: &'static str) -> Self {
        Self { name, labels: &[], is_gauge: true }
    }

    const REQUESTS: Self = Self::counter("apexmcp_requests", &["result", "reason", "method"]);
    const ENDPOINTS: Self = Self::counter("apexmcp_endpoints", &["endpoint", "outcome"]);
    const TOKEN_CACHE: Self = Self::counter("apexmcp_token_cache", &["outcome"]);
    const RATE_LIMIT_SERVICE: Self = Self::counter("apexmcp_rate_limit_service", &["outcome"]);
    const JWKS_FETCHES: Self = Self::counter("apexmcp_jwks_fetches", &["outcome"]);
    const POLICY_FETCHES: Self = Self::counter("apexmcp_policy_fetches", &["outcome"]);
    const POLICY_CONFIRMED_AT: Self = Self::gauge("apexmcp_policy_confirmed_at_seconds");
    const POLICY_VERSION: Self = Self::gauge("apexmcp_policy_version");
    const JWKS_KEYS: Self = Self::gauge("apexmcp_jwks_keys");
    const PANICS: Self = Self::counter("apexmcp_panics", &[]);

    pub const ALL: [Self; 10] = [
        Self::REQUESTS,
        Self::ENDPOINTS,
        Self::TOKEN_CACHE,
        Self::RATE_LIMIT_SERVICE,
        Self::JWKS_FETCHES,
        Self::POLICY_FETCHES,
        Self::POLICY_CONFIRMED_AT,
        Self::POLICY_VERSION,
        Self::JWKS_KEYS,
        Self::PANICS,
    ];
}

impl Metric {
    /// The name and the labels.
    pub const fn family(self) -> Family {
        match self {
            Self::Requests(..) => Family::REQUESTS,
            Self::Endpoints(..) => Family::ENDPOINTS,
            Self::TokenCache(_) => Family::TOKEN_CACHE,
            Self::RateLimitService(_) => Family::RATE_LIMIT_SERVICE,
            Self::JwksFetches(_) => Family::JWKS_FETCHES,
            Self::PolicyFetches(_) => Family::POLICY_FETCHES,
            Self::PolicyConfirmedAt => Family::POLICY_CONFIRMED_AT,
            Self::PolicyVersion => Family::POLICY_VERSION,
            Self::JwksKeys => Family::JWKS_KEYS,
            Self::Panics => Family::PANICS,
        }
    }

    /// The values of the labels, in the order of the family.
    pub fn values(self) -> Vec<&'static str> {
        match self {
            Self::Requests(refused, method) => {
                let (result, reason) = refused.map_or(("allowed", OK), |reason| ("refused", reason.word()));
                vec![result, reason, method.map_or("none", Method::word)]
            }
            Self::Endpoints(endpoint, outcome) => vec![endpoint, outcome],
            Self::TokenCache(CacheOutcome::Hit) => vec!["hit"],
            Self::TokenCache(CacheOutcome::Miss) => vec!["miss"],
            Self::RateLimitService(outcome) => vec![match outcome {
                ServiceOutcome::Ok => "ok",
                ServiceOutcome::OverLimit => "over_limit",
                ServiceOutcome::Error => "error",
                ServiceOutcome::Overloaded => "overloaded",
            }],
            Self::JwksFetches(success) => vec![if success { "success" } else { "failure" }],
            Self::PolicyFetches(outcome) => vec![outcome],
            Self::PolicyConfirmedAt | Self::PolicyVersion | Self::JwksKeys | Self::Panics => Vec::new(),
        }
    }
}

/// Counts a decided request.
pub(crate) fn decided(record: &Record, envoy: &impl Envoy) {
    match record {
        Record::Endpoint { endpoint, outcome } => envoy.count(Metric::Endpoints(endpoint, outcome)),
        Record::Resource { refused, findings } => {
            envoy.count(Metric::Requests(refused.as_ref().map(Denial::reason), findings.method));
            if let Some(outcome) = findings.token_cache {
                envoy.count(Metric::TokenCache(outcome));
            }
        }
    }
}

/// Records the time at which the Settings service last confirmed the policy in force, in seconds since the epoch.
pub(crate) fn policy_confirmed(at: UnixTime, envoy: &impl Envoy) {
    envoy.record(Metric::PolicyConfirmedAt, at.as_secs());
}

/// Records the version of the policy in force. If the version is not a number, the gauge is zero, so that it does not show
/// the previous version.
pub(crate) fn policy_in_force(version: &str, envoy: &impl Envoy) {
    envoy.record(Metric::PolicyVersion, version_number(version).unwrap_or_default());
}

/// Records the number of keys that this thread knows.
pub(crate) fn jwks_keys(keys: usize, envoy: &impl Envoy) {
    envoy.record(Metric::JwksKeys, keys.try_into().unwrap_or(u64::MAX));
}
