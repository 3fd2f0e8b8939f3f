//! What the end-to-end tests share: real Envoy with the built module, and those around it.
//!
//! [`gateway`] starts [`envoy`] with the filter; [`upstream`] stands behind it and tells what arrived there; [`issuer`]
//! is an identity provider that does as a test says, [`provider`] a real one, and a person may [`sign_in`] at another;
//! [`token`] makes tokens, broken ones too; [`front`] breaks the way to a service, [`dns`] loses its name, [`clock`] is
//! wrong; [`http`] sends requests, [`load`] sends many, and [`attack`] sends many that it never finishes. Everything listens
//! on free ports of 127.0.0.1 and ends with the value that stands for it.

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

/// Guards against hanging. No test takes its speed for a result.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The repository.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Awaits that `poll` yields something.
///
/// # Panics
/// Where it does not within a minute.
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
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}
