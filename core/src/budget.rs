//! One budget for everything that a worker holds: requests that wait, and lists that are cut. It counts places and bytes.
//!
//! A client can make a worker hold a request by sending only its head. Over HTTP/2 a head of 55 KB costs about 100 bytes
//! on the wire (RFC 7541 §6.1, an indexed field that is repeated), so the budget counts the bytes that Envoy keeps, not the
//! bytes that were sent. Without this bound, 30,000 such heads took Envoy from 128 MB to 6 GB and ended every module.
//!
//! Each hold is charged to an [`Account`], and no account can have more than its share. If a request does not fit in:
//!
//! - A request that waits for its own client replaces the oldest such request of the account. That one is answered at once.
//!   A client that sends its body promptly is therefore always served, however many other clients send none.
//! - A request that waits for anything else is refused.
//!
//! When the whole budget is full, the largest account loses its oldest holds, unless the new request belongs to it. So an
//! attacker with many requests takes no place from an org with few.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use crate::jwks::KeySetId;
use crate::names::OrgName;

/// A number of held requests and lists (places), and of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    places: usize,
    bytes: usize,
}

/// The budget of a worker. A place costs Envoy about 20 KB for the stream, and perhaps a connection. A module traps at
/// 1 GiB of memory. Envoy's memory grows by about twice the bytes that are charged here.
const TOTAL: Amount = Amount { places: 8_192, bytes: 160 << 20 };

/// The share of one org: an eighth of the places. Eight of the longest lists that are cut (4 MiB) fit into its bytes.
const SHARE_OF_ORG: Amount = Amount { places: 1_024, bytes: 32 << 20 };

/// The share of one org in questions to the rate limit service. A service that answers 1,280 questions a second answers
/// 128 within the default timeout of 100 ms. With more, the questions of a burst could time out, and `on_error: allow`
/// would admit its requests.
const SHARE_OF_QUESTIONS: Amount = Amount { places: 128, bytes: 32 << 20 };

/// The share of one key set, and of each account for all orgs: a quarter of the places. Several orgs may use one key
/// set, and none of them can take the whole share.
const SHARE_OF_MANY: Amount = Amount { places: 2_048, bytes: 48 << 20 };

/// Maximum of the holds that were given up but not answered yet. The next tick answers them, after 20 ms at most.
const MAX_GIVEN_UP: Amount = Amount { places: 2_048, bytes: 32 << 20 };

/// Maximum of all lists that are cut. They are never given up, so they must leave room for requests.
const TOTAL_OF_LISTS: Amount = Amount { places: 4_096, bytes: 80 << 20 };

/// Bytes that each hold is charged for Envoy's own record of the stream, in addition to the bytes that the client sent.
const PLACE_BYTES: usize = 4 * 1024;

/// The account that a hold is charged to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// Requests that arrived before the first policy.
    FirstPolicy,
    /// Requests to the token endpoint whose form is incomplete. Anybody can send them.
    TokenEndpoint,
    /// Requests that will be refused as soon as they are complete. Anybody can send them.
    Refused,
    /// Requests with a token of this org's providers that is not verified yet. Anybody can send them, so they are not
    /// charged to the org itself.
    Unverified(OrgName),
    /// Requests of this org with a valid credential.
    Org(OrgName),
    /// Lists of this org that are cut. They are never given up: a list that was given up could only notice it when more of it
    /// arrives.
    Lists(OrgName),
    /// Requests of this org that wait for the rate limit service.
    Questions(OrgName),
}

impl Account {
    const fn is_of_lists(&self) -> bool {
        matches!(self, Self::Lists(_))
    }

    const fn share(&self) -> Amount {
        match self {
            Self::FirstPolicy | Self::TokenEndpoint | Self::Refused => SHARE_OF_MANY,
            Self::Unverified(_) | Self::Org(_) | Self::Lists(_) => SHARE_OF_ORG,
            Self::Questions(_) => SHARE_OF_QUESTIONS,
        }
    }
}

/// What a held request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// The rest of the request, which its client sends.
    ForClient,
    /// Something other than the client: a key set, the policy, the rate limit service, a connector.
    ForOthers,
}

/// The places and bytes of an account. Each of its holds has a clone, so that only a new hold has to look up its account.
type Balance = Rc<Cell<Amount>>;

/// Minimum number of accounts at which empty accounts are removed.
const MIN_PRUNE: usize = 256;

/// The budget of a worker. Clones share one ledger.
#[derive(Clone, Debug, Default)]
pub struct Budget(Rc<RefCell<Ledger>>);

