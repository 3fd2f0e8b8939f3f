//! A report of a gateway, parsed strictly.

use std::collections::BTreeMap;
use std::fmt;

use apexmcp_core::names::{OrgName, is_record_id};
use apexmcp_core::policy::raw::Members;
use apexmcp_core::reason::Reason;
use serde::Deserialize;

/// Maximum number of credentials in a report. A gateway with more sends more reports.
const MAX_CREDENTIALS: usize = 2_000;
/// Maximum number of requests in one count.
const MAX_COUNT: u64 = 1_000_000_000_000;
/// Stands for reasons that this version does not know, and for credentials that a gateway could not count one by one.
const OTHER: &str = "other";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBatch {
    gateway: String,
    sequence: i64,
    hour: i64,
    #[serde(default)]
    orgs: Members<RawOrg>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOrg {
    #[serde(default)]
    credentials: Members<RawCredential>,
    #[serde(default)]
    refused: Members<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCredential {
    #[serde(default)]
    allowed: u64,
    #[serde(default)]
    refused: Members<u64>,
    last_used: Option<i64>,
}

/// Refused requests by their reason.
pub(super) type Refused = BTreeMap<&'static str, i64>;

/// What one thread of a gateway counted since its last report.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The random id of the thread.
    pub(super) gateway: String,
    /// The number of the report. A report with a number that is not greater than the last one was counted before.
    pub(super) sequence: i64,
    /// Hours since 1970, by the clock of the gateway.
    pub(super) hour: i64,
    pub(super) orgs: BTreeMap<String, OrgCounts>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OrgCounts {
    pub(super) credentials: BTreeMap<Credential, Counts>,
    /// Refusals without a known credential.
    pub(super) refused: Refused,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) allowed: i64,
    pub(super) refused: Refused,
    /// Seconds since 1970, by the clock of the gateway.
    pub(super) last_used: Option<i64>,
}

/// A credential within its org.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Credential {
    Client(String),
    /// In a report, the issuer as it is in the names of principals. In the store, the id of the provider.
    Provider(String),
    Key(String),
    /// Credentials that a gateway could not count one by one.
    Other,
}

impl Credential {
    /// Parses `<kind>/<id>`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.split_once('/') {
            Some(("client", id)) => Some(Self::Client(id.to_owned())),
            Some(("idp", id)) => Some(Self::Provider(id.to_owned())),
            Some(("key", id)) => Some(Self::Key(id.to_owned())),
            None if text == OTHER => Some(Self::Other),
            _ => None,
        }
    }

    /// Whether a record can have this id.
    fn is_possible(&self) -> bool {
        match self {
            Self::Client(id) | Self::Key(id) => is_record_id(id),
            Self::Provider(_) | Self::Other => true,
        }
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(id) => write!(formatter, "client/{id}"),
            Self::Provider(id) => write!(formatter, "idp/{id}"),
            Self::Key(id) => write!(formatter, "key/{id}"),
            Self::Other => formatter.write_str(OTHER),
        }
    }
}

impl Batch {
    /// Parses the body of a report.
    ///
    /// # Errors
    /// With a line that says what is wrong.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        let raw: RawBatch =
            serde_path_to_error::deserialize(&mut reader).map_err(|error| match error.path().to_string().as_str() {
                "." => error.inner().to_string(),
                path => format!("{path}: {}", error.inner()),
            })?;
        reader.end().map_err(|error| error.to_string())?;
        let RawBatch { gateway, sequence, hour, orgs } = raw;
        let is_id = gateway.len() == 32 && gateway.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_id {
            return Err("gateway: expected 32 hexadecimal digits in lower case".to_owned());
        }
        if sequence < 1 {
            return Err("sequence: expected 1 or more".to_owned());
        }
        let number = orgs.0.iter().fold(0_usize, |number, (_, org)| number.saturating_add(org.credentials.0.len()));
        if number > MAX_CREDENTIALS || orgs.0.len() > MAX_CREDENTIALS {
            return Err(format!("orgs: expected at most {MAX_CREDENTIALS} orgs and credentials"));
        }
        let mut parsed = BTreeMap::new();
        for (name, org) in orgs.0 {
            let counts = OrgCounts::of(&name, org).map_err(|line| format!("orgs.{name}.{line}"))?;
            // No org has another name.
            if OrgName::parse(&name).is_some() {
                parsed.insert(name, counts);
            }
        }
        Ok(Self { gateway, sequence, hour, orgs: parsed })
    }
}

