//! The part of a filter configuration that one worker of Envoy runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use apexmcp_core::time::UnixTime;
use apexmcp_shell::{Envoy as _, Plugin, Stream};

use crate::abi::Filter;
use crate::config::{Config, Wakeup};
use crate::counters::ThreadCounters;
use crate::envoy::Envoy;
use crate::grpc::Ended;
use crate::ticker::TICK;

thread_local! {
    /// The workers of this thread. There is one for each configuration in force, and few of those.
    static WORKERS: RefCell<Vec<Rc<Worker>>> = RefCell::default();
}

/// One configuration in one thread.
pub(crate) struct Worker {
    config: Arc<Config>,
    plugin: Rc<Plugin<Envoy>>,
    wakeup: Arc<Wakeup>,
    /// The stream through which the clock wakes this worker.
    woken_by: Cell<Option<u32>>,
    last_stream: Cell<u32>,
    ticked_at: Cell<UnixTime>,
}

/// One stream of this module.
pub(crate) struct OwnStream {
    pub(crate) id: u32,
    pub(crate) worker: Rc<Worker>,
    pub(crate) stream: Stream<Envoy>,
}

impl Worker {
    /// The worker of this thread. Its first request parses the configuration.
    fn of(config: &Arc<Config>) -> Rc<Self> {
        let is_its = |worker: &&Rc<Self>| Arc::ptr_eq(&worker.config, config);
        if let Some(known) = WORKERS.with_borrow(|all| all.iter().find(is_its).cloned()) {
            return known;
        }
        let plugin = Rc::new(Plugin::new(Envoy::new(None, ThreadCounters::new(Arc::clone(&config.counters)))));
        // The main thread has accepted this configuration. If it is refused here, every request gets 503.
        plugin.configure(&config.text);
        let worker = Rc::new(Self {
            config: Arc::clone(config),
            wakeup: config.add_worker(Arc::clone(&plugin.usage)),
            plugin,
            woken_by: Cell::default(),
            last_stream: Cell::default(),
            ticked_at: Cell::default(),
        });
        WORKERS.with_borrow_mut(|all| {
            all.retain(|worker| !worker.config.has_ended());
            all.push(Rc::clone(&worker));
        });
        worker
    }

    /// A number for a new stream. Numbers come again after four billion streams.
    fn next_id(&self) -> u32 {
        let id = self.last_stream.get().wrapping_add(1);
        self.last_stream.set(id);
        id
    }

    /// Takes over what changed since the last tick. Without waiting requests, nothing wakes a worker, so each new request
    /// does this.
    pub(crate) fn catch_up(&self) {
        let now = self.plugin.envoy.now();
        if !self.ticked_at.get().plus(TICK).is_ahead(now, TICK) {
            self.follow(now);
        }
    }

    fn follow(&self, now: UnixTime) {
        self.ticked_at.set(now);
        self.config.wish(self.plugin.follow(now));
    }

    /// The clock ticks, and at least one request waits.
    pub(crate) fn tick(&self) {
        let now = self.plugin.envoy.now();
        self.follow(now);
        self.plugin.wake(now);
    }

    /// Runs a callback of a stream. Afterwards the clock wakes this worker as long as a request waits.
    pub(crate) fn within<T>(&self, stream: u32, filter: Filter, callback: impl FnOnce() -> T) -> T {
        let result = self.plugin.envoy.within(stream, filter, callback);
        self.keep_awake();
        result
    }

    fn keep_awake(&self) {
        let waiting = self.plugin.any_held();
        if self.woken_by.get().is_some() == waiting.is_some() {
            return;
        }
        let scheduler = waiting.and_then(|stream| self.plugin.envoy.filter_of(stream)).and_then(Filter::scheduler);
        self.woken_by.set(waiting.filter(|_| scheduler.is_some()));
        self.wakeup.set(scheduler);
    }

    /// For Envoy 1.38, which can be told metrics only by a stream.
    pub(crate) fn tell_metrics(&self) {
        if let Some(filter) = self.plugin.envoy.filter() {
            self.config.counters.tell_by(filter);
        }
    }

    pub(crate) fn envoy(&self) -> &Envoy {
        &self.plugin.envoy
    }

    /// A question to the rate limit service ended.
    pub(crate) fn answered(&self, ended: &Ended) {
        self.plugin.answered(ended.number, ended.grpc_status, ended.size(), |_| ended.message());
    }

    /// Envoy destroys a stream.
    fn end(&self, stream: u32) {
        let ended = self.envoy().questions.borrow_mut().end(stream);
        self.envoy().remove(stream);
        self.plugin.forget(stream);
        if let Some(ended) = ended {
            self.answered(&ended);
        }
        if self.woken_by.get() == Some(stream) {
            self.woken_by.set(None);
            self.wakeup.set(None);
            self.keep_awake();
        }
    }
}

impl OwnStream {
    /// A stream begins.
    pub(crate) fn begin(config: &Arc<Config>, filter: Filter) -> Self {
        let worker = Worker::of(config);
        let id = worker.next_id();
        worker.envoy().add(id, filter);
        worker.envoy().within(id, filter, || worker.plugin.answer_given_up());
        Self { id, stream: Stream::new(id, Rc::clone(&worker.plugin)), worker }
    }

    /// Envoy destroys the stream.
    pub(crate) fn end(&self) {
        self.worker.end(self.id);
    }
}
