//! The part of a filter configuration that Envoy's main thread runs: it makes all calls to other services, and tells Envoy
//! the metrics.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use apexmcp_core::time::UnixTime;
use apexmcp_shell::{Answer, Envoy as _, Fetcher, Plugin};

use crate::abi::FilterConfig;
use crate::config::Config;
use crate::counters::{Counters, ThreadCounters};
use crate::envoy::Envoy;
use crate::{logger, ticker};

/// Time between two looks at the level of the log.
const LEVEL_INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    /// The configurations of this thread, by the address of their `Config`.
    static MAIN: RefCell<HashMap<usize, Rc<Main>>> = RefCell::default();
}

struct Main {
    config: Arc<Config>,
    envoy_config: FilterConfig,
    plugin: Rc<Plugin<Envoy>>,
    fetcher: RefCell<Fetcher<Envoy>>,
    next_look_at_level: Cell<UnixTime>,
}

/// Accepts or refuses a configuration. The reasons for a refusal are in the log, because Envoy has no place for them.
pub(crate) fn begin(text: &[u8], envoy_config: FilterConfig) -> Option<Arc<Config>> {
    let counters = Arc::new(Counters::define(envoy_config));
    let plugin = Rc::new(Plugin::new(Envoy::new(Some(envoy_config), ThreadCounters::new(Arc::clone(&counters)))));
    if !plugin.configure(text) {
        return None;
    }
    let config = Arc::new(Config::new(text, envoy_config, counters));
    if let Err(error) = ticker::add(Arc::clone(&config)) {
        log::error!("the system starts no thread for the module: {error}");
        return None;
    }
    let fetcher = RefCell::new(Fetcher::new(Rc::clone(&plugin)));
    let main = Main { config: Arc::clone(&config), envoy_config, plugin, fetcher, next_look_at_level: Cell::default() };
    MAIN.with_borrow_mut(|all| {
        all.retain(|_, main| !main.config.has_ended());
        all.insert(Arc::as_ptr(&config).addr(), Rc::new(main));
    });
    Some(config)
}

/// Envoy destroys a configuration, perhaps in another thread. The claims of its calls then end by themselves.
pub(crate) fn end(config: &Arc<Config>) {
    config.end();
    if let Some(main) = MAIN.with_borrow_mut(|all| all.remove(&Arc::as_ptr(config).addr())) {
        main.fetcher.borrow_mut().release();
    }
}

fn of(config: &Config) -> Option<Rc<Main>> {
    MAIN.with_borrow(|all| all.get(&std::ptr::from_ref(config).addr()).cloned())
}

/// The clock ticks, or a worker wishes a fetch.
pub(crate) fn tick(config: &Config) {
    let Some(main) = of(config) else { return };
    let now = main.plugin.envoy.now();
    if !main.next_look_at_level.get().is_ahead(now, LEVEL_INTERVAL) {
        main.next_look_at_level.set(now.plus(LEVEL_INTERVAL));
        logger::follow_level();
    }
    let mut fetcher = main.fetcher.borrow_mut();
    config.take_wishes().into_iter().for_each(|wish| fetcher.take_over(wish));
    fetcher.tick(now, &config.counted());
    if FilterConfig::tells_metrics() {
        config.counters.tell(main.envoy_config);
    }
}

/// A call ended.
pub(crate) fn answered(config: &Config, call: u64, answer: &impl Answer) {
    let (Some(main), Ok(call)) = (of(config), u32::try_from(call)) else { return };
    if main.fetcher.borrow_mut().answered(call, answer) {
        config.wake_workers();
    }
}
