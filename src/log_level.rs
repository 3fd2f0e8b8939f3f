//! Follows the level of Envoy's logger `wasm`, so that a line below this level is never formatted. An operator may change
//! the level while Envoy runs (`POST /logging?wasm=debug` at the admin interface).
//!
//! The SDK's function for this panics if the host refuses the call, as an Envoy does whose `capability_restriction_config`
//! lacks `proxy_get_log_level`. So this file calls the host itself. After a refusal, the level stays at info.

#![allow(unsafe_code)]

use std::time::Duration;

use apexmcp_core::time::UnixTime;
use proxy_wasm::types::{LogLevel, Status};

/// Time between two looks at the level.
const INTERVAL: Duration = Duration::from_secs(1);

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_log_level(level: *mut u32) -> u32;
}

/// The level of Envoy's logger, as one thread follows it.
#[derive(Default)]
pub(crate) struct FollowedLevel {
    /// `None`: Envoy refused to tell.
    next_look: Option<UnixTime>,
}

impl FollowedLevel {
    /// Looks at the level for the first time.
    pub(crate) fn start(&mut self, now: UnixTime) {
        self.next_look = look().then(|| now.plus(INTERVAL));
    }

    /// Looks at the level again, if that is due.
    pub(crate) fn tick(&mut self, now: UnixTime) {
        if self.next_look.is_some_and(|next_look| !next_look.is_ahead(now, INTERVAL)) {
            self.start(now);
        }
    }
}

/// Sets the level of this module to that of Envoy's logger. Returns false if Envoy does not tell it.
fn look() -> bool {
    let mut level = LogLevel::Info as u32;
    // SAFETY: the host writes 4 bytes to this address, which is valid for the call (proxy-wasm ABI 0.2.1).
    let status = unsafe { proxy_get_log_level(&raw mut level) };
    if status != Status::Ok as u32 {
        return false;
    }
    log::set_max_level(match level {
        0 => log::LevelFilter::Trace,
        1 => log::LevelFilter::Debug,
        2 => log::LevelFilter::Info,
        3 => log::LevelFilter::Warn,
        4 => log::LevelFilter::Error,
        _ => log::LevelFilter::Off,
    });
    true
}
