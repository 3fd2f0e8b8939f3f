//! Shared helpers of the end-to-end tests: real Envoy with the built module, and the services around it.
//!
//! - [`gateway`] starts [`envoy`] with the filter. [`upstream`] is the server behind it and reports the requests that
//!   arrive.
//! - [`module`] selects the module: the wasm module, or with `MODULE=native` the dynamic module.
//! - [`issuer`] is an identity provider that a test controls. [`provider`] and [`sign_in`] start real OpenID
//!   providers.
//! - [`token`] creates valid and broken tokens.
//! - [`front`] breaks connections to a service, [`dns`] answers name lookups with failures, and [`clock`] shifts
//!   Envoy's clock.
//! - [`http`] sends single requests, [`load`] sends many at the same time, and [`attack`] sends requests and leaves
//!   them unfinished.
//!
//! Every server listens on a free port of 127.0.0.1 and stops when its value is dropped. Every helper panics if
//! something fails, and so fails the test.

pub mod apexmcp;
pub mod attack;
pub mod clock;
pub mod connector;
pub mod demo;
pub mod dns;
pub mod envoy;
pub mod front;
pub mod gateway;
pub mod http;
pub mod issuer;
pub mod load;
pub mod messages;
pub mod module;
pub mod oauth;
pub mod policy;
pub mod process;
pub mod provider;
pub mod rate_limit;
pub mod server;
pub mod settings;
pub mod sign_in;
pub mod token;
pub mod upstream;

use std::path::PathBuf;
use std::time::Duration;

/// Timeout of every wait. It only ends a test that hangs; no test measures time with it.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The root folder of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Calls `poll` until it returns a value. Panics after [`PATIENCE`] and names `what` in the message.
pub async fn eventually<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = poll().await {
                return found;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    match tokio::time::timeout(PATIENCE, found).await {
        Ok(found) => found,
        Err(_) => panic!("timed out after {PATIENCE:?} while waiting for: {what}"),
    }
}
