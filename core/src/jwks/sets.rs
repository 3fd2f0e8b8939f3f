//! How threads share key sets: a small record that they read often, and a document that they read when it has changed.
//!
//! A thread that has fetched a set writes the document first, and then the record with the next generation. If the thread
//! dies in between, other threads keep their copies until the next fetch. If two threads finish at the same time, each
//! increments the generation after its own write. So no thread misses a newer document.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::absent::{AbsentNames, KeyName};
use super::fetch_slots::{self, FetchSlot};
use super::record::Record;
use super::set::{KeySet, KeySetId, Wanted};
use super::timing::Timing;
use super::uri::JwksUri;
use crate::host::{Host, Update};
use crate::jose::jwk::{JwkSet, JwkSetError};
use crate::names::OrgName;
use crate::time::UnixTime;

/// A fetch that this thread has claimed.
#[derive(Debug)]
#[must_use = "finish or abandon the fetch, to release its slot"]
pub struct Fetch {
    /// The key set to fetch.
    pub key_set: KeySetId,
    slot: FetchSlot,
}

impl Fetch {
    /// Releases the slot of a fetch that will get no answer, because this thread's configuration ends.
    pub fn abandon(&self, now: UnixTime, host: &dyn Host) {
        fetch_slots::release(&self.slot, now, host);
    }
}

/// A fetch that this thread leaves to another thread.
#[derive(Debug)]
pub struct Wish {
    uri: JwksUri,
    /// The organizations to which the fetch may be charged, the most recent user first. An [`OrgName`] stays in its thread.
    orgs: Vec<String>,
    wanted: Option<Wanted>,
    asked: Vec<KeyName>,
}

/// The names of a key set's values in shared data, where nothing can be deleted. Their number is bounded by the URIs that
/// operators configure. They have a version, because an old and a new module may run side by side.
struct Names {
    record: String,
    document: String,
    absent: String,
}

impl Names {
    fn of(uri: &JwksUri) -> Self {
        let hash = hex::encode(Sha256::digest(uri.as_str()));
        let record = format!("apexmcp/key-set/2/{hash}");
        Self { document: format!("{record}/document"), absent: format!("{record}/absent"), record }
    }
}

fn shared(name: &str, host: &dyn Host) -> Vec<u8> {
    host.shared(name).map(|shared| shared.bytes).unwrap_or_default()
}