#[derive(Debug, Default)]
struct Ledger {
    total: Amount,
    /// The balance of each account. Empty accounts stay until [`Ledger::balance`] removes them.
    accounts: HashMap<Account, Balance>,
    /// Number of accounts at which empty accounts are removed.
    prune_at: usize,
    key_sets: HashMap<KeySetId, Amount>,
    given_up: Amount,
    /// The part of `total` that lists have.
    lists: Amount,
    /// The holds, oldest first. Those that have ended stay until [`Ledger::forget_ended`] removes them.
    holds: VecDeque<Rc<Entry>>,
    /// Number of `holds` that have ended.
    ended: usize,
}

/// One hold in the ledger.
#[derive(Debug)]
struct Entry {
    account: Account,
    balance: Balance,
    key_set: Option<KeySetId>,
    waits: Waits,
    /// Bytes of the head, with [`PLACE_BYTES`].
    head: usize,
    /// Bytes of the body that have arrived.
    body: Cell<usize>,
    is_given_up: Cell<bool>,
    /// Whether the hold was given up or dropped.
    has_ended: Cell<bool>,
}

/// A held request or list. Dropping the value returns its place and its bytes to the budget.
#[derive(Debug)]
pub struct Hold {
    budget: Budget,
    entry: Rc<Entry>,
}

impl Budget {
    /// Holds a request whose head has `head` bytes. Returns `None` if the budget has no room for it.
    pub fn hold(&self, account: Account, waits: Waits, head: usize) -> Option<Hold> {
        self.open(account, None, waits, head)
    }

    /// Like [`Budget::hold`], for a request that waits for `key_set`.
    pub fn hold_for_key_set(&self, org: OrgName, key_set: KeySetId, head: usize) -> Option<Hold> {
        self.open(Account::Unverified(org), Some(key_set), Waits::ForOthers, head)
    }

    /// Whether a hold was given up but is not dropped yet.
    pub fn has_given_up(&self) -> bool {
        self.0.borrow().given_up.places > 0
    }

    fn open(&self, account: Account, key_set: Option<KeySetId>, waits: Waits, head: usize) -> Option<Hold> {
        let mut ledger = self.0.borrow_mut();
        let entry = Entry {
            balance: ledger.balance(&account),
            account,
            key_set,
            waits,
            head: head.saturating_add(PLACE_BYTES),
            body: Cell::new(0),
            is_given_up: Cell::new(false),
            has_ended: Cell::new(false),
        };
        let amount = entry.amount();
        if !ledger.make_room(&entry, amount) {
            return None;
        }
        let entry = Rc::new(entry);
        ledger.add(&entry, amount);
        ledger.holds.push_back(Rc::clone(&entry));
        drop(ledger);
        Some(Hold { budget: self.clone(), entry })
    }

    /// Whether nothing is held.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        let ledger = self.0.borrow();
        let nothing = Amount::default();
        ledger.total == nothing
            && ledger.given_up == nothing
            && ledger.lists == nothing
            && ledger.accounts.values().all(|balance| balance.get() == nothing)
            && ledger.key_sets.is_empty()
    }
}

impl Hold {
    /// Sets the size of the body to `bytes`. If the budget has no room for them, the hold is given up.
    pub fn set_body(&self, bytes: usize) {
        if !self.try_set_body(bytes) && !self.is_given_up() {
            self.budget.0.borrow_mut().give_up(&self.entry);
        }
    }

    /// Like [`Hold::set_body`], but if the budget has no room, the hold stays unchanged and the result is false.
    pub fn try_set_body(&self, bytes: usize) -> bool {
        let before = self.entry.body.get();
        if self.entry.is_given_up.get() || bytes == before {
            return !self.entry.is_given_up.get();
        }
        let mut ledger = self.budget.0.borrow_mut();
        if let Some(more) = bytes.checked_sub(before) {
            let more = Amount { places: 0, bytes: more };
            let has_room = ledger.make_room(&self.entry, more);
            // To make room, the budget gives up the oldest hold, which may be this one.
            if !has_room || self.entry.is_given_up.get() {
                return false;
            }
            ledger.add(&self.entry, more);
        } else {
            ledger.subtract(&self.entry, Amount { places: 0, bytes: before.saturating_sub(bytes) });
        }
        self.entry.body.set(bytes);
        true
    }

    /// Bytes of the head and the body.
    pub fn bytes(&self) -> usize {
        self.entry.amount().bytes.saturating_sub(PLACE_BYTES)
    }

    /// Whether the hold must end now, because the budget gave its place to another request.
    pub fn is_given_up(&self) -> bool {
        self.entry.is_given_up.get()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut ledger = self.budget.0.borrow_mut();
        let amount = self.entry.amount();
        if self.entry.is_given_up.get() {
            ledger.given_up = ledger.given_up.minus(amount);
        } else {
            ledger.end(&self.entry);
            ledger.subtract(&self.entry, amount);
        }
    }
}

impl Entry {
    fn amount(&self) -> Amount {
        Amount { places: 1, bytes: self.head.saturating_add(self.body.get()) }
    }
}

