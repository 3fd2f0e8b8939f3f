//! Removes the entries that a credential does not cover from lists of tools, prompts and resources, and marks the lists as
//! private for caches. All other bytes stay the same.
//!
//! MCP 2026-07-28 lets a server mark a list with `cacheScope: "public"`. A client or a proxy may then show it to any user,
//! also to a user with another scope. The server does not know that the gateway cuts lists by credential.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::address;
use crate::names::ConnectorId;
use crate::scope::{Scope, ScopeSet};

/// The entries of lists that a credential may see.
#[derive(Clone, Debug)]
pub struct Permitted {
    pub scopes: ScopeSet,
    /// `gateway.connector_separator`.
    pub separator: Box<str>,
}

/// Maximum number of entries in a list, and of messages in a batch. An entry may have two bytes, but costs as much as a
/// hundred.
const MAX_ENTRIES: usize = 65_536;

/// The text cannot be read with certainty: it could contain a list that the filter did not find.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable;

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Response<T> {
    #[serde(default)]
    result: Outcome<T>,
}

/// The `result` of a response. `None` if it is not an object, because it contains no list then.
struct Outcome<T>(Option<T>);

impl<T> Default for Outcome<T> {
    fn default() -> Self {
        Self(None)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lists<'a> {
    #[serde(borrow, default)]
    tools: Option<Entries<'a>>,
    #[serde(borrow, default)]
    prompts: Option<Entries<'a>>,
    #[serde(borrow, default)]
    resources: Option<Entries<'a>>,
    #[serde(borrow, default)]
    resource_templates: Option<Entries<'a>>,
    #[serde(borrow, default)]
    cache_scope: Member<'a>,
    #[serde(borrow, default)]
    ttl_ms: Member<'a>,
    #[serde(borrow, default)]
    result_type: Member<'a>,
}

/// The lists of a result, without their entries.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UncutLists<'a> {
    tools: Option<IgnoredAny>,
    prompts: Option<IgnoredAny>,
    resources: Option<IgnoredAny>,
    resource_templates: Option<IgnoredAny>,
    #[serde(borrow, default)]
    cache_scope: Member<'a>,
    #[serde(borrow, default)]
    ttl_ms: Member<'a>,
    #[serde(borrow, default)]
    result_type: Member<'a>,
}

/// The raw text of a member's value. `null` is such a text too, and differs from an absent member.
#[derive(Clone, Copy, Default)]
struct Member<'a>(Option<&'a str>);

impl<'de: 'a, 'a> Deserialize<'de> for Member<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|value| Self(Some(value.get())))
    }
}

/// The members of a result that are hints for caches (MCP 2026-07-28, Caching).
struct Hints<'a> {
    cache_scope: Member<'a>,
    ttl_ms: Member<'a>,
    result_type: Member<'a>,
}

const PRIVATE: &str = "\"private\"";

impl<'a> Hints<'a> {
    /// The change that makes the result private. A list of MCP 2026-07-28 without `cacheScope` is marked too, because some
    /// clients treat it as public. Results of older versions have no hints, and are not changed.
    fn made_private(&self, is_list: bool) -> Option<Cut<'a>> {
        if let Some(scope) = self.cache_scope.0 {
            return (scope != PRIVATE).then(|| Cut { first: scope, last: scope, kept: PRIVATE.to_owned() });
        }
        let neighbor = self.ttl_ms.0.or(self.result_type.0).filter(|_| is_list)?;
        Some(Cut { first: neighbor, last: neighbor, kept: format!("{neighbor},\"cacheScope\":{PRIVATE}") })
    }
}

/// Marks the results in `text`, a JSON-RPC message or a batch, as private, and changes nothing else.
///
/// # Errors
/// [`Unreadable`] if `text` is not JSON of this form.
pub fn mark_private(text: &str) -> Result<Cow<'_, str>, Unreadable> {
    change(text, |message, changes| {
        let Some(lists) = parse_object::<Response<UncutLists<'_>>>(message)?.result.0 else { return Ok(()) };
        let UncutLists { tools, prompts, resources, resource_templates, cache_scope, ttl_ms, result_type } = lists;
        let is_list = [tools, prompts, resources, resource_templates].iter().any(Option::is_some);
        changes.extend(Hints { cache_scope, ttl_ms, result_type }.made_private(is_list));
        Ok(())
    })
}

/// Applies `change_message` to each message of `text`, which is a message or a batch.
fn change<'a>(
    text: &'a str,
    mut change_message: impl FnMut(&'a str, &mut Vec<Cut<'a>>) -> Result<(), Unreadable>,
) -> Result<Cow<'a, str>, Unreadable> {
    let mut cuts = Vec::new();
    if text.trim_ascii_start().starts_with('[') {
        for message in parse::<Entries<'_>>(text)?.0 {
            change_message(message.get(), &mut cuts)?;
        }
    } else {
        change_message(text, &mut cuts)?;
    }
    if cuts.is_empty() { Ok(Cow::Borrowed(text)) } else { splice(text, &cuts).map(Cow::Owned) }
}

