//! Counters and gauges. A thread counts in its own memory, and Envoy is told in batches: an increment with labels by Envoy
//! costs several times as much as the whole decision about an API key.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use apexmcp_shell::{Family, Metric};
use rustc_hash::FxHashMap;

use crate::abi::{DefinedMetric, Filter, FilterConfig};

/// The value of a gauge of which Envoy knows the last value.
const TOLD: u64 = u64::MAX;

/// The cells of all threads for one filter configuration. Each thread has a cell of its own for each metric.
#[derive(Default)]
pub(crate) struct Counters {
    defined: HashMap<&'static str, DefinedMetric>,
    cells: Mutex<Vec<(Metric, Arc<AtomicU64>)>>,
}

impl Counters {
    /// Defines all metrics.
    pub(crate) fn define(config: FilterConfig) -> Self {
        let define = |family: Family| Some((family.name, config.define(family.name, family.labels, family.is_gauge)?));
        Self { defined: Family::ALL.into_iter().filter_map(define).collect(), cells: Mutex::default() }
    }

    fn cell(&self, metric: Metric) -> Arc<AtomicU64> {
        let cell = Arc::new(AtomicU64::new(if metric.family().is_gauge { TOLD } else { 0 }));
        self.cells.lock().unwrap_or_else(PoisonError::into_inner).push((metric, Arc::clone(&cell)));
        cell
    }

    /// Tells Envoy what all threads have counted since the last call. Only the main thread may call this.
    pub(crate) fn tell(&self, config: FilterConfig) {
        self.drain(|metric, labels, value| config.tell(metric, labels, value));
    }

    /// Like [`Self::tell`], in a worker. For Envoy 1.38, which needs a stream for it.
    pub(crate) fn tell_by(&self, filter: Filter) {
        self.drain(|metric, labels, value| filter.tell(metric, labels, value));
    }

    fn drain(&self, tell: impl Fn(DefinedMetric, &[&str], u64)) {
        for (metric, cell) in self.cells.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let family = metric.family();
            let nothing = if family.is_gauge { TOLD } else { 0 };
            let value = cell.swap(nothing, Ordering::Relaxed);
            if let Some(defined) = self.defined.get(family.name).filter(|_| value != nothing) {
                tell(*defined, &metric.values(), value);
            }
        }
    }
}

/// The cells of one thread.
pub(crate) struct ThreadCounters {
    all: Arc<Counters>,
    own: RefCell<FxHashMap<Metric, Arc<AtomicU64>>>,
}

impl ThreadCounters {
    pub(crate) fn new(all: Arc<Counters>) -> Self {
        Self { all, own: RefCell::default() }
    }

    pub(crate) fn count(&self, metric: Metric) {
        self.with(metric, |cell| cell.fetch_add(1, Ordering::Relaxed));
    }

    pub(crate) fn record(&self, metric: Metric, value: u64) {
        self.with(metric, |cell| cell.swap(value, Ordering::Relaxed));
    }

    fn with(&self, metric: Metric, change: impl Fn(&AtomicU64) -> u64) {
        change(self.own.borrow_mut().entry(metric).or_insert_with(|| self.all.cell(metric)));
    }
}
