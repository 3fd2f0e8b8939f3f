//! What may be used once: the `jti` of client assertions (RFC 7523 §3 item 7), for all threads of an Envoy.
//!
//! Shared data has no delete, so uses are kept in a fixed number of slots, each a bounded list of digests that is
//! pruned whenever it is written. Only assertions whose signature is good come here.

use sha2::{Digest, Sha256};

use crate::time::UnixTime;

/// Slots in shared data.
const SLOTS: u8 = 64;
/// Uses that one slot holds: with 64 slots, about 16,000 assertions within their lifetime. When full, it answers no.
const MAX_IN_SLOT: usize = 256;
const DIGEST_LENGTH: usize = 16;
const ENTRY_LENGTH: usize = DIGEST_LENGTH + 8;

/// One use of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    digest: [u8; DIGEST_LENGTH],
    now: UnixTime,
    /// From when on it could not be used anyway.
    expires_at: UnixTime,
}

impl Use {
    /// The use of `id` by `owner` at `now`.
    pub fn new(owner: &str, id: &str, now: UnixTime, expires_at: UnixTime) -> Self {
        // The owner's length keeps ("a", "bc") and ("ab", "c") apart.
        let hash = Sha256::new().chain_update(owner.len().to_le_bytes()).chain_update(owner).chain_update(id).finalize();
        let mut digest = [0; DIGEST_LENGTH];
        digest.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        Self { digest, now, expires_at }
    }

    /// The slot in which it is kept.
    pub fn slot(&self) -> u8 {
        self.digest.first().copied().unwrap_or_default() % SLOTS
    }

    /// The slot's content with this use noted; `None` where it was noted before, or there is no room.
    pub fn note_in(&self, slot: &[u8]) -> Option<Vec<u8>> {
        let mut noted = Vec::with_capacity(slot.len().saturating_add(ENTRY_LENGTH));
        for entry in slot.chunks_exact(ENTRY_LENGTH) {
            let (digest, expires_at) = entry.split_first_chunk::<DIGEST_LENGTH>()?;
            let expires_at = UnixTime::from_millis(u64::from_le_bytes(expires_at.try_into().ok()?));
            if self.now < expires_at {
                if *digest == self.digest {
                    return None;
                }
                noted.extend_from_slice(entry);
            }
        }
        if noted.len() >= MAX_IN_SLOT.saturating_mul(ENTRY_LENGTH) {
            return None;
        }
        noted.extend_from_slice(&self.digest);
        noted.extend_from_slice(&self.expires_at.as_millis().to_le_bytes());
        Some(noted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(id: &str, now: u64) -> Use {
        Use::new("client", id, UnixTime::from_secs(now), UnixTime::from_secs(100))
    }

    #[test]
    fn once_and_no_more_until_it_expired() {
        let slot = usage("a", 1).note_in(&[]).unwrap();
        assert_eq!(usage("a", 99).note_in(&slot), None);
        let slot = usage("b", 99).note_in(&slot).unwrap();
        assert_eq!(slot.len(), 2 * ENTRY_LENGTH);
        assert_eq!(usage("c", 100).note_in(&slot).unwrap().len(), ENTRY_LENGTH, "what expired makes room");
    }

    #[test]
    fn a_full_slot_answers_no() {
        let mut slot = Vec::new();
        for index in 0..MAX_IN_SLOT {
            slot = usage(&index.to_string(), 1).note_in(&slot).unwrap();
        }
        assert_eq!(usage("one more", 1).note_in(&slot), None);
    }

    #[test]
    fn owners_do_not_share_ids() {
        let at = |owner, id| Use::new(owner, id, UnixTime::default(), UnixTime::default()).digest;
        assert_ne!(at("a", "bc"), at("ab", "c"));
    }
}
