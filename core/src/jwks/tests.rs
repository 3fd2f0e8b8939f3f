//! Threads that share key sets, and everything that can happen to a fetch. The file is long because all tests use the same
//! model of threads.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::record::{BACKOFF, Record};
use super::set::MAX_ORGS;
use super::*;
use crate::host::Host;
use crate::jose::jwk::KeyHint;
use crate::names::OrgName;
use crate::testing::{self, MemoryHost};
use crate::time::UnixTime;

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
    assert!(matches!(threads.set(2).lookup(at(2), &TIMING), Lookup::Keys(keys, _) if keys.candidates(Some("a")).count() == 1));
    assert_eq!(threads.tick(at(301)), 0);
    assert_eq!(threads.tick(at(302)), 1, "the refresh interval is over");
}

/// A worker that fetches nothing itself, and a thread that fetches for it and has no key sets of its own.
#[test]
fn a_thread_fetches_what_another_thread_wishes() {
    let mut threads = Threads::new(1);
    let mut fetcher = KeySets::default();
    let mut fetch = |threads: &mut Threads, now: UnixTime| {
        let wish = threads.sets[0].follow(SET, now, &TIMING, &threads.host).unwrap()?;
        fetcher.take_over(wish);
        let due = fetcher.sync_due(now, &TIMING);
        let fetch = due.into_iter().find_map(|id| fetcher.sync(id, now, &TIMING, &threads.host).unwrap());
        Some(fetch.map(|fetch| {
            assert_eq!(fetcher.get(fetch.key_set).unwrap().uri().as_str(), "https://idp/keys");
            let keys = testing::jwk_set(&["a"]);
            assert!(threads.sets[0].follow(SET, now, &TIMING, &threads.host).unwrap().is_none(), "it is claimed");
            fetcher.finish(&fetch, Some(&keys), now, &TIMING, &threads.host).unwrap();
        }))
    };
    assert!(matches!(threads.set(0).lookup(START, &TIMING), Lookup::Pending));
    assert_eq!(fetch(&mut threads, START), Some(Some(())), "the first fetch");
    assert_eq!(fetch(&mut threads, at(1)), None, "nothing is due");
    assert!(threads.serves(0, at(1)));

    // A token names an unknown key. The name goes along, so that it is known to be absent afterwards.
    let unknown = KeyName::new("unknown");
    assert!(threads.set(0).request_key(unknown, at(2), &TIMING));
    assert_eq!(fetch(&mut threads, at(2)), Some(Some(())), "the fetch for the unknown key");
    assert_eq!(fetch(&mut threads, at(3)), None);
    assert!(threads.set(0).absent.contains(unknown));
    assert!(!threads.set(0).request_key(unknown, at(3), &TIMING), "the key is known to be absent");
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
    assert_eq!(threads.set(1).retry_after_failure(at(3)), Some(BACKOFF.longest));
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
    assert_eq!(ask("next", 25, &["current"]), (false, 0), "configuration.md: one cool-down");
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
    assert!(matches!(threads.set(0).lookup(at(3600), &TIMING), Lookup::Unavailable(wait) if wait == BACKOFF.longest));
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
