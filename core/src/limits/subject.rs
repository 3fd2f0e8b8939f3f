//! What is counted, and how much of it is allowed.

use std::cell::OnceCell;
use std::fmt;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::reason::Reason;

/// The period of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// One second.
    Second,
    /// 60 seconds.
    Minute,
    /// 60 minutes.
    Hour,
    /// 24 hours.
    Day,
}

impl Unit {
    /// All units, the shortest first.
    pub const ALL: [Self; 4] = [Self::Second, Self::Minute, Self::Hour, Self::Day];

    /// The length of the period.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        })
    }
}

/// The word in documents.
impl fmt::Display for Unit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        })
    }
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests that flow into the bucket in each period.
    pub requests: NonZeroU32,
    /// The period.
    pub per: Unit,
    /// Capacity of the bucket: the maximum burst.
    pub burst: NonZeroU32,
}

/// Something whose requests are counted.
#[derive(Debug, PartialEq, Eq)]
pub struct Subject {
    /// The name, unique among all subjects: `org/<name>`, `key/<org>/<id>` or `client/<id>`.
    pub name: Box<str>,
    /// The rate. `None`: unlimited.
    pub rate: Option<Rate>,
    /// Maximum number of requests in a calendar month (UTC). `None`: unlimited.
    pub monthly_quota: Option<NonZeroU32>,
}

/// The subjects at which a request is counted: none, its organization, its key, or both. A request passes only if all of
/// them have room.
#[derive(Clone, Debug, Default)]
pub struct Subjects(Rc<Listed>);

#[derive(Debug, Default)]
struct Listed {
    subjects: Box<[Rc<Subject>]>,
    /// How the rate limit service is asked about them. Serialized once, because each request asks.
    descriptors: OnceCell<Box<[u8]>>,
}

impl PartialEq for Subjects {
    fn eq(&self, other: &Self) -> bool {
        self.0.subjects == other.0.subjects
    }
}

impl Eq for Subjects {}

impl Subjects {
    /// Collects limited subjects, the narrower first.
    pub fn new(subjects: impl IntoIterator<Item = Rc<Subject>>) -> Self {
        Self(Rc::new(Listed { subjects: subjects.into_iter().collect(), descriptors: OnceCell::new() }))
    }

    /// Adds a narrower subject.
    pub fn within(&self, narrower: Rc<Subject>) -> Self {
        Self::new([narrower].into_iter().chain(self.0.subjects.iter().cloned()))
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.0.subjects.is_empty()
    }

    /// The subjects, the narrower first.
    pub fn iter(&self) -> impl Iterator<Item = &Subject> + Clone {
        self.0.subjects.iter().map(Rc::as_ref)
    }

    /// The serialized descriptors, which `serialize` makes at the first call.
    pub(super) fn descriptors(&self, serialize: impl FnOnce() -> Vec<u8>) -> &[u8] {
        self.0.descriptors.get_or_init(|| serialize().into_boxed_slice())
    }
}

/// The limit of the token endpoint for each client. A token lives for an hour. A fleet of agents that shares a client and
/// starts at the same time must pass. A loop that requests a token for each call must not keep the signing key busy.
const TOKENS: Rate = Rate { requests: NonZeroU32::new(10).unwrap(), per: Unit::Second, burst: NonZeroU32::new(300).unwrap() };

/// The subject at which the token endpoint counts the tokens of a client.
pub fn of_token_endpoint(client_id: &str) -> Subject {
    Subject { name: format!("client/{client_id}").into(), rate: Some(TOKENS), monthly_quota: None }
}

/// The kind of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Subject::rate`]
    Rate,
    /// [`Subject::monthly_quota`]
    Month,
}

impl Kind {
    /// The reason to refuse a request that exceeds a limit of this kind.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Rate => Reason::RateLimit,
            Self::Month => Reason::MonthlyQuota,
        }
    }
}
