//! How many requests an org or a key may send: a rate, by a token bucket, and a quota of the UTC calendar month.
//!
//! [`local`] counts in the memory that the threads of one Envoy share, [`service`] by the rate limit service of a fleet.
//! [`standing`] tells clients where they are.

pub mod document;
pub mod local;
pub mod service;
pub mod standing;

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

/// A token bucket: it holds `burst` requests, and `requests` flow into it in each `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many flow in.
    pub requests: NonZeroU32,
    /// In which time.
    pub per: Unit,
    /// How many may come at once.
    pub burst: NonZeroU32,
}

/// Something whose requests are counted.
#[derive(Debug, PartialEq, Eq)]
pub struct Subject {
    /// Unique among all that is counted: `org/<name>`, `key/<org>/<id>`, `client/<id>`.
    pub name: Box<str>,
    /// The rate, where it is limited.
    pub rate: Option<Rate>,
    /// How many requests a calendar month has, where that is limited.
    pub monthly_quota: Option<NonZeroU32>,
}

/// What a request is counted at: nothing, its org, its key, or both. The tighter one decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subjects(Rc<[Rc<Subject>]>);

impl Subjects {
    /// Those that are limited.
    pub fn new(subjects: impl IntoIterator<Item = Rc<Subject>>) -> Self {
        Self(subjects.into_iter().collect())
    }

    /// These, and a narrower one.
    pub fn within(&self, narrower: Rc<Subject>) -> Self {
        Self::new([narrower].into_iter().chain(self.0.iter().cloned()))
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each, the narrower first.
    pub fn iter(&self) -> impl Iterator<Item = &Subject> + Clone {
        self.0.iter().map(Rc::as_ref)
    }
}

/// The limit of the token endpoint for each client. A token lives for an hour; a fleet of agents that starts at once and
/// shares a client must pass, and a loop that takes a token for each call must not keep the signing key busy.
const TOKENS: Rate = Rate { requests: NonZeroU32::new(10).unwrap(), per: Unit::Second, burst: NonZeroU32::new(300).unwrap() };

/// What a client's requests for tokens are counted at.
pub fn of_token_endpoint(client_id: &str) -> Subject {
    Subject { name: format!("client/{client_id}").into(), rate: Some(TOKENS), monthly_quota: None }
}

/// Which of a subject's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Subject::rate`]
    Rate,
    /// [`Subject::monthly_quota`]
    Month,
}

impl Kind {
    /// Why a request is refused that exceeds it.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Rate => Reason::RateLimit,
            Self::Month => Reason::MonthlyQuota,
        }
    }
}
