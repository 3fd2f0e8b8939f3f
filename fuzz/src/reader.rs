//! Lax parsers, like those that may run behind the gateway. They share no code with the gateway's own parsers.

use std::fmt;

use apexmcp_core::request::RequestHead;
use apexmcp_core::serialized_map::SerializedMap;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// JSON that keeps every member of an object, repeated ones too. So it contains the member that any parser would
/// choose.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Text(String),
    Number(f64),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
    /// Null, true or false.
    Word,
}

impl Json {
    /// Parses `text`. `None` if it is not JSON.
    pub fn read(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// Parses the first value in `text` like the most careless parser. It treats commas and colons as white space,
    /// accepts any escape and any number, and has no limit of depth. `None` if the value does not end.
    pub fn read_carelessly(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        let mut rest = text.as_ref();
        let mut open: Vec<(Json, Option<String>)> = Vec::new();
        loop {
            rest = rest.trim_start_matches(|one: char| one.is_ascii_whitespace() || matches!(one, ',' | ':' | '\u{feff}'));
            let first = rest.chars().next()?;
            let value = match first {
                '[' | '{' => {
                    open.push((if first == '[' { Self::Array(Vec::new()) } else { Self::Object(Vec::new()) }, None));
                    rest = &rest[1..];
                    continue;
                }
                ']' | '}' => {
                    rest = &rest[1..];
                    open.pop()?.0
                }
                '"' => {
                    let (string, after) = careless_string(&rest[1..])?;
                    rest = after;
                    Self::Text(string)
                }
                _ => {
                    let end = rest.find(|one: char| one.is_ascii_whitespace() || ",:[]{}\"".contains(one)).unwrap_or(rest.len());
                    let (word, after) = rest.split_at(end);
                    rest = after;
                    if first.is_ascii_alphabetic() { Self::Word } else { Self::Number(word.parse().unwrap_or(f64::NAN)) }
                }
            };
            match open.last_mut() {
                None => return Some(value),
                Some((Self::Array(elements), _)) => elements.push(value),
                Some((Self::Object(members), name @ None)) => match value {
                    Self::Text(text) => *name = Some(text),
                    other => members.push((String::new(), other)),
                },
                Some((Self::Object(members), name)) => members.push((name.take().unwrap_or_default(), value)),
                Some(_) => unreachable!("only these are opened"),
            }
        }
    }

    /// The values of all members with this name, in any letter case.
    pub fn all<'j>(&'j self, wanted: &'j str) -> impl Iterator<Item = &'j Json> {
        let members = if let Self::Object(members) = self { members.as_slice() } else { &[] };
        members.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
    }

    /// The values of all members with exactly this name.
    pub fn exactly<'j>(&'j self, wanted: &'j str) -> impl Iterator<Item = &'j Json> {
        let members = if let Self::Object(members) = self { members.as_slice() } else { &[] };
        members.iter().filter(move |(name, _)| name == wanted).map(|(_, value)| value)
    }

    /// The elements of an array, or the value itself if it is no array.
    pub fn elements(&self) -> &[Json] {
        if let Self::Array(elements) = self { elements } else { std::slice::from_ref(self) }
    }

    /// The text, if this is a string.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The number, if this is a number.
    pub fn number(&self) -> Option<f64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }
}

/// The string whose first quote was already read, and the text after it.
fn careless_string(text: &str) -> Option<(String, &str)> {
    let (mut string, mut rest) = (String::new(), text);
    loop {
        let first = rest.chars().next()?;
        rest = &rest[first.len_utf8()..];
        match first {
            '"' => return Some((string, rest)),
            '\\' => {
                let escape = rest.chars().next()?;
                rest = &rest[escape.len_utf8()..];
                let digits = rest.get(..4).and_then(|digits| u32::from_str_radix(digits, 16).ok()).filter(|_| escape == 'u');
                rest = if digits.is_some() { &rest[4..] } else { rest };
                let named = match escape {
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                };
                string.push(digits.map_or(named, |code| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)));
            }
            other => string.push(other),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Word)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Word)
    }

    #[allow(clippy::cast_precision_loss, reason = "a lax reader has no other numbers")]
    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    #[allow(clippy::cast_precision_loss, reason = "a lax reader has no other numbers")]
    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(element) = elements.next_element()? {
            array.push(element);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = Vec::new();
        while let Some(member) = members.next_entry()? {
            object.push(member);
        }
        Ok(Json::Object(object))
    }
}

/// Replaces fractions in `value` by null. serde_json reads some of them with one bit changed after it printed them.
pub fn without_fractions(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => Value::Null,
        Value::Array(elements) => elements.into_iter().map(without_fractions).collect(),
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, without_fractions(value))).collect(),
        other => other,
    }
}

/// The data of each event in a stream (WHATWG HTML §9.2.6), including an unfinished last event.
pub fn events(stream: &[u8]) -> Vec<Vec<u8>> {
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let (mut events, mut data) = (Vec::new(), Vec::new());
    for line in lines(stream).chain([&b""[..]]) {
        if line.is_empty() {
            events.extend(Some(std::mem::take(&mut data)).filter(|data: &Vec<u8>| !data.is_empty()));
        } else if let Some(value) = line.strip_prefix(b"data:") {
            if !data.is_empty() {
                data.push(b'\n');
            }
            data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
    }
    events
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
        let (line, ending) = rest.split_at(end);
        rest = ending.strip_prefix(b"\r\n").unwrap_or_else(|| ending.get(1..).unwrap_or_default());
        Some(line)
    })
}

/// Decodes the percent-encoding of `text` once.
pub fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let digits = text.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let is_hex = |digits: &&str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        match digits.filter(is_hex).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) if *byte == b'%' => {
                decoded.push(escaped);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

/// The parameters of a form. A repeated parameter occurs repeatedly.
pub fn form(body: &[u8]) -> Vec<(String, String)> {
    let plain = |text: &[u8]| {
        let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
        String::from_utf8_lossy(&percent_decoded(&spaced)).into_owned()
    };
    body.split(|byte| *byte == b'&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| {
            let mut halves = parameter.splitn(2, |byte| *byte == b'=');
            (plain(halves.next().unwrap_or_default()), plain(halves.next().unwrap_or_default()))
        })
        .collect()
}

/// The request head with these headers, in the form that the filter gets from Envoy.
pub fn request_head(headers: &[(String, Vec<u8>)]) -> Option<RequestHead> {
    RequestHead::new(SerializedMap::of(headers)?)
}

/// Splits an input into headers and a body. Headers are lines `name: value`, up to an empty line.
pub fn head_and_body(input: &[u8]) -> (Vec<(String, Vec<u8>)>, &[u8]) {
    let (mut headers, mut rest) = (Vec::new(), input);
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        if line.is_empty() {
            return (headers, rest);
        }
        // The name of a pseudo-header begins with a colon.
        let colon = line.iter().skip(1).position(|byte| *byte == b':').map_or(line.len(), |at| at + 1);
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b": ").or_else(|| value.strip_prefix(b":")).unwrap_or_default();
        // Envoy changes header names to lower case.
        headers.push((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()));
    }
}
