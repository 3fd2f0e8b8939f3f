//! Limits how many fetches of key sets are in flight, in all threads of an Envoy together.
//!
//! Envoy buffers up to 32 MiB of each answer to a callout, and a module can neither lower that limit for one callout nor
//! cancel it. If an organization's identity providers sent long answers and then hung, they would fill Envoy's memory.
//! So each fetch needs a slot, and each organization has only a few slots.
//!
//! The slots are one value in shared data that threads change by compare-and-swap. A slot has an end, so a thread that
//! dies during a fetch blocks it only until then.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::timing::{CLAIM_MARGIN, MAX_TIMEOUT};
use crate::deadline::Lease;
use crate::host::{Host, Update};
use crate::names::OrgName;
use crate::time::UnixTime;

/// Fetches in flight in an Envoy. Their answers take at most 2 GiB, and only if 32 organizations attack together.
pub(super) const MAX_FETCHES: usize = 64;
/// Fetches in flight that are charged to one organization. Their answers take at most 64 MiB.
pub(super) const MAX_FETCHES_PER_ORG: usize = 2;
/// Time after the end of a fetch in which its organization cannot use the slot again. It limits an organization to 20
/// fetches a second, even if its providers answer at once. A worker needs some milliseconds to read a key set of 256 KiB.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest time for which a slot can be taken. A slot that ends later was taken before the clock was set back.
const LONGEST: Duration = MAX_TIMEOUT.saturating_add(CLAIM_MARGIN);

/// The name of the slots in shared data. It has a version, because an old and a new module may run side by side.
const NAME: &str = "apexmcp/fetch-slots/1";

/// An organization as the slots record it: the first bytes of the SHA-256 of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OrgHash([u8; 8]);

impl OrgHash {
    /// The hash of this organization.
    pub(super) fn of(org: &OrgName) -> Self {
        let digest = Sha256::digest(org.as_str());
        Self(digest.first_chunk().copied().unwrap_or_default())
    }
}

/// Permission for one fetch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FetchSlot {
    org: OrgHash,
    lease: Lease,
}

/// Takes a slot for the time of `lease` and charges it to one of `orgs`: the one with the fewest fetches in flight. Returns `None`
/// if no slot is free, in which case the caller tries again later.
pub(super) fn take(
    orgs: impl Iterator<Item = OrgHash> + Clone,
    lease: Lease,
    now: UnixTime,
    host: &dyn Host,
) -> Option<FetchSlot> {
    let mut charged = None;
    let update = host.update(NAME, &mut |bytes| {
        let mut taken = Taken::read(bytes, now);
        let (org, count) = orgs.clone().map(|org| (org, taken.count(org))).min_by_key(|(_, count)| *count)?;
        if count >= MAX_FETCHES_PER_ORG || taken.in_flight.len() >= MAX_FETCHES {
            return None;
        }
        taken.in_flight.push((org, lease));
        charged = Some(org);
        Some(taken.to_bytes())
    });
    // If other threads wrote at the same time, this update may have written nothing.
    charged.filter(|_| update == Update::Changed).map(|org| FetchSlot { org, lease })
}

/// Releases a slot when its fetch has ended. Other organizations can use it now, its own after [`PAUSE`].
pub(super) fn release(slot: &FetchSlot, now: UnixTime, host: &dyn Host) {
    host.update(NAME, &mut |bytes| {
        let mut taken = Taken::read(bytes, now);
        // Slots of one organization with the same end are interchangeable.
        let index = taken.in_flight.iter().position(|taken| *taken == (slot.org, slot.lease))?;
        taken.in_flight.swap_remove(index);
        taken.paused.push((slot.org, Lease::new(PAUSE, now)));
        Some(taken.to_bytes())
    });
}

/// The slots that are taken, each with its end.
struct Taken {
    in_flight: Vec<(OrgHash, Lease)>,
    paused: Vec<(OrgHash, Lease)>,
}

impl Taken {
    /// The slots that are still taken at `now`. Bytes in another form count as no slots.
    fn read(bytes: &[u8], now: UnixTime) -> Self {
        let mut taken = Self { in_flight: Vec::new(), paused: Vec::new() };
        for [org, in_flight, paused] in bytes.as_chunks::<8>().0.as_chunks::<3>().0 {
            let [in_flight, paused] =
                [in_flight, paused].map(|end| Lease::until(UnixTime::from_millis(u64::from_le_bytes(*end))));
            if in_flight.is_held(LONGEST, now) {
                taken.in_flight.push((OrgHash(*org), in_flight));
            } else if paused.is_held(PAUSE, now) {
                taken.paused.push((OrgHash(*org), paused));
            }
        }
        taken
    }

