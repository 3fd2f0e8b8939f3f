//! What one thread counted and has not reported yet.

use std::collections::{BTreeMap, HashMap};

use crate::names::OrgName;
use crate::principal::{Attribute, Method, Principal};
use crate::reason::Reason;
use crate::time::UnixTime;

/// Maximum number of credentials that a thread counts separately until they are reported. The requests of others count for their
/// org alone. A count takes about 200 bytes.
const MAX_NAMES: usize = 20_000;
/// Maximum number of hours that are counted separately while no report arrives.
const MAX_HOURS: usize = 24;
/// The name, after that of its org, for credentials beyond the limit.
const OTHER: &str = "/other";
/// Seconds in an hour.
const HOUR: u64 = 3_600;
/// Seconds in a minute.
const MINUTE: u64 = 60;

/// The counts of one credential, or of the refusals of an org without a known credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Admitted requests.
    pub allowed: u64,
    /// Refused requests by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// The minute of the last admitted request, in seconds since the epoch. Zero: there is none.
    pub last_used: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.allowed = self.allowed.saturating_add(other.allowed);
        other.refused.into_iter().for_each(|(reason, count)| self.refuse(reason, count));
        self.last_used = self.last_used.max(other.last_used);
    }

    fn note(&mut self, refused: Option<Reason>, now: UnixTime) {
        match refused {
            None => {
                self.allowed = self.allowed.saturating_add(1);
                let second = now.as_secs();
                self.last_used = second.saturating_sub(second % MINUTE);
            }
            Some(reason) => self.refuse(reason.word(), 1),
        }
    }

    /// A credential is refused for few reasons.
    fn refuse(&mut self, reason: &'static str, count: u64) {
        match self.refused.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, sum)) => *sum = sum.saturating_add(count),
            None => self.refused.push((reason, count)),
        }
    }
}

/// The counts of one hour, by name: a credential is `<org>/key/<id>`, `<org>/client/<id>`, `<org>/idp/<issuer>` or `<org>/other`.
/// The refusals of an org without a known credential have the name `<org>`.
pub type Names = HashMap<Box<str>, Count>;

/// The counts of one thread, by hour.
#[derive(Debug, Default)]
pub struct Counts {
    hours: BTreeMap<u64, Names>,
}

impl Counts {
    /// Counts a decided request of a known credential. `refused` is the reason of a refusal.
    pub fn of_principal(&mut self, principal: &Principal, refused: Option<Reason>, now: UnixTime) {
        let name = credential(principal);
        let is_full = self.is_full();
        let names = self.names_of(now.as_secs() / HOUR);
        // Almost every request finds its name, without an allocation.
        match names.get_mut(name) {
            Some(count) => count.note(refused, now),
            None => names.entry(kept(name, is_full)).or_default().note(refused, now),
        }
    }

    /// Counts a refusal without a known credential. Call this only for orgs of the policy, so that the names are bounded.
    pub fn of_org(&mut self, org: &OrgName, refused: Reason, now: UnixTime) {
        self.names_of(now.as_secs() / HOUR).entry(org.as_str().into()).or_default().note(Some(refused), now);
    }

    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.hours.is_empty()
    }

    /// Takes over all counts of another thread.
    pub fn take(&mut self, other: &mut Self) {
        for (hour, names) in std::mem::take(&mut other.hours) {
            for (name, count) in names {
                let is_full = self.is_full();
                let own = self.names_of(hour);
                match own.get_mut(&name) {
                    Some(known) => known.add(count),
                    None => own.entry(kept(&name, is_full)).or_default().add(count),
                }
            }
        }
    }

    /// Takes the oldest hour.
    pub(super) fn take_hour(&mut self) -> Option<(u64, Names)> {
        self.hours.pop_first()
    }

    /// Puts back what did not fit into a report.
    pub(super) fn put_back(&mut self, hour: u64, names: Names) {
        if !names.is_empty() {
            self.hours.insert(hour, names);
        }
    }

    /// Whether there is no memory for more credentials.
    fn is_full(&self) -> bool {
        self.hours.values().map(Names::len).sum::<usize>() >= MAX_NAMES
    }

    /// The counts of an hour. While no report arrives, the requests of later hours count for the last hour that is kept.
    fn names_of(&mut self, hour: u64) -> &mut Names {
        let last = self.hours.keys().next_back().copied();
        let hour = last.filter(|_| self.hours.len() >= MAX_HOURS && !self.hours.contains_key(&hour)).unwrap_or(hour);
        self.hours.entry(hour).or_default()
    }
}

