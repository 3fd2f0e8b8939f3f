//! Who asks the Settings service for changes, and when: one thread for all, by a record in shared data that is changed by
//! compare-and-swap.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::RemoteSettings;
use crate::time::UnixTime;

/// First pause after a failed request; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// Longest pause: a service that comes back is noticed within it.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// How long a claim holds that is not renewed: its thread has died, or its Envoy was reconfigured.
const LEASE: Duration = Duration::from_secs(3);
/// How often a thread renews its claim while its request is under way.
pub const RENEWAL: Duration = Duration::from_secs(1);
/// How long a claim holds while its thread works on a document, and renews nothing.
const WORK: Duration = Duration::from_secs(60);
/// How long a thread that serves requests leaves it to one that doesn't, Envoy's main thread, to ask: parsing takes long.
const PATIENCE: Duration = Duration::from_millis(500);

/// What all threads know of the requests for the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poll {
    etag: Option<String>,
    started_at: UnixTime,
    claimed_until: UnixTime,
    next_at: UnixTime,
    failures: u32,
    /// Whether a thread that serves requests got a document and left it to another one to ask again.
    has_given_way: bool,
}

impl Poll {
    /// The record as other threads read it; a new one where it can't be read.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// The record as other threads read it.
    pub fn to_bytes(&self) -> Vec<u8> {
        // The types here always serialize.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What is in force, for `If-None-Match`.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// The record with this thread's claim to ask, where that is due and nobody else has claimed it.
    pub fn claim(&self, now: UnixTime, serves_requests: bool, settings: &RemoteSettings) -> Option<Self> {
        let patience = if serves_requests { PATIENCE } else { Duration::ZERO };
        let longest = settings.interval.max(MAX_BACKOFF).saturating_add(patience);
        if self.claimed_until.is_ahead(now, WORK) || self.next_at.plus(patience).is_ahead(now, longest) {
            return None;
        }
        Some(Self { started_at: now, claimed_until: now.plus(LEASE), ..self.clone() })
    }

    /// When the request of the claim was begun, by which a thread knows its own.
    pub fn started_at(&self) -> UnixTime {
        self.started_at
    }

    /// The record with the claim of the request begun then renewed; `None` where another one has been begun since.
    pub fn renew(&self, started_at: UnixTime, now: UnixTime) -> Option<Self> {
        self.hold(started_at, now.plus(LEASE))
    }

    /// The same for as long as its answer is worked on.
    pub fn work(&self, started_at: UnixTime, now: UnixTime) -> Option<Self> {
        self.hold(started_at, now.plus(WORK))
    }

    /// The same for a thread that ends.
    pub fn release(&self, started_at: UnixTime) -> Option<Self> {
        self.hold(started_at, UnixTime::default())
    }

    fn hold(&self, started_at: UnixTime, claimed_until: UnixTime) -> Option<Self> {
        (self.started_at == started_at).then(|| Self { claimed_until, ..self.clone() })
    }

    /// After a document came to a thread that by now serves requests: another one may ask for it, once.
    pub fn give_way(&self, now: UnixTime) -> Option<Self> {
        (!self.has_given_way).then(|| Self {
            next_at: now,
            claimed_until: UnixTime::default(),
            has_given_way: true,
            ..self.clone()
        })
    }

    /// After a document was taken over, or, without one, was said to be in force still. The next request follows at
    /// once where this one had something new to tell, or waited for that.
    pub fn succeeded(self, document: Option<Option<String>>, now: UnixTime, settings: &RemoteSettings) -> Self {
        let is_new = document.as_ref().is_some_and(|etag| etag.is_some() && *etag != self.etag);
        let next_at = if is_new { now } else { self.started_at.plus(settings.interval).max(now) };
        Self {
            etag: document.unwrap_or(self.etag),
            next_at,
            claimed_until: UnixTime::default(),
            failures: 0,
            has_given_way: false,
            ..self
        }
    }

    /// After no answer, or one that is of no use: what is in force stays.
    pub fn failed(self, now: UnixTime) -> Self {
        let backoff = FIRST_BACKOFF.saturating_mul(2u32.saturating_pow(self.failures)).min(MAX_BACKOFF);
        let failures = self.failures.saturating_add(1);
        Self { next_at: now.plus(backoff), claimed_until: UnixTime::default(), failures, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> RemoteSettings {
        RemoteSettings {
            cluster: "settings".into(),
            authority: "settings".into(),
            path: "/v1/policy".into(),
            timeout: Duration::from_secs(5),
            interval: Duration::from_secs(2),
            long_poll: Duration::from_secs(30),
            token: None,
        }
    }

    fn at(millis: u64) -> UnixTime {
        UnixTime::from_secs(1_000_000).plus(Duration::from_millis(millis))
    }

    #[test]
    fn one_thread_asks_and_one_without_requests_first() {
        let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
        assert_eq!(claimed.claim(at(2_999), false, &settings()), None);
        assert!(claimed.claim(at(3_000), false, &settings()).is_some(), "a thread that died loses its claim");
        let answered = claimed.succeeded(Some(Some("\"1\"".into())), at(100), &settings());
        assert_eq!(answered.claim(at(599), true, &settings()), None);
        assert!(answered.claim(at(100), false, &settings()).is_some());
        assert!(answered.claim(at(600), true, &settings()).is_some());
    }

    #[test]
    fn a_claim_holds_while_it_is_renewed_and_no_longer() {
        let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
        let renewed = claimed.renew(claimed.started_at(), at(2_000)).unwrap();
        assert_eq!(renewed.claim(at(4_999), false, &settings()), None);
        let working = renewed.work(claimed.started_at(), at(3_000)).unwrap();
        assert_eq!(working.claim(at(62_999), false, &settings()), None, "a large document takes its time");
        let released = renewed.release(claimed.started_at()).unwrap();
        let other = released.claim(at(3_000), false, &settings()).unwrap();
        let late = claimed.started_at();
        assert_eq!((other.renew(late, at(3_001)), other.work(late, at(3_001)), other.release(late)), (None, None, None));
    }

    #[test]
    fn news_are_followed_at_once_and_nothing_else_is() {
        let claimed = Poll { etag: Some("\"1\"".into()), ..Poll::default() }.claim(at(0), false, &settings()).unwrap();
        let next_at = |document, now| claimed.clone().succeeded(document, at(now), &settings()).next_at;
        assert_eq!(next_at(Some(Some("\"2\"".into())), 100), at(100));
        assert_eq!(next_at(Some(Some("\"1\"".into())), 100), at(2_000));
        assert_eq!(next_at(Some(None), 100), at(2_000), "a service without ETag");
        assert_eq!(next_at(None, 100), at(2_000), "a service that does not wait");
        assert_eq!(next_at(None, 30_000), at(30_000));
        assert_eq!(claimed.clone().succeeded(None, at(100), &settings()).etag(), Some("\"1\""));
    }

    #[test]
    fn a_thread_that_serves_requests_leaves_a_document_to_others_once() {
        let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
        let given = claimed.give_way(at(100)).unwrap();
        assert!(given.claim(at(100), false, &settings()).is_some());
        assert_eq!(given.claim(at(599), true, &settings()), None);
        let again = given.claim(at(600), true, &settings()).unwrap();
        assert_eq!(again.give_way(at(700)), None, "there is no other one");
        let done = again.succeeded(Some(Some("\"1\"".into())), at(700), &settings());
        assert!(done.give_way(at(800)).is_some());
    }

    #[test]
    fn a_clock_that_is_put_back_holds_nothing_up() {
        let ahead = at(3_600_000);
        let claimed = Poll::default().claim(ahead, false, &settings()).unwrap();
        assert!(claimed.claim(at(0), false, &settings()).is_some());
        let failed = claimed.failed(ahead);
        assert!(failed.claim(at(0), true, &settings()).is_some());
        let succeeded = failed.succeeded(None, ahead, &settings());
        assert!(succeeded.claim(at(0), true, &settings()).is_some());
    }

    #[test]
    fn failures_back_off() {
        let mut poll = Poll::default();
        for seconds in [1, 2, 4, 8, 10, 10] {
            poll = poll.failed(at(0));
            assert_eq!(poll.next_at, at(0).plus(Duration::from_secs(seconds)));
        }
        assert_eq!(poll.succeeded(None, at(0), &settings()).failures, 0);
    }
}
