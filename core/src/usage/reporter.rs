//! Sends what was counted to Settings, each batch exactly once.
//!
//! A batch is sealed with the next number of its sequence, and sent again, byte for byte, until Settings has confirmed it. Settings
//! counts a batch only if its number is new. So a report that is repeated, late or lost on the way counts once.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::counts::{Counts, Names};
use crate::callout;
use crate::host::Host;
use crate::limits::local;
use crate::policy::poll::LogLine;
use crate::time::UnixTime;

/// Maximum number of names in a batch.
const MAX_NAMES: usize = 2_000;
/// Maximum sum of the lengths of the names in a batch, in bytes. Settings reads at most 1 MiB.
const MAX_NAME_BYTES: usize = 256 << 10;
/// Maximum length of an answer, in bytes. It has at most two numbers for each name of a batch.
const MAX_ANSWER_LENGTH: usize = 1 << 20;
/// Time from the first counted request of a thread to its first report. A gateway that was restarted learns the totals of the month
/// from the answer.
const FIRST: Duration = Duration::from_secs(1);

/// The reports of one thread.
#[derive(Debug, Default)]
pub struct Reporter {
    /// The random id. `None` until the first batch.
    gateway: Option<String>,
    sequence: u64,
    counts: Counts,
    sealed: Option<Batch>,
    /// The number of the call that is under way.
    call: Option<u32>,
    due_at: Option<UnixTime>,
    /// Whether the last report failed, so that only the first of several failures is logged.
    is_failing: bool,
}

#[derive(Debug)]
struct Batch {
    body: Box<[u8]>,
    /// The subjects whose totals the answer may have.
    subjects: HashSet<Box<str>>,
}

impl Reporter {
    /// Whether the counts of other threads are wanted now: a report is due.
    pub fn wants_counts(&mut self, has_counts: bool, interval: Duration, now: UnixTime) -> bool {
        if self.call.is_some() {
            return false;
        }
        if self.due_at.is_none() {
            if !has_counts && self.counts.is_empty() && self.sealed.is_none() {
                return false;
            }
            let wait = if self.sequence == 0 { FIRST.min(interval) } else { interval };
            self.due_at = Some(now.plus(wait));
        }
        // If the clock was set back, the report does not wait longer than the interval.
        !self.due_at.is_some_and(|due| due.is_ahead(now, interval))
    }

    /// Takes over the counts of a thread.
    pub fn take(&mut self, counts: &mut Counts) {
        self.counts.take(counts);
    }

    /// The body of the report that is due. `None`: there is nothing to report.
    pub fn body(&mut self, host: &dyn Host) -> Option<&[u8]> {
        self.due_at = None;
        if self.sealed.is_none() {
            self.sealed = self.seal(host);
        }
        self.sealed.as_ref().map(|batch| &*batch.body)
    }

    /// Envoy began the call.
    pub fn sent(&mut self, call: u32) {
        self.call = Some(call);
    }

    /// Envoy did not begin the call. The batch stays.
    pub fn not_sent(&mut self, problem: &str) -> Option<LogLine> {
        self.failed(format!("the usage was not reported: {problem}"))
    }

    /// Whether the call is that of a report.
    pub fn is_of(&self, call: u32) -> bool {
        self.call == Some(call)
    }

    /// Whether an answer of this length is read.
    pub fn is_readable(size: usize) -> bool {
        size <= MAX_ANSWER_LENGTH
    }

    /// The call ended. `raises` says whether the monthly totals of this Envoy are in shared data.
    pub fn answered(
        &mut self,
        status: Option<u16>,
        body: &[u8],
        raises: bool,
        now: UnixTime,
        host: &dyn Host,
    ) -> Option<LogLine> {
        self.call = None;
        match status {
            Some(200) => {
                let batch = self.sealed.take()?;
                self.is_failing = false;
                if !self.counts.is_empty() {
                    // The rest of a long batch does not wait.
                    self.due_at = Some(now);
                }
                let totals = serde_json::from_slice::<Value>(body).unwrap_or_default();
                if raises && totals.get("month").and_then(Value::as_str) == Some(&now.month()) {
                    raise(&totals, &batch.subjects, now, host);
                }
                None
            }
            // Settings will never accept this batch.
            Some(status @ (400 | 413)) => {
                self.sealed = None;
                Some(LogLine::Error(format!("a usage report was refused with {status}, and its counts are lost: report this as a bug")))
            }
            Some(status @ (401 | 403 | 404)) => self.failed(format!(
                "Settings refuses usage reports with {status}: compare policy.remote.usage.token_env with APEXMCP_USAGE_TOKEN of 'apexmcp serve'"
            )),
            Some(status) => self.failed(format!("the usage was not reported: {}", callout::unexpected(status))),
            None => self.failed("the usage was not reported: no answer".to_owned()),
        }
    }

