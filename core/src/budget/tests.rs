use super::*;
use proptest::prelude::*;

fn org(name: &str) -> Account {
    Account::Org(OrgName::parse(name).unwrap())
}

fn lists_of(name: &str) -> Account {
    Account::Lists(OrgName::parse(name).unwrap())
}

fn held(budget: &Budget, account: &Account, waits: Waits, count: usize) -> Vec<Hold> {
    (0..count).map_while(|_| budget.hold(account.clone(), waits, 0)).collect()
}

#[test]
fn holds_that_ended_do_not_accumulate_behind_an_old_one() {
    let budget = Budget::default();
    let _oldest = budget.hold(org("slow"), Waits::ForOthers, 0).unwrap();
    for _ in 0..10_000 {
        assert!(budget.hold(org("busy"), Waits::ForOthers, 0).is_some());
        let ledger = budget.0.borrow();
        assert!(ledger.holds.len() <= 2, "{} holds, {} of them ended", ledger.holds.len(), ledger.ended);
    }
}

#[test]
fn an_account_cannot_exceed_its_share_of_places() {
    let budget = Budget::default();
    for (account, share) in [
        (Account::FirstPolicy, 2_048),
        (Account::TokenEndpoint, 2_048),
        (Account::Refused, 2_048),
        (Account::Unverified(OrgName::parse("a").unwrap()), 1_024),
        (org("a"), 1_024),
        (Account::Questions(OrgName::parse("a").unwrap()), 128),
    ] {
        let mut holds = held(&budget, &account, Waits::ForOthers, 10_000);
        assert_eq!(holds.len(), share, "{account:?}");
        holds.pop();
        assert!(budget.hold(account.clone(), Waits::ForOthers, 0).is_some(), "{account:?}: a free place can be taken");
    }
    assert!(budget.is_empty());
}

#[test]
fn empty_accounts_do_not_accumulate() {
    let budget = Budget::default();
    let kept = budget.hold(org("kept"), Waits::ForOthers, 0).unwrap();
    for number in 0..10_000 {
        assert!(budget.hold(org(&format!("org-{number}")), Waits::ForOthers, 0).is_some());
        assert!(budget.0.borrow().accounts.len() <= MIN_PRUNE);
    }
    assert!(Rc::ptr_eq(&budget.0.borrow_mut().balance(&org("kept")), &kept.entry.balance));
    drop(kept);
    let many: Vec<Hold> = (0..2_000).map(|number| budget.hold(org(&number.to_string()), Waits::ForOthers, 0).unwrap()).collect();
    assert!(budget.0.borrow().accounts.len() >= many.len());
    drop(many);
    assert!(budget.is_empty());
}

#[test]
fn an_account_cannot_exceed_its_share_of_bytes() {
    let budget = Budget::default();
    let mib = (1 << 20) - PLACE_BYTES;
    let mut holds: Vec<Hold> = (0..100).map_while(|_| budget.hold(org("a"), Waits::ForOthers, mib)).collect();
    assert_eq!(holds.len(), 32);
    assert!(budget.hold(org("a"), Waits::ForOthers, 0).is_none());
    assert!(budget.hold(org("b"), Waits::ForOthers, mib).is_some(), "another org has its own share");
    holds.pop();
    let hold = budget.hold(org("a"), Waits::ForOthers, 0).unwrap();
    hold.set_body(mib);
    assert!(!hold.is_given_up());
    hold.set_body(0);
    hold.set_body(mib);
    assert!(!hold.is_given_up(), "the returned bytes can be used again");
    hold.set_body(mib + 1);
    assert!(hold.is_given_up());
    assert!(budget.hold(org("a"), Waits::ForOthers, mib).is_some(), "a hold that was given up no longer counts");
    drop((holds, hold));
    assert!(budget.is_empty());
}

#[test]
fn a_request_that_waits_for_its_client_replaces_the_oldest_one() {
    let budget = Budget::default();
    let holds = held(&budget, &Account::TokenEndpoint, Waits::ForClient, 2_048 + 3);
    assert_eq!(holds.len(), 2_048 + 3);
    let given_up: Vec<usize> = (0..holds.len()).filter(|index| holds[*index].is_given_up()).collect();
    assert_eq!(given_up, [0, 1, 2]);
    // A request that waits for anything but its client is not replaced.
    let others = held(&budget, &org("a"), Waits::ForOthers, 1_024);
    assert!(budget.hold(org("a"), Waits::ForClient, 0).is_none());
    assert!(!others.iter().any(Hold::is_given_up));
}

#[test]
fn a_body_that_grows_replaces_the_oldest_ones_too() {
    let budget = Budget::default();
    let holds: Vec<Hold> = (0..32).map(|_| budget.hold(org("a"), Waits::ForClient, 0).unwrap()).collect();
    for hold in &holds {
        hold.set_body((1 << 20) - PLACE_BYTES);
    }
    assert!(!holds.iter().any(Hold::is_given_up));
    holds[31].set_body(3 << 20);
    let given_up = holds.iter().filter(|hold| hold.is_given_up()).count();
    assert!(given_up == 3 && !holds[31].is_given_up(), "{given_up}");
    // The oldest one makes room for itself by ending.
    holds[3].set_body(31 << 20);
    assert!(holds[3].is_given_up());
    drop(holds);
    assert!(budget.is_empty());
}

