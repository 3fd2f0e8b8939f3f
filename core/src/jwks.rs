//! The key sets of identity providers: when they are fetched, which thread fetches them, and how long they are used.
//!
//! All threads of an Envoy share one [`Record`] and one document for each set (`shared.rs`). A thread that wants to fetch
//! first writes its claim into the record, so there is one fetch at a time. It also needs a slot (`fetch_slots.rs`). Each
//! thread works with its own copy of the record and of the keys, a [`KeySet`].

mod absent;
mod record;
mod shared;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use http::Uri;

use crate::fetch_slots::{MAX_FETCHES, MAX_FETCHES_PER_ORG, OrgHash};
use crate::jose::jwk::{JwkSet, JwkSetError, KeyHint};
use crate::names::OrgName;
use crate::time::UnixTime;
use absent::AbsentNames;
pub use absent::KeyName;
use record::{MAX_BACKOFF, Record};
pub use shared::Fetch;

/// Maximum `jwks.timeout`, which is also the maximum time that a request waits for keys.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// How long after a fetch's timeout its claim still holds, so that its own failure is recorded first.
pub const CLAIM_MARGIN: Duration = Duration::from_secs(1);
/// Maximum number of organizations that a key set remembers. It takes this many attackers to displace an organization, and
/// this many could also take all slots.
const MAX_ORGS: usize = MAX_FETCHES / MAX_FETCHES_PER_ORG;
/// Maximum age of a copy of the record that decides about a token. An older copy is first compared with the shared record.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// The `Accept` header of fetches of key sets. RFC 7517 §8.5.2 registers the media type, and a Kubernetes API server offers
/// only this one. Some providers offer only JSON, or send a wrong `Content-Type`: the document is judged by its content.
pub const ACCEPT: &str = "application/jwk-set+json, application/json;q=0.9, */*;q=0.1";
/// Maximum number of key names that a thread remembers until the next fetch.
const MAX_ASKED: usize = 16;

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

/// The kind of key for which a set has to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    /// A key that is known to be absent.
    Absent,
    /// A key that the filter has not seen before.
    New,
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

/// The requests that wait for a key set. The worker's budget bounds their number.
#[derive(Debug, Default)]
struct Waiters(Rc<()>);

impl Waiters {
    fn are_any(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }
}

/// One of the requests that wait for a key set.
#[derive(Debug)]
pub struct Waiter {
    _counted: Rc<()>,
}

/// One thread's copy of a record.
#[derive(Debug)]
pub struct KeySet {
    uri: JwksUri,
    /// The organizations to which a fetch may be charged, the most recent user first. If an attacker names the JWKS URI of
    /// another organization, that organization can still fetch the set with its own slots.
    orgs: Vec<(OrgName, OrgHash)>,
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
    wanted: Option<Wanted>,
    /// The keys for which requests wait, until a fetch succeeds.
    asked: Vec<KeyName>,
    absent: AbsentNames,
    /// The reason why the shared document could not be read, until it is logged.
    unread: Option<JwkSetError>,
    /// Of those who wait for this set: one issuer's outage takes no place from another's.
    waiters: Waiters,
}

impl KeySet {
    /// A set of which nothing is known yet.
    pub fn new(uri: JwksUri) -> Self {
        Self {
            uri,
            orgs: Vec::new(),
            record: Record::default(),
            keys: None,
            version: 0,
            revision: 0,
            synced_at: UnixTime::default(),
            is_used: Cell::new(false),
            used_at: UnixTime::default(),
            is_permanent: false,
            wanted: None,
            asked: Vec::new(),
            absent: AbsentNames::default(),
            unread: None,
            waiters: Waiters::default(),
        }
    }

    /// Records that `org` uses the set.
    fn used_by(&mut self, org: &OrgName) {
        match self.orgs.iter().position(|(known, _)| known == org) {
            Some(0) => {}
            Some(index) => {
                if let Some(orgs) = self.orgs.get_mut(..=index) {
                    orgs.rotate_right(1);
                }
            }
            None => {
                self.orgs.truncate(MAX_ORGS.saturating_sub(1));
                self.orgs.insert(0, (org.clone(), OrgHash::of(org)));
            }
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
            None if self.is_pending(now, timing) => Lookup::Pending,
            None => Lookup::Unavailable(self.record.next_fetch_at.since(now)),
        }
    }

    fn usable(&self, now: UnixTime, timing: &Timing) -> Option<&JwkSet> {
        self.keys.as_ref().filter(|_| !self.record.is_stale(now, timing))
    }

    /// Whether the copy has a key that a token's header names.
    pub fn has_named(&self, hint: &KeyHint<'_>) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.has_named(hint))
    }

