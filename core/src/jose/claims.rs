//! Checks the registered claims of a token (RFC 7519 §4.1).

use std::time::Duration;

use serde_json::{Map, Value};

use crate::reason::Reason;
use crate::time::UnixTime;
use crate::url;

/// The latest accepted date, 9999-12-31T23:59:59Z, in seconds since the epoch. A later date is a mistake or an attack.
const LATEST: f64 = 253_402_300_799.0;

/// The period in which a token is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment of the period. A cached token is refused before it, which happens if the clock is set back.
    pub from: UnixTime,
    /// The first moment after the period.
    pub until: UnixTime,
}

impl Validity {
    /// Whether `now` is in the period.
    pub fn holds(&self, now: UnixTime) -> bool {
        self.from <= now && now < self.until
    }
}

/// The `iss` claim.
///
/// # Errors
/// [`Reason::ClaimMissing`], or [`Reason::TokenMalformed`] if it is not a string.
pub fn issuer(claims: &Map<String, Value>) -> Result<&str, Reason> {
    required_string(claims, "iss")
}

/// The `sub` claim. Without it there is no principal.
///
/// # Errors
/// The same as for [`issuer`]. An empty `sub` counts as missing.
pub fn subject(claims: &Map<String, Value>) -> Result<&str, Reason> {
    let subject = required_string(claims, "sub")?;
    if subject.is_empty() { Err(Reason::ClaimMissing) } else { Ok(subject) }
}

/// The `jti` claim. Empty if there is none.
///
/// # Errors
/// [`Reason::TokenMalformed`] if it is not a string (RFC 7519 §4.1.7).
pub fn id(claims: &Map<String, Value>) -> Result<&str, Reason> {
    claims.get("jti").map_or(Ok(""), |id| id.as_str().ok_or(Reason::TokenMalformed))
}

/// The `iat` claim.
///
/// # Errors
/// [`Reason::ClaimMissing`], or [`Reason::TokenMalformed`] if it is not a date.
pub fn issued_at(claims: &Map<String, Value>) -> Result<UnixTime, Reason> {
    numeric_date(claims, "iat")?.ok_or(Reason::ClaimMissing)
}

/// The strings in the claim `aud`. Empty if the claim is absent or has a wrong type.
pub fn audiences(claims: &Map<String, Value>) -> Vec<&str> {
    match claims.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(audience)) => vec![audience],
        _ => Vec::new(),
    }
}

/// Checks that `aud` names one of `accepted`. `aud` is a string or an array of strings (RFC 7519 §4.1.3). It is compared
/// letter by letter (RFC 7519 §2: a StringOrURI is compared without canonicalization).
///
/// # Errors
/// [`Reason::AudienceMismatch`], [`Reason::ClaimMissing`] or [`Reason::TokenMalformed`].
pub fn check_audience(claims: &Map<String, Value>, accepted: &[Box<str>]) -> Result<(), Reason> {
    let is_named = accepted_audiences(claims)?.iter().any(|audience| accepted.iter().any(|accepted| &**accepted == *audience));
    if is_named { Ok(()) } else { Err(Reason::AudienceMismatch) }
}

/// Like [`check_audience`], but `accepted` are URLs of the gateway, and any spelling of them matches (RFC 3986 §6.2.2 and
/// §6.2.3). Clients copy the URL of their own configuration into the `aud` of their assertions.
///
/// # Errors
/// The same as for [`check_audience`].
pub fn check_audience_url(claims: &Map<String, Value>, accepted: &[Box<str>]) -> Result<(), Reason> {
    let accepted: Vec<String> = accepted.iter().filter_map(|accepted| url::normalized(accepted)).collect();
    let mut audiences = accepted_audiences(claims)?.into_iter().filter_map(url::normalized);
    if audiences.any(|url| accepted.contains(&url)) { Ok(()) } else { Err(Reason::AudienceMismatch) }
}

/// The strings in the claim `aud`. It is an error if the claim is absent or has a wrong type.
fn accepted_audiences(claims: &Map<String, Value>) -> Result<Vec<&str>, Reason> {
    let is_text = match claims.get("aud") {
        None => return Err(Reason::ClaimMissing),
        Some(Value::Array(audiences)) => audiences.iter().all(Value::is_string),
        Some(audience) => audience.is_string(),
    };
    if is_text { Ok(audiences(claims)) } else { Err(Reason::TokenMalformed) }
}

/// Checks `exp`, `nbf` and `iat` at `now`, and returns the period in which the token is valid. The issuer's clock may
/// differ by at most `skew`.
///
/// # Errors
/// [`Reason::TokenExpired`], [`Reason::TokenNotYetValid`], [`Reason::ClaimMissing`] or [`Reason::TokenMalformed`].
pub fn check_times(claims: &Map<String, Value>, now: UnixTime, skew: Duration) -> Result<Validity, Reason> {
    let until = numeric_date(claims, "exp")?.ok_or(Reason::ClaimMissing)?.plus(skew);
    if now >= until {
        return Err(Reason::TokenExpired);
    }
    let mut from = UnixTime::default();
    for claim in ["nbf", "iat"] {
        from = from.max(numeric_date(claims, claim)?.unwrap_or_default().minus(skew));
        if now < from {
            return Err(Reason::TokenNotYetValid);
        }
    }
    Ok(Validity { from, until })
}

fn required_string<'c>(claims: &'c Map<String, Value>, name: &str) -> Result<&'c str, Reason> {
    claims.get(name).ok_or(Reason::ClaimMissing)?.as_str().ok_or(Reason::TokenMalformed)
}

