//! Moments in the form of the database and the policy document: RFC 3339, UTC, whole seconds.

use std::time::Duration;

use apexmcp_core::time::UnixTime;
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use crate::failure::{Failure, Reason};

/// A point in time, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Timestamp);

impl Moment {
    /// The current time. Only commands call this. All other code gets the time as an argument.
    pub fn now() -> Self {
        Self::rounded(Timestamp::now(), RoundMode::Floor)
    }

    /// Parses a timestamp. Fractions of a second are rounded up, so that a revocation includes the whole moment.
    ///
    /// # Errors
    /// If `text` is not an RFC 3339 timestamp.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map(|timestamp| Self::rounded(timestamp, RoundMode::Ceil))
            .map_err(|_| format!("{text:?} is not a timestamp such as 2027-01-01T00:00:00Z"))
    }

    /// The moment of a number of seconds since 1970. `None`: the calendar does not have it.
    pub fn of_seconds(seconds: i64) -> Option<Self> {
        Timestamp::from_second(seconds).ok().map(Self)
    }

    /// The moment `duration` later.
    ///
    /// # Errors
    /// If it is after the year 9999.
    pub fn plus(self, duration: Duration) -> Result<Self, Failure> {
        let too_far = |_| Failure::new(Reason::InvalidArgument, "the time is too far in the future: pass a shorter duration");
        self.0.checked_add(duration).map(|timestamp| Self::rounded(timestamp, RoundMode::Ceil)).map_err(too_far)
    }

    /// The moment `duration` earlier, or the earliest possible one.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.checked_sub(duration).unwrap_or(Timestamp::MIN))
    }

    /// The time since `earlier`. Zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.duration_since(earlier.0).try_into().unwrap_or_default()
    }

    /// The date, such as `2026-11-23`.
    pub fn date(self) -> String {
        self.0.to_string().chars().take_while(|letter| *letter != 'T').collect()
    }

    fn rounded(timestamp: Timestamp, mode: RoundMode) -> Self {
        let whole = TimestampRound::new().smallest(Unit::Second).mode(mode);
        Self(timestamp.round(whole).unwrap_or(timestamp))
    }
}

impl From<Moment> for UnixTime {
    fn from(moment: Moment) -> Self {
        Self::from_secs(moment.0.as_second().try_into().unwrap_or(0))
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}
