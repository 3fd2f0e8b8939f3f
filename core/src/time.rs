//! Points in time. The core reads no clock: the current time is an argument.

use std::time::Duration;

use jiff::tz::Offset;

/// A point in time, in milliseconds since the Unix epoch. Arithmetic saturates, so a hostile claim cannot overflow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct UnixTime(u64);

impl UnixTime {
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Parses an RFC 3339 timestamp such as `2027-01-01T00:00:00Z`. A time before 1970 becomes the epoch.
    ///
    /// # Errors
    /// If `text` is not a timestamp with a time zone.
    pub fn from_rfc3339(text: &str) -> Result<Self, &'static str> {
        let timestamp: jiff::Timestamp = text.parse().map_err(|_| "must be a timestamp such as 2027-01-01T00:00:00Z")?;
        Ok(Self(u64::try_from(timestamp.as_millisecond()).unwrap_or(0)))
    }

    /// The month in UTC, such as `2026-11`. Empty if the calendar does not have it.
    pub fn month(self) -> String {
        let timestamp = i64::try_from(self.0).ok().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
        let date = timestamp.map(|timestamp| Offset::UTC.to_datetime(timestamp).date());
        date.map(|date| format!("{:04}-{:02}", date.year(), date.month())).unwrap_or_default()
    }

    /// The beginning of the next month in UTC, or the latest possible time if the calendar has no next month.
    pub fn end_of_month(self) -> Self {
        let end = i64::try_from(self.0).ok().and_then(|millis| {
            let today = Offset::UTC.to_datetime(jiff::Timestamp::from_millisecond(millis).ok()?).date();
            let tomorrow = today.last_of_month().tomorrow().ok()?;
            let end = Offset::UTC.to_timestamp(tomorrow.at(0, 0, 0, 0)).ok()?;
            u64::try_from(end.as_millisecond()).ok()
        });
        Self(end.unwrap_or(u64::MAX))
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the epoch, as in a NumericDate (RFC 7519 §2).
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// Whether this time is in the future. It was at most `longest` ahead when it was set. If it is further ahead now,
    /// the clock has been set back since then, and the time counts as past.
    pub fn is_ahead(self, now: Self, longest: Duration) -> bool {
        now < self && self <= now.plus(longest)
    }

    /// The time from `earlier` to this time. Zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let end = UnixTime::from_millis(u64::MAX);
        assert_eq!(end.plus(Duration::MAX), end);
        assert_eq!(UnixTime::default().minus(Duration::from_secs(1)), UnixTime::default());
        assert_eq!(UnixTime::default().since(end), Duration::ZERO);
    }

    #[test]
    fn a_time_that_is_too_far_ahead_counts_as_past() {
        let [now, longest] = [UnixTime::from_secs(100), UnixTime::from_secs(110)];
        let is_ahead = |moment: UnixTime| moment.is_ahead(now, Duration::from_secs(10));
        assert!(!is_ahead(now) && is_ahead(UnixTime::from_millis(100_001)));
        assert!(is_ahead(longest) && !is_ahead(UnixTime::from_millis(110_001)));
    }

    #[test]
    fn months_end_in_utc() {
        for (moment, end) in [
            ("2026-11-23T12:00:00Z", "2026-12-01T00:00:00Z"),
            ("2026-12-31T23:59:59.999Z", "2027-01-01T00:00:00Z"),
            ("2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
            ("2026-12-01T00:30:00+01:00", "2026-12-01T00:00:00Z"),
        ] {
            let [moment, end] = [moment, end].map(|text| UnixTime::from_rfc3339(text).unwrap());
            assert_eq!(moment.end_of_month(), end);
        }
        assert_eq!(UnixTime::from_millis(u64::MAX).end_of_month(), UnixTime::from_millis(u64::MAX));
    }

    #[test]
    fn months_have_names() {
        assert_eq!(UnixTime::from_rfc3339("2026-12-01T00:30:00+01:00").unwrap().month(), "2026-11");
        assert_eq!(UnixTime::from_millis(u64::MAX).month(), "");
    }

    #[test]
    fn a_timestamp_needs_a_time_zone() {
        assert_eq!(UnixTime::from_rfc3339("1970-01-01T00:00:01Z"), Ok(UnixTime::from_secs(1)));
        assert_eq!(UnixTime::from_rfc3339("1970-01-01T01:00:01+01:00"), Ok(UnixTime::from_secs(1)));
        assert!(UnixTime::from_rfc3339("1970-01-01T00:00:01").is_err());
        assert!(UnixTime::from_rfc3339("tomorrow").is_err());
    }
}
