//! The names of signing keys that are known to be absent from a key set. With them, tokens of such keys delay no other token.
//!
//! A token with a new name makes a thread fetch the set at once. If the fetch brings no new key, the cool-down starts.
//! Tokens of a retired key, or of another environment, arrive again and again. Without this memory, each of them would
//! start the cool-down. Tokens of a new key would then be refused if the provider rotates its keys during the cool-down.

use sha2::{Digest, Sha256};

use crate::jose::compact::CompactJws;

/// Maximum number of names of each kind. A provider has a few keys. An attacker can add a few names in each cool-down.
const MAX_NAMES: usize = 64;
/// Length of a name in shared data, in bytes: its kind and its hash.
const NAME_LENGTH: usize = 9;
const RETIRED: u8 = 0;
const MISSING: u8 = 1;

/// The name under which a token asks for a key, as a hash: 64 bits, so that nobody can find another name for the same hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyName([u8; 8]);

impl KeyName {
    /// The name of the key that signed `jws`: the `kid`, or else the thumbprint of the certificate. A token without both is
    /// recognized by its signature, which does not change.
    pub fn in_token(jws: &CompactJws<'_>) -> Self {
        let hint = jws.key_hint();
        match hint.kid.or(hint.x5t).or(hint.x5t_s256) {
            Some(name) => Self::new(name),
            None => Self::of(jws.signature()),
        }
    }

    /// The name of this text: a `kid` or a thumbprint.
    pub(super) fn new(name: &str) -> Self {
        Self::of(name.as_bytes())
    }

    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).first_chunk().copied().unwrap_or_default())
    }
}

/// The names that are known to be absent from a key set, the most recently used ones last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AbsentNames {
    /// Keys that the set once had. Only the provider can add to this list, so an attacker cannot displace its names.
    retired: Vec<KeyName>,
    /// Names for which the set was fetched, but which it did not have.
    missing: Vec<KeyName>,
}

impl AbsentNames {
    /// Reads the names from shared data. Bytes in another form count as no names.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let (entries, rest) = bytes.as_chunks::<NAME_LENGTH>();
        let mut names = Self::default();
        for [kind, hash @ ..] in entries.iter().filter(|_| rest.is_empty()) {
            match *kind {
                RETIRED => names.add_retired(KeyName(*hash)),
                MISSING => names.add_missing(KeyName(*hash)),
                _ => {}
            }
        }
        names
    }

    /// The names in the form for shared data.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let of_kind =
            |kind, names: &[KeyName]| names.iter().flat_map(move |KeyName(hash)| [&[kind][..], hash].concat()).collect();
        let [mut bytes, missing]: [Vec<u8>; 2] = [of_kind(RETIRED, &self.retired), of_kind(MISSING, &self.missing)];
        bytes.extend(missing);
        bytes
    }

    pub(super) fn contains(&self, name: KeyName) -> bool {
        self.retired.contains(&name) || self.missing.contains(&name)
    }

    pub(super) fn add_retired(&mut self, name: KeyName) {
        add(&mut self.retired, name);
    }

    pub(super) fn add_missing(&mut self, name: KeyName) {
        add(&mut self.missing, name);
    }

    /// Adds the names that another thread knows.
    pub(super) fn merge(&mut self, other: &Self) {
        other.retired.iter().for_each(|name| self.add_retired(*name));
        other.missing.iter().for_each(|name| self.add_missing(*name));
    }
}

fn add(names: &mut Vec<KeyName>, name: KeyName) {
    names.retain(|known| *known != name);
    names.push(name);
    if names.len() > MAX_NAMES {
        names.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_shared_data_and_are_bounded() {
        let name = |number: usize| KeyName::new(&number.to_string());
        let mut names = AbsentNames::default();
        names.add_retired(name(1000));
        for number in 0..=MAX_NAMES {
            names.add_missing(name(number));
        }
        assert_eq!(AbsentNames::from_bytes(&names.to_bytes()), names);
        assert!(!names.contains(name(0)) && names.contains(name(1)) && names.contains(name(MAX_NAMES)));
        assert!(names.contains(name(1000)), "missing names displace no retired one");
        for number in 2000..3000 {
            names.add_retired(name(number));
        }
        assert_eq!(names.to_bytes().len(), 2 * MAX_NAMES * NAME_LENGTH);
        let mut merged = AbsentNames::default();
        merged.merge(&names);
        assert_eq!(merged, names);
        for other in [&b""[..], b"{", &[0; 10], &[7; 9]] {
            assert_eq!(AbsentNames::from_bytes(other), AbsentNames::default());
        }
    }
}
