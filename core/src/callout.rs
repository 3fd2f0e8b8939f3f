//! Error texts for calls to other services.

use std::fmt::Display;

/// Envoy did not begin the call to `cluster`, and gave this `status`.
pub fn refused(cluster: &str, status: impl Display) -> String {
    format!("Envoy refused the callout to cluster {cluster:?} ({status}): does it exist, and is the host's name found?")
}

/// The answer has a status that the filter does not expect. Envoy itself gives two of them.
pub fn unexpected(status: u16) -> String {
    match status {
        503 => "no host of the cluster answered (or 503)".to_owned(),
        504 => "no answer in time (or 504)".to_owned(),
        _ => format!("the answer was {status}"),
    }
}