#[test]
fn a_key_set_has_a_share_that_one_org_cannot_take() {
    let budget = Budget::default();
    let key_set = KeySetId::at(0);
    let of = |name: &str, count: usize| -> Vec<Hold> {
        let org = OrgName::parse(name).unwrap();
        (0..count).map_while(|_| budget.hold_for_key_set(org.clone(), key_set, 0)).collect()
    };
    let first = of("a", 10_000);
    let second = of("b", 10_000);
    assert_eq!((first.len(), second.len()), (1_024, 1_024));
    assert!(of("c", 1).is_empty(), "the key set has no more");
    drop(first);
    assert_eq!(of("c", 1).len(), 1);
}

#[test]
fn a_full_budget_takes_from_the_largest() {
    let budget = Budget::default();
    let orgs: Vec<Account> = (0..8).map(|number| org(&format!("org-{number}"))).collect();
    let mut holds: Vec<Vec<Hold>> = orgs.iter().map(|org| held(&budget, org, Waits::ForOthers, 1_024)).collect();
    assert_eq!(holds.iter().map(Vec::len).sum::<usize>(), TOTAL.places);
    // An account that is as large gets no more places.
    assert!(budget.hold(orgs[0].clone(), Waits::ForOthers, 0).is_none());
    // A smaller account gets a place, and the largest account loses its oldest hold.
    let newcomers = held(&budget, &org("small"), Waits::ForOthers, 10);
    assert_eq!(newcomers.len(), 10);
    let given_up = holds.iter().flatten().filter(|hold| hold.is_given_up()).count();
    assert_eq!(given_up, 10);
    assert!(!newcomers.iter().any(Hold::is_given_up));
    holds.clear();
    drop(newcomers);
    assert!(budget.is_empty());
}

#[test]
fn lists_leave_room_for_requests() {
    let budget = Budget::default();
    let mib = (1 << 20) - PLACE_BYTES;
    let mut lists = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let mut of_org = Vec::new();
        while let Some(list) = budget.hold(lists_of(name), Waits::ForOthers, 0) {
            if of_org.len() == 40 || !list.try_set_body(mib) {
                break;
            }
            of_org.push(list);
        }
        lists.push(of_org);
    }
    assert_eq!(lists.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 16, 0]);
    assert!(!lists.iter().flatten().any(Hold::is_given_up), "a list is never given up");
    // If the whole budget is full, a new request takes the place of other requests.
    let large = |name: &str| {
        let account = org(name);
        (0..40).map_while(|_| budget.hold(account.clone(), Waits::ForOthers, mib)).collect::<Vec<Hold>>()
    };
    let requests: Vec<Vec<Hold>> = ["w", "x", "y"].map(large).into();
    assert!(budget.hold(org("z"), Waits::ForOthers, mib).is_some());
    assert!(!lists.iter().flatten().any(Hold::is_given_up), "a list is never given up");
    assert!(requests.iter().flatten().any(Hold::is_given_up));
    drop(requests);
    assert_eq!(held(&budget, &Account::TokenEndpoint, Waits::ForClient, 2_048).len(), 2_048);
    assert!(!lists[0][0].try_set_body(40 << 20) && !lists[0][0].is_given_up());
    drop(lists);
    assert!(budget.is_empty());
}

#[test]
fn holds_that_were_given_up_are_limited_too() {
    let budget = Budget::default();
    let holds = held(&budget, &Account::Refused, Waits::ForClient, 100_000);
    assert_eq!(holds.len(), 2_048 + MAX_GIVEN_UP.places + 1);
    drop(holds);
    assert!(budget.is_empty());
}

proptest! {
    /// For any sequence of new, growing and ended holds, no limit is exceeded, and everything is returned at the end.
    #[test]
    fn limits_hold(actions in prop::collection::vec((0_u8..6, 0_usize..12, 0_usize..(4 << 20)), 1..600)) {
        let budget = Budget::default();
        let mut holds: Vec<Hold> = Vec::new();
        for (kind, which, bytes) in actions {
            let account = match which {
                0 => Account::FirstPolicy,
                1 => Account::TokenEndpoint,
                2 => Account::Refused,
                number => org(&number.to_string()),
            };
            match kind {
                0 | 1 => holds.extend(budget.hold(account, Waits::ForClient, bytes)),
                2 if bytes % 2 == 0 => holds.extend(budget.hold(lists_of(&which.to_string()), Waits::ForOthers, bytes)),
                2 => holds.extend(budget.hold(account, Waits::ForOthers, bytes)),
                3 => holds.extend(budget.hold_for_key_set(OrgName::parse("k").unwrap(), KeySetId::at(which), bytes)),
                4 => if let Some(hold) = holds.get(which) { hold.set_body(bytes) },
                _ => if which < holds.len() { holds.remove(which); },
            }
            let ledger = budget.0.borrow();
            prop_assert!(!ledger.total.exceeds(TOTAL) && !ledger.lists.exceeds(TOTAL_OF_LISTS));
            for (account, amount) in &ledger.accounts {
                prop_assert!(!amount.get().exceeds(account.share()));
            }
            let live = holds.iter().filter(|hold| !hold.is_given_up());
            let expected = live.fold(Amount::default(), |sum, hold| sum.plus(hold.entry.amount()));
            prop_assert_eq!(ledger.total, expected);
        }
        holds.clear();
        prop_assert!(budget.is_empty());
    }
}