    /// Requests a fetch for a key that the set lacks. Returns false if the set was fetched for such a key a short time ago:
    /// the token is then refused, so that invented names cannot cause a storm of fetches. Names that are known to be absent
    /// do not start the cool-down, and do not wait for the cool-down of new names.
    pub fn request_key(&mut self, name: KeyName, now: UnixTime, timing: &Timing) -> bool {
        let wanted = if self.absent.contains(name) { Wanted::Absent } else { Wanted::New };
        let may_fetch = self.may_fetch_for(wanted, now, timing);
        if may_fetch {
            self.wanted = self.wanted.max(Some(wanted));
        }
        let is_awaited = may_fetch || self.is_pending(now, timing);
        // The answer to a fetch that is under way may be older than the key, and says nothing about it.
        let is_under_way = self.record.is_claimed(now, timing);
        let is_asked = is_awaited && wanted == Wanted::New && !is_under_way;
        if is_asked && self.asked.len() < MAX_ASKED && !self.asked.contains(&name) {
            self.asked.push(name);
        }
        is_awaited
    }

    fn may_fetch_for(&self, wanted: Wanted, now: UnixTime, timing: &Timing) -> bool {
        match wanted {
            Wanted::Absent => self.record.may_fetch_absent(now, timing),
            Wanted::New => self.record.may_fetch_unknown_kid(now, timing),
        }
    }

    /// Records the names that are missing in `keys`, which were just fetched: keys that the copy still has, and keys that
    /// tokens asked for.
    fn note_absent(&mut self, keys: &JwkSet) {
        let asked = std::mem::take(&mut self.asked);
        let known = self.keys.as_ref().filter(|known| *known != keys);
        if asked.is_empty() && known.is_none() {
            return;
        }
        let present: Vec<KeyName> = keys.names().map(KeyName::new).collect();
        let is_absent = |name: &KeyName| !present.contains(name);
        let retired: Vec<KeyName> = known.into_iter().flat_map(JwkSet::names).map(KeyName::new).filter(is_absent).collect();
        retired.into_iter().for_each(|name| self.absent.add_retired(name));
        asked.into_iter().filter(is_absent).for_each(|name| self.absent.add_missing(name));
    }

    /// Whether the copy was compared with the shared record longer than `age` ago.
    fn is_older_than(&self, age: Duration, now: UnixTime) -> bool {
        now != self.synced_at && !self.synced_at.plus(age).is_ahead(now, age)
    }

    /// Whether a fetch is due. A set without keys is due unless its last fetch failed: if one thread empties the document
    /// while another thread writes it, the document is lost.
    fn is_due(&self, now: UnixTime, timing: &Timing) -> bool {
        self.record.is_due(now, timing) || (self.keys.is_none() && self.record.failures == 0)
    }

    /// Whether a fetch is running or due, so that it makes sense to wait.
    fn is_pending(&self, now: UnixTime, timing: &Timing) -> bool {
        self.record.is_claimed(now, timing) || self.is_due(now, timing)
    }

    /// How long until the next fetch, where the last one failed: what is not in the set may be missing for that.
    pub fn retry_after_failure(&self, now: UnixTime) -> Option<Duration> {
        (self.record.failures > 0).then(|| self.record.next_fetch_at.since(now).min(MAX_BACKOFF))
    }

    /// Counts a request that waits for this set, until the returned value is dropped.
    pub fn wait(&self) -> Waiter {
        Waiter { _counted: Rc::clone(&self.waiters.0) }
    }

    /// Whether the copy must be compared with the shared record: somebody waits, a fetch is due, or it is in use and old.
    pub fn is_sync_due(&self, now: UnixTime, timing: &Timing) -> bool {
        self.waiters.are_any()
            || self.wanted.is_some()
            || self.unread.is_some()
            || (self.is_kept(now, timing) && self.is_due(now, timing) && !self.record.is_claimed(now, timing))
            || (self.is_used.get() && self.is_older_than(SYNC_INTERVAL, now))
    }

    /// Whether it is to be fetched again in time. The policy may have dropped its provider since anybody used it.
    fn is_kept(&self, now: UnixTime, timing: &Timing) -> bool {
        self.is_permanent || self.is_used.get() || now < self.used_at.plus(timing.max_stale)
    }

    /// The order in which sets are fetched when slots are short: first those for which requests wait, then those that have
    /// been due for longest. So no set waits for ever behind other sets of its organization that fail again and again.
    fn urgency(&self) -> (bool, UnixTime) {
        let due_at = match self.wanted {
            Some(Wanted::New) => self.record.unknown_kid_fetch_at,
            Some(Wanted::Absent) => self.record.fetched_at,
            None => self.record.next_fetch_at,
        };
        (!self.waiters.are_any(), due_at)
    }