/// A NumericDate (RFC 7519 §2): seconds, with an optional fraction. `None` if the claim is absent.
fn numeric_date(claims: &Map<String, Value>, name: &str) -> Result<Option<UnixTime>, Reason> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = value.as_f64().filter(|seconds| (0.0..=LATEST).contains(seconds)).ok_or(Reason::TokenMalformed)?;
    let moment = Duration::try_from_secs_f64(seconds).map_err(|_| Reason::TokenMalformed)?;
    Ok(Some(UnixTime::default().plus(moment)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn validity(claims: &Value) -> Result<Validity, Reason> {
        check_times(claims.as_object().unwrap(), UnixTime::from_secs(1000), Duration::from_secs(10))
    }

    fn times(claims: Value) -> Result<UnixTime, Reason> {
        validity(&claims).map(|validity| validity.until)
    }

    #[test]
    fn a_token_is_valid_from_the_later_of_nbf_and_iat() {
        for (claims, from) in [
            (json!({"exp": 2000}), 0),
            (json!({"exp": 2000, "iat": 5}), 0),
            (json!({"exp": 2000, "iat": 900}), 890),
            (json!({"exp": 2000, "iat": 900, "nbf": 950}), 940),
            (json!({"exp": 2000, "iat": 950, "nbf": 900}), 940),
        ] {
            let validity = validity(&claims).unwrap();
            assert_eq!(validity.from, UnixTime::from_secs(from), "{claims}");
            let [first, last] = [validity.from, UnixTime::from_millis(2_009_999)];
            assert!(validity.holds(first) && validity.holds(last) && !validity.holds(validity.until), "{claims}");
            assert!(from == 0 || !validity.holds(UnixTime::from_millis(from * 1_000 - 1)), "{claims}");
        }
    }

    #[test]
    fn times_are_checked_at_their_limits() {
        for (claims, expected) in [
            (json!({"exp": 991}), Ok(UnixTime::from_secs(1001))),
            (json!({"exp": 990}), Err(Reason::TokenExpired)),
            (json!({"exp": 990.5}), Ok(UnixTime::from_millis(1_000_500))),
            (json!({"exp": 0}), Err(Reason::TokenExpired)),
            (json!({}), Err(Reason::ClaimMissing)),
            (json!({"exp": null}), Err(Reason::TokenMalformed)),
            (json!({"exp": "2000"}), Err(Reason::TokenMalformed)),
            (json!({"exp": -1}), Err(Reason::TokenMalformed)),
            (json!({"exp": 1e300}), Err(Reason::TokenMalformed)),
            (json!({"exp": 253_402_300_799_u64}), Ok(UnixTime::from_secs(253_402_300_809))),
            (json!({"exp": 253_402_300_800_u64}), Err(Reason::TokenMalformed)),
            (json!({"exp": u64::MAX}), Err(Reason::TokenMalformed)),
            (json!({"exp": 2000, "nbf": 1010}), Ok(UnixTime::from_secs(2010))),
            (json!({"exp": 2000, "nbf": 1011}), Err(Reason::TokenNotYetValid)),
            (json!({"exp": 2000, "iat": 1011}), Err(Reason::TokenNotYetValid)),
            (json!({"exp": 2000, "iat": [1]}), Err(Reason::TokenMalformed)),
            (json!({"exp": 2000, "iat": 1}), Ok(UnixTime::from_secs(2010))),
        ] {
            assert_eq!(times(claims.clone()), expected, "{claims}");
        }
    }

    #[test]
    fn a_jti_must_be_a_string() {
        for (claims, expected) in [
            (json!({}), Ok("")),
            (json!({"jti": "a"}), Ok("a")),
            (json!({"jti": 7}), Err(Reason::TokenMalformed)),
            (json!({"jti": null}), Err(Reason::TokenMalformed)),
        ] {
            assert_eq!(id(claims.as_object().unwrap()), expected, "{claims}");
        }
    }

    #[test]
    fn audiences_match_letter_by_letter_and_gateway_urls_in_any_spelling() {
        let accepted = ["apexmcp".into(), "other".into()];
        for (aud, expected) in [
            (json!("apexmcp"), Ok(())),
            (json!(["x", "other"]), Ok(())),
            (json!("apexmcp2"), Err(Reason::AudienceMismatch)),
            (json!("apex"), Err(Reason::AudienceMismatch)),
            (json!(""), Err(Reason::AudienceMismatch)),
            (json!([]), Err(Reason::AudienceMismatch)),
            (json!(["apexmcp", 7]), Err(Reason::TokenMalformed)),
            (json!({"apexmcp": 1}), Err(Reason::TokenMalformed)),
            (json!(null), Err(Reason::TokenMalformed)),
        ] {
            assert_eq!(check_audience(json!({"aud": aud}).as_object().unwrap(), &accepted), expected, "{aud}");
        }
        assert_eq!(check_audience(&Map::new(), &accepted), Err(Reason::ClaimMissing));
        let accepted = ["https://gw.example/mcp/acme".into(), "https://GW.example:443".into(), "apexmcp".into()];
        for (aud, is_good) in [
            (json!("https://GW.Example:443/mcp/acme"), true),
            (json!(["x", "HTTPS://gw.example/mcp/%61cme"]), true),
            (json!("https://gw.example/"), true),
            (json!("https://gw.example:8443/mcp/acme"), false),
            (json!("https://gw.example/mcp/acme/other"), false),
            (json!("https://gw.example.evil/mcp/acme"), false),
            (json!("APEXMCP"), false),
        ] {
            let claims = json!({ "aud": aud });
            assert_eq!(check_audience_url(claims.as_object().unwrap(), &accepted).is_ok(), is_good, "{aud}");
            assert!(check_audience(claims.as_object().unwrap(), &accepted).is_err(), "{aud}: not letter by letter");
        }
    }
}