impl Ledger {
    /// Makes room for `more` of `entry`. Returns false if that is not possible.
    fn make_room(&mut self, entry: &Entry, more: Amount) -> bool {
        if self.given_up.exceeds(MAX_GIVEN_UP) || more.exceeds(entry.account.share()) {
            return false;
        }
        if entry.account.is_of_lists() && self.lists.plus(more).exceeds(TOTAL_OF_LISTS) {
            return false;
        }
        if let Some(key_set) = entry.key_set {
            let has = self.key_sets.get(&key_set).copied().unwrap_or_default();
            if has.plus(more).exceeds(SHARE_OF_MANY) {
                return false;
            }
        }
        while entry.balance.get().plus(more).exceeds(entry.account.share()) {
            if !self.give_up_oldest(|other| {
                entry.waits == Waits::ForClient && other.waits == entry.waits && other.account == entry.account
            }) {
                return false;
            }
        }
        while self.total.plus(more).exceeds(TOTAL) {
            let is_for_places = self.total.plus(more).places > TOTAL.places;
            let size = |amount: &Amount| if is_for_places { amount.places } else { amount.bytes };
            let largest = self
                .accounts
                .iter()
                .filter(|(account, _)| !account.is_of_lists())
                .map(|(account, balance)| (account, size(&balance.get())))
                .max_by_key(|(_, size)| *size)
                .map(|(account, size)| (account.clone(), size));
            let Some((largest, its_size)) = largest else { return false };
            if its_size <= size(&entry.balance.get().plus(more)) || !self.give_up_oldest(|other| other.account == largest) {
                return false;
            }
        }
        true
    }

    /// The balance of this account. Names of orgs do not accumulate: if there are many accounts, the empty ones are removed.
    fn balance(&mut self, account: &Account) -> Balance {
        if let Some(balance) = self.accounts.get(account) {
            return Rc::clone(balance);
        }
        if self.accounts.len() >= self.prune_at {
            self.accounts.retain(|_, balance| balance.get() != Amount::default());
            self.prune_at = self.accounts.len().saturating_mul(2).max(MIN_PRUNE);
        }
        Rc::clone(self.accounts.entry(account.clone()).or_default())
    }

    /// Gives up the oldest hold that is `eligible`. Returns false if there is none.
    fn give_up_oldest(&mut self, eligible: impl Fn(&Entry) -> bool) -> bool {
        let oldest = self.holds.iter().find(|entry| !entry.has_ended.get() && eligible(entry)).map(Rc::clone);
        oldest.is_some_and(|oldest| {
            self.give_up(&oldest);
            true
        })
    }

    fn give_up(&mut self, entry: &Entry) {
        entry.is_given_up.set(true);
        self.end(entry);
        self.subtract(entry, entry.amount());
        self.given_up = self.given_up.plus(entry.amount());
    }

    fn end(&mut self, entry: &Entry) {
        entry.has_ended.set(true);
        self.ended = self.ended.saturating_add(1);
        self.forget_ended();
    }

    /// Removes holds that have ended: those at the front, and all others when they are more than half. So the queue is at
    /// most twice as long as the number of holds, and an end costs the same whatever that number is.
    fn forget_ended(&mut self) {
        while self.holds.pop_front_if(|entry| entry.has_ended.get()).is_some() {
            self.ended = self.ended.saturating_sub(1);
        }
        if self.ended > self.holds.len() / 2 {
            self.holds.retain(|entry| !entry.has_ended.get());
            self.ended = 0;
        }
    }

    fn add(&mut self, entry: &Entry, amount: Amount) {
        self.total = self.total.plus(amount);
        if entry.account.is_of_lists() {
            self.lists = self.lists.plus(amount);
        }
        entry.balance.set(entry.balance.get().plus(amount));
        if let Some(key_set) = entry.key_set {
            let key_set = self.key_sets.entry(key_set).or_default();
            *key_set = key_set.plus(amount);
        }
    }

    fn subtract(&mut self, entry: &Entry, amount: Amount) {
        self.total = self.total.minus(amount);
        if entry.account.is_of_lists() {
            self.lists = self.lists.minus(amount);
        }
        entry.balance.set(entry.balance.get().minus(amount));
        if let Some(key_set) = entry.key_set
            && let Some(has) = self.key_sets.get_mut(&key_set)
        {
            *has = has.minus(amount);
            if *has == Amount::default() {
                self.key_sets.remove(&key_set);
            }
        }
    }
}

impl Amount {
    const fn plus(self, other: Self) -> Self {
        Self { places: self.places.saturating_add(other.places), bytes: self.bytes.saturating_add(other.bytes) }
    }

    const fn minus(self, other: Self) -> Self {
        Self { places: self.places.saturating_sub(other.places), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    const fn exceeds(self, limit: Self) -> bool {
        self.places > limit.places || self.bytes > limit.bytes
    }
}

#[cfg(test)]
mod tests;
