//! The standing of a client at its limits, for the response headers `RateLimit-Policy` and `RateLimit`
//! (draft-ietf-httpapi-ratelimit-headers).

use std::num::NonZeroU32;
use std::time::Duration;

use super::subject::Subject;

/// The header with the limits.
pub const RATE_LIMIT_POLICY: &str = "ratelimit-policy";
/// The header with the remaining requests.
pub const RATE_LIMIT: &str = "ratelimit";

/// Most values are not longer than this, in bytes.
const TYPICAL_LENGTH: usize = 64;

/// One limit, as the headers tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Maximum number of requests in the window.
    pub quota: u64,
    /// The length of the window. `None` for a calendar month.
    pub length: Option<Duration>,
    /// Remaining requests.
    pub remaining: u64,
    /// Time until all requests are available again.
    pub resets_in: Duration,
}

/// The tightest limit of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The tightest rate.
    pub rate: Option<Window>,
    /// The tightest monthly quota.
    pub month: Option<Window>,
}

impl Standing {
    /// The standing of a request that is refused although its true counts are not known: nothing is left now, and the client
    /// may try again after `wait`. It names the rate of the narrowest subject that has one, otherwise its quota.
    pub fn refused_for<'s>(subjects: impl Iterator<Item = &'s Subject> + Clone, wait: Duration) -> Self {
        let window = |quota: NonZeroU32, length| Window { quota: quota.get().into(), length, remaining: 0, resets_in: wait };
        let rate = subjects.clone().find_map(|subject| subject.rate);
        let rate = rate.map(|rate| window(rate.requests, Some(rate.per.duration())));
        let quota = subjects.into_iter().find_map(|subject| subject.monthly_quota).filter(|_| rate.is_none());
        Self { rate, month: quota.map(|quota| window(quota, None)) }
    }

    /// Combines two standings: the tighter window of each kind.
    pub fn and(self, other: Self) -> Self {
        let tighter = |one: Option<Window>, other: Option<Window>| match (one, other) {
            (Some(one), Some(other)) => Some(if other.remaining < one.remaining { other } else { one }),
            (one, other) => one.or(other),
        };
        Self { rate: tighter(self.rate, other.rate), month: tighter(self.month, other.month) }
    }

    /// `None` if no limit applies, because an empty list is not sent (RFC 9651 §3.1).
    pub fn told(self) -> Option<Self> {
        Some(self).filter(|standing| *standing != Self::default())
    }

    /// The value of `RateLimit-Policy`.
    pub fn policy(&self) -> String {
        self.list(|text, window| {
            push(text, ";q=", window.quota);
            if let Some(length) = window.length {
                push(text, ";w=", length.as_secs());
            }
        })
    }

    /// The value of `RateLimit`.
    pub fn state(&self) -> String {
        self.list(|text, window| {
            push(text, ";r=", window.remaining);
            push(text, ";t=", window.resets_in.as_millis().div_ceil(1000));
        })
    }

    /// A list as a structured field (RFC 9651 §3.1).
    fn list(&self, parameters: impl Fn(&mut String, &Window)) -> String {
        let mut text = String::with_capacity(TYPICAL_LENGTH);
        for (name, window) in [("rate", &self.rate), ("month", &self.month)] {
            let Some(window) = window else { continue };
            let separator = if text.is_empty() { "" } else { ", " };
            [separator, "\"", name, "\""].into_iter().for_each(|part| text.push_str(part));
            parameters(&mut text, window);
        }
        text
    }
}

/// Appends a parameter of a structured field. `write!` would take several times as long.
fn push(text: &mut String, name: &str, value: impl itoa::Integer) {
    text.push_str(name);
    text.push_str(itoa::Buffer::new().format(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{Rate, Unit};

    #[test]
    fn fields_name_the_tighter_of_each_kind() {
        let window = |quota, seconds: u64, remaining| Window {
            quota,
            length: Some(Duration::from_secs(seconds)),
            remaining,
            resets_in: Duration::from_millis(1_001),
        };
        let month = Window { length: None, ..window(1_000_000, 0, 5) };
        let org = Standing { rate: Some(window(600, 60, 59)), month: Some(month) };
        let key = Standing { rate: Some(window(10, 1, 9)), month: None };
        assert_eq!(org.policy(), r#""rate";q=600;w=60, "month";q=1000000"#);
        assert_eq!(org.state(), r#""rate";r=59;t=2, "month";r=5;t=2"#);
        assert_eq!(key.and(org).policy(), r#""rate";q=10;w=1, "month";q=1000000"#);
        assert_eq!(org.and(key), key.and(org));
        assert_eq!((key.told(), Standing::default().told()), (Some(key), None));
    }

    #[test]
    fn a_refusal_without_known_counts_names_a_limit() {
        let count = |count| NonZeroU32::new(count).unwrap();
        let rate = Some(Rate { requests: count(10), per: Unit::Hour, burst: count(1) });
        let subject = |rate, monthly_quota| Subject { name: "a".into(), rate, monthly_quota };
        let fields = |subjects: &[Subject]| {
            let standing = Standing::refused_for(subjects.iter(), Duration::from_secs(2));
            (standing.policy(), standing.state())
        };
        let expected = |policy: &str, state: &str| (policy.to_owned(), state.to_owned());
        let by_rate = expected(r#""rate";q=10;w=3600"#, r#""rate";r=0;t=2"#);
        assert_eq!(fields(&[subject(rate, Some(count(7)))]), by_rate);
        assert_eq!(fields(&[subject(None, Some(count(7))), subject(rate, None)]), by_rate);
        let by_quota = expected(r#""month";q=7"#, r#""month";r=0;t=2"#);
        assert_eq!(fields(&[subject(None, Some(count(7))), subject(None, Some(count(8)))]), by_quota);
    }
}
