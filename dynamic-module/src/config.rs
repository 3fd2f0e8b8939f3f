//! One filter configuration of Envoy, as all threads see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apexmcp_core::jwks::Wish;
use apexmcp_core::usage::counts::Counts;

use crate::abi::{ConfigScheduler, FilterConfig, StreamScheduler};
use crate::counters::Counters;

/// A filter configuration. The main thread creates it, workers and the thread of `ticker.rs` use it.
pub(crate) struct Config {
    /// The plugin configuration. Each thread parses it for itself.
    pub(crate) text: Box<[u8]>,
    pub(crate) counters: Arc<Counters>,
    /// Calls the main thread. `None` after Envoy destroyed the configuration.
    main: Mutex<Option<ConfigScheduler>>,
    workers: Mutex<Vec<Arc<Wakeup>>>,
    /// What each worker counted, for the reports of usage.
    counted: Mutex<Vec<Arc<Mutex<Counts>>>>,
    /// The fetches that workers wish, until the main thread takes them over.
    wishes: Mutex<Vec<Wish>>,
    has_ended: AtomicBool,
}

/// Wakes one worker, as long as one of its streams waits.
#[derive(Default)]
pub(crate) struct Wakeup(Mutex<Option<StreamScheduler>>);

/// A panic in another thread leaves every value of this module usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Config {
    pub(crate) fn new(text: &[u8], config: FilterConfig, counters: Arc<Counters>) -> Self {
        Self {
            text: text.into(),
            counters,
            main: Mutex::new(Some(config.scheduler())),
            workers: Mutex::default(),
            counted: Mutex::default(),
            wishes: Mutex::default(),
            has_ended: AtomicBool::new(false),
        }
    }

    /// Envoy destroys the configuration. No stream uses it any more.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        lock(&self.main).take();
        lock(&self.workers).clear();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// What each worker counted.
    pub(crate) fn counted(&self) -> Vec<Arc<Mutex<Counts>>> {
        lock(&self.counted).clone()
    }

    /// Registers a worker with its counts.
    pub(crate) fn add_worker(&self, counted: Arc<Mutex<Counts>>) -> Arc<Wakeup> {
        let wakeup = Arc::<Wakeup>::default();
        lock(&self.workers).push(Arc::clone(&wakeup));
        lock(&self.counted).push(counted);
        wakeup
    }

    /// Asks the main thread to fetch key sets.
    pub(crate) fn wish(&self, wishes: Vec<Wish>) {
        if !wishes.is_empty() {
            lock(&self.wishes).extend(wishes);
            self.call_main();
        }
    }

    /// The fetches that workers wish.
    pub(crate) fn take_wishes(&self) -> Vec<Wish> {
        std::mem::take(&mut *lock(&self.wishes))
    }

    /// Calls the configuration in the main thread.
    pub(crate) fn call_main(&self) {
        if let Some(scheduler) = &*lock(&self.main) {
            scheduler.commit();
        }
    }

    /// Wakes each worker with a stream that waits.
    pub(crate) fn wake_workers(&self) {
        for wakeup in &*lock(&self.workers) {
            if let Some(scheduler) = &*lock(&wakeup.0) {
                scheduler.commit();
            }
        }
    }
}

impl Wakeup {
    /// Sets the stream through which the worker is woken.
    pub(crate) fn set(&self, scheduler: Option<StreamScheduler>) {
        *lock(&self.0) = scheduler;
    }
}
