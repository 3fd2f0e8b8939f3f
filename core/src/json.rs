//! Strict parsing of JSON from outside.
//!
//! RFC 8259 leaves duplicate members to the reader. If two readers choose differently, an attacker can exploit it (RFC
//! 7515 §4: header names must be unique; RFC 8725 §2.4). Here, a duplicate member at any depth is an error.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Maximum nesting. Claims of real identity providers stay below 6.
const MAX_DEPTH: usize = 16;

/// Parses `bytes` as one JSON object without duplicate members.
///
/// # Errors
/// If `bytes` is not UTF-8, not JSON, not an object, nested deeper than 16, or has a duplicate member. The error names a
/// position, never a value.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0 }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    match value {
        Value::Object(members) => Ok(members),
        _ => Err(serde_json::Error::custom("not an object")),
    }
}

/// Whether `bytes` is exactly one JSON text.
pub fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}

/// Removes white space and a byte order mark from the beginning of `document`. Some editors and frameworks write the mark,
/// and RFC 8259 §8.1 allows a parser to ignore it.
pub fn without_byte_order_mark(mut document: &[u8]) -> &[u8] {
    loop {
        let trimmed = document.trim_ascii_start();
        let rest = trimmed.strip_prefix(b"\xef\xbb\xbf").unwrap_or(trimmed);
        if rest.len() == document.len() {
            return document;
        }
        document = rest;
    }
}

/// Builds a [`Value`] with the restrictions of [`parse_object`].
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: Error>(&self) -> Result<Self, E> {
        let depth = self.depth.saturating_add(1);
        if depth > MAX_DEPTH { Err(E::custom("nested too deeply")) } else { Ok(Self { depth }) }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(self.deeper()?)? {
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(self.deeper()?)?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate member"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_ambiguous_and_deep_json_is_refused() {
        // The depth includes the object around the arrays.
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(parse_object(nested(16).as_bytes()).is_ok());
        let deep = nested(17);
        for (why, text) in [
            ("duplicate", r#"{"a":1,"a":1}"#),
            ("duplicate after escapes", r#"{"a":1,"\u0061":1}"#),
            ("duplicate below", r#"{"a":[{"b":1,"b":2}]}"#),
            ("no object", "[]"),
            ("trailing text", "{} {}"),
            ("truncated", r#"{"a":"#),
            ("empty", ""),
            ("deep", &deep),
            ("lone surrogate", r#"{"a":"\ud800"}"#),
        ] {
            assert!(parse_object(text.as_bytes()).is_err(), "{why}: {text}");
        }
        assert!(parse_object(b"{\"a\":\"\xff\"}").is_err(), "not UTF-8");
    }

    #[test]
    fn a_byte_order_mark_and_white_space_before_the_json_are_removed() {
        for before in ["", "\u{feff}", " \r\n\t", "\n\u{feff}", "\u{feff}\n", "\u{feff}\u{feff}"] {
            assert_eq!(without_byte_order_mark(format!("{before}{{}} ").as_bytes()), b"{} ", "{before:?}");
        }
        for kept in [&b""[..], b"\xef\xbb{}", b"\xff\xfe{}", b")]}'\n{}", b"\xc2\xa0{}"] {
            assert_eq!(without_byte_order_mark(kept), kept);
        }
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_serde_json_if_members_are_unique(number: i64, text: String, flag: bool) {
            let value = serde_json::json!({"n": number, "deep": {"t": [text, flag, null, 0.5]}});
            let read = parse_object(value.to_string().as_bytes()).unwrap();
            proptest::prop_assert_eq!(Value::Object(read), value);
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = parse_object(&bytes);
        }
    }
}