impl KeySet {
    /// Compares the copy with what all threads share.
    fn read_shared(&mut self, names: &Names, now: UnixTime, timing: &Timing, host: &dyn Host) -> Result<(), JwkSetError> {
        let record = Record::from_bytes(&shared(&names.record, host));
        if record.generation != self.record.generation {
            self.absent.merge(&AbsentNames::from_bytes(&shared(&names.absent, host)));
        }
        let read = || {
            let document = shared(&names.document, host);
            // The document is empty after `forget_unused`.
            if document.is_empty() { Ok(None) } else { JwkSet::parse(&document).map(Some) }
        };
        self.sync(record, read, now, timing)
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

    /// The set with this id, for the verification of a token. If the copy is older than `max_age`, it is first compared with
    /// the shared record: another thread may have fetched a set that lacks a key of this copy.
    pub fn up_to_date(
        &mut self,
        id: KeySetId,
        max_age: Duration,
        now: UnixTime,
        timing: &Timing,
        host: &dyn Host,
    ) -> Option<&mut KeySet> {
        let set = self.sets.get_mut(&id)?;
        if set.is_older_than(max_age, now) {
            let read = set.read_shared(&Names::of(&set.uri), now, timing, host);
            // The next tick logs the error. Until then the set has no keys.
            set.unread = read.err().or(set.unread.take());
        }
        Some(set)
    }

    /// Like [`Self::sync`], for a thread that fetches nothing itself. Returns what another thread should fetch.
    ///
    /// # Errors
    /// The reason why the shared document cannot be read.
    pub fn follow(&mut self, id: KeySetId, now: UnixTime, timing: &Timing, host: &dyn Host) -> Result<Option<Wish>, JwkSetError> {
        let Some(set) = self.sets.get_mut(&id) else { return Ok(None) };
        set.read_shared(&Names::of(&set.uri), now, timing, host)?;
        if let Some(error) = set.unread.take() {
            return Err(error);
        }
        let is_due = set.claim(now, timing).is_some();
        Ok(is_due.then(|| Wish {
            uri: set.uri.clone(),
            orgs: set.orgs.iter().map(|(org, _)| org.to_string()).collect(),
            wanted: set.wanted,
            asked: set.asked.clone(),
        }))
    }

    /// Takes over a wish of another thread: the set is due at the next [`Self::sync`], unless it was fetched since. It counts as
    /// used, so this thread keeps it fresh from now on.
    pub fn take_over(&mut self, wish: Wish) {
        // The last organization becomes the most recent user.
        for org in wish.orgs.iter().rev().filter_map(|org| OrgName::parse(org)) {
            let id = self.at(&wish.uri, &org);
            if let Some(set) = self.sets.get_mut(&id) {
                set.is_used.set(true);
                set.wanted = set.wanted.max(wish.wanted);
                set.ask_for(&wish.asked);
            }
        }
    }

    /// Compares this thread's copy of a key set with what all threads share. Returns a fetch if one is due, a slot is free,
    /// and no other thread has claimed it.
    ///
    /// # Errors
    /// The reason why the shared document cannot be read.
    pub fn sync(&mut self, id: KeySetId, now: UnixTime, timing: &Timing, host: &dyn Host) -> Result<Option<Fetch>, JwkSetError> {
        let Some(set) = self.sets.get_mut(&id) else { return Ok(None) };
        let names = Names::of(&set.uri);
        set.read_shared(&names, now, timing, host)?;
        if let Some(error) = set.unread.take() {
            return Err(error);
        }
        let Some(claimed) = set.claim(now, timing) else { return Ok(None) };
        let orgs = set.orgs.iter().map(|(_, hash)| *hash);
        let Some(slot) = fetch_slots::take(orgs, claimed.claim, now, host) else { return Ok(None) };
        let known = set.record;
        let update = host.update(&names.record, &mut |bytes| {
            // If the record has changed, another thread was faster.
            (Record::from_bytes(bytes) == known).then(|| claimed.to_bytes())
        });
        if update != Update::Changed {
            fetch_slots::release(&slot, now, host);
            return Ok(None);
        }
        set.sync(claimed, || Ok(None), now, timing)?;
        set.wanted = None;
        Ok(Some(Fetch { key_set: id, slot }))
    }

    /// Tells all threads how a fetch ended: with keys, or without.
    ///
    /// # Errors
    /// The reason why the shared document cannot be read.
    pub fn finish(
        &mut self,
        fetch: &Fetch,
        fetched: Option<&JwkSet>,
        now: UnixTime,
        timing: &Timing,
        host: &dyn Host,
    ) -> Result<(), JwkSetError> {
        fetch_slots::release(&fetch.slot, now, host);
        let Some(set) = self.sets.get_mut(&fetch.key_set) else { return Ok(()) };
        let names = Names::of(&set.uri);
        let Some(keys) = fetched else {
            host.update(&names.record, &mut |bytes| Some(Record::from_bytes(bytes).failed(now).to_bytes()));
            return set.read_shared(&names, now, timing, host);
        };
        // The fetched keys are compared with the newest ones, which may come from another thread. If those cannot be read,
        // every fetched key counts as new.
        let _ = set.read_shared(&names, now, timing, host);
        let known = set.record.generation;
        let brought_a_key = set.keys.as_ref().is_none_or(|known| keys.has_more_than(known));
        set.note_absent(keys);
        host.update(&names.absent, &mut |bytes| {
            let shared = AbsentNames::from_bytes(bytes);
            let mut merged = shared.clone();
            merged.merge(&set.absent);
            (merged != shared).then(|| merged.to_bytes())
        });
        let document = keys.to_document().into_bytes();
        host.update(&names.document, &mut |_| Some(document.clone()));
        let mut written = None;
        host.update(&names.record, &mut |bytes| {
            let record = Record::from_bytes(bytes);
            let finished = record.succeeded(brought_a_key, now, timing);
            // This saves the thread some milliseconds, in which it would parse its own document again.
            written = (record.generation == known).then_some(finished);
            Some(finished.to_bytes())
        });
        match written {
            Some(record) => set.sync(record, || Ok(Some(keys.clone())), now, timing),
            None => set.read_shared(&names, now, timing, host),
        }
    }

    /// Removes the sets that were unused for so long that their keys are too old. Otherwise the sets of former providers would
    /// accumulate. Empties their documents, unless another thread has fetched them again. Returns the number of removed sets.
    pub fn forget_unused(&mut self, now: UnixTime, timing: &Timing, host: &dyn Host) -> usize {
        let is_over = |set: &mut KeySet| !set.is_kept(now, timing) && set.record.is_stale(now, timing) && !set.waiters.are_any();
        let forgotten: Vec<JwksUri> = self.sets.extract_if(.., |_, set| is_over(set)).map(|(_, set)| set.uri).collect();
        for uri in &forgotten {
            self.by_uri.remove(&uri.text);
            let names = Names::of(uri);
            let update = host.update(&names.record, &mut |bytes| {
                let record = Record::from_bytes(bytes);
                record.is_stale(now, timing).then(|| record.forgotten().to_bytes())
            });
            if update == Update::Changed {
                for name in [&names.document, &names.absent] {
                    host.update(name, &mut |bytes| (!bytes.is_empty()).then(Vec::new));
                }
            }
        }
        forgotten.len()
    }
}
