//! The clock of the module: an HTTP filter of Envoy has no timer. One thread of the module calls the main thread, and wakes the
//! workers that have waiting requests.

use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use crate::config::{Config, lock};

/// Interval at which held requests are checked and due fetches begin.
pub(crate) const TICK: Duration = Duration::from_millis(20);

static CONFIGS: Mutex<Vec<Arc<Config>>> = Mutex::new(Vec::new());

/// Ticks for this configuration until it ends.
///
/// # Errors
/// The system starts no thread.
pub(crate) fn add(config: Arc<Config>) -> std::io::Result<()> {
    static START: Once = Once::new();
    let mut started = Ok(());
    START.call_once(|| started = std::thread::Builder::new().name("apexmcp".to_owned()).spawn(run).map(drop));
    started?;
    lock(&CONFIGS).push(config);
    Ok(())
}

#[allow(clippy::disallowed_methods)] // The clock of the module is a thread that does nothing else.
fn run() {
    loop {
        std::thread::sleep(TICK);
        let configs = {
            let mut configs = lock(&CONFIGS);
            configs.retain(|config| !config.has_ended());
            configs.clone()
        };
        for config in configs {
            config.call_main();
            config.wake_workers();
        }
    }
}