    /// Replaces the copy by the shared record. `read` returns the keys of the shared document. It is called only if the
    /// document has changed.
    ///
    /// # Errors
    /// The reason why the document cannot be read. The set then has no keys.
    fn sync(
        &mut self,
        record: Record,
        read: impl FnOnce() -> Result<Option<JwkSet>, JwkSetError>,
        now: UnixTime,
        timing: &Timing,
    ) -> Result<(), JwkSetError> {
        self.synced_at = now;
        if self.is_used.take() {
            self.used_at = now;
        }
        if record != self.record {
            self.revision = self.revision.saturating_add(1);
        }
        // A request that waited for another thread's fetch requests a new one if its key is still missing.
        let is_new = record.generation != self.record.generation;
        self.record = record;
        self.wanted = self.wanted.filter(|wanted| !is_new && self.may_fetch_for(*wanted, now, timing));
        if !is_new {
            return Ok(());
        }
        let (keys, result) = match read() {
            Ok(keys) => (keys, Ok(())),
            Err(error) => (None, Err(error)),
        };
        if let Some(keys) = &keys {
            self.note_absent(keys);
        }
        if keys != self.keys {
            self.keys = keys;
            self.version = self.version.saturating_add(1);
        }
        result
    }

    /// The record with this thread's claim to fetch. `None` if no fetch is due, or another thread has claimed it.
    fn claim(&self, now: UnixTime, timing: &Timing) -> Option<Record> {
        let wanted = self.wanted.filter(|wanted| self.may_fetch_for(*wanted, now, timing));
        if self.record.is_claimed(now, timing) || !(wanted.is_some() || self.is_due(now, timing)) {
            return None;
        }
        Some(self.record.claimed(wanted == Some(Wanted::New), now, timing))
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
    /// The key sets that a policy names, which are never forgotten.
    pub fn new<'a>(named: impl IntoIterator<Item = &'a (JwksUri, Vec<OrgName>)>) -> Self {
        let mut sets = Self::default();
        for (uri, orgs) in named {
            for org in orgs {
                sets.at(uri, org);
            }
        }
        sets.sets.values_mut().for_each(|set| set.is_permanent = true);
        sets
    }

