//! One thread's copy of a key set: its keys, and what has to happen before they can be used.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::absent::{AbsentNames, KeyName};
use super::fetch_slots::{MAX_FETCHES, MAX_FETCHES_PER_ORG, OrgHash};
use super::record::{BACKOFF, Record};
use super::timing::{SYNC_INTERVAL, Timing};
use super::uri::JwksUri;
use crate::jose::jwk::{JwkSet, JwkSetError, KeyHint};
use crate::names::OrgName;
use crate::time::UnixTime;

/// Maximum number of organizations that a key set remembers. It takes this many attackers to displace an organization, and
/// this many could also take all slots.
pub(super) const MAX_ORGS: usize = MAX_FETCHES / MAX_FETCHES_PER_ORG;
/// Maximum number of key names that a thread remembers until the next fetch.
const MAX_ASKED: usize = 16;

/// The id of a key set in this thread. The id of a removed set is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeySetId(pub(super) usize);

#[cfg(test)]
impl KeySetId {
    pub(crate) const fn at(index: usize) -> Self {
        Self(index)
    }
}

/// The kind of key for which a set has to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    /// A key that is known to be absent.
    Absent,
    /// A key that the filter has not seen before.
    New,
}

/// The keys of a [`KeySet`] that can verify a token now.
pub enum Lookup<'set> {
    /// The keys, which are fresh enough, and their version.
    Keys(&'set JwkSet, u64),
    /// There are no keys yet, but a fetch is running or due.
    Pending,
    /// There are no keys, and the next fetch is due after this time.
    Unavailable(Duration),
}

/// The requests that wait for a key set. The worker's budget bounds their number.
#[derive(Debug, Default)]
pub(super) struct Waiters(Rc<()>);

impl Waiters {
    pub(super) fn are_any(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }
}

/// A request that waits for a key set.
#[derive(Debug)]
pub struct Waiter {
    _counted: Rc<()>,
}

/// One thread's copy of a key set and its record.
#[derive(Debug)]
pub struct KeySet {
    pub(super) uri: JwksUri,
    /// The organizations to which a fetch may be charged, the most recent user first. If an attacker names the JWKS URI of
    /// another organization, that organization can still fetch the set with its own slots.
    pub(super) orgs: Vec<(OrgName, OrgHash)>,
    pub(super) record: Record,
    pub(super) keys: Option<JwkSet>,
    pub(super) version: u64,
    pub(super) revision: u64,
    pub(super) synced_at: UnixTime,
    /// Whether a token was checked with it since the last sync.
    pub(super) is_used: Cell<bool>,
    /// The time of the last sync before which the set was used.
    pub(super) used_at: UnixTime,
    /// Whether the set is kept fresh although no token uses it: an inline policy names it.
    pub(super) is_permanent: bool,
    pub(super) wanted: Option<Wanted>,
    /// The keys for which requests wait, until a fetch succeeds.
    pub(super) asked: Vec<KeyName>,
    pub(super) absent: AbsentNames,
    /// The reason why the shared document could not be read, until it is logged.
    pub(super) unread: Option<JwkSetError>,
    /// The requests that wait for this set.
    pub(super) waiters: Waiters,
}

impl KeySet {
    /// A set that was not compared with shared data yet.
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
    pub(super) fn used_by(&mut self, org: &OrgName) {
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

    /// The URL of the set.
    pub fn uri(&self) -> &JwksUri {
        &self.uri
    }

    /// A number that grows whenever the keys change. `None` if the keys are missing or too old.
    pub fn version(&self, now: UnixTime, timing: &Timing) -> Option<u64> {
        self.is_used.set(true);
        self.usable(now, timing).map(|_| self.version)
    }

    /// A number that grows whenever the record changes, for example by a failed fetch.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.keys.as_ref().map_or(0, JwkSet::len)
    }

    /// Whether there are no keys yet.
    pub fn is_empty(&self) -> bool {
        self.keys.is_none()
    }