/// At most [`MAX_ENTRIES`] values.
struct Entries<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(EntriesVisitor).map(Self)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = elements.next_element()? {
            if entries.len() >= MAX_ENTRIES {
                return Err(A::Error::custom("too many entries"));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Outcome<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OutcomeVisitor(PhantomData)).map(Self)
    }
}

struct OutcomeVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OutcomeVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a result")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members)).map(Some)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    uri: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    uri_template: Option<Cow<'a, str>>,
}

impl Permitted {
    /// Removes the entries that the credential does not cover from `text`, a JSON-RPC message or a batch, and marks the
    /// results as private.
    ///
    /// # Errors
    /// [`Unreadable`] if `text` is not JSON of this form.
    pub fn cut<'a>(&self, text: &'a str) -> Result<Cow<'a, str>, Unreadable> {
        change(text, |message, cuts| self.cut_message(message, cuts))
    }

    fn cut_message<'a>(&self, message: &'a str, cuts: &mut Vec<Cut<'a>>) -> Result<(), Unreadable> {
        let Some(lists) = parse_object::<Response<Lists<'_>>>(message)?.result.0 else { return Ok(()) };
        let of_name = |entry: &Entry<'_>| address::of_name(entry.name.as_deref()?, &self.separator);
        let of_uri = |entry: &Entry<'_>| address::of_uri(entry.uri.as_deref()?);
        let of_template = |entry: &Entry<'_>| address::of_uri(entry.uri_template.as_deref()?);
        let Lists { tools, prompts, resources, resource_templates, cache_scope, ttl_ms, result_type } = lists;
        let is_list = [&tools, &prompts, &resources, &resource_templates].iter().any(|list| list.is_some());
        cuts.extend(Hints { cache_scope, ttl_ms, result_type }.made_private(is_list));
        cuts.extend(self.cut_list(tools, of_name));
        cuts.extend(self.cut_list(prompts, of_name));
        cuts.extend(self.cut_list(resources, of_uri));
        cuts.extend(self.cut_list(resource_templates, of_template));
        Ok(())
    }

    fn cut_list<'a>(
        &self,
        entries: Option<Entries<'a>>,
        connector: impl Fn(&Entry<'_>) -> Option<ConnectorId>,
    ) -> Option<Cut<'a>> {
        let Entries(entries) = entries?;
        let is_covered = |entry: &&&RawValue| {
            // An entry that cannot be tied to a connector is removed.
            let entry = parse_object::<Entry<'_>>(entry.get()).ok();
            let connector = entry.and_then(|entry| connector(&entry));
            connector.is_some_and(|connector| self.scopes.covers(&Scope::Connector(connector)))
        };
        let kept: Vec<&str> = entries.iter().filter(is_covered).map(|entry| entry.get()).collect();
        let (first, last) = (entries.first()?.get(), entries.last()?.get());
        (kept.len() < entries.len()).then(|| Cut { first, last, kept: kept.join(",") })
    }
}

/// A part of a text and its replacement: the entries of a list that stay, or a hint for caches.
struct Cut<'a> {
    first: &'a str,
    last: &'a str,
    kept: String,
}

