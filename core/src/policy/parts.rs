//! The parts of a policy: small documents with names, so that a change costs what it changes. Settings sends them, gateways keep
//! them in shared data, and each thread reads the parts that it needs.
//!
//! The keys of an organization are divided by the first bits of their hash. The number of parts grows with the number of keys,
//! by one part at a time: the next range of hashes is halved (linear hashing). So the part of a key follows from its hash and
//! the number of parts, and a new key changes at most three parts.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Mean number of keys in a part. Such a part has about half a KB, and a new key sends two or three parts.
const KEYS_IN_PART: u32 = 4;

/// The name of a part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartName<'a> {
    /// The signing keys.
    Signing,
    /// An organization without its keys and clients. The content is an [`OrgPart`].
    Org(&'a str),
    /// The OAuth client with this id: a policy document with one organization.
    Client(&'a str),
    /// Some keys of an organization: a policy document with one organization.
    Keys(&'a str, KeyRange),
}

impl<'a> PartName<'a> {
    /// Parses a name. `None`: it is of a kind that this version does not know.
    pub fn parse(text: &'a str) -> Option<Self> {
        match text.split_once('/') {
            None if text == "signing" => Some(Self::Signing),
            Some(("org", name)) => Some(Self::Org(name)),
            Some(("client", id)) => Some(Self::Client(id)),
            Some(("keys", rest)) => {
                let (org, range) = rest.split_once('/')?;
                let (depth, prefix) = range.split_once('.')?;
                let range = KeyRange { depth: depth.parse().ok()?, prefix: prefix.parse().ok()? };
                (range.depth <= u32::BITS).then_some(Self::Keys(org, range))
            }
            _ => None,
        }
    }
}

impl fmt::Display for PartName<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signing => formatter.write_str("signing"),
            Self::Org(name) => write!(formatter, "org/{name}"),
            Self::Client(id) => write!(formatter, "client/{id}"),
            Self::Keys(org, KeyRange { depth, prefix }) => write!(formatter, "keys/{org}/{depth}.{prefix}"),
        }
    }
}

/// The keys whose hash begins with the `depth` bits of `prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    depth: u32,
    prefix: u32,
}

impl KeyRange {
    /// The number of parts for this number of keys.
    pub fn count(keys: u32) -> u32 {
        keys.div_ceil(KEYS_IN_PART)
    }

    /// The range of a key in an organization with this number of parts. `first_bytes` are the first four bytes of its hash.
    /// `None`: there are no parts.
    pub fn of(first_bytes: u32, parts: u32) -> Option<Self> {
        let level = parts.checked_ilog2()?;
        let halved = parts.saturating_sub(1 << level);
        let prefix = |depth: u32| first_bytes.checked_shr(u32::BITS.saturating_sub(depth)).unwrap_or(0);
        let depth = if prefix(level) < halved { level.saturating_add(1) } else { level };
        Some(Self { depth, prefix: prefix(depth) })
    }

    /// The ranges of this number of parts, in the order of the hashes.
    pub fn all(parts: u32) -> impl Iterator<Item = Self> {
        let mut next = (parts > 0).then_some(0);
        std::iter::from_fn(move || {
            let range = Self::of(next?, parts)?;
            next = range.last().checked_add(1);
            Some(range)
        })
    }

    /// The range that is halved when an organization with this number of parts gets another one. `None`: it has no parts.
    pub fn halved(parts: u32) -> Option<Self> {
        let depth = parts.checked_ilog2()?;
        Some(Self { depth, prefix: parts.saturating_sub(1 << depth) })
    }

    /// The two halves of this range. `None`: it has one hash only.
    pub fn halves(self) -> Option<[Self; 2]> {
        let (depth, prefix) = (self.depth.checked_add(1).filter(|depth| *depth <= u32::BITS)?, self.prefix.checked_shl(1)?);
        Some([Self { depth, prefix }, Self { depth, prefix: prefix | 1 }])
    }

    /// The ranges that exist with one of these numbers of parts and not with the other.
    pub fn changed(before: u32, after: u32) -> BTreeSet<Self> {
        let mut changed = BTreeSet::new();
        for parts in before.min(after)..before.max(after) {
            match Self::halved(parts) {
                None => changed.extend(Self::all(1)),
                Some(range) => {
                    // A half that is halved in its turn is no part in the end.
                    if !changed.remove(&range) {
                        changed.insert(range);
                    }
                    changed.extend(range.halves().into_iter().flatten());
                }
            }
        }
        changed
    }

    /// The first four bytes of the first possible hash.
    pub fn first(self) -> u32 {
        self.prefix.checked_shl(u32::BITS.saturating_sub(self.depth)).unwrap_or(0)
    }

    /// The first four bytes of the last possible hash.
    pub fn last(self) -> u32 {
        self.first() | u32::MAX.checked_shr(self.depth).unwrap_or(0)
    }
}