    fn to_bytes(&self) -> Vec<u8> {
        let free = [0; 8];
        let bytes = |lease: &Lease| lease.end().as_millis().to_le_bytes();
        let in_flight = self.in_flight.iter().map(|(org, lease)| [org.0, bytes(lease), free]);
        in_flight.chain(self.paused.iter().map(|(org, lease)| [org.0, free, bytes(lease)])).flatten().flatten().collect()
    }

    fn count(&self, org: OrgHash) -> usize {
        self.in_flight.iter().chain(&self.paused).filter(|(charged, _)| *charged == org).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryHost;

    const NOW: UnixTime = UnixTime::from_secs(1_000_000);
    const CLAIM: Duration = Duration::from_secs(6);

    fn org(number: usize) -> OrgHash {
        OrgHash::of(&OrgName::parse(&format!("org-{number}")).unwrap())
    }

    fn take_at(now: UnixTime, orgs: &[OrgHash], host: &MemoryHost) -> Option<FetchSlot> {
        take(orgs.iter().copied(), Lease::new(CLAIM, now), now, host)
    }

    #[test]
    fn an_org_has_two_slots_until_it_releases_one() {
        let host = MemoryHost::default();
        let first = take_at(NOW, &[org(1)], &host).unwrap();
        assert!(take_at(NOW, &[org(1)], &host).is_some());
        assert_eq!(take_at(NOW, &[org(1)], &host), None);
        assert!(take_at(NOW, &[org(2)], &host).is_some(), "another organization is not affected");
        release(&first, NOW, &host);
        assert_eq!(take_at(NOW.plus(Duration::from_millis(99)), &[org(1)], &host), None);
        let after = NOW.plus(PAUSE);
        assert!(take_at(after, &[org(1)], &host).is_some());
        assert_eq!(take_at(after, &[org(1)], &host), None);
    }

    #[test]
    fn all_orgs_together_have_64_slots() {
        let host = MemoryHost::default();
        let mut taken: Vec<FetchSlot> = (0..MAX_FETCHES).map(|number| take_at(NOW, &[org(number)], &host).unwrap()).collect();
        assert_eq!(take_at(NOW, &[org(MAX_FETCHES)], &host), None);
        release(&taken.pop().unwrap(), NOW, &host);
        assert!(take_at(NOW, &[org(MAX_FETCHES)], &host).is_some());
    }

    #[test]
    fn a_fetch_is_charged_to_the_org_with_the_fewest() {
        let host = MemoryHost::default();
        let (attacker, neighbor) = (org(1), org(2));
        let _slots = [(); 2].map(|()| take_at(NOW, &[attacker], &host).unwrap());
        for order in [[attacker, neighbor], [neighbor, attacker]] {
            assert_eq!(take_at(NOW, &order, &host).map(|slot| slot.org), Some(neighbor));
        }
        assert_eq!(take_at(NOW, &[attacker, neighbor], &host), None);
        assert_eq!(take_at(NOW, &[], &host), None, "every fetch is charged to an organization");
    }

    #[test]
    fn a_slot_ends_when_its_thread_died_or_the_clock_was_set_back() {
        let host = MemoryHost::default();
        let dead = [(); 2].map(|()| take_at(NOW, &[org(1)], &host).unwrap());
        assert_eq!(take_at(NOW.plus(Duration::from_millis(5999)), &[org(1)], &host), None);
        let after = NOW.plus(CLAIM);
        let _slots = [(); 2].map(|()| take_at(after, &[org(1)], &host).unwrap());
        release(&dead[0], after, &host);
        assert_eq!(take_at(after, &[org(1)], &host), None, "a late release frees only its own slot");
        assert!(take_at(NOW.minus(Duration::from_secs(3600)), &[org(1)], &host).is_some());
    }

    #[test]
    fn unreadable_slots_count_as_none_and_contention_as_full() {
        let host = MemoryHost::default();
        host.update(NAME, &mut |_| Some(vec![0xff; 71]));
        assert!(take_at(NOW, &[org(1)], &host).is_some());
        assert_eq!(take_at(NOW, &[org(1)], &MemoryHost::contended()), None);
    }
}
