//! The key sets of identity providers: when to fetch them, who fetches, how long they serve.
//!
//! All threads of an Envoy share one [`Record`] a set, as a value that the shell keeps in shared data and changes by
//! compare-and-swap. A thread that wants to fetch first writes its claim into the record, so there is one fetch at a
//! time; each thread works with its own copy of the record, a [`KeySet`].

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use crate::jose::jwk::{JwkSet, JwkSetError};
use crate::time::UnixTime;

/// First pause after a failed fetch; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// Longest pause: a provider that comes back is noticed within it.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// How long after a fetch's timeout its claim still holds, so that its own failure is recorded first.
const CLAIM_MARGIN: Duration = Duration::from_secs(1);
/// How old a used copy of the record may get before it is compared with the shared one.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Section `jwks` of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a fetch may take, and a request wait for it.
    pub timeout: Duration,
    /// How long after a fetch the next one is due.
    pub refresh_interval: Duration,
    /// How long after a fetch for an unknown `kid` that brought no key the next such one may start.
    pub refetch_cooldown: Duration,
    /// How long a set serves after its last successful fetch.
    pub max_stale: Duration,
}

impl Timing {
    /// How long a thread's claim to fetch holds.
    fn claim(&self) -> Duration {
        self.timeout.saturating_add(CLAIM_MARGIN)
    }
}

/// The Envoy clusters through which key sets are fetched.
#[derive(Clone, Debug, Default)]
pub struct Clusters {
    /// For `https` URIs.
    pub https: Option<String>,
    /// For `http` URIs; without it they are refused.
    pub http: Option<String>,
}

impl Clusters {
    /// The cluster through which `uri` is fetched.
    ///
    /// # Errors
    /// What to configure where there is none.
    pub fn of(&self, uri: &JwksUri) -> Result<&str, &'static str> {
        match uri.scheme {
            Scheme::Https => self.https.as_deref().ok_or("needs jwks.https_cluster"),
            Scheme::Http => self.http.as_deref().ok_or("must be https, unless jwks.http_cluster is set"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Https,
    Http,
}

/// Where a key set is published, RFC 8414 §2 `jwks_uri`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksUri {
    text: Box<str>,
    scheme: Scheme,
    authority: Box<str>,
    path: Box<str>,
}

impl JwksUri {
    /// Reads an absolute `https` or `http` URI without user information or fragment.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let wrong = "must be a URL such as https://idp.example.com/oauth2/v1/keys";
        let uri: Uri = text.parse().map_err(|_| wrong)?;
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            // RFC 3986 §2: `Uri` lets other characters pass in a path.
            return Err(wrong);
        }
        let scheme = match uri.scheme_str() {
            Some("https") => Scheme::Https,
            Some("http") => Scheme::Http,
            _ => return Err(wrong),
        };
        let authority = uri.authority().ok_or(wrong)?;
        if authority.as_str().contains('@') || authority.host().is_empty() || text.contains('#') {
            return Err(wrong);
        }
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        Ok(Self { text: text.into(), scheme, authority: authority.as_str().into(), path: path.into() })
    }

    /// The URI as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `:scheme` of the request for it.
    pub fn scheme(&self) -> &'static str {
        match self.scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        }
    }

    /// `:authority` of the request for it.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `:path` of the request for it.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// Which of the key sets. None gets the id of one that was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeySetId(usize);

#[cfg(test)]
impl KeySetId {
    pub(crate) const fn at(index: usize) -> Self {
        Self(index)
    }
}

/// What all threads know of a key set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The last set fetched, as a document.
    keys: Option<Rc<str>>,
    /// When that was.
    fetched_at: UnixTime,
    /// When the next fetch is due.
    next_fetch_at: UnixTime,
    /// When the next fetch for an unknown `kid` may start.
    unknown_kid_fetch_at: UnixTime,
    /// Until when a thread's claim to fetch holds.
    claimed_until: UnixTime,
    /// Fetches that failed since the last that succeeded.
    failures: u32,
}