/// Parses an object as a `T`. An array is refused, because serde would read its elements as members in order.
fn parse_object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Unreadable> {
    if text.trim_ascii_start().starts_with('{') { parse(text) } else { Err(Unreadable) }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Unreadable> {
    serde_json::from_str(text).map_err(|_| Unreadable)
}

/// Replaces these parts of `text`.
fn splice(text: &str, cuts: &[Cut<'_>]) -> Result<String, Unreadable> {
    let offset = |part: &str| (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize);
    let place = |cut: &Cut<'_>| Some((offset(cut.first)?, offset(cut.last)?.checked_add(cut.last.len())?));
    let mut places: Vec<((usize, usize), &str)> =
        cuts.iter().map(|cut| Some((place(cut)?, cut.kept.as_str()))).collect::<Option<_>>().ok_or(Unreadable)?;
    places.sort_unstable();
    let (mut spliced, mut done) = (String::with_capacity(text.len()), 0);
    for ((start, end), kept) in places {
        spliced.push_str(text.get(done..start).ok_or(Unreadable)?);
        spliced.push_str(kept);
        done = end;
    }
    spliced.push_str(text.get(done..).ok_or(Unreadable)?);
    Ok(spliced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn permitted() -> Permitted {
        let scopes = ["mcp:call:notes", "mcp:call:files"].into_iter().filter_map(Scope::parse).collect();
        Permitted { scopes, separator: "__".into() }
    }

    fn cut(text: &str) -> Result<Cow<'_, str>, Unreadable> {
        permitted().cut(text)
    }

    #[test]
    fn only_entries_that_are_not_covered_are_removed() {
        let text = r#"{ "jsonrpc" : "2.0", "id":1, "result": {"tools": [ {"name":"notes__a", "x":1.50} , {"name":"clock__b"},{"name":"files__c"} ], "nextCursor":"\u0063"} }"#;
        let expected = r#"{ "jsonrpc" : "2.0", "id":1, "result": {"tools": [ {"name":"notes__a", "x":1.50},{"name":"files__c"} ], "nextCursor":"\u0063"} }"#;
        assert_eq!(cut(text).unwrap(), expected);
        for (list, entries, kept) in [
            ("prompts", json!([{"name": "clock__p"}, {"name": "notes__p"}]), json!([{"name": "notes__p"}])),
            (
                "resources",
                json!([{"uri": "clock+c://x", "name": "notes__x"}, {"uri": "notes+n://x"}]),
                json!([{"uri": "notes+n://x"}]),
            ),
            (
                "resourceTemplates",
                json!([{"uriTemplate": "clock+c://{x}"}, {"uriTemplate": "notes+n://{x}"}]),
                json!([{"uriTemplate": "notes+n://{x}"}]),
            ),
            (
                "tools",
                json!([{"name": "read"}, {"title": "x"}, 7, null, "notes__a", ["notes__a"], {"name": 7}, {"name": "clock\u{5f}_x"}]),
                json!([]),
            ),
            ("tools", json!([]), json!([])),
        ] {
            let message = |entries: &Value| json!({"jsonrpc": "2.0", "id": 1, "result": {list: entries}});
            let text = message(&entries).to_string();
            assert_eq!(serde_json::from_str::<Value>(&cut(&text).unwrap()).unwrap(), message(&kept), "{text}");
        }
        let batch = r#"[{"id":1,"result":{"tools":[{"name":"clock__b"}],"prompts":[{"name":"clock__b"}]}},{"id":2,"result":{}}]"#;
        assert_eq!(cut(batch).unwrap(), r#"[{"id":1,"result":{"tools":[],"prompts":[]}},{"id":2,"result":{}}]"#);
    }

    #[test]
    fn every_list_is_marked_as_private() {
        let entries = |list: &str| match list {
            "tools" | "prompts" => json!([{"name": "notes__a"}]),
            "resources" => json!([{"uri": "notes+n://a"}]),
            _ => json!([{"uriTemplate": "notes+n://{a}"}]),
        };
        for list in ["tools", "prompts", "resources", "resourceTemplates"] {
            let entries = entries(list);
            for (result, expected) in [
                (
                    format!(r#"{{"{list}":{entries},"ttlMs":60000,"cacheScope": "public" }}"#),
                    format!(r#"{{"{list}":{entries},"ttlMs":60000,"cacheScope": "private" }}"#),
                ),
                (
                    format!(r#"{{"cacheScope":"PUBLIC","{list}":{entries}}}"#),
                    format!(r#"{{"cacheScope":"private","{list}":{entries}}}"#),
                ),
                (format!(r#"{{"cacheScope":null,"{list}":[]}}"#), format!(r#"{{"cacheScope":"private","{list}":[]}}"#)),
                (
                    format!(r#"{{"cache\u0053cope":["public"],"{list}":[]}}"#),
                    format!(r#"{{"cache\u0053cope":"private","{list}":[]}}"#),
                ),
                (format!(r#"{{"{list}":[],"ttlMs": 5}}"#), format!(r#"{{"{list}":[],"ttlMs": 5,"cacheScope":"private"}}"#)),
                (
                    format!(r#"{{"resultType":"complete","{list}":[]}}"#),
                    format!(r#"{{"resultType":"complete","cacheScope":"private","{list}":[]}}"#),
                ),
            ] {
                let message = |result: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
                let (text, expected) = (message(&result), message(&expected));
                assert_eq!(cut(&text).unwrap(), expected, "scoped");
                assert_eq!(mark_private(&text).unwrap(), expected, "full");
                let batch = |text: &str| format!("[{text},{text}]");
                assert_eq!(mark_private(&batch(&text)).unwrap(), batch(&expected), "full, a batch");
            }
        }
        let with_foreign = r#"{"result":{"cacheScope":"public","tools":[{"name":"clock__a"},{"name":"notes__a"}]}}"#;
        assert_eq!(cut(with_foreign).unwrap(), r#"{"result":{"cacheScope":"private","tools":[{"name":"notes__a"}]}}"#);
        let marked = r#"{"result":{"cacheScope":"private","tools":[{"name":"clock__a"},{"name":"notes__a"}]}}"#;
        assert_eq!(mark_private(with_foreign).unwrap(), marked);
        for untouched in [
            r#"{"result":{"tools":[{"name":"notes__a"}]}}"#,
            r#"{"result":{"tools":[{"name":"notes__a","cacheScope":"public"}],"_meta":{"cacheScope":"public"}}}"#,
            r#"{"result":{"tools":[],"ttlMs":1,"cacheScope":"private"}}"#,
            r#"{"result":{"resultType":"input_required","ttlMs":1}}"#,
            r#"{"method":"notifications/message","params":{"cacheScope":"public"}}"#,
            r#"{"error":{"cacheScope":"public"}}"#,
        ] {
            assert!(
                matches!(cut(untouched), Ok(Cow::Borrowed(_))) && matches!(mark_private(untouched), Ok(Cow::Borrowed(_))),
                "{untouched}"
            );
        }
        let twice = r#"{"result":{"tools":[],"cacheScope":"private","cacheScope":"public"}}"#;
        assert_eq!((cut(twice), mark_private(twice)), (Err(Unreadable), Err(Unreadable)));
        let long = format!(r#"{{"result":{{"cacheScope":"public","tools":[{}]}}}}"#, vec!["{}"; 70_000].join(","));
        assert_eq!(
            mark_private(&long).unwrap(),
            long.replace("public", "private"),
            "entries are not read, so they have no limit"
        );
    }

    #[test]
    fn an_entry_with_two_names_is_removed() {
        for entry in [r#"{"name":"notes__a","name":"clock__b"}"#, r#"{"name":"notes__a","n\u0061me":"clock__b"}"#] {
            assert_eq!(cut(&format!(r#"{{"result":{{"tools":[{entry}]}}}}"#)).unwrap(), r#"{"result":{"tools":[]}}"#);
        }
    }

    #[test]
    fn a_list_has_at_most_65536_entries() {
        for (count, is_read) in [(65_536, true), (65_537, false)] {
            let list = format!(r#"{{"result":{{"tools":[{}]}}}}"#, vec!["{}"; count].join(","));
            assert_eq!(cut(&list).ok().as_deref(), is_read.then_some(r#"{"result":{"tools":[]}}"#), "{count}");
            assert_eq!(cut(&format!("[{}]", vec!["{}"; count].join(","))).is_ok(), is_read, "{count} messages");
        }
    }

    #[test]
    fn a_text_without_a_list_stays_unchanged() {
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"tools"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"tools":[{"name":"clock__a"}]}}"#,
            r#"{"id":1,"result":null}"#,
            r#"{"id":1,"result":[1]}"#,
            r#"{"id":1,"result":{"tools":null}}"#,
            r#"{"id":1,"result":{"tools":[{"name":"notes__a"}]}}"#,
            "{}",
            "[]",
        ] {
            assert!(matches!(cut(text), Ok(Cow::Borrowed(same)) if same == text), "{text}");
        }
    }

    #[test]
    fn an_unreadable_text_is_an_error() {
        for text in [
            "",
            "nonsense",
            "7",
            r#"{"result":{"tools":{}}}"#,
            r#"{"result":{"tools":[{"name":"clock__a"}]}"#,
            r#"{"result":{"tools":[{"name":"clock__a","x":NaN}]}}"#,
            r#"{"result":{"tools":[]},"result":{"tools":[{"name":"clock__a"}]}}"#,
            r#"{"result":{"tools":[],"tools":[{"name":"clock__a"}]}}"#,
            r#"[[{"result":{"tools":[{"name":"clock__a"}]}}]]"#,
        ] {
            assert_eq!(cut(text), Err(Unreadable), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_cut_list_has_only_covered_entries(names in prop::collection::vec("(notes|clock|files|notes_)__?[a-z]{0,3}", 0..12)) {
            let tools: Vec<Value> = names.iter().map(|name| json!({"name": name, "description": "clock__ [\"{"})).collect();
            let text = json!({"id": 1, "result": {"tools": tools}}).to_string();
            let cut: Value = serde_json::from_str(&cut(&text).unwrap()).unwrap();
            let kept: Vec<&str> = cut["result"]["tools"].as_array().unwrap().iter().filter_map(|tool| tool["name"].as_str()).collect();
            let expected: Vec<&String> = names.iter().filter(|name| name.starts_with("notes__") || name.starts_with("files__")).collect();
            prop_assert_eq!(kept, expected);
        }

        #[test]
        fn never_panics(text: String) {
            let _ = cut(&text);
        }
    }
}
