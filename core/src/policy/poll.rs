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

/// What came of a request for the policy.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The document that is known is still the one.
    NotModified,
    /// A document with this `ETag`, which was taken over.
    Taken(Option<String>),
    /// One that was refused.
    Refused(Option<String>),
}

/// What all threads know of the requests for the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)] // An older module may have written it.
pub struct Poll {
    etag: Option<String>,
    /// By which module the document of `etag` was judged: another one may take what this one refused.
    judged_by: String,
    is_refused: bool,
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

    /// The last document that came, for `If-None-Match`, unless another module refused it.
    pub fn etag(&self, judged_by: &str) -> Option<&str> {
        self.etag.as_deref().filter(|_| !self.is_refused || self.judged_by == judged_by)
    }

    /// Whether the last document that came was refused, and so another one is in force.
    pub fn is_refused(&self) -> bool {
        self.is_refused
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
    pub fn give_way(&self, started_at: UnixTime, now: UnixTime) -> Option<Self> {
        self.hold(started_at, UnixTime::default()).filter(|_| !self.has_given_way).map(|poll| Self {
            next_at: now,
            has_given_way: true,
            ..poll
        })
    }

    /// After an answer. The next request follows at once where this one had something new to tell, or waited for that.
    pub fn succeeded(
        &self,
        started_at: UnixTime,
        answer: Answer,
        judged_by: &str,
        now: UnixTime,
        settings: &RemoteSettings,
    ) -> Option<Self> {
        let poll = self.hold(started_at, UnixTime::default())?;
        let (etag, is_refused, is_new) = match answer {
            Answer::NotModified => (poll.etag, poll.is_refused, false),
            Answer::Taken(etag) => (etag.clone(), false, etag.is_some() && etag != poll.etag),
            Answer::Refused(etag) => (etag.clone(), true, etag.is_some() && etag != poll.etag),
        };
        let next_at = if is_new { now } else { started_at.plus(settings.interval).max(now) };
        Some(Self { etag, judged_by: judged_by.to_owned(), is_refused, next_at, failures: 0, has_given_way: false, ..poll })
    }

    /// After no answer, or one that is of no use: what is in force stays.
    pub fn failed(&self, started_at: UnixTime, now: UnixTime) -> Option<Self> {
        let backoff = FIRST_BACKOFF.saturating_mul(2u32.saturating_pow(self.failures)).min(MAX_BACKOFF);
        let failures = self.failures.saturating_add(1);
        self.hold(started_at, UnixTime::default()).map(|poll| Self { next_at: now.plus(backoff), failures, ..poll })
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

    const JUDGE: &str = "this one";

    fn succeeded(claimed: &Poll, answer: Answer, millis: u64) -> Poll {
        claimed.succeeded(claimed.started_at(), answer, JUDGE, at(millis), &settings()).unwrap()
    }

    fn at(millis: u64) -> UnixTime {
        UnixTime::from_secs(1_000_000).plus(Duration::from_millis(millis))
    }

    #[test]
    fn one_thread_asks_and_one_without_requests_first() {
        let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
        assert_eq!(claimed.claim(at(2_999), false, &settings()), None);
        assert!(claimed.claim(at(3_000), false, &settings()).is_some(), "a thread that died loses its claim");
        let answered = succeeded(&claimed, Answer::Taken(Some("\"1\"".into())), 100);
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
        // Nor does what it learned, late, end the other's claim, or take the place of what the other learns.
        assert_eq!((other.failed(late, at(3_001)), other.give_way(late, at(3_001))), (None, None));
        assert_eq!(other.succeeded(late, Answer::Taken(Some("\"old\"".into())), JUDGE, at(3_001), &settings()), None);
    }

    #[test]
    fn news_are_followed_at_once_and_nothing_else_is() {
        let known = Poll { etag: Some("\"1\"".into()), judged_by: JUDGE.into(), ..Poll::default() };
        let claimed = known.claim(at(0), false, &settings()).unwrap();
        let next_at = |answer, now| succeeded(&claimed, answer, now).next_at;
        for answer in [Answer::Taken, Answer::Refused] {
            assert_eq!(next_at(answer(Some("\"2\"".into())), 100), at(100));
            assert_eq!(next_at(answer(Some("\"1\"".into())), 100), at(2_000));
            assert_eq!(next_at(answer(None), 100), at(2_000), "a service without ETag");
        }
        assert_eq!(next_at(Answer::NotModified, 100), at(2_000), "a service that does not wait");
        assert_eq!(next_at(Answer::NotModified, 30_000), at(30_000));
        assert_eq!(succeeded(&claimed, Answer::NotModified, 100).etag(JUDGE), Some("\"1\""));
    }

    #[test]
    fn what_one_module_refused_is_fetched_again_by_another() {
        let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
        let refused = succeeded(&claimed, Answer::Refused(Some("\"1\"".into())), 100);
        assert!(refused.is_refused());
        assert_eq!((refused.etag(JUDGE), refused.etag("another")), (Some("\"1\""), None));
        let claimed = refused.claim(at(100), false, &settings()).unwrap();
        assert!(succeeded(&claimed, Answer::NotModified, 200).is_refused(), "what is in force is not confirmed");
        let taken = succeeded(&claimed, Answer::Taken(Some("\"1\"".into())), 200);
        assert_eq!((taken.is_refused(), taken.etag("another")), (false, Some("\"1\"")), "it is in force for all");
    }

    #[test]
    fn a_thread_that_serves_requests_leaves_a_document_to_others_once() {
        let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
        let given = claimed.give_way(at(0), at(100)).unwrap();
        assert!(given.claim(at(100), false, &settings()).is_some());
        assert_eq!(given.claim(at(599), true, &settings()), None);
        let again = given.claim(at(600), true, &settings()).unwrap();
        assert_eq!(again.give_way(at(600), at(700)), None, "there is no other one");
        let done = succeeded(&again, Answer::Taken(Some("\"1\"".into())), 700);
        assert!(done.give_way(at(600), at(800)).is_some());
    }

    #[test]
    fn a_clock_that_is_put_back_holds_nothing_up() {
        let ahead = at(3_600_000);
        let claimed = Poll::default().claim(ahead, false, &settings()).unwrap();
        assert!(claimed.claim(at(0), false, &settings()).is_some());
        let failed = claimed.failed(ahead, ahead).unwrap();
        assert!(failed.claim(at(0), true, &settings()).is_some());
        let succeeded = succeeded(&claimed, Answer::NotModified, 3_600_000);
        assert!(succeeded.claim(at(0), true, &settings()).is_some());
    }

    #[test]
    fn failures_back_off() {
        let mut poll = Poll::default();
        for seconds in [1, 2, 4, 8, 10, 10] {
            poll = poll.failed(UnixTime::default(), at(0)).unwrap();
            assert_eq!(poll.next_at, at(0).plus(Duration::from_secs(seconds)));
        }
        assert_eq!(succeeded(&poll, Answer::NotModified, 0).failures, 0);
    }
}