impl Record {
    /// The record as other threads read it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The record as other threads read it.
    pub fn to_bytes(&self) -> Vec<u8> {
        // The types here always serialize.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn is_claimed(&self, now: UnixTime, timing: &Timing) -> bool {
        self.claimed_until.is_ahead(now, timing.claim())
    }

    fn is_due(&self, now: UnixTime, timing: &Timing) -> bool {
        let longest = if self.failures == 0 { timing.refresh_interval } else { MAX_BACKOFF };
        !self.next_fetch_at.is_ahead(now, longest)
    }

    /// Whether a fetch runs or is about to, so that waiting makes sense.
    fn is_pending(&self, now: UnixTime, timing: &Timing) -> bool {
        self.is_claimed(now, timing) || self.is_due(now, timing)
    }

    /// Whether its keys are too old for any thread to judge by.
    pub fn is_stale(&self, now: UnixTime, timing: &Timing) -> bool {
        now >= self.fetched_at.plus(timing.max_stale)
    }

    /// The record without its keys: when to ask for them again holds on.
    pub fn without_keys(self) -> Self {
        Self { keys: None, ..self }
    }

    fn may_fetch_unknown_kid(&self, now: UnixTime, timing: &Timing) -> bool {
        !self.unknown_kid_fetch_at.is_ahead(now, timing.refetch_cooldown)
    }

    /// After the fetch brought `keys`. The cool-down is for fetches that bring nothing: one that brought a new key was
    /// worth it, and made-up `kid`s bring none.
    pub fn succeeded(self, keys: &JwkSet, now: UnixTime, timing: &Timing) -> Self {
        let known = self.keys.as_deref().and_then(|document| JwkSet::parse(document.as_bytes()).ok());
        let brought_a_key = known.is_none_or(|known| keys.has_more_than(&known));
        Self {
            keys: Some(keys.to_document().into()),
            fetched_at: now,
            next_fetch_at: now.plus(timing.refresh_interval),
            unknown_kid_fetch_at: if brought_a_key { UnixTime::default() } else { self.unknown_kid_fetch_at },
            claimed_until: UnixTime::default(),
            failures: 0,
        }
    }

    /// After the fetch failed: what is there stays, and the next try is backed off exponentially.
    pub fn failed(self, now: UnixTime) -> Self {
        let backoff = FIRST_BACKOFF.saturating_mul(2u32.saturating_pow(self.failures)).min(MAX_BACKOFF);
        Self {
            // A clock that was ahead gives no set more time.
            fetched_at: self.fetched_at.min(now),
            next_fetch_at: now.plus(backoff),
            claimed_until: UnixTime::default(),
            failures: self.failures.saturating_add(1),
            ..self
        }
    }
}

/// What a token's `kid` finds in a [`KeySet`].
pub enum Lookup<'set> {
    /// The keys of the set, which are fresh enough to judge by, and their version.
    Keys(&'set JwkSet, u64),
    /// None yet, but they are being fetched.
    Pending,
    /// None, and none to be expected before this time has passed.
    Unavailable(Duration),
}

/// One thread's copy of a record.
#[derive(Debug)]
pub struct KeySet {
    uri: JwksUri,
    record: Record,
    keys: Option<JwkSet>,
    version: u64,
    revision: u64,
    synced_at: UnixTime,
    /// Since it was last synced.
    is_used: Cell<bool>,
    /// When it was last synced as one that is in use.
    used_at: UnixTime,
    /// Whether it is kept fresh also while nobody uses it.
    is_permanent: bool,
    wants_unknown_kid: bool,
}

impl KeySet {
    /// A set of which nothing is known yet.
    pub fn new(uri: JwksUri) -> Self {
        Self {
            uri,
            record: Record::default(),
            keys: None,
            version: 0,
            revision: 0,
            synced_at: UnixTime::default(),
            is_used: Cell::new(false),
            used_at: UnixTime::default(),
            is_permanent: false,
            wants_unknown_kid: false,
        }
    }

