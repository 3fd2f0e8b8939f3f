//! What may be used once: the `jti` of client assertions (RFC 7523 §3 item 7), for all threads of an Envoy.
//!
//! Shared data has no delete, so each owner has one value, a bounded list of digests that is pruned whenever it is
//! written; owners are configured. Only assertions whose signature is good come here, so an owner fills its own list alone.

use sha2::{Digest, Sha256};

use crate::host::{Host, Update};
use crate::time::UnixTime;

/// Uses that one owner's list holds: six assertions a second over their lifetime. When full, the answer is no.
const MAX_IN_LIST: usize = 4096;
const DIGEST_LENGTH: usize = 16;
const ENTRY_LENGTH: usize = DIGEST_LENGTH + 8;

/// One use of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    owner: [u8; DIGEST_LENGTH],
    digest: [u8; DIGEST_LENGTH],
    now: UnixTime,
    /// From when on it could not be used anyway.
    expires_at: UnixTime,
}

impl Use {
    /// The use of `id` by `owner` at `now`.
    pub fn new(owner: &str, id: &str, now: UnixTime, expires_at: UnixTime) -> Self {
        Self { owner: digest_of(owner), digest: digest_of(id), now, expires_at }
    }

    /// Whether it is the first, in all threads.
    pub fn is_first(&self, host: &dyn Host) -> bool {
        host.update(&self.shared_name(), &mut |list| self.note_in(list)) == Update::Changed
    }

    fn shared_name(&self) -> String {
        format!("apexmcp/used/2/{}", hex::encode(self.owner))
    }

    /// The owner's list with this use noted; `None` where it was noted before, or there is no room.
    fn note_in(&self, list: &[u8]) -> Option<Vec<u8>> {
        let mut noted = Vec::with_capacity(list.len().saturating_add(ENTRY_LENGTH));
        for entry in list.chunks_exact(ENTRY_LENGTH) {
            let (digest, expires_at) = entry.split_first_chunk::<DIGEST_LENGTH>()?;
            let expires_at = UnixTime::from_millis(u64::from_le_bytes(expires_at.try_into().ok()?));
            if self.now < expires_at {
                if *digest == self.digest {
                    return None;
                }
                noted.extend_from_slice(entry);
            }
        }
        if noted.len() >= MAX_IN_LIST.saturating_mul(ENTRY_LENGTH) {
            return None;
        }
        noted.extend_from_slice(&self.digest);
        noted.extend_from_slice(&self.expires_at.as_millis().to_le_bytes());
        Some(noted)
    }
}

fn digest_of(text: &str) -> [u8; DIGEST_LENGTH] {
    let mut digest = [0; DIGEST_LENGTH];
    digest.iter_mut().zip(Sha256::digest(text)).for_each(|(to, from)| *to = from);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(id: &str, now: u64) -> Use {
        Use::new("client", id, UnixTime::from_secs(now), UnixTime::from_secs(100))
    }

    #[test]
    fn once_and_no_more_until_it_expired() {
        let list = usage("a", 1).note_in(&[]).unwrap();
        assert_eq!(usage("a", 99).note_in(&list), None);
        let list = usage("b", 99).note_in(&list).unwrap();
        assert_eq!(list.len(), 2 * ENTRY_LENGTH);
        assert_eq!(usage("c", 100).note_in(&list).unwrap().len(), ENTRY_LENGTH, "what expired makes room");
    }

    #[test]
    fn a_full_list_answers_no() {
        let mut list = Vec::new();
        for index in 0..4096 {
            list = usage(&index.to_string(), 1).note_in(&list).unwrap();
        }
        assert_eq!(usage("one more", 1).note_in(&list), None);
    }

    #[test]
    fn owners_do_not_share_lists() {
        let of = |owner| Use::new(owner, "id", UnixTime::default(), UnixTime::default()).shared_name();
        assert_ne!(of("a"), of("b"));
    }
}