/// The name under which a new credential is counted.
fn kept(name: &str, is_full: bool) -> Box<str> {
    match name.split_once('/') {
        Some((org, _)) if is_full => format!("{org}{OTHER}").into(),
        _ => name.into(),
    }
}

/// The name of the credential: that of the principal, or of the whole identity provider, because users are too many.
fn credential(principal: &Principal) -> &str {
    let name = principal.attribute(Attribute::Principal);
    match principal.method() {
        Method::ApiKey | Method::Oauth => name,
        // The first `#` ends the issuer.
        Method::Byoidp => name.split('#').next().unwrap_or(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Subjects;
    use crate::scope::ScopeSet;
    use std::rc::Rc;
    use std::time::Duration;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn key(id: &str) -> Rc<Principal> {
        Principal::of_api_key(&OrgName::parse("acme").unwrap(), id, ScopeSet::default(), Subjects::default())
    }

    #[test]
    fn requests_count_for_their_credential_and_hour() {
        let mut counts = Counts::default();
        let org = OrgName::parse("acme").unwrap();
        let user = |sub| Principal::of_identity_provider(&org, "https://idp/a#b", sub, ScopeSet::default(), Subjects::default());
        counts.of_principal(&key("k"), None, NOW);
        counts.of_principal(&key("k"), Some(Reason::ScopeInsufficient), NOW);
        counts.of_principal(&user("u#1"), None, NOW);
        counts.of_principal(&user("v"), None, NOW);
        counts.of_org(&org, Reason::ApiKeyUnknown, NOW);
        counts.of_principal(&key("k"), None, UnixTime::from_secs(1_800_003_600));
        let (hour, names) = counts.take_hour().unwrap();
        let count = |allowed, refused: &[(&'static str, u64)], last_used| Count { allowed, refused: refused.to_vec(), last_used };
        let expected = [
            ("acme/key/k", count(1, &[("scope_insufficient", 1)], 1_800_000_000)),
            ("acme/idp/https://idp/a%23b", count(2, &[], 1_800_000_000)),
            ("acme", count(0, &[("api_key_unknown", 1)], 0)),
        ];
        assert_eq!((hour, names), (500_000, expected.map(|(name, count)| (name.into(), count)).into_iter().collect()));
        assert_eq!(counts.take_hour().unwrap().0, 500_001);
        assert!(counts.is_empty());
    }

    #[test]
    fn the_memory_is_bounded_and_no_request_is_lost() {
        let mut counts = Counts::default();
        for number in 0..MAX_NAMES + 10 {
            counts.of_principal(&key(&number.to_string()), None, NOW);
        }
        counts.of_principal(&key("0"), None, NOW);
        let (_, names) = counts.take_hour().unwrap();
        assert_eq!(names.len(), MAX_NAMES + 1);
        assert_eq!((names["acme/other"].allowed, names["acme/key/0"].allowed), (10, 2));
    }

    #[test]
    fn the_memory_is_bounded_while_no_report_arrives() {
        let mut counts = Counts::default();
        let mut sum = 0;
        for hour in 0..30_u64 {
            let mut thread = Counts::default();
            for number in 0..1_000_u64 {
                thread.of_principal(
                    &key(&(1_000 * hour + number).to_string()),
                    None,
                    NOW.plus(Duration::from_secs(3_600 * hour)),
                );
                sum += 1;
            }
            counts.take(&mut thread);
        }
        assert_eq!(counts.hours.len(), MAX_HOURS);
        assert!(counts.hours.values().map(Names::len).sum::<usize>() <= MAX_NAMES + MAX_HOURS);
        let counted: u64 = counts.hours.values().flat_map(Names::values).map(|count| count.allowed).sum();
        assert_eq!(counted, sum, "no request is lost");
    }

    #[test]
    fn threads_add_up() {
        let (mut one, mut other) = (Counts::default(), Counts::default());
        one.of_principal(&key("a"), None, NOW);
        other.of_principal(&key("a"), None, NOW);
        other.of_principal(&key("b"), Some(Reason::RateLimit), NOW);
        one.take(&mut other);
        let (_, names) = one.take_hour().unwrap();
        assert!(other.is_empty() && names["acme/key/a"].allowed == 2 && names["acme/key/b"].refused == [("rate_limit", 1)]);
    }
}