    /// Where it is published.
    pub fn uri(&self) -> &JwksUri {
        &self.uri
    }

    /// A number that grows whenever the keys change; `None` where they are too old to judge by at `now`.
    pub fn version(&self, now: UnixTime, timing: &Timing) -> Option<u64> {
        self.is_used.set(true);
        self.usable(now, timing).map(|_| self.version)
    }

    /// Grows whenever anything of it changes, a failed fetch too.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.keys.as_ref().map_or(0, JwkSet::len)
    }

    /// Whether it has no keys yet.
    pub fn is_empty(&self) -> bool {
        self.keys.is_none()
    }

    /// The keys to judge a token by at `now`.
    pub fn lookup(&self, now: UnixTime, timing: &Timing) -> Lookup<'_> {
        self.is_used.set(true);
        match self.usable(now, timing) {
            Some(keys) => Lookup::Keys(keys, self.version),
            None if self.record.is_pending(now, timing) => Lookup::Pending,
            None => Lookup::Unavailable(self.record.next_fetch_at.since(now)),
        }
    }

    fn usable(&self, now: UnixTime, timing: &Timing) -> Option<&JwkSet> {
        self.keys.as_ref().filter(|_| !self.record.is_stale(now, timing))
    }

    /// Asks for a fetch on behalf of a `kid` that the set lacks. Where the answer is no, the set has just been fetched
    /// for such a one, and the `kid` is refused: made-up ones cannot cause a storm.
    pub fn request_unknown_kid(&mut self, now: UnixTime, timing: &Timing) -> bool {
        if self.record.may_fetch_unknown_kid(now, timing) {
            self.wants_unknown_kid = true;
            return true;
        }
        self.record.is_pending(now, timing)
    }

    /// How long until the next fetch, where the last one failed: what is not in the set may be missing for that.
    pub fn retry_after_failure(&self, now: UnixTime) -> Option<Duration> {
        (self.record.failures > 0).then(|| self.record.next_fetch_at.since(now).min(MAX_BACKOFF))
    }

    /// Whether the copy must be compared with the shared record: somebody waits, a fetch is due, or it is in use and old.
    pub fn is_sync_due(&self, is_awaited: bool, now: UnixTime, timing: &Timing) -> bool {
        is_awaited
            || self.wants_unknown_kid
            || (self.is_kept(now, timing) && self.record.is_due(now, timing) && !self.record.is_claimed(now, timing))
            || (self.is_used.get() && !self.synced_at.plus(SYNC_INTERVAL).is_ahead(now, SYNC_INTERVAL))
    }

    /// Whether it is to be fetched again in time. The policy may have dropped its provider since anybody used it.
    fn is_kept(&self, now: UnixTime, timing: &Timing) -> bool {
        self.is_permanent || self.is_used.get() || now < self.used_at.plus(timing.max_stale)
    }

    /// Takes over the shared record.
    ///
    /// # Errors
    /// Where its keys can't be read; the copy stays as it was.
    pub fn sync(&mut self, record: Record, now: UnixTime, timing: &Timing) -> Result<(), JwkSetError> {
        self.synced_at = now;
        if self.is_used.take() {
            self.used_at = now;
        }
        if record != self.record {
            self.revision = self.revision.saturating_add(1);
        }
        if record.keys != self.record.keys {
            self.keys = record.keys.as_deref().map(|document| JwkSet::parse(document.as_bytes())).transpose()?;
            self.version = self.version.saturating_add(1);
        }
        // Who waited for another thread's fetch asks again where that did not help.
        self.wants_unknown_kid &= record.fetched_at == self.record.fetched_at && record.may_fetch_unknown_kid(now, timing);
        self.record = record;
        Ok(())
    }

    /// The record with this thread's claim to fetch, where a fetch is due and nobody else has claimed it.
    pub fn claim(&self, now: UnixTime, timing: &Timing) -> Option<Record> {
        let for_unknown_kid = self.wants_unknown_kid && self.record.may_fetch_unknown_kid(now, timing);
        if self.record.is_claimed(now, timing) || !(for_unknown_kid || self.record.is_due(now, timing)) {
            return None;
        }
        let mut record = self.record.clone();
        record.claimed_until = now.plus(timing.claim());
        if for_unknown_kid {
            record.unknown_kid_fetch_at = now.plus(timing.refetch_cooldown);
        }
        Some(record)
    }
}

