//! Deadlines, leases and back-offs. All of them end on time even if Envoy's clock is set back meanwhile.
//!
//! The clock is Envoy's real-time clock, which an operator or NTP may set back. So a stored moment may lie farther ahead than
//! anything that was meant.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::UnixTime;

/// The end of a wait in this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(UnixTime);

impl Deadline {
    /// A wait that begins now and lasts for `timeout`.
    pub fn after(timeout: Duration, now: UnixTime) -> Self {
        Self(now.plus(timeout))
    }

    /// Whether the wait is over. If the clock was set back, the deadline moves to the full `timeout` from now, so that the
    /// wait does not last longer. Call this on every tick.
    pub fn has_passed(&mut self, timeout: Duration, now: UnixTime) -> bool {
        self.0 = self.0.min(now.plus(timeout));
        self.is_past(now)
    }

    /// As [`Deadline::has_passed`], for a decision right after a tick.
    pub fn is_past(self, now: UnixTime) -> bool {
        now >= self.0
    }
}

/// The right of one thread to do something for all threads, such as a fetch. Other threads read it in shared data. It ends by
/// itself, because a thread that dies cannot release it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lease(UnixTime);

impl Lease {
    /// No thread has the lease.
    pub const FREE: Self = Self(UnixTime::from_millis(0));

    /// A lease that begins now and lasts for `length`.
    pub fn new(length: Duration, now: UnixTime) -> Self {
        Self(now.plus(length))
    }

    /// The lease that ends at this moment.
    pub const fn until(end: UnixTime) -> Self {
        Self(end)
    }

    /// The end of the lease.
    pub const fn end(self) -> UnixTime {
        self.0
    }

    /// Whether a thread has the lease. A lease that ends later than `longest` from now was taken before the clock was set
    /// back, and counts as free.
    pub fn is_held(self, longest: Duration, now: UnixTime) -> bool {
        self.0.is_ahead(now, longest)
    }
}

/// Pauses between attempts: the first one, doubled after each further failure.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The pause after the first failure.
    pub first: Duration,
    /// The longest pause. A service that works again is noticed within it.
    pub longest: Duration,
}

impl Backoff {
    /// The pause after a failure that `earlier` failures preceded.
    pub fn pause(&self, earlier: u32) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(earlier)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> UnixTime {
        UnixTime::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn a_deadline_passes_on_time_although_the_clock_is_set_back() {
        let mut deadline = Deadline::after(10 * SECOND, at(100));
        assert!(!deadline.has_passed(10 * SECOND, at(109)));
        assert!(deadline.has_passed(10 * SECOND, at(110)));
        assert!(!deadline.has_passed(10 * SECOND, at(50)));
        assert!(deadline.has_passed(10 * SECOND, at(60)) && deadline.is_past(at(60)));
    }

    #[test]
    fn a_lease_ends_although_the_clock_is_set_back() {
        let lease = Lease::new(10 * SECOND, at(100));
        assert!(lease.is_held(10 * SECOND, at(100)) && lease.is_held(10 * SECOND, at(109)));
        assert!(!lease.is_held(10 * SECOND, at(110)) && !lease.is_held(10 * SECOND, at(99)));
        assert!(!Lease::FREE.is_held(10 * SECOND, at(0)));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff { first: SECOND, longest: 10 * SECOND };
        let pauses = [0, 1, 2, 3, 4, 31, 32, u32::MAX].map(|earlier| backoff.pause(earlier).as_secs());
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10, 10]);
    }
}
