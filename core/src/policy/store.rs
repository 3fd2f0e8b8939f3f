//! The parts in shared data, as the one thread that fetches the policy changes them.
//!
//! Shared data has no list of its names and no delete, so the names of all parts that may exist are kept in it too, in shards:
//! a change rewrites only the shards of the names that it adds or removes.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::parts::{PartName, Sum};
use crate::host::Host;

const HEAD: &str = "head";
/// Number of shards. With a million keys, each has the names of 60 parts, about 2 KB.
const SHARDS: u16 = 4096;
/// The names of the parts that the next publication clears.
const LEAVING: &str = "leaving";

/// The prefix of the names of one policy in shared data. It has a version, because an old and a new module may run side by
/// side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(Box<str>);

impl Place {
    /// The place of the policy that is fetched with these settings.
    pub fn of(cluster: &str, authority: &str, path: &str) -> Self {
        let source = hex::encode(Sha256::digest(format!("{cluster}\n{authority}\n{path}")));
        Self(format!("apexmcp/policy/2/{}/", source.get(..16).unwrap_or(&source)).into())
    }

    /// The name of the value `part` in shared data.
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", self.0)
    }
}

/// The head of the policy in force, which all threads read.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Head {
    /// Grows with each publication. Zero before the first.
    pub(super) generation: u64,
    /// The policy's `version`.
    pub(super) version: String,
}

impl Head {
    pub(super) fn name(place: &Place) -> String {
        place.name(HEAD)
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// Brings the parts in shared data from one state of the policy to another, in one or more pages. Other threads notice the new
/// state when the transfer is finished.
#[derive(Debug)]
pub struct Transfer {
    /// Whether it brings all parts, so that any other part is gone.
    is_whole: bool,
    sum: Sum,
    seen: HashSet<String>,
    gone: HashSet<String>,
    /// The names of parts that are gone, and that threads may still read.
    leaving: HashSet<String>,
}

impl Transfer {
    /// A transfer of all parts.
    pub fn from_nothing(place: &Place, host: &dyn Host) -> Self {
        Self { is_whole: true, ..Self::from(Sum::default(), place, host) }
    }

    /// A transfer of changes. `sum` is the sum of all parts before.
    pub fn from(sum: Sum, place: &Place, host: &dyn Host) -> Self {
        let leaving = lines(LEAVING, place, host);
        Self { is_whole: false, sum, seen: HashSet::new(), gone: HashSet::new(), leaving }
    }

    /// Whether this transfer brings all parts.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Writes parts. A part without a text is gone, and cleared in the end.
    pub fn write<'p>(&mut self, parts: impl Iterator<Item = (&'p str, Option<&'p str>)> + Clone, place: &Place, host: &dyn Host) {
        let mut new: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (name, text) in parts.clone() {
            let before = text_of(name, place, host);
            // A long transfer may bring a part twice, because it changed meanwhile.
            let was_there = !self.is_whole && !self.leaving.contains(name) && !self.gone.contains(name);
            let counts = self.seen.contains(name) || was_there;
            if let Some(before) = before.as_ref().filter(|_| counts) {
                self.sum = self.sum.without(name, before);
            }
            match text {
                Some(text) => {
                    self.sum = self.sum.with(name, text);
                    self.seen.insert(name.to_owned());
                    self.gone.remove(name);
                    if before.is_none() {
                        new.entry(shard(name)).or_default().push(name);
                    }
                }
                None => {
                    self.seen.remove(name);
                    self.gone.insert(name.to_owned());
                }
            }
        }
        // If this thread dies now, the next one must know the name of every part that may exist.
        for (shard, names) in new {
            host.update(&place.name(&shard), &mut |bytes| {
                let known: HashSet<&str> = std::str::from_utf8(bytes).unwrap_or_default().lines().collect();
                let added = names.iter().filter(|name| !known.contains(**name));
                Some(bytes.iter().copied().chain(added.flat_map(|name| name.bytes().chain([b'\n']))).collect())
            });
        }
        for (name, text) in parts {
            if let Some(text) = text {
                put(&place.name(name), text.as_bytes(), host);
            }
        }
    }

    /// Clears what is gone, and announces a new generation to the other threads. Returns the sum of all parts.
    pub fn finish(mut self, version: &str, place: &Place, host: &dyn Host) -> Sum {
        if self.is_whole {
            for number in 0..SHARDS {
                let names = lines(&shard_name(number), place, host);
                self.gone.extend(names.into_iter().filter(|name| !self.seen.contains(name)));
            }
        }
        // What left before is not read any more.
        self.gone.retain(|name| !self.leaving.contains(name));
        let (of_keys, mut cleared): (Vec<_>, Vec<_>) = self.gone.into_iter().partition(|name| org_of_keys(name).is_some());
        for name in &cleared {
            put(&place.name(name), &[], host);
        }
        // Threads that have not read the new number of key parts of an organization still read its old parts.
        let has_org = |name: &String| org_of_keys(name).is_some_and(|org| text_of(&org, place, host).is_some());
        let (stays, gone): (Vec<_>, Vec<_>) = of_keys.into_iter().partition(has_org);
        cleared.extend(gone);
        cleared.extend(self.leaving.into_iter().filter(|name| !self.seen.contains(name)));
        put(&place.name(LEAVING), stays.join("\n").as_bytes(), host);
        let mut by_shard: HashMap<String, HashSet<&str>> = HashMap::new();
        for name in &cleared {
            put(&place.name(name), &[], host);
            by_shard.entry(shard(name)).or_default().insert(name);
        }
        for (shard, cleared) in by_shard {
            host.update(&place.name(&shard), &mut |bytes| {
                let kept = std::str::from_utf8(bytes).unwrap_or_default().lines().filter(|name| !cleared.contains(name));
                Some(kept.flat_map(|name| name.bytes().chain([b'\n'])).collect())
            });
        }
        host.update(&Head::name(place), &mut |bytes| {
            let head = Head::parse(bytes).unwrap_or_default();
            serde_json::to_vec(&Head { generation: head.generation.saturating_add(1), version: version.to_owned() }).ok()
        });
        self.sum
    }
}

/// The part of the organization to which a part with keys belongs. `None`: it has no keys.
fn org_of_keys(name: &str) -> Option<String> {
    match PartName::parse(name)? {
        PartName::Keys(org, _) => Some(PartName::Org(org).to_string()),
        _ => None,
    }
}

/// The shard of names to which a name belongs.
fn shard(name: &str) -> String {
    let [first, second, ..]: [u8; 32] = Sha256::digest(name).into();
    shard_name(u16::from_be_bytes([first, second]) % SHARDS)
}

fn shard_name(number: u16) -> String {
    format!("names/{number:03x}")
}

fn lines(value: &str, place: &Place, host: &dyn Host) -> HashSet<String> {
    let text = text_of(value, place, host).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The text of a value. `None`: it does not exist, or was cleared.
fn text_of(value: &str, place: &Place, host: &dyn Host) -> Option<String> {
    let bytes = host.shared(&place.name(value))?.bytes;
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

fn put(name: &str, bytes: &[u8], host: &dyn Host) {
    host.update(name, &mut |before| (before != bytes).then(|| bytes.to_vec()));
}
