//! What the server counts for its metrics.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: AtomicU64,
    pub(super) unchanged: AtomicU64,
    pub(super) unauthorized: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) failures: AtomicU64,
    /// Failed reads of the database since the last successful one.
    pub(super) failing: AtomicU64,
    /// Reports of usage that were counted.
    pub(super) reports: AtomicU64,
    /// The allowed requests in these reports.
    pub(super) allowed: AtomicU64,
    /// The refused requests in these reports.
    pub(super) refused: AtomicU64,
}

pub(super) fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// Adds the requests of a report of usage.
pub(super) fn add_requests(count: &AtomicU64, requests: i64) {
    count.fetch_add(requests.try_into().unwrap_or(0), Ordering::Relaxed);
}

/// Counts a request as waiting until it is dropped, which also happens when the client disconnects.
pub(super) struct Waiting<'a>(&'a Counts);

impl<'a> Waiting<'a> {
    pub(super) fn of(counts: &'a Counts) -> Self {
        add(&counts.waiting);
        Self(counts)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
