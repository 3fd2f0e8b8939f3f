//! The state of a key set that all threads share, without its keys.

use std::time::Duration;

use super::timing::Timing;
use crate::deadline::{Backoff, Lease};
use crate::time::UnixTime;

/// Pauses after failed fetches.
pub(super) const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30) };
/// Number of integers in a record. Each has 8 bytes.
const NUMBERS: usize = 6;

/// The state of a key set, as threads share it. It is small because every thread reads it in each tick while requests wait.
/// The keys themselves are another shared value, which a thread reads only when `generation` has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Grows each time after the shared document is written. Zero: it was never written.
    pub(super) generation: u64,
    /// The time of the last successful fetch.
    pub(super) fetched_at: UnixTime,
    /// When the next fetch is due.
    pub(super) next_fetch_at: UnixTime,
    /// When the next fetch for an unknown `kid` may start.
    pub(super) unknown_kid_fetch_at: UnixTime,
    /// A thread's claim to fetch.
    pub(super) claim: Lease,
    /// Failed fetches since the last successful one.
    pub(super) failures: u32,
}

impl Record {
    /// Reads a shared record. Bytes in another form count as no record.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let Ok(numbers) = <[[u8; 8]; NUMBERS]>::try_from(numbers) else { return Self::default() };
        let [generation, fetched_at, next_fetch_at, unknown_kid_fetch_at, claim, failures] = numbers.map(u64::from_le_bytes);
        if !rest.is_empty() {
            return Self::default();
        }
        let [fetched_at, next_fetch_at, unknown_kid_fetch_at, claim] =
            [fetched_at, next_fetch_at, unknown_kid_fetch_at, claim].map(UnixTime::from_millis);
        let claim = Lease::until(claim);
        let failures = failures.try_into().unwrap_or(u32::MAX);
        Self { generation, fetched_at, next_fetch_at, unknown_kid_fetch_at, claim, failures }
    }

    /// The record in the form for shared data.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let moments = [self.fetched_at, self.next_fetch_at, self.unknown_kid_fetch_at, self.claim.end()];
        let [a, b, c, d] = moments.map(UnixTime::as_millis);
        [self.generation, a, b, c, d, self.failures.into()].map(u64::to_le_bytes).concat()
    }

    pub(super) fn is_claimed(&self, now: UnixTime, timing: &Timing) -> bool {
        self.claim.is_held(timing.claim(), now)
    }

    pub(super) fn is_due(&self, now: UnixTime, timing: &Timing) -> bool {
        let longest = if self.failures == 0 { timing.refresh_interval } else { BACKOFF.longest };
        !self.next_fetch_at.is_ahead(now, longest)
    }

    /// Whether the keys are too old to verify tokens.
    pub(super) fn is_stale(&self, now: UnixTime, timing: &Timing) -> bool {
        now >= self.fetched_at.plus(timing.max_stale)
    }

    pub(super) fn may_fetch_unknown_kid(&self, now: UnixTime, timing: &Timing) -> bool {
        !self.unknown_kid_fetch_at.is_ahead(now, timing.refetch_cooldown)
    }

    /// Whether the set may be fetched for a name that is known to be absent, because the provider may publish the key late or
    /// again. Such a fetch is allowed one cool-down after the last fetch, and starts no cool-down of its own. After a failure,
    /// the back-off decides.
    pub(super) fn may_fetch_absent(&self, now: UnixTime, timing: &Timing) -> bool {
        self.failures == 0 && !self.fetched_at.plus(timing.refetch_cooldown).is_ahead(now, timing.refetch_cooldown)
    }

    /// The record with a thread's claim to fetch.
    pub(super) fn claimed(self, for_unknown_kid: bool, now: UnixTime, timing: &Timing) -> Self {
        let cooldown = now.plus(timing.refetch_cooldown);
        Self {
            claim: Lease::new(timing.claim(), now),
            unknown_kid_fetch_at: if for_unknown_kid { cooldown } else { self.unknown_kid_fetch_at },
            ..self
        }
    }

    /// The record after a fetch whose document was written. A fetch that brought a new key ends the cool-down: it was useful,
    /// and a fetch for an invented `kid` brings no new key.
    pub(super) fn succeeded(self, brought_a_key: bool, now: UnixTime, timing: &Timing) -> Self {
        Self {
            generation: self.generation.saturating_add(1),
            fetched_at: now,
            next_fetch_at: now.plus(timing.refresh_interval),
            unknown_kid_fetch_at: if brought_a_key { UnixTime::default() } else { self.unknown_kid_fetch_at },
            claim: Lease::FREE,
            failures: 0,
        }
    }

    /// The record after a failed fetch. The keys stay, and the pause before the next attempt grows exponentially.
    pub(super) fn failed(self, now: UnixTime) -> Self {
        Self {
            // If the clock was set back, the keys must not be used for longer.
            fetched_at: self.fetched_at.min(now),
            next_fetch_at: now.plus(BACKOFF.pause(self.failures)),
            claim: Lease::FREE,
            failures: self.failures.saturating_add(1),
            ..self
        }
    }

    /// The record after the shared document was emptied. The times stay, so that the provider does not get too many requests.
    pub(super) fn forgotten(self) -> Self {
        Self { generation: self.generation.saturating_add(1), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_shared_data() {
        let [fetched_at, next_fetch_at, unknown_kid_fetch_at, end] = [1, 2, 3, u64::MAX].map(UnixTime::from_millis);
        let claim = Lease::until(end);
        let record = Record { generation: 7, fetched_at, next_fetch_at, unknown_kid_fetch_at, claim, failures: u32::MAX };
        let bytes = record.to_bytes();
        assert_eq!((bytes.len(), Record::from_bytes(&bytes)), (48, record));
        for other in [&b""[..], b"{", &[0xff; 47], &[0xff; 49], &[0xff; 56]] {
            assert_eq!(Record::from_bytes(other), Record::default(), "{} bytes", other.len());
        }
    }
}