    /// The keys for the verification of a token at `now`.
    pub fn lookup(&self, now: UnixTime, timing: &Timing) -> Lookup<'_> {
        self.is_used.set(true);
        match self.usable(now, timing) {
            Some(keys) => Lookup::Keys(keys, self.version),
            None if self.is_pending(now, timing) => Lookup::Pending,
            None => Lookup::Unavailable(self.record.next_fetch_at.since(now)),
        }
    }

    pub(super) fn usable(&self, now: UnixTime, timing: &Timing) -> Option<&JwkSet> {
        self.keys.as_ref().filter(|_| !self.record.is_stale(now, timing))
    }

    /// Whether the copy has the key that the header of a token names.
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
        if is_awaited && wanted == Wanted::New && !is_under_way {
            self.ask_for(&[name]);
        }
        is_awaited
    }

    /// Remembers the names of keys for which requests wait.
    pub(super) fn ask_for(&mut self, names: &[KeyName]) {
        for name in names {
            if self.asked.len() < MAX_ASKED && !self.asked.contains(name) {
                self.asked.push(*name);
            }
        }
    }

    pub(super) fn may_fetch_for(&self, wanted: Wanted, now: UnixTime, timing: &Timing) -> bool {
        match wanted {
            Wanted::Absent => self.record.may_fetch_absent(now, timing),
            Wanted::New => self.record.may_fetch_unknown_kid(now, timing),
        }
    }

    /// Records the names that are missing in `keys`, which were just fetched: keys that the copy still has, and keys that
    /// tokens asked for.
    pub(super) fn note_absent(&mut self, keys: &JwkSet) {
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
    pub(super) fn is_older_than(&self, age: Duration, now: UnixTime) -> bool {
        now != self.synced_at && !self.synced_at.plus(age).is_ahead(now, age)
    }

    /// Whether a fetch is due. A set without keys is due unless its last fetch failed: if one thread empties the document
    /// while another thread writes it, the document is lost.
    pub(super) fn is_due(&self, now: UnixTime, timing: &Timing) -> bool {
        self.record.is_due(now, timing) || (self.keys.is_none() && self.record.failures == 0)
    }

    /// Whether a fetch is running or due, so that it makes sense to wait.
    pub(super) fn is_pending(&self, now: UnixTime, timing: &Timing) -> bool {
        self.record.is_claimed(now, timing) || self.is_due(now, timing)
    }

    /// Time until the next fetch, if the last one failed. A key may be missing in the set only because of that failure.
    pub fn retry_after_failure(&self, now: UnixTime) -> Option<Duration> {
        (self.record.failures > 0).then(|| self.record.next_fetch_at.since(now).min(BACKOFF.longest))
    }

    /// Counts a request that waits for this set, until the returned value is dropped.
    pub fn wait(&self) -> Waiter {
        Waiter { _counted: Rc::clone(&self.waiters.0) }
    }

    /// Whether the copy must be compared with the shared record: a request waits, a fetch is due, or it is in use and old.
    pub fn is_sync_due(&self, now: UnixTime, timing: &Timing) -> bool {
        self.waiters.are_any()
            || self.wanted.is_some()
            || self.unread.is_some()
            || (self.is_kept(now, timing) && self.is_due(now, timing) && !self.record.is_claimed(now, timing))
            || (self.is_used.get() && self.is_older_than(SYNC_INTERVAL, now))
    }

    /// Whether the set is fetched before its keys are too old. A set that no token uses is not: the policy may no longer have
    /// its provider.
    pub(super) fn is_kept(&self, now: UnixTime, timing: &Timing) -> bool {
        self.is_permanent || self.is_used.get() || now < self.used_at.plus(timing.max_stale)
    }

    /// The order in which sets are fetched when slots are short: first those for which requests wait, then those that have
    /// been due for longest. So no set waits for ever behind other sets of its organization that fail again and again.
    pub(super) fn urgency(&self) -> (bool, UnixTime) {
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
    pub(super) fn sync(
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
    pub(super) fn claim(&self, now: UnixTime, timing: &Timing) -> Option<Record> {
        let wanted = self.wanted.filter(|wanted| self.may_fetch_for(*wanted, now, timing));
        if self.record.is_claimed(now, timing) || !(wanted.is_some() || self.is_due(now, timing)) {
            return None;
        }
        Some(self.record.claimed(wanted == Some(Wanted::New), now, timing))
    }
}