    /// The set that is published at `uri`, for use by `org`. Creates the set if there is none.
    pub fn at(&mut self, uri: &JwksUri, org: &OrgName) -> KeySetId {
        let id = match self.by_uri.get(&uri.text) {
            Some(known) => *known,
            None => {
                let id = KeySetId(self.count);
                self.count = self.count.saturating_add(1);
                self.by_uri.insert(uri.text.clone(), id);
                id
            }
        };
        self.sets.entry(id).or_insert_with(|| KeySet::new(uri.clone())).used_by(org);
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

    /// The sets that must be compared with their shared records, the most urgent first.
    pub fn sync_due(&self, now: UnixTime, timing: &Timing) -> Vec<KeySetId> {
        let mut due: Vec<_> = self.sets.iter().filter(|(_, set)| set.is_sync_due(now, timing)).collect();
        due.sort_by_key(|(_, set)| set.urgency());
        due.into_iter().map(|(id, _)| *id).collect()
    }

    /// All keys of all sets.
    pub fn key_count(&self) -> usize {
        self.sets.values().map(KeySet::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::host::Host;
    use crate::testing::{self, MemoryHost};

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

    const SET: KeySetId = KeySetId(0);

    fn org(name: &str) -> OrgName {
        OrgName::parse(name).unwrap()
    }

    fn uri(name: &str) -> JwksUri {
        JwksUri::parse(&format!("https://idp/{name}")).unwrap()
    }

    fn record_name() -> String {
        format!("apexmcp/key-set/2/{}", hex::encode(Sha256::digest(uri("keys").as_str())))
    }

    /// Threads that share one key set.
    struct Threads {
        host: MemoryHost,
        sets: Vec<KeySets>,
        fetches: Vec<Fetch>,
    }

    impl Threads {
        fn new(count: usize) -> Self {
            let sets = |_| KeySets::new(&[(uri("keys"), vec![org("acme")])]);
            Self { host: MemoryHost::default(), sets: (0..count).map(sets).collect(), fetches: Vec::new() }
        }

        fn set(&mut self, thread: usize) -> &mut KeySet {
            self.sets[thread].get_mut(SET).unwrap()
        }

        fn sync(&mut self, thread: usize, now: UnixTime) {
            self.fetches.extend(self.sets[thread].sync(SET, now, &TIMING, &self.host).unwrap());
        }

        /// All threads tick. Returns how many fetches began.
        fn tick(&mut self, now: UnixTime) -> usize {
            let before = self.fetches.len();
            for thread in 0..self.sets.len() {
                if !self.sets[thread].sync_due(now, &TIMING).is_empty() {
                    self.sync(thread, now);
                }
            }
            self.fetches.len() - before
        }

        /// The last thread's fetch ends with these keys, or without.
        fn finish(&mut self, kids: Option<&[&str]>, now: UnixTime) {
            let fetch = self.fetches.pop().expect("a fetch");
            let keys = kids.map(testing::jwk_set);
            self.sets.last_mut().unwrap().finish(&fetch, keys.as_ref(), now, &TIMING, &self.host).unwrap();
        }

        fn answer(&mut self, kids: &[&str], now: UnixTime) {
            self.finish(Some(kids), now);
        }

        fn record(&self) -> Record {
            Record::from_bytes(&self.host.shared(&record_name()).map(|shared| shared.bytes).unwrap_or_default())
        }

        fn change(&self, change: impl Fn(Record) -> Record) {
            self.host.update(&record_name(), &mut |bytes| Some(change(Record::from_bytes(bytes)).to_bytes()));
        }

        fn documents_read(&self) -> usize {
            self.host.reads(&format!("{}/document", record_name()))
        }

        fn serves(&mut self, thread: usize, now: UnixTime) -> bool {
            matches!(self.set(thread).lookup(now, &TIMING), Lookup::Keys(..))
        }
    }

    #[test]
    fn one_thread_fetches_for_all_before_the_first_request() {
        let mut threads = Threads::new(4);
        assert_eq!(threads.tick(START), 1);
        assert_eq!(threads.tick(at(1)), 0);
        assert!(matches!(threads.set(2).lookup(at(1), &TIMING), Lookup::Pending));
        threads.answer(&["a"], at(2));
        let waiting = threads.set(2).wait();
        assert_eq!(threads.tick(at(2)), 0);
        drop(waiting);
        assert!(
            matches!(threads.set(2).lookup(at(2), &TIMING), Lookup::Keys(keys, _) if keys.candidates(Some("a")).count() == 1)
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
        for thread in 0..2 {
            threads.set(thread).lookup(ahead, &TIMING);
        }
        threads.tick(ahead.plus(SYNC_INTERVAL));
        assert_eq!(threads.tick(at(0)), 1, "the refresh that was recorded for later than an interval");
        assert_eq!(threads.tick(at(1)), 0, "it is claimed as ever");
        threads.finish(None, at(2));
        let is_served = |threads: &mut Threads, second| {
            threads.sync(0, at(second));
            threads.serves(0, at(second))
        };
        assert!(is_served(&mut threads, 3601) && !is_served(&mut threads, 3602), "no longer than any other set");

        // A claim, a cool-down and a back-off from ahead.
        let mut threads = Threads::new(2);
        assert_eq!(threads.tick(ahead), 1);
        assert_eq!(threads.tick(at(0)), 1);
        threads.answer(&["a"], at(0));
        threads.tick(at(1));
        threads.change(|record| Record { unknown_kid_fetch_at: ahead, ..record });
        assert_eq!(threads.tick(at(2)), 0);
        threads.sync(0, at(2));
        assert!(threads.set(0).request_key(KeyName::new("x"), at(2), &TIMING));
        threads.change(|record| record.failed(ahead));
        threads.sync(1, at(3));
        assert_eq!(threads.set(1).retry_after_failure(at(3)), Some(MAX_BACKOFF));
        assert_eq!(threads.fetches.len(), 2, "it is fetched at once");
    }

    #[test]
    fn made_up_kids_cause_one_fetch_in_each_cooldown() {
        let mut threads = Threads::new(3);
        threads.tick(START);
        threads.answer(&["a"], START);
        let mut fetches = 0;
        for second in 1..=60 {
            for thread in 0..3 {
                threads.set(thread).lookup(at(second), &TIMING);
                let made_up = KeyName::new(&format!("{second} {thread}"));
                threads.set(thread).request_key(made_up, at(second), &TIMING);
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
            threads.set(0).lookup(at(second), &TIMING);
            threads.tick(at(second));
            assert!(threads.set(0).request_key(KeyName::new(kids[1]), at(second), &TIMING));
            assert_eq!(threads.tick(at(second)), 1, "a fetch brought a key just before");
            threads.answer(kids, at(second));
        }
        let mut is_listened_to = |second| {
            threads.set(0).lookup(at(second), &TIMING);
            threads.tick(at(second));
            let answer = threads.set(0).request_key(KeyName::new(&format!("made up {second}")), at(second), &TIMING);
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
        for thread in 0..2 {
            threads.set(thread).lookup(at(1), &TIMING);
        }
        threads.tick(at(1));
        assert!(threads.set(0).request_key(KeyName::new("new"), at(2), &TIMING));
        assert_eq!(threads.tick(at(2)), 1);
        // The other one meets the new key before it knows of that fetch.
        assert!(threads.set(1).request_key(KeyName::new("new"), at(2), &TIMING));
        threads.answer(&["old", "new"], at(2));
        assert_eq!(threads.tick(at(3)), 0);
    }

    /// Threads that know the keys "old" and "current", of which the provider has retired "old".
    fn after_a_rotation(count: usize) -> Threads {
        let mut threads = Threads::new(count);
        threads.tick(START);
        threads.answer(&["old"], START);
        for thread in 0..count {
            threads.sync(thread, at(1));
        }
        assert!(threads.set(0).request_key(KeyName::new("current"), at(2), &TIMING));
        assert_eq!(threads.tick(at(2)), 1);
        threads.answer(&["current"], at(2));
        threads
    }

    #[test]
    fn a_retired_key_delays_no_rotation() {
        for thread in [0, 1] {
            let mut threads = after_a_rotation(2);
            threads.sync(thread, at(3));
            assert!(!threads.set(thread).request_key(KeyName::new("old"), at(3), &TIMING), "{thread}: it was just fetched");
            // After the cool-down it causes a fetch, in case it is published again. That starts no cool-down.
            assert!(threads.set(thread).request_key(KeyName::new("old"), at(12), &TIMING));
            assert_eq!(threads.tick(at(12)), 1);
            threads.answer(&["current"], at(12));
            threads.sync(thread, at(13));
            assert!(!threads.set(thread).request_key(KeyName::new("old"), at(13), &TIMING));
            assert!(threads.set(thread).request_key(KeyName::new("next"), at(13), &TIMING), "{thread}: a rotation");
            assert_eq!(threads.tick(at(13)), 1);
        }
    }

    #[test]
    fn a_thread_that_starts_later_knows_retired_and_missing_keys() {
        let mut threads = after_a_rotation(1);
        assert!(threads.set(0).request_key(KeyName::new("made up"), at(3), &TIMING));
        assert_eq!(threads.tick(at(3)), 1);
        threads.answer(&["current"], at(3));
        threads.sets = vec![KeySets::new(&[(uri("keys"), vec![org("acme")])])];
        threads.sync(0, at(14));
        for name in ["old", "made up"] {
            assert!(threads.set(0).request_key(KeyName::new(name), at(14), &TIMING), "{name}");
        }
        assert_eq!(threads.tick(at(14)), 1);
        threads.answer(&["current"], at(14));
        assert!(threads.set(0).request_key(KeyName::new("next"), at(15), &TIMING), "no cool-down was started");
    }

    #[test]
    fn a_key_that_a_fetch_did_not_bring_starts_one_cooldown_and_is_found_later() {
        let mut threads = after_a_rotation(1);
        let mut ask = |kid: &str, second, published: &[&str]| {
            threads.sync(0, at(second));
            let is_awaited = threads.set(0).request_key(KeyName::new(kid), at(second), &TIMING);
            let fetches = threads.tick(at(second));
            if fetches > 0 {
                threads.answer(published, at(second));
            }
            (is_awaited, fetches)
        };
        assert_eq!(ask("early", 20, &["current"]), (true, 1), "it is new");
        assert_eq!(ask("early", 25, &["current"]), (false, 0));
        assert_eq!(ask("next", 25, &["current"]), (false, 0), "README: one cool-down");
        assert_eq!(ask("early", 30, &["current"]), (true, 1), "once in each cool-down");
        assert_eq!(ask("next", 31, &["current", "next"]), (true, 1), "no second one");
        assert_eq!(ask("early", 41, &["current", "next", "early"]), (true, 1), "a key that is published late");
        assert_eq!(ask("another", 42, &["current", "next", "early", "another"]), (true, 1));
    }

    #[test]
    fn a_rotation_during_a_fetch_is_not_held_back_by_its_answer() {
        let mut threads = Threads::new(1);
        threads.tick(START);
        threads.answer(&["current"], START);
        threads.sync(0, at(1));
        assert_eq!(threads.tick(at(301)), 1, "the refresh interval is over");
        assert!(threads.set(0).request_key(KeyName::new("next"), at(302), &TIMING), "the fetch is awaited");
        // The provider wrote its answer before the rotation.
        threads.answer(&["current"], at(303));
        threads.sync(0, at(303));
        assert!(threads.set(0).request_key(KeyName::new("next"), at(303), &TIMING), "it is asked for again");
        assert_eq!(threads.tick(at(303)), 1);
    }

    #[test]
    fn keys_known_to_be_absent_cause_one_fetch_in_each_cooldown() {
        let mut threads = after_a_rotation(3);
        let mut fetches = 0;
        for second in 3..=62 {
            for thread in 0..3 {
                threads.set(thread).lookup(at(second), &TIMING);
                threads.set(thread).request_key(KeyName::new("old"), at(second), &TIMING);
            }
            if threads.tick(at(second)) > 0 {
                fetches += 1;
                // A failed fetch backs off, and is not repeated for the absent key.
                threads.answer(&["current"], at(second));
            }
        }
        assert_eq!(fetches, 6);
    }

    #[test]
    fn a_copy_that_is_older_than_a_second_is_compared_before_it_decides() {
        let mut threads = Threads::new(2);
        threads.tick(START);
        threads.answer(&["old"], START);
        for thread in 0..2 {
            threads.sync(thread, at(1));
        }
        assert!(threads.set(0).request_key(KeyName::new("new"), at(100), &TIMING));
        threads.sync(0, at(100));
        let fetch = threads.fetches.pop().unwrap();
        threads.sets[0].finish(&fetch, Some(&testing::jwk_set(&["new"])), at(100), &TIMING, &threads.host).unwrap();
        // The other thread was idle, and its copy still has the withdrawn key.
        let old = KeyHint::from(Some("old"));
        assert!(threads.set(1).has_named(&old));
        let reads = threads.host.reads(&record_name());
        for _ in 0..5 {
            let set = threads.sets[1].up_to_date(SET, SYNC_INTERVAL, at(100), &TIMING, &threads.host).unwrap();
            assert!(!set.has_named(&old) && set.version(at(100), &TIMING).is_some());
        }
        assert_eq!(threads.host.reads(&record_name()), reads + 1, "one hostcall a second");
        let half = at(100).plus(Duration::from_millis(999));
        threads.sets[1].up_to_date(SET, SYNC_INTERVAL, half, &TIMING, &threads.host);
        assert_eq!(threads.host.reads(&record_name()), reads + 1);
        threads.sets[1].up_to_date(SET, SYNC_INTERVAL, at(101), &TIMING, &threads.host);
        assert_eq!(threads.host.reads(&record_name()), reads + 2);
        threads.sets[1].up_to_date(SET, SYNC_INTERVAL, at(50), &TIMING, &threads.host);
        assert_eq!(threads.host.reads(&record_name()), reads + 3, "the clock was set back");
    }

    #[test]
    fn a_document_that_cannot_be_read_when_a_token_comes_is_told_by_the_next_tick() {
        let mut threads = Threads::new(1);
        threads.tick(START);
        threads.answer(&["a"], START);
        threads.host.update(&format!("{}/document", record_name()), &mut |_| Some(b"{".to_vec()));
        threads.change(|record| Record { generation: 9, ..record });
        let set = threads.sets[0].up_to_date(SET, SYNC_INTERVAL, at(5), &TIMING, &threads.host).unwrap();
        assert!(matches!(set.lookup(at(5), &TIMING), Lookup::Pending));
        assert_eq!(threads.sets[0].sync_due(at(5), &TIMING), [SET]);
        assert!(threads.sets[0].sync(SET, at(5), &TIMING, &threads.host).is_err(), "once");
        assert_eq!(threads.tick(at(5)), 1, "then it is fetched again");
    }

    #[test]
    fn failures_back_off_and_the_stale_set_serves_until_max_stale() {
        let mut threads = Threads::new(1);
        threads.tick(START);
        threads.answer(&["a"], START);
        let (mut now, mut pauses) = (at(300), Vec::new());
        while pauses.len() < 7 {
            assert_eq!(threads.tick(now), 1);
            threads.finish(None, now);
            let next = threads.record().next_fetch_at;
            pauses.push(next.since(now).as_secs());
            assert!(threads.serves(0, now));
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert!(threads.serves(0, at(3599)));
        assert_eq!(threads.tick(at(3600)), 1);
        threads.finish(None, at(3600));
        assert!(matches!(threads.set(0).lookup(at(3600), &TIMING), Lookup::Unavailable(wait) if wait == MAX_BACKOFF));
        assert_eq!(threads.tick(at(3700)), 1);
        threads.answer(&["a"], at(3700));
        assert!(threads.serves(0, at(3700)), "the provider works again");
    }

    #[test]
    fn the_version_grows_only_with_other_keys() {
        let mut threads = Threads::new(1);
        let mut version_after = |kids: &[&str], second| {
            assert_eq!(threads.tick(at(second)), 1);
            threads.answer(kids, at(second));
            threads.set(0).version(at(second), &TIMING).unwrap()
        };
        let before = version_after(&["a"], 0);
        assert_eq!(version_after(&["a"], 300), before);
        assert_eq!(version_after(&["b"], 600), before + 1);
    }

    #[test]
    fn a_document_is_read_once_in_each_thread_however_long_requests_wait() {
        let mut threads = Threads::new(3);
        threads.tick(START);
        threads.answer(&["a"], START);
        let _waiting = [0, 1, 2].map(|thread| threads.set(thread).wait());
        for millis in (0..4000).step_by(20) {
            threads.tick(START.plus(Duration::from_millis(millis)));
        }
        assert_eq!(threads.documents_read(), 2, "the thread that fetched knows the keys");
        threads.tick(at(300));
        threads.answer(&["a", "b"], at(300));
        for second in 300..310 {
            threads.tick(at(second));
        }
        assert_eq!(threads.documents_read(), 4);
        assert!((0..3).all(|thread| threads.set(thread).len() == 2));
    }

    #[test]
    fn a_thread_that_dies_between_document_and_record_loses_nothing() {
        let mut threads = Threads::new(2);
        threads.tick(START);
        threads.answer(&["old"], START);
        threads.tick(at(1));
        assert_eq!(threads.tick(at(300)), 1);
        let document = testing::jwk_set(&["new"]).to_document().into_bytes();
        threads.host.update(&format!("{}/document", record_name()), &mut |_| Some(document.clone()));
        let has = |threads: &mut Threads, thread, kid| matches!(threads.set(thread).lookup(at(306), &TIMING), Lookup::Keys(keys, _) if keys.candidates(Some(kid)).count() == 1);
        assert!(has(&mut threads, 0, "old"));
        assert_eq!(threads.tick(at(306)), 1, "its claim is over");
        threads.answer(&["new"], at(306));
        threads.sync(0, at(306));
        assert!(has(&mut threads, 0, "new") && has(&mut threads, 1, "new"));
    }

    #[test]
    fn two_threads_that_finish_at_the_same_time_leave_all_with_one_document() {
        let mut threads = Threads::new(3);
        threads.tick(START);
        threads.tick(at(6));
        let [first, second] = [threads.fetches.remove(0), threads.fetches.remove(0)];
        let mut finish = |thread: usize, fetch: &Fetch, kid| {
            threads.sets[thread].finish(fetch, Some(&testing::jwk_set(&[kid])), at(7), &TIMING, &threads.host).unwrap();
        };
        finish(0, &first, "a");
        finish(1, &second, "b");
        for thread in 0..3 {
            threads.sync(thread, at(7));
            let keys = threads.set(thread).lookup(at(7), &TIMING);
            assert!(matches!(keys, Lookup::Keys(keys, _) if keys.candidates(Some("b")).count() == 1), "{thread}");
        }
    }

    #[test]
    fn what_cannot_be_read_counts_as_none_and_is_fetched_again() {
        let mut threads = Threads::new(2);
        threads.tick(START);
        threads.answer(&["a"], START);
        threads.host.update(&format!("{}/document", record_name()), &mut |_| Some(b"{".to_vec()));
        assert!(threads.sets[0].sync(SET, at(1), &TIMING, &threads.host).is_err());
        assert!(matches!(threads.set(0).lookup(at(1), &TIMING), Lookup::Pending));
        assert_eq!(threads.tick(at(1)), 1);
        threads.answer(&["a"], at(1));
        threads.sync(0, at(1));
        assert!(threads.serves(0, at(1)));
        threads.host.update(&record_name(), &mut |_| Some(b"{".to_vec()));
        threads.sync(0, at(2));
        assert_eq!(threads.fetches.len(), 1);
    }

    #[test]
    fn one_org_fetches_two_sets_at_a_time_and_hangs_up_no_neighbor() {
        let host = MemoryHost::default();
        let (attacker, neighbor) = (org("attacker"), org("neighbor"));
        let mut sets = KeySets::default();
        let hanging: Vec<KeySetId> = (0..32).map(|number| sets.at(&uri(&number.to_string()), &attacker)).collect();
        let own = sets.at(&uri("own"), &neighbor);
        let shared = sets.at(&uri("shared"), &neighbor);
        for name in ["attacker", "another"] {
            sets.at(&uri("shared"), &org(name));
        }
        let mut sync = |id, now| sets.sync(id, now, &TIMING, &host).unwrap();
        let fetches: Vec<Fetch> = hanging.iter().filter_map(|id| sync(*id, START)).collect();
        assert_eq!(fetches.iter().map(|fetch| fetch.key_set).collect::<Vec<_>>(), hanging[..2]);
        assert!(sync(own, START).is_some(), "a set of its own");
        assert!(sync(shared, START).is_some(), "a set that the attacker also names");
        assert!(sync(hanging[2], at(5)).is_none());
        assert!(sync(hanging[2], at(6)).is_some(), "the thread that fetched died");
        fetches[0].abandon(at(6), &host);
    }

    #[test]
    fn the_sets_for_which_requests_wait_are_fetched_first() {
        let host = MemoryHost::default();
        let mut sets = KeySets::default();
        let [failed, idle, waiting] = ["failed", "idle", "waiting"].map(|name| sets.at(&uri(name), &org("acme")));
        let fetch = sets.sync(failed, START, &TIMING, &host).unwrap().unwrap();
        sets.finish(&fetch, None, START, &TIMING, &host).unwrap();
        for id in [failed, idle, waiting] {
            sets.get(id).unwrap().lookup(at(1), &TIMING);
        }
        assert_eq!(sets.sync_due(at(1), &TIMING), [idle, waiting, failed]);
        let _place = sets.get(waiting).unwrap().wait();
        assert_eq!(sets.sync_due(at(1), &TIMING), [waiting, idle, failed]);
    }

    #[test]
    fn a_set_remembers_the_orgs_that_used_it_last() {
        let mut sets = KeySets::default();
        let names: Vec<OrgName> = (0..=MAX_ORGS).map(|number| org(&format!("org-{number}"))).collect();
        for name in names.iter().chain([&names[1], &names[MAX_ORGS]]) {
            sets.at(&uri("keys"), name);
        }
        let known: Vec<&OrgName> = sets.get(SET).unwrap().orgs.iter().map(|(org, _)| org).collect();
        assert_eq!(known.len(), MAX_ORGS);
        assert_eq!(known[..3], [&names[MAX_ORGS], &names[1], &names[MAX_ORGS - 1]]);
        assert!(!known.contains(&&names[0]));
    }

    #[test]
    fn a_set_that_nobody_uses_any_more_is_fetched_no_more_and_forgotten() {
        let host = MemoryHost::default();
        let acme = org("acme");
        let mut sets = KeySets::new(&[(uri("configured"), vec![acme.clone()])]);
        let [configured, used, dropped] = ["configured", "used", "dropped"].map(|name| sets.at(&uri(name), &org(name)));
        let fetch = |sets: &mut KeySets, id, now| {
            let fetch = sets.sync(id, now, &TIMING, &host).unwrap().expect("a fetch is due");
            sets.finish(&fetch, Some(&testing::jwk_set(&["a"])), now, &TIMING, &host).unwrap();
        };
        for id in [configured, used, dropped] {
            sets.get(id).unwrap().lookup(START, &TIMING);
            fetch(&mut sets, id, START);
        }
        // The last refresh is due just before an hour without use is over; after it, there is none.
        assert_eq!(sets.sync_due(at(3599), &TIMING), [configured, used, dropped]);
        for id in [used, dropped] {
            fetch(&mut sets, id, at(3599));
        }
        sets.get(used).unwrap().version(at(3600), &TIMING);
        assert_eq!(sets.sync_due(at(3900), &TIMING), [configured, used]);
        fetch(&mut sets, used, at(3900));
        assert_eq!(sets.forget_unused(at(7198), &TIMING, &host), 0, "its keys might still serve");
        assert!(matches!(sets.get(dropped).unwrap().lookup(at(7198), &TIMING), Lookup::Keys(..)));
        sets.get(dropped).unwrap().is_used.set(false);
        let waiting = sets.get(dropped).unwrap().wait();
        assert_eq!(sets.forget_unused(at(7199), &TIMING, &host), 0, "somebody waits for it");
        drop(waiting);
        // Another thread has the set too, and its keys.
        let mut other = KeySets::default();
        let others = other.at(&uri("dropped"), &acme);
        let fetched = |sets: &mut KeySets| sets.sync(others, at(7000), &TIMING, &host).unwrap();
        fetched(&mut other).expect("a fetch is due").abandon(at(7000), &host);
        assert_eq!(sets.forget_unused(at(7199), &TIMING, &host), 1);
        assert!(sets.get(dropped).is_none() && sets.get(used).is_some() && sets.get(configured).is_some());
        other.sync(others, at(7199), &TIMING, &host).unwrap();
        assert!(other.get(others).unwrap().is_empty(), "its document is emptied");
        assert_ne!(sets.at(&uri("dropped"), &acme), dropped, "what is remembered of the one before is not of this one");
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
