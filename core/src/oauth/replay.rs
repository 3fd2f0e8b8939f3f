//! Detects replays: the `jti` of a client assertion may be used once (RFC 7523 §3 item 7), in all threads of an Envoy.
//!
//! Shared data cannot be deleted. So each client (the owner) has one value: a bounded list of digests with their expiry,
//! and the latest expiry of the uses that were removed from the list. Each write prunes the list. Owners are configured,
//! so their number is bounded. Only assertions with a valid signature are noted, so an owner can fill only its own list.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::host::{Host, Update};
use crate::time::UnixTime;

/// Maximum number of unexpired uses of one owner: six assertions a second over their lifetime. A full list refuses more.
const MAX_IN_LIST: usize = 4096;
/// Maximum number of expired uses of one owner. They stay in the list because the clock may be set back: their assertions
/// could then be used again.
const MAX_OVER: usize = 256;
const DIGEST_LENGTH: usize = 16;
const MOMENT_LENGTH: usize = 8;
const ENTRY_LENGTH: usize = DIGEST_LENGTH + MOMENT_LENGTH;

/// One use of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    owner: [u8; DIGEST_LENGTH],
    digest: [u8; DIGEST_LENGTH],
    now: UnixTime,
    /// The id cannot be used from this time on.
    expires_at: UnixTime,
    /// Maximum time from `now` to `expires_at`.
    longest: Duration,
}

impl Use {
    /// The use of `id` by `owner` at `now`. `longest` is the maximum time from `now` to `expires_at`.
    pub fn new(owner: &str, id: &str, now: UnixTime, expires_at: UnixTime, longest: Duration) -> Self {
        Self { owner: digest_of(owner), digest: digest_of(id), now, expires_at, longest }
    }

    /// Notes the use, and returns whether it is the first one in all threads. False if the list of the owner is full.
    pub fn is_first(&self, host: &dyn Host) -> bool {
        host.update(&self.shared_name(), &mut |list| self.note_in(list)) == Update::Changed
    }

    fn shared_name(&self) -> String {
        format!("apexmcp/used/3/{}", hex::encode(self.owner))
    }

    /// The list of the owner with this use added. `None` if the use was noted before, or could have been, or the list is
    /// full.
    fn note_in(&self, list: &[u8]) -> Option<Vec<u8>> {
        let (forgotten, list) = list.split_first_chunk().unwrap_or((&[0; MOMENT_LENGTH], &[]));
        // The latest expiry of the uses that were removed. A use that expires by then may have been one of them.
        let mut forgotten = UnixTime::from_millis(u64::from_le_bytes(*forgotten));
        if self.expires_at <= forgotten && forgotten.is_ahead(self.now, self.longest) {
            return None;
        }
        let (mut live, mut over) = (0_usize, 0_usize);
        for entry in list.chunks_exact(ENTRY_LENGTH) {
            let (digest, expires_at) = split(entry)?;
            if self.now >= expires_at {
                over = over.saturating_add(1);
            } else if digest == self.digest {
                return None;
            } else {
                live = live.saturating_add(1);
            }
        }
        if live >= MAX_IN_LIST {
            return None;
        }
        let mut to_forget = over.saturating_sub(MAX_OVER);
        let mut noted = Vec::with_capacity(list.len().saturating_add(ENTRY_LENGTH));
        for entry in list.chunks_exact(ENTRY_LENGTH) {
            let (_, expires_at) = split(entry)?;
            if to_forget > 0 && self.now >= expires_at {
                to_forget = to_forget.saturating_sub(1);
                forgotten = forgotten.max(expires_at);
            } else {
                noted.extend_from_slice(entry);
            }
        }
        noted.extend_from_slice(&self.digest);
        noted.extend_from_slice(&self.expires_at.as_millis().to_le_bytes());
        Some([forgotten.as_millis().to_le_bytes().as_slice(), &noted].concat())
    }
}

fn split(entry: &[u8]) -> Option<([u8; DIGEST_LENGTH], UnixTime)> {
    let (digest, expires_at) = entry.split_first_chunk::<DIGEST_LENGTH>()?;
    Some((*digest, UnixTime::from_millis(u64::from_le_bytes(expires_at.try_into().ok()?))))
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
        ending(id, now, 100)
    }

    fn ending(id: &str, now: u64, expires_at: u64) -> Use {
        Use::new("client", id, UnixTime::from_secs(now), UnixTime::from_secs(expires_at), Duration::from_secs(100))
    }

    #[test]
    fn an_id_can_be_used_once_until_it_expires() {
        let mut list = usage("a", 1).note_in(&[]).unwrap();
        assert_eq!(usage("a", 99).note_in(&list), None);
        list = usage("b", 99).note_in(&list).unwrap();
        assert_eq!(list.len(), MOMENT_LENGTH + 2 * ENTRY_LENGTH);
        for index in 0..2 * MAX_OVER {
            let now = 100 + u64::try_from(index).unwrap();
            list = ending(&index.to_string(), now, now + 1).note_in(&list).unwrap();
        }
        assert_eq!(list.len(), MOMENT_LENGTH + (MAX_OVER + 1) * ENTRY_LENGTH, "expired uses make room");
    }

    #[test]
    fn a_used_id_stays_used_when_the_clock_is_set_back() {
        let list = usage("a", 1).note_in(&[]).unwrap();
        let ahead = ending("b", 3_600, 3_650).note_in(&list).unwrap();
        assert_eq!(usage("a", 2).note_in(&ahead), None, "an expired use stays in the list");
        assert!(usage("c", 2).note_in(&ahead).is_some());

        let mut ahead = ahead;
        for index in 0..=MAX_OVER {
            ahead = ending(&index.to_string(), 3_600, 3_600).note_in(&ahead).unwrap();
        }
        assert_eq!(usage("a", 2).note_in(&ahead), None, "the use is forgotten, so the id may have been used");
        assert!(ending("c", 2, 101).note_in(&ahead).is_some(), "no use with a later expiry was forgotten");
        // Forgotten uses that expire in the distant future do not block current ones.
        for index in 0..MAX_OVER {
            ahead = ending(&index.to_string(), 3_700, 3_700).note_in(&ahead).unwrap();
        }
        assert!(ending("e", 150, 200).note_in(&ahead).is_some());
    }

    #[test]
    fn a_full_list_refuses_more_uses() {
        let mut list = Vec::new();
        for index in 0..4096 {
            list = usage(&index.to_string(), 1).note_in(&list).unwrap();
        }
        assert_eq!(usage("one more", 1).note_in(&list), None);
    }

    #[test]
    fn owners_do_not_share_lists() {
        let of = |owner| Use::new(owner, "id", UnixTime::default(), UnixTime::default(), Duration::ZERO).shared_name();
        assert_ne!(of("a"), of("b"));
    }
}
