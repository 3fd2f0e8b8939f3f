//! Usage: how many requests of each credential passed and were refused, for reports to Settings.
//!
//! A thread counts in its own memory ([`Counts`]), and a [`Reporter`] sends what was counted, about every 30 seconds. Names come
//! from the policy alone, never from a request.

pub mod counts;
pub mod reporter;

use std::time::Duration;

use crate::policy::service::Secret;

/// Section `policy.remote.usage`.
#[derive(Debug)]
pub struct UsageSettings {
    /// The `:path` of the reports, at the service that has the policy.
    pub path: String,
    /// Time between two reports.
    pub interval: Duration,
    /// The bearer token of the reports.
    pub token: Secret,
}