impl OrgCounts {
    fn of(org: &str, RawOrg { credentials, refused }: RawOrg) -> Result<Self, String> {
        let mut counts = Self { refused: refusals(refused)?, ..Self::default() };
        for (name, RawCredential { allowed, refused, last_used }) in credentials.0 {
            let within = |line: String| format!("credentials.{name}: {line}");
            let rest = name.strip_prefix(org).and_then(|rest| rest.strip_prefix('/'));
            let credential = rest.and_then(Credential::parse).ok_or_else(|| {
                within(format!("expected {org}/key/<id>, {org}/client/<id>, {org}/idp/<issuer> or {org}/other"))
            })?;
            let allowed = requests(allowed).map_err(within)?;
            let refused = refusals(refused).map_err(within)?;
            if credential.is_possible() {
                counts.credentials.insert(credential, Counts { allowed, refused, last_used });
            }
        }
        Ok(counts)
    }
}

fn requests(count: u64) -> Result<i64, String> {
    let known = i64::try_from(count).ok().filter(|_| count <= MAX_COUNT);
    known.ok_or_else(|| format!("{count} requests are more than {MAX_COUNT}"))
}

fn refusals(Members(refused): Members<u64>) -> Result<Refused, String> {
    let mut counts = Refused::new();
    for (word, count) in refused {
        let reason = Reason::ALL.iter().map(|reason| reason.word()).find(|known| *known == word).unwrap_or(OTHER);
        let sum = counts.entry(reason).or_default();
        let count = u64::try_from(*sum).unwrap_or(u64::MAX).saturating_add(count);
        *sum = requests(count)?;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "9f0c4c1f2b7e4d60a1b2c3d4e5f60718";

    fn batch(orgs: &str) -> String {
        format!(r#"{{"gateway": "{GATEWAY}", "sequence": 7, "hour": 497223, "orgs": {orgs}}}"#)
    }

    #[test]
    fn a_report_is_parsed_into_counts() {
        let orgs = r#"{"acme": {"credentials": {
            "acme/key/key_1": {"allowed": 10, "refused": {"scope_insufficient": 2, "new": 1, "newer": 3}, "last_used": 1790000040},
            "acme/client/app": {}, "acme/idp/https://idp/a%23b": {"allowed": 3}, "acme/other": {"allowed": 4}
        }, "refused": {"api_key_unknown": 5}}, "no org": {}}"#;
        let Batch { gateway, sequence, hour, orgs } = Batch::parse(batch(orgs).as_bytes()).unwrap();
        assert_eq!((gateway.as_str(), sequence, hour, orgs.len()), (GATEWAY, 7, 497_223, 1));
        let acme = &orgs["acme"];
        assert_eq!(acme.refused, Refused::from([("api_key_unknown", 5)]));
        let key = &acme.credentials[&Credential::Key("key_1".to_owned())];
        assert_eq!(key.refused, Refused::from([("scope_insufficient", 2), ("other", 4)]));
        assert_eq!((key.allowed, key.last_used), (10, Some(1_790_000_040)));
        let names: Vec<String> = acme.credentials.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["client/app", "idp/https://idp/a%23b", "key/key_1", "other"]);
    }

    #[test]
    fn a_wrong_report_is_refused_with_the_place_of_the_error() {
        let many = |count| {
            let credentials: Vec<String> = (0..count).map(|index| format!(r#""a/key/{index}": {{}}"#)).collect();
            batch(&format!(r#"{{"a": {{"credentials": {{{}}}}}}}"#, credentials.join(",")))
        };
        assert!(Batch::parse(many(MAX_CREDENTIALS).as_bytes()).is_ok());
        for (body, line) in [
            (many(MAX_CREDENTIALS + 1), "at most 2000"),
            ("[]".to_owned(), "expected"),
            (batch("{}").replace("9f0c", "9F0C"), "gateway: expected 32"),
            (batch("{}").replace(": 7", ": 0"), "sequence: expected 1"),
            (batch("{}").replace(": 7", ": 1.5"), "sequence: invalid type"),
            (batch("{}") + "x", "trailing"),
            (batch(r#"{"a": {"x": 1}}"#), "orgs.a.x: unknown field"),
            (batch(r#"{"a": {}, "a": {}}"#), "orgs"),
            (batch(r#"{"a": {"refused": {"other": -1}}}"#), "orgs.a.refused.other: invalid value"),
            (batch(r#"{"a": {"credentials": {"b/key/x": {}}}}"#), "orgs.a.credentials.b/key/x: expected a/key/<id>"),
            (batch(r#"{"a": {"credentials": {"a/key/x": {"allowed": 1000000000001}}}}"#), "1000000000001 requests are more"),
            (batch(r#"{"a": {"refused": {"x": 1000000000000, "y": 1}}}"#), "1000000000001 requests are more"),
        ] {
            let found = Batch::parse(body.as_bytes()).unwrap_err();
            assert!(found.contains(line), "{body}: {found}");
        }
    }
}
