//! The log of the module is Envoy's, under the name `dynamic_modules`.

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::abi::{self, LogLevel};

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            abi::log(level(record.level()), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn level(level: Level) -> LogLevel {
    match level {
        Level::Error => LogLevel::Error,
        Level::Warn => LogLevel::Warn,
        Level::Info => LogLevel::Info,
        Level::Debug => LogLevel::Debug,
        Level::Trace => LogLevel::Trace,
    }
}

/// Connects the log of this module to Envoy's.
pub(crate) fn start() {
    let _ = log::set_logger(&Logger);
    follow_level();
}

/// Follows the level of Envoy's logger, so that a line below this level is never formatted. An operator may change the level
/// while Envoy runs (`POST /logging?dynamic_modules=debug` at the admin interface).
pub(crate) fn follow_level() {
    let levels = [LevelFilter::Trace, LevelFilter::Debug, LevelFilter::Info, LevelFilter::Warn, LevelFilter::Error];
    let logs = |filter: &LevelFilter| filter.to_level().is_some_and(|of| abi::logs(level(of)));
    log::set_max_level(levels.into_iter().find(logs).unwrap_or(LevelFilter::Off));
}