/// The key sets of identity providers.
#[derive(Debug, Default)]
pub struct KeySets {
    sets: BTreeMap<KeySetId, KeySet>,
    by_uri: HashMap<Box<str>, KeySetId>,
    /// How many there ever were.
    count: usize,
}

impl KeySets {
    /// Sets at these places, which are never forgotten.
    pub fn new(uris: &[JwksUri]) -> Self {
        let mut sets = Self::default();
        for uri in uris {
            sets.at(uri);
        }
        sets.sets.values_mut().for_each(|set| set.is_permanent = true);
        sets
    }

    /// The set that is published at `uri`; a new one where there was none.
    pub fn at(&mut self, uri: &JwksUri) -> KeySetId {
        if let Some(known) = self.by_uri.get(&uri.text) {
            return *known;
        }
        let id = KeySetId(self.count);
        self.count = self.count.saturating_add(1);
        self.sets.insert(id, KeySet::new(uri.clone()));
        self.by_uri.insert(uri.text.clone(), id);
        id
    }

    /// The set of this id, unless it was forgotten.
    pub fn get(&self, id: KeySetId) -> Option<&KeySet> {
        self.sets.get(&id)
    }

    /// As [`KeySets::get`].
    pub fn get_mut(&mut self, id: KeySetId) -> Option<&mut KeySet> {
        self.sets.get_mut(&id)
    }

