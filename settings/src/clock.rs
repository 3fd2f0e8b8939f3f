//! Moments as the database and the policy document write them: RFC 3339, UTC, whole seconds.

use std::time::Duration;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use crate::failure::{Failure, Reason};

/// A whole second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Timestamp);

impl Moment {
    /// Now. Only commands ask; what they call is told.
    pub fn now() -> Self {
        Self::rounded(Timestamp::now(), RoundMode::Floor)
    }

    /// The moment that `text` names, or the next second: what is revoked until then includes it.
    ///
    /// # Errors
    /// Where it is no RFC 3339 timestamp.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map(|timestamp| Self::rounded(timestamp, RoundMode::Ceil))
            .map_err(|_| format!("{text:?} is not a timestamp such as 2027-01-01T00:00:00Z"))
    }

    /// This moment and `duration` more.
    ///
    /// # Errors
    /// Where no calendar reaches.
    pub fn plus(self, duration: Duration) -> Result<Self, Failure> {
        let too_far = |_| Failure::new(Reason::InvalidArgument, "the time is too far in the future: pass a shorter duration");
        self.0.checked_add(duration).map(|timestamp| Self::rounded(timestamp, RoundMode::Ceil)).map_err(too_far)
    }

    /// This moment less `duration`, or the earliest there is.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.checked_sub(duration).unwrap_or(Timestamp::MIN))
    }

    /// The date alone.
    pub fn date(self) -> String {
        self.0.to_string().chars().take_while(|letter| *letter != 'T').collect()
    }

    fn rounded(timestamp: Timestamp, mode: RoundMode) -> Self {
        let whole = TimestampRound::new().smallest(Unit::Second).mode(mode);
        Self(timestamp.round(whole).unwrap_or(timestamp))
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}