    fn failed(&mut self, line: String) -> Option<LogLine> {
        (!std::mem::replace(&mut self.is_failing, true)).then_some(LogLine::Warning(line))
    }

    /// Seals a batch of the oldest hour.
    fn seal(&mut self, host: &dyn Host) -> Option<Batch> {
        if self.gateway.is_none() {
            self.gateway = host.random().map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        let gateway = self.gateway.as_deref()?;
        let (hour, mut rest) = self.counts.take_hour()?;
        let mut bytes = 0_usize;
        let mut fits = |name: &str| {
            bytes = bytes.saturating_add(name.len());
            bytes <= MAX_NAME_BYTES
        };
        let chosen: Vec<Box<str>> = rest.keys().take(MAX_NAMES).take_while(|name| fits(name)).cloned().collect();
        let names: Names = chosen.iter().filter_map(|name| rest.remove_entry(name)).collect();
        self.counts.put_back(hour, rest);
        self.sequence = self.sequence.saturating_add(1);
        let mut orgs = Map::new();
        for (name, count) in &names {
            let refused: Map<String, Value> =
                count.refused.iter().map(|(reason, count)| ((*reason).to_owned(), (*count).into())).collect();
            let (org, is_credential) = name.split_once('/').map_or((&**name, false), |(org, _)| (org, true));
            let report = orgs.entry(org).or_insert_with(|| json!({"credentials": {}, "refused": {}}));
            let last_used = Some(count.last_used).filter(|minute| *minute > 0);
            let counted = json!({"allowed": count.allowed, "refused": refused, "last_used": last_used});
            if !is_credential {
                report
                    .get_mut("refused")
                    .into_iter()
                    .for_each(|of_org| *of_org = counted.get("refused").cloned().unwrap_or_default());
            } else if let Some(credentials) = report.get_mut("credentials").and_then(Value::as_object_mut) {
                credentials.insert(name.to_string(), counted);
            }
        }
        let subjects = orgs.keys().map(|org| format!("org/{org}").into());
        let subjects = subjects.chain(names.keys().filter_map(|name| subject_of_key(name))).collect();
        let body = json!({"gateway": gateway, "sequence": self.sequence, "hour": hour, "orgs": orgs}).to_string();
        Some(Batch { body: body.into_bytes().into(), subjects })
    }
}

/// The subject of limits for an API key with this name. `None`: the name is none of a key.
fn subject_of_key(name: &str) -> Option<Box<str>> {
    let (org, id) = name.split_once("/key/")?;
    Some(format!("key/{org}/{id}").into())
}

/// Raises the counts of this Envoy to the totals of all gateways. They never fall: what this Envoy counted since the report stays.
fn raise(totals: &Value, subjects: &HashSet<Box<str>>, now: UnixTime, host: &dyn Host) {
    let of = |member: &str| totals.get(member).and_then(Value::as_object).into_iter().flatten();
    let orgs = of("orgs").map(|(org, total)| (format!("org/{org}").into(), total));
    let keys = of("keys").filter_map(|(name, total)| Some((subject_of_key(name)?, total)));
    for (subject, total) in orgs.chain(keys).filter(|(subject, _)| subjects.contains(subject)) {
        local::raise(&subject, total.as_u64().unwrap_or_default(), now, host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::local::take_one;
    use crate::limits::{Subject, Subjects};
    use crate::names::OrgName;
    use crate::principal::Principal;
    use crate::reason::Reason;
    use crate::scope::ScopeSet;
    use crate::testing::MemoryHost;
    use serde_json::{Value, json};
    use std::num::NonZeroU32;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const INTERVAL: Duration = Duration::from_secs(30);

    fn counts(id: &str, times: u64) -> Counts {
        let mut counts = Counts::default();
        let key = Principal::of_api_key(&OrgName::parse("acme").unwrap(), id, ScopeSet::default(), Subjects::default());
        (0..times).for_each(|_| counts.of_principal(&key, None, NOW));
        counts
    }

    fn sent(reporter: &mut Reporter, host: &MemoryHost) -> Value {
        let body = serde_json::from_slice(reporter.body(host).unwrap()).unwrap();
        reporter.sent(1);
        body
    }

    #[test]
    fn a_batch_is_sent_until_it_is_confirmed_and_then_the_next_one() {
        let (host, mut reporter) = (MemoryHost::default(), Reporter::default());
        assert!(!reporter.wants_counts(false, INTERVAL, NOW));
        assert!(!reporter.wants_counts(true, INTERVAL, NOW));
        assert!(reporter.wants_counts(true, INTERVAL, NOW.plus(FIRST)), "the first report is early");
        reporter.take(&mut counts("k", 3));
        let first = sent(&mut reporter, &host);
        assert_eq!((&first["sequence"], &first["hour"]), (&json!(1), &json!(500_000)));
        assert_eq!(
            first["orgs"],
            json!({"acme": {"credentials": {"acme/key/k": {"allowed": 3, "refused": {}, "last_used": 1_800_000_000_u64}}, "refused": {}}})
        );
        assert!(reporter.is_of(1) && !reporter.wants_counts(true, INTERVAL, NOW.plus(INTERVAL * 9)));
        assert!(matches!(reporter.answered(None, b"", true, NOW, &host), Some(LogLine::Warning(_))));
        assert_eq!(reporter.answered(Some(503), b"", true, NOW, &host), None, "only the first failure is logged");
        reporter.take(&mut counts("k", 2));
        assert!(!reporter.wants_counts(true, INTERVAL, NOW));
        assert!(reporter.wants_counts(true, INTERVAL, NOW.plus(INTERVAL)));
        assert_eq!(sent(&mut reporter, &host), first, "byte for byte");
        assert_eq!(reporter.answered(Some(200), b"{}", true, NOW, &host), None);
        let second = sent(&mut reporter, &host);
        assert_eq!(
            (&second["sequence"], &second["orgs"]["acme"]["credentials"]["acme/key/k"]["allowed"]),
            (&json!(2), &json!(2))
        );
        assert_eq!(second["gateway"], first["gateway"]);
        reporter.answered(Some(200), b"{}", true, NOW, &host);
        assert_eq!(reporter.body(&host), None);
    }

    #[test]
    fn a_refused_batch_is_dropped_and_a_wrong_token_keeps_it() {
        let (host, mut reporter) = (MemoryHost::default(), Reporter::default());
        reporter.take(&mut counts("k", 1));
        sent(&mut reporter, &host);
        assert!(
            matches!(reporter.answered(Some(401), b"", true, NOW, &host), Some(LogLine::Warning(line)) if line.contains("token_env"))
        );
        assert_eq!(sent(&mut reporter, &host)["sequence"], 1);
        assert!(matches!(reporter.answered(Some(400), b"", true, NOW, &host), Some(LogLine::Error(_))));
        assert_eq!(reporter.body(&host), None);
    }

    #[test]
    fn long_batches_are_split_and_nothing_is_lost() {
        let (host, mut reporter) = (MemoryHost::default(), Reporter::default());
        for number in 0..5_000 {
            reporter.take(&mut counts(&number.to_string(), 1));
        }
        let mut orgs = Counts::default();
        orgs.of_org(&OrgName::parse("acme").unwrap(), Reason::ApiKeyUnknown, NOW);
        reporter.take(&mut orgs);
        let (mut credentials, mut refused) = (0, 0);
        for _ in 0..3 {
            let body = sent(&mut reporter, &host);
            assert!(body.to_string().len() < 1 << 20);
            credentials += body["orgs"]["acme"]["credentials"].as_object().map_or(0, serde_json::Map::len);
            refused += body["orgs"]["acme"]["refused"]["api_key_unknown"].as_u64().unwrap_or_default();
            reporter.answered(Some(200), b"", true, NOW, &host);
            assert!(reporter.counts.is_empty() || reporter.wants_counts(false, INTERVAL, NOW), "the rest does not wait");
        }
        assert_eq!((credentials, refused, reporter.counts.is_empty()), (5_000, 1, true));
    }

    /// A gateway that was restarted goes on at the total of the month, and the total never falls.
    #[test]
    fn the_month_goes_on_at_the_total_of_all_gateways() {
        let (host, mut reporter) = (MemoryHost::default(), Reporter::default());
        let quota = Subject { name: "org/acme".into(), rate: None, monthly_quota: NonZeroU32::new(10) };
        take_one(&quota, NOW, &host).unwrap();
        let report = |reporter: &mut Reporter, answer: Value, raises| {
            reporter.take(&mut counts("k", 1));
            sent(reporter, &host);
            reporter.answered(Some(200), answer.to_string().as_bytes(), raises, NOW, &host);
        };
        let left = || take_one(&quota, NOW, &host).map(|standing| standing.month.unwrap().remaining);
        report(&mut reporter, json!({"month": "2026-12", "orgs": {"acme": 9}}), true);
        report(&mut reporter, json!({"month": "2027-01", "orgs": {"acme": 9}}), false);
        report(&mut reporter, json!({"month": "2027-01", "orgs": {"other": 9}, "keys": {"acme/key/l": 9}}), true);
        assert_eq!(left(), Ok(8), "another month, another store, and names that were not reported change nothing");
        report(&mut reporter, json!({"month": "2027-01", "orgs": {"acme": 8}}), true);
        assert_eq!(left(), Ok(1));
        report(&mut reporter, json!({"month": "2027-01", "orgs": {"acme": 3}}), true);
        assert_eq!(left(), Ok(0));
        assert!(left().is_err());
    }
}