    /// Those to be compared with their shared records.
    pub fn sync_due(&self, budget: &Budget, now: UnixTime, timing: &Timing) -> Vec<KeySetId> {
        self.sets
            .iter()
            .filter(|(id, set)| set.is_sync_due(budget.awaits_key_set(**id), now, timing))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Forgets those that nobody has used for so long that their keys became too old, and says where they were
    /// published: what providers came and went does not add up.
    pub fn forget_unused(&mut self, budget: &Budget, now: UnixTime, timing: &Timing) -> Vec<JwksUri> {
        let is_over = |set: &KeySet| !set.is_kept(now, timing) && set.record.is_stale(now, timing);
        let forgotten: Vec<JwksUri> =
            self.sets.extract_if(.., |id, set| is_over(set) && !budget.awaits_key_set(*id)).map(|(_, set)| set.uri).collect();
        for uri in &forgotten {
            self.by_uri.remove(&uri.text);
        }
        forgotten
    }

    /// All keys of all sets.
    pub fn key_count(&self) -> usize {
        self.sets.values().map(KeySet::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::OrgName;
    use crate::testing;

    const TIMING: Timing = Timing {
        timeout: Duration::from_secs(5),
        refresh_interval: Duration::from_secs(300),
        refetch_cooldown: Duration::from_secs(10),
        max_stale: Duration::from_secs(3600),
    };
    const START: UnixTime = UnixTime::from_secs(1_000_000);

    fn at(seconds: u64) -> UnixTime {
        START.plus(Duration::from_secs(seconds))
    }

    /// Threads that share one record, as the shell does it.
    struct Threads {
        shared: Record,
        sets: Vec<KeySet>,
        /// Whether requests wait for the set in all threads.
        is_awaited: bool,
    }

    impl Threads {
        fn new(count: usize) -> Self {
            let uri = JwksUri::parse("https://idp/keys").unwrap();
            let set = |_| KeySet { is_permanent: true, ..KeySet::new(uri.clone()) };
            Self { shared: Record::default(), sets: (0..count).map(set).collect(), is_awaited: false }
        }

        /// All threads tick; how many began a fetch?
        fn tick(&mut self, now: UnixTime) -> usize {
            let mut fetches = 0;
            for set in self.sets.iter_mut().filter(|set| set.is_sync_due(self.is_awaited, now, &TIMING)) {
                set.sync(self.shared.clone(), now, &TIMING).unwrap();
                if let Some(claimed) = set.claim(now, &TIMING) {
                    self.shared = claimed.clone();
                    set.sync(claimed, now, &TIMING).unwrap();
                    fetches += 1;
                }
            }
            fetches
        }

        fn answer(&mut self, kids: &[&str], now: UnixTime) {
            self.shared = std::mem::take(&mut self.shared).succeeded(&testing::jwk_set(kids), now, &TIMING);
        }
    }

    #[test]
    fn one_thread_fetches_for_all_before_the_first_request() {
        let mut threads = Threads::new(4);
        assert_eq!(threads.tick(START), 1);
        assert_eq!(threads.tick(at(1)), 0);
        assert!(matches!(threads.sets[3].lookup(at(1), &TIMING), Lookup::Pending));
        threads.answer(&["a"], at(2));
        threads.is_awaited = true;
        assert_eq!(threads.tick(at(2)), 0);
        threads.is_awaited = false;
        assert!(
            matches!(threads.sets[3].lookup(at(2), &TIMING), Lookup::Keys(keys, _) if keys.candidates(Some("a")).count() == 1)
        );
        assert_eq!(threads.tick(at(301)), 0);
        assert_eq!(threads.tick(at(302)), 1, "the refresh interval is over");
    }

    #[test]
    fn a_claim_whose_thread_died_expires() {
        let mut threads = Threads::new(2);
        assert_eq!(threads.tick(START), 1);
        assert_eq!(threads.tick(at(5)), 0);
        assert_eq!(threads.tick(at(6)), 1);
    }

    #[test]
    fn a_clock_that_is_put_back_holds_nothing_up() {
        let mut threads = Threads::new(2);
        let ahead = at(3600);
        threads.tick(ahead);
        threads.answer(&["a"], ahead);
        for set in &mut threads.sets {
            set.lookup(ahead, &TIMING);
        }
        threads.tick(ahead.plus(SYNC_INTERVAL));
        assert_eq!(threads.tick(at(0)), 1, "the refresh that was recorded for later than an interval");
        assert_eq!(threads.tick(at(1)), 0, "which is claimed as ever");
        threads.shared = std::mem::take(&mut threads.shared).failed(at(2));
        let is_served = |threads: &mut Threads, second| {
            threads.sets[0].sync(threads.shared.clone(), at(second), &TIMING).unwrap();
            matches!(threads.sets[0].lookup(at(second), &TIMING), Lookup::Keys(..))
        };
        assert!(is_served(&mut threads, 3601) && !is_served(&mut threads, 3602), "no longer than any other set");

        // A claim, a cool-down and a back-off from ahead.
        let mut threads = Threads::new(2);
        assert_eq!(threads.tick(ahead), 1);
        assert_eq!(threads.tick(at(0)), 1);
        threads.answer(&["a"], at(0));
        threads.tick(at(1));
        threads.shared.unknown_kid_fetch_at = ahead;
        assert_eq!(threads.tick(at(2)), 0);
        threads.sets[0].sync(threads.shared.clone(), at(2), &TIMING).unwrap();
        assert!(threads.sets[0].request_unknown_kid(at(2), &TIMING));
        threads.shared = std::mem::take(&mut threads.shared).failed(ahead);
        threads.sets[1].sync(threads.shared.clone(), at(3), &TIMING).unwrap();
        assert_eq!(threads.sets[1].retry_after_failure(at(3)), Some(MAX_BACKOFF));
        assert!(threads.tick(at(3)) >= 1);
    }

    #[test]
    fn made_up_kids_cause_one_fetch_in_each_cooldown() {
        let mut threads = Threads::new(3);
        threads.tick(START);
        threads.answer(&["a"], START);
        let mut fetches = 0;
        for second in 1..=60 {
            for set in &mut threads.sets {
                set.lookup(at(second), &TIMING);
                set.request_unknown_kid(at(second), &TIMING);
            }
            if threads.tick(at(second)) > 0 {
                fetches += 1;
                threads.answer(&["a"], at(second));
            }
        }
        assert_eq!(fetches, 6);
    }

    #[test]
    fn rotations_in_a_row_are_not_held_back_and_made_up_kids_are() {
        let mut threads = Threads::new(2);
        threads.tick(START);
        threads.answer(&["1"], START);
        for (second, kids) in [(1, &["1", "2"][..]), (2, &["2", "3"]), (3, &["3", "4"])] {
            threads.sets[0].lookup(at(second), &TIMING);
            threads.tick(at(second));
            assert!(threads.sets[0].request_unknown_kid(at(second), &TIMING));
            assert_eq!(threads.tick(at(second)), 1, "a fetch brought a key just before");
            threads.answer(kids, at(second));
        }
        let mut is_listened_to = |second| {
            threads.sets[0].lookup(at(second), &TIMING);
            threads.tick(at(second));
            let answer = threads.sets[0].request_unknown_kid(at(second), &TIMING);
            if threads.tick(at(second)) > 0 {
                threads.answer(&["4", "3"], at(second)); // The same keys in another order are no news.
            }
            answer
        };
        assert!(is_listened_to(5), "once");
        assert!(!is_listened_to(7) && !is_listened_to(14), "the cool-down holds");
        assert!(is_listened_to(15));
    }

    #[test]
    fn a_key_that_another_thread_fetched_is_not_fetched_again() {
        let mut threads = Threads::new(2);
        threads.tick(START);
        threads.answer(&["old"], START);
        for set in &mut threads.sets {
            set.lookup(at(1), &TIMING);
        }
        threads.tick(at(1));
        assert!(threads.sets[0].request_unknown_kid(at(2), &TIMING));
        assert_eq!(threads.tick(at(2)), 1);
        // The other one meets the new key before it knows of that fetch.
        assert!(threads.sets[1].request_unknown_kid(at(2), &TIMING));
        threads.answer(&["old", "new"], at(2));
        assert_eq!(threads.tick(at(3)), 0);
    }

    #[test]
    fn failures_back_off_and_the_stale_set_serves_until_max_stale() {
        let mut threads = Threads::new(1);
        threads.tick(START);
        threads.answer(&["a"], START);
        let (mut now, mut pauses) = (at(300), Vec::new());
        let set = |threads: &mut Threads, now| matches!(threads.sets[0].lookup(now, &TIMING), Lookup::Keys(..));
        while pauses.len() < 7 {
            assert_eq!(threads.tick(now), 1);
            threads.shared = std::mem::take(&mut threads.shared).failed(now);
            pauses.push(threads.shared.next_fetch_at.since(now).as_secs());
            assert!(set(&mut threads, now));
            now = threads.shared.next_fetch_at;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert!(set(&mut threads, at(3599)));
        threads.shared = std::mem::take(&mut threads.shared).failed(at(3600));
        threads.sets[0].sync(threads.shared.clone(), at(3600), &TIMING).unwrap();
        assert!(matches!(threads.sets[0].lookup(at(3600), &TIMING), Lookup::Unavailable(wait) if wait == MAX_BACKOFF));
        threads.answer(&["a"], at(3700));
        threads.sets[0].sync(threads.shared.clone(), at(3700), &TIMING).unwrap();
        assert!(set(&mut threads, at(3700)), "the provider is back");
    }

    #[test]
    fn the_version_grows_only_with_other_keys() {
        let mut threads = Threads::new(1);
        threads.answer(&["a"], START);
        threads.tick(START);
        let version = |threads: &Threads| threads.sets[0].version(at(2), &TIMING).unwrap();
        let before = version(&threads);
        threads.answer(&["a"], at(1));
        threads.sets[0].sync(threads.shared.clone(), at(1), &TIMING).unwrap();
        assert_eq!(version(&threads), before);
        threads.answer(&["b"], at(2));
        threads.sets[0].sync(threads.shared.clone(), at(2), &TIMING).unwrap();
        assert_eq!(version(&threads), before + 1);
    }

    #[test]
    fn a_set_that_nobody_uses_any_more_is_fetched_no_more_and_forgotten() {
        let uri = |name: &str| JwksUri::parse(&format!("https://idp/{name}")).unwrap();
        let budget = Budget::default();
        let mut sets = KeySets::new(&[uri("configured")]);
        let [configured, used, dropped] = [uri("configured"), uri("used"), uri("dropped")].map(|uri| sets.at(&uri));
        let record = |now| Record::default().succeeded(&testing::jwk_set(&["a"]), now, &TIMING);
        for id in [configured, used, dropped] {
            let set = sets.get_mut(id).unwrap();
            set.lookup(START, &TIMING);
            assert!(set.is_sync_due(false, START, &TIMING));
            set.sync(record(START), START, &TIMING).unwrap();
        }
        // The last refresh is due just before an hour without use is over; after it, there is none.
        assert_eq!(sets.sync_due(&budget, at(3599), &TIMING), [configured, used, dropped]);
        for id in [used, dropped] {
            sets.get_mut(id).unwrap().sync(record(at(3599)), at(3599), &TIMING).unwrap();
        }
        sets.get(used).unwrap().version(at(3600), &TIMING);
        assert_eq!(sets.sync_due(&budget, at(3900), &TIMING), [configured, used]);
        sets.get_mut(used).unwrap().sync(record(at(3900)), at(3900), &TIMING).unwrap();
        assert_eq!(sets.forget_unused(&budget, at(7198), &TIMING), [], "its keys might still serve");
        assert!(matches!(sets.get(dropped).unwrap().lookup(at(7198), &TIMING), Lookup::Keys(..)));
        sets.get_mut(dropped).unwrap().is_used.set(false);
        let waiting = budget.hold_for_key_set(OrgName::parse("acme").unwrap(), dropped, 0);
        assert_eq!(sets.forget_unused(&budget, at(7199), &TIMING), [], "somebody waits for it");
        drop(waiting);
        assert_eq!(sets.forget_unused(&budget, at(7199), &TIMING), [uri("dropped")]);
        assert!(sets.get(dropped).is_none() && sets.get(used).is_some() && sets.get(configured).is_some());
        assert_ne!(sets.at(&uri("dropped")), dropped, "what is remembered of the one before is not of this one");
    }

    #[test]
    fn records_survive_shared_data() {
        let record = Record::default().succeeded(&testing::jwk_set(&["a\"\u{0}ä"]), START, &TIMING).failed(at(9));
        assert_eq!(Record::from_bytes(&record.to_bytes()), Some(record));
        assert_eq!(Record::from_bytes(b"{"), None);
    }

    #[test]
    fn uris() {
        let uri = JwksUri::parse("https://idp.example:8443/keys?tenant=1").unwrap();
        assert_eq!((uri.scheme(), uri.authority(), uri.path()), ("https", "idp.example:8443", "/keys?tenant=1"));
        assert_eq!(JwksUri::parse("http://idp").unwrap().path(), "/");
        for bad in ["", "idp/keys", "ftp://idp/keys", "https://", "https://user@idp/keys", "https://idp/keys#x", "/keys"] {
            assert!(JwksUri::parse(bad).is_err(), "{bad}");
        }
    }
}
