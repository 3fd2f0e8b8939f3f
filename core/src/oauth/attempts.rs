//! Slows down the guessing of client secrets, for each client id.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;

use crate::limits::standing::{Standing, Window};
use crate::time::UnixTime;

/// The number of failures without a wait, for a typing mistake or a rotation.
const FREE: u32 = 10;
/// The interval after which one more failure is free.
const REFILL: Duration = Duration::from_secs(6);
/// Maximum number of client ids that a thread remembers. An attacker needs as many requests with made-up ids to remove
/// one.
const MAX_IDS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Wrong secrets by client id. Ids that do not exist are counted too: the answer must not reveal which ids exist.
/// Failures of assertions are not counted, because a signature cannot be guessed.
///
/// A worker counts in its own memory, so a trap of its VM resets the counts. A guess still has one chance in 2^142.
#[derive(Debug)]
pub struct Attempts(LruCache<Box<str>, Failures>);

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    /// The time of the last failure. [`Attempts::wait`] clamps it to the current time, in case the clock was set back.
    since: UnixTime,
}

impl Default for Attempts {
    fn default() -> Self {
        let mut ids = LruCache::unbounded();
        ids.resize(MAX_IDS);
        Self(ids)
    }
}

impl Attempts {
    /// The time for which `client_id` must wait after too many failures. `None` if it need not wait.
    pub fn wait(&mut self, client_id: &str, now: UnixTime) -> Option<Duration> {
        let failures = self.0.get_mut(client_id)?;
        failures.since = failures.since.min(now);
        let count = failures.count_at(now);
        (count >= FREE)
            .then(|| failures.since.plus(REFILL.saturating_mul(failures.count.saturating_sub(FREE).saturating_add(1))).since(now))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn failed(&mut self, client_id: &str, now: UnixTime) {
        let count = self.0.get(client_id).map_or(0, |failures| failures.count_at(now)).saturating_add(1);
        self.0.put(client_id.into(), Failures { count, since: now });
    }
}

/// The state of the limit for a client id that must wait for `wait`. The headers of the refusal contain it.
pub fn standing(wait: Duration) -> Standing {
    let length = Some(REFILL.saturating_mul(FREE));
    Standing { rate: Some(Window { quota: FREE.into(), length, remaining: 0, resets_in: wait }), month: None }
}

impl Failures {
    fn count_at(&self, now: UnixTime) -> u32 {
        let refilled = now.since(self.since).as_millis().checked_div(REFILL.as_millis()).unwrap_or(0);
        self.count.saturating_sub(u32::try_from(refilled).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::from_secs(1_000).plus(Duration::from_secs(seconds))
    }

    #[test]
    fn ten_failures_are_free_and_then_one_in_six_seconds() {
        let mut attempts = Attempts::default();
        for _ in 0..10 {
            assert_eq!(attempts.wait("a", at(0)), None);
            attempts.failed("a", at(0));
        }
        assert_eq!(attempts.wait("a", at(0)), Some(REFILL));
        assert_eq!(attempts.wait("a", at(5)), Some(Duration::from_secs(1)));
        assert_eq!(attempts.wait("a", at(6)), None);
        assert_eq!(attempts.wait("b", at(0)), None, "other ids do not wait");
        attempts.failed("a", at(6));
        assert_eq!(attempts.wait("a", at(6)), Some(REFILL));
        assert_eq!(attempts.wait("a", at(3_600)), None);
    }

    #[test]
    fn setting_the_clock_back_lengthens_no_wait() {
        let mut attempts = Attempts::default();
        for _ in 0..FREE {
            attempts.failed("a", at(3_600));
        }
        assert_eq!(attempts.wait("a", at(0)), Some(REFILL));
        assert_eq!(attempts.wait("a", at(6)), None);
    }

    #[test]
    fn at_most_4096_ids_are_remembered() {
        let mut attempts = Attempts::default();
        (0..10).for_each(|_| attempts.failed("a", at(0)));
        (0..4095).for_each(|number| attempts.failed(&format!("made-up-{number}"), at(0)));
        assert_eq!(attempts.0.len(), 4096);
        assert_eq!(attempts.0.peek("a").map(|failures| failures.count), Some(10));
        attempts.failed("one more", at(0));
        assert_eq!((attempts.0.len(), attempts.wait("a", at(0))), (4096, None));
    }
}