/// The content of the part of an organization.
#[derive(Debug, Serialize, Deserialize)]
pub struct OrgPart<P> {
    /// The number of its [`PartName::Keys`].
    #[serde(default)]
    pub key_parts: u32,
    /// Whether it has clients.
    #[serde(default)]
    pub has_clients: bool,
    /// The connectors that its records name, each once. A gateway ignores records of connectors that it cannot tell apart.
    #[serde(default)]
    pub connectors: Vec<String>,
    /// A policy document with the organization, without its keys and clients.
    pub policy: P,
}

/// A digest of all parts, in any order: the sum of the SHA-256 of each part. It shows errors, and is no protection against
/// whoever can choose the parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum([u64; 4]);

impl Sum {
    /// The sum with another part.
    #[must_use]
    pub fn with(self, name: &str, text: &str) -> Self {
        self.combine(name, text, u64::wrapping_add)
    }

    /// The sum without a part that it contains.
    #[must_use]
    pub fn without(self, name: &str, text: &str) -> Self {
        self.combine(name, text, u64::wrapping_sub)
    }

    fn combine(self, name: &str, text: &str, operation: fn(u64, u64) -> u64) -> Self {
        let digest = Sha256::new().chain_update(name).chain_update([0]).chain_update(text).finalize();
        let mut sum = self;
        for (lane, bytes) in sum.0.iter_mut().zip(digest.as_chunks().0) {
            *lane = operation(*lane, u64::from_be_bytes(*bytes));
        }
        sum
    }

    /// Parses what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        let mut sum = Self::default();
        for (lane, bytes) in sum.0.iter_mut().zip(bytes.as_chunks().0) {
            *lane = u64::from_be_bytes(*bytes);
        }
        Some(sum)
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|lane| write!(formatter, "{lane:016x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hash_is_in_one_range() {
        for parts in (1..70).chain([255, 256, 257, 62_500]) {
            let ranges: Vec<KeyRange> = KeyRange::all(parts).collect();
            assert_eq!(ranges.len(), parts as usize);
            assert_eq!((ranges[0].first(), ranges[ranges.len() - 1].last()), (0, u32::MAX));
            assert!(ranges.windows(2).all(|pair| pair[0].last() + 1 == pair[1].first()), "{parts}");
            for range in ranges {
                assert_eq!((KeyRange::of(range.first(), parts), KeyRange::of(range.last(), parts)), (Some(range), Some(range)));
            }
        }
        assert_eq!((KeyRange::of(7, 0), KeyRange::all(0).count()), (None, 0));
        assert_eq!([0, 1, 4, 5, 500_000].map(KeyRange::count), [0, 1, 1, 2, 125_000]);
    }

    #[test]
    fn one_more_part_changes_one_range() {
        for parts in 1..300 {
            let before: Vec<KeyRange> = KeyRange::all(parts).collect();
            let after: Vec<KeyRange> = KeyRange::all(parts + 1).collect();
            assert_eq!(before.iter().filter(|range| !after.contains(range)).count(), 1, "{parts}");
            assert_eq!(after.iter().filter(|range| !before.contains(range)).count(), 2, "{parts}");
        }
    }

    #[test]
    fn what_changes_between_two_numbers_of_parts() {
        for (before, after) in [(0, 0), (0, 1), (1, 0), (0, 100), (100, 3), (7, 8), (8, 7), (64, 65), (5, 5)] {
            let (old, new): (BTreeSet<_>, BTreeSet<_>) = (KeyRange::all(before).collect(), KeyRange::all(after).collect());
            assert_eq!(KeyRange::changed(before, after), &old ^ &new, "{before} {after}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        let range = KeyRange::of(0xfedc_ba98, 11).unwrap();
        for name in [PartName::Signing, PartName::Org("a.b~c"), PartName::Client("c1"), PartName::Keys("acme", range)] {
            assert_eq!(PartName::parse(&name.to_string()), Some(name));
        }
        for text in ["", "signing/", "keys/acme", "keys/acme/1", "keys/acme/33.0", "keys/acme/1.x", "other/acme"] {
            assert_eq!(PartName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_sum_has_no_order_and_forgets_what_is_taken_out() {
        let (a, b) = (("org/a", "{}"), ("org/b", "{}"));
        let sum = Sum::default().with(a.0, a.1).with(b.0, b.1);
        assert_eq!(sum, Sum::default().with(b.0, b.1).with(a.0, a.1));
        assert_eq!(sum.without(a.0, a.1), Sum::default().with(b.0, b.1));
        assert_eq!(Sum::parse(&sum.to_string()), Some(sum));
        assert_ne!(Sum::default().with("org/a", "b"), Sum::default().with("org/", "ab"));
        assert_eq!((Sum::parse(""), Sum::parse("00")), (None, None));
    }
}
