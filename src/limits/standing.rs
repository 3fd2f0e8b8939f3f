//! Where a client stands, as draft-ietf-httpapi-ratelimit-headers tells it: `RateLimit-Policy` and `RateLimit`.

use std::fmt::Write;
use std::time::Duration;

/// The field that tells the limits.
pub const RATE_LIMIT_POLICY: &str = "ratelimit-policy";
/// The field that tells what is left of them.
pub const RATE_LIMIT: &str = "ratelimit";

/// One limit as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// How many requests it has.
    pub quota: u64,
    /// Its length; `None` where months differ in it.
    pub length: Option<Duration>,
    /// How many are left.
    pub remaining: u64,
    /// When it is whole again.
    pub resets_in: Duration,
}

/// The tightest limit of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The rate.
    pub rate: Option<Window>,
    /// The month's quota.
    pub month: Option<Window>,
}

impl Standing {
    /// The tighter of both, for each kind.
    pub fn and(self, other: Self) -> Self {
        let tighter = |one: Option<Window>, other: Option<Window>| match (one, other) {
            (Some(one), Some(other)) => Some(if other.remaining < one.remaining { other } else { one }),
            (one, other) => one.or(other),
        };
        Self { rate: tighter(self.rate, other.rate), month: tighter(self.month, other.month) }
    }

    /// The standing where there is one to tell: an empty list is no field (RFC 9651 §3.1).
    pub fn told(self) -> Option<Self> {
        Some(self).filter(|standing| *standing != Self::default())
    }

    /// The field `RateLimit-Policy`.
    pub fn policy(&self) -> String {
        self.list(|text, window| {
            let _ = write!(text, ";q={}", window.quota);
            if let Some(length) = window.length {
                let _ = write!(text, ";w={}", length.as_secs());
            }
        })
    }

    /// The field `RateLimit`.
    pub fn state(&self) -> String {
        self.list(|text, window| {
            let _ = write!(text, ";r={};t={}", window.remaining, window.resets_in.as_millis().div_ceil(1000));
        })
    }

    /// A structured field (RFC 9651 §3.1). Writing to a String cannot fail.
    fn list(&self, parameters: impl Fn(&mut String, &Window)) -> String {
        let mut text = String::new();
        for (name, window) in [("rate", &self.rate), ("month", &self.month)] {
            let Some(window) = window else { continue };
            let separator = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{separator}\"{name}\"");
            parameters(&mut text, window);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
