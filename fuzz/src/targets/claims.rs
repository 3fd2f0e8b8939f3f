//! Claims are parsed strictly, and stay the same if they are printed and parsed again. The checks of times and
//! audience are not more generous than RFC 7519.

use std::time::Duration;

use apexmcp_core::jose::claims;
use apexmcp_core::json;
use apexmcp_core::scope;
use apexmcp_core::time::UnixTime;
use serde_json::Value;

use crate::reader::{Json, without_fractions};

const NOW: f64 = 1_800_000_000.0;
const SKEW: f64 = 60.0;

/// `data` is a JSON text.
pub fn check(data: &[u8]) -> bool {
    let Ok(read) = json::parse_object(data) else { return false };
    assert_eq!(serde_json::from_slice::<Value>(data).ok().as_ref().and_then(Value::as_object), Some(&read));
    let printed = Value::Object(read.clone()).to_string();
    let again = json::parse_object(printed.as_bytes()).expect("the printed claims are valid");
    assert_eq!(without_fractions(Value::Object(again)), without_fractions(Value::Object(read.clone())));

    let lax = Json::read(data).expect("JSON");
    let one = |name| {
        let values: Vec<&Json> = lax.exactly(name).collect();
        assert!(values.len() <= 1, "{name} twice");
        values.first().copied()
    };
    let now = UnixTime::from_secs(1_800_000_000);
    let is_in_time = claims::check_times(&read, now, Duration::from_secs(60)).is_ok();
    if is_in_time {
        let number = |name| one(name).map(|value| value.number().expect("a number"));
        assert!(number("exp").expect("exp") + SKEW > NOW);
        for name in ["nbf", "iat"] {
            assert!(number(name).is_none_or(|moment| moment <= NOW + SKEW + 0.001), "{name}");
        }
    }
    if claims::check_audience(&read, &["apexmcp".into()]).is_ok() {
        let audience = one("aud").expect("aud");
        assert!(audience.elements().iter().any(|element| element.text() == Some("apexmcp")));
        assert!(audience.elements().iter().all(|element| element.text().is_some()));
    }
    if let Ok(issuer) = claims::issuer(&read) {
        assert_eq!(one("iss").and_then(Json::text), Some(issuer));
    }
    if let Ok(subject) = claims::subject(&read) {
        assert_eq!(one("sub").and_then(Json::text), Some(subject));
        assert!(!subject.is_empty());
    }
    if let Ok(Some(scopes)) = scope::granted_by(&read) {
        assert_eq!(scope::parse_words(&scopes.to_string()), scopes);
        let words: Vec<&str> = ["scope", "scp"]
            .into_iter()
            .filter_map(one)
            .flat_map(|claim| claim.elements().iter().filter_map(Json::text))
            .flat_map(|text| text.split(' '))
            .collect();
        assert!(scopes.to_string().split(' ').all(|word| word.is_empty() || words.contains(&word)), "{scopes} of {words:?}");
    }
    is_in_time
}
