//! Times and limits of fetches of key sets.

use std::time::Duration;

/// Maximum `jwks.timeout`, which is also the maximum time that a request waits for keys.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// How long after a fetch's timeout its claim still holds, so that its own failure is recorded first.
pub(super) const CLAIM_MARGIN: Duration = Duration::from_secs(1);
/// Maximum age of a copy of the record that decides about a token. An older copy is first compared with the shared record.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Section `jwks` of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a fetch may take, and how long a request waits for it.
    pub timeout: Duration,
    /// Time from a successful fetch to the next one.
    pub refresh_interval: Duration,
    /// Minimum time between two fetches for unknown `kid`s, if the first one brought no new key.
    pub refetch_cooldown: Duration,
    /// How long after the last successful fetch the keys of a set are used.
    pub max_stale: Duration,
}

impl Timing {
    /// How long a thread's claim to fetch holds.
    pub(super) fn claim(&self) -> Duration {
        self.timeout.saturating_add(CLAIM_MARGIN)
    }
}
