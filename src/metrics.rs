//! The names of the metrics in Envoy's stats.
//!
//! The labels precede the name as `label=.=value;.;`, as in Istio's own modules. A `stats_tags` regex of Envoy, or Istio's
//! `extraStatTags`, turns them into Prometheus labels.

use apexmcp_shell::Metric;
use proxy_wasm::types::MetricType;
use rustc_hash::FxHashMap;

use crate::hostcalls;

/// Envoy's numbers for the metrics, in one thread. A metric is defined when it is used for the first time.
#[derive(Default)]
pub(crate) struct Numbers(FxHashMap<Metric, Option<u32>>);

impl Numbers {
    /// The number of a metric. `None` if Envoy does not define it.
    pub(crate) fn of(&mut self, metric: Metric) -> Option<u32> {
        *self.0.entry(metric).or_insert_with(|| {
            let kind = if metric.family().is_gauge { MetricType::Gauge } else { MetricType::Counter };
            hostcalls::metric(kind, &stat(metric))
        })
    }
}

fn stat(metric: Metric) -> String {
    let family = metric.family();
    let mut stat = String::new();
    for (label, value) in family.labels.iter().zip(metric.values()) {
        stat.extend([label, "=.=", value, ";.;"]);
    }
    stat + family.name
}
