//! A request's body as JSON-RPC messages, read so that no reader behind can see another connector in it.
//!
//! Readers differ where JSON leaves it to them (RFC 8259 §4). Envoy's own MCP filter, by which `mcp_router` chooses the
//! connector, reads members by their paths up to Envoy 1.39: to it `"x.name"` is another spelling of `"name"`, and what
//! stands inside an object without a name stands one level higher. And `mcp_router` shortens `content-length` by a prefix
//! that it takes from a name, also where the name's escapes keep it from finding that. What could be read in two ways is
//! refused:
//!
//! - a member twice, at any depth,
//! - a member with an empty name, at any depth,
//! - where the connector is decided (in the message, its `params` and its `ref`), a member whose name has a `.`, is not
//!   ASCII, or is one of the names that decide in other letters: some readers do not tell `Name` from `name`,
//! - escapes inside a name, a URI, or the id of a response. Each of these may name a connector.
//!
//! All readers agree about an escape anywhere else. PHP's `json_encode` escapes each `/`, so real clients send
//! `tools\/call`.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::address;
use super::method::{self, Mirrored, Reach};
use crate::names::ConnectorId;
use crate::scope::{Scope, ScopeSet};

/// Longer bodies are refused: as long are those that `envoy/envoy.yaml` lets its MCP filter read.
pub const MAX_LENGTH: usize = 1 << 20;

/// Deeper nesting is refused. Arguments of real tools stay below 20; serde_json itself ends at 128.
const MAX_DEPTH: usize = 64;

/// Why a body is not read. The text is for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// No JSON, or not in UTF-8, or cut off, or followed by something.
    NotJson,
    /// JSON that is no message of JSON-RPC 2.0.
    NotJsonRpc,
    /// See the module.
    Ambiguous(&'static str),
}

impl MessageError {
    /// What is wrong, in a sentence.
    pub fn description(self) -> &'static str {
        match self {
            Self::NotJson => "The body is not JSON.",
            Self::NotJsonRpc => "The body is no JSON-RPC 2.0 message, or lacks the parameter that names its target.",
            Self::Ambiguous(description) => description,
        }
    }
}

const DUPLICATE: &str = "The message has a member twice.";
const UNNAMED: &str = "The message has a member with an empty name.";
const LOOKALIKE: &str = "The message has a member whose name could be read as one that names its target.";
const ESCAPED: &str = "The message has an escape in a name, a URI or the id of a response. Send these without escapes.";
const TOO_DEEP: &str = "The message is nested too deeply.";

/// The names of members by which a connector is decided.
const DECIDING: [&str; 10] = ["jsonrpc", "method", "id", "params", "result", "error", "name", "uri", "ref", "type"];

const AMBIGUITIES: [&str; 5] = [DUPLICATE, UNNAMED, LOOKALIKE, ESCAPED, TOO_DEEP];

/// What one message is addressed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing that a scope protects.
    Nothing,
    /// The lists of all connectors.
    Lists,
    /// One connector.
    Connector(ConnectorId),
    /// Something that only the scope for all connectors covers.
    Untied,
}

/// One JSON-RPC message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is addressed to.
    pub target: Target,
    /// Its method; a response has none.
    pub method: Option<Box<str>>,
    /// The member that the header `Mcp-Name` may repeat. The specification names it for each method.
    pub name: Option<Box<str>>,
    /// Its `id`; null where it has none.
    pub id: Value,
}

/// A body: one message, or a batch of JSON-RPC 2.0 §6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// At least one.
    pub messages: Vec<Message>,
    /// Whether they came as an array.
    pub is_batch: bool,
}

impl Body {
    /// Reads `bytes`; `separator` is `gateway.connector_separator`.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn parse(bytes: &[u8], separator: &str) -> Result<Self, MessageError> {
        let text = std::str::from_utf8(bytes).map_err(|_| MessageError::NotJson)?;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let read = BodySeed.deserialize(&mut deserializer).and_then(|read| deserializer.end().map(|()| read));
        let (parts, is_batch) = read.map_err(|error| explain(&error))?;
        let messages = parts.into_iter().map(|parts| parts.message(separator)).collect::<Result<Vec<_>, _>>()?;
        if messages.is_empty() { Err(MessageError::NotJsonRpc) } else { Ok(Self { messages, is_batch }) }
    }

    /// Whether lists come back.
    pub fn asks_for_lists(&self) -> bool {
        self.messages.iter().any(|message| message.target == Target::Lists)
    }

    /// The `id` by which an answer to the whole body is recognized: that of a single message.
    pub fn id(&self) -> Value {
        match self.messages.as_slice() {
            [message] if !self.is_batch => message.id.clone(),
            _ => Value::Null,
        }
    }

    /// The one smallest scope that all messages together need beyond `held`; `None` where nothing is lacking.
    pub fn lacks(&self, held: &ScopeSet) -> Option<Scope> {
        let needed = |message: &Message| match &message.target {
            Target::Nothing | Target::Lists => None,
            Target::Connector(connector) => Some(Scope::Connector(connector.clone())),
            Target::Untied => Some(Scope::AllConnectors),
        };
        let needed: BTreeSet<Scope> = self.messages.iter().filter_map(needed).collect();
        if needed.iter().all(|scope| held.covers(scope)) {
            return None;
        }
        let mut needed = needed.into_iter();
        match (needed.next(), needed.next()) {
            (Some(only), None) => Some(only),
            _ => Some(Scope::AllConnectors),
        }
    }
}

/// serde_json wraps what a visitor says into its own error; the words are found again there.
fn explain(error: &serde_json::Error) -> MessageError {
    if !error.is_data() {
        return MessageError::NotJson;
    }
    let text = error.to_string();
    let ambiguity = AMBIGUITIES.into_iter().find(|words| text.starts_with(words));
    ambiguity.map_or(MessageError::NotJsonRpc, MessageError::Ambiguous)
}

/// What was read of one message, borrowed from its text.
#[derive(Default)]
struct Parts<'a> {
    is_version_2: bool,
    method: Option<Cow<'a, str>>,
    id: Id,
    is_response: bool,
    params: Params<'a>,
}

#[derive(Default)]
struct Params<'a> {
    name: Option<&'a str>,
    uri: Option<&'a str>,
    task_id: Option<Cow<'a, str>>,
    reference: Option<Reference<'a>>,
}

#[derive(Default)]
struct Reference<'a> {
    kind: Option<Cow<'a, str>>,
    name: Option<&'a str>,
    uri: Option<&'a str>,
}

/// The `id` of a message, JSON-RPC 2.0 §4.
#[derive(Default)]
struct Id {
    value: Value,
    is_escaped: bool,
}

impl Id {
    fn plain(value: impl Into<Value>) -> Self {
        Self { value: value.into(), is_escaped: false }
    }
}

impl Parts<'_> {
    fn message(self, separator: &str) -> Result<Message, MessageError> {
        // Only the id of a response selects a connector.
        if self.is_response && self.id.is_escaped {
            return Err(MessageError::Ambiguous(ESCAPED));
        }
        self.checked(separator).ok_or(MessageError::NotJsonRpc)
    }

    fn checked(self, separator: &str) -> Option<Message> {
        if !self.is_version_2 {
            return None;
        }
        let by_name = |name: &str| address::of_name(name, separator);
        let connector = |connector: Option<ConnectorId>| connector.map_or(Target::Untied, Target::Connector);
        let target = match (self.method.as_deref(), self.is_response) {
            (Some(_), true) | (None, false) => return None,
            // `mcp_router` writes the connector into the id of what its servers ask, and reads it there in the answer.
            (None, true) => self.id.value.as_str().and_then(by_name).map_or(Target::Nothing, Target::Connector),
            (Some(method), false) => match method::reach_of(method) {
                Reach::Nothing => Target::Nothing,
                Reach::List => Target::Lists,
                Reach::Untied => Target::Untied,
                Reach::Name => connector(by_name(self.params.name?)),
                Reach::Uri => connector(address::of_uri(self.params.uri?)),
                Reach::Reference => {
                    let reference = self.params.reference.as_ref()?;
                    match reference.kind.as_deref()? {
                        "ref/prompt" => connector(by_name(reference.name?)),
                        "ref/resource" => connector(address::of_uri(reference.uri?)),
                        _ => Target::Untied,
                    }
                }
            },
        };
        let name = self.method.as_deref().and_then(|method| self.params.mirrored(method));
        Some(Message { target, method: self.method.map(Into::into), name: name.map(Into::into), id: self.id.value })
    }
}

impl Params<'_> {
    /// The member of a message of `method` that the header `Mcp-Name` repeats.
    fn mirrored(&self, method: &str) -> Option<&str> {
        match method::name_of(method) {
            Mirrored::Name => self.name,
            Mirrored::Uri => self.uri,
            Mirrored::TaskId => self.task_id.as_deref(),
            Mirrored::Reference => self.reference.as_ref().and_then(|reference| reference.name.or(reference.uri)),
            Mirrored::Nothing => None,
        }
    }
}

/// The names of an object's members, each of which may come once.
#[derive(Default)]
struct Names<'a> {
    /// The first ones. Most objects have few members, and comparing few names costs less than hashing one.
    few: Vec<Cow<'a, str>>,
    more: HashSet<Cow<'a, str>>,
}

/// Number of names that are compared one by one.
const FEW_NAMES: usize = 8;

impl<'a> Names<'a> {
    fn next<A: MapAccess<'a>>(&mut self, members: &mut A) -> Result<Option<Cow<'a, str>>, A::Error> {
        let Some(name) = members.next_key_seed(TextSeed)? else { return Ok(None) };
        if name.is_empty() {
            return Err(A::Error::custom(UNNAMED));
        }
        if !self.insert(name.clone()) {
            return Err(A::Error::custom(DUPLICATE));
        }
        Ok(Some(name))
    }

    /// Adds a name. Returns false if it is there already.
    fn insert(&mut self, name: Cow<'a, str>) -> bool {
        if self.few.contains(&name) {
            false
        } else if self.few.len() < FEW_NAMES {
            self.few.push(name);
            true
        } else {
            self.more.insert(name)
        }
    }

    /// The same where the connector is decided.
    fn next_deciding<A: MapAccess<'a>>(&mut self, members: &mut A) -> Result<Option<Cow<'a, str>>, A::Error> {
        let name = self.next(members)?;
        if name.as_deref().is_some_and(is_lookalike) { Err(A::Error::custom(LOOKALIKE)) } else { Ok(name) }
    }
}

fn is_lookalike(name: &str) -> bool {
    let decides = |decides: &&str| decides.eq_ignore_ascii_case(name);
    name.contains('.') || !name.is_ascii() || DECIDING.iter().find(|one| decides(one)).is_some_and(|one| *one != name)
}

/// A string, borrowed from the text where it has no escapes.
struct TextSeed;

impl<'a> DeserializeSeed<'a> for TextSeed {
    type Value = Cow<'a, str>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for TextSeed {
    type Value = Cow<'a, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// A string without escapes.
struct LiteralSeed;

impl<'a> DeserializeSeed<'a> for LiteralSeed {
    type Value = &'a str;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for LiteralSeed {
    type Value = &'a str;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(text)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::custom(ESCAPED))
    }
}

/// JSON-RPC 2.0 §4: a string, a number or null.
struct IdSeed;

impl<'a> DeserializeSeed<'a> for IdSeed {
    type Value = Id;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Id, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for IdSeed {
    type Value = Id;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an id")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Id, E> {
        Ok(Id::plain(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Id, E> {
        Ok(Id { is_escaped: true, ..Id::plain(text) })
    }

    fn visit_i64<E>(self, number: i64) -> Result<Id, E> {
        Ok(Id::plain(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Id, E> {
        Ok(Id::plain(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Id, E> {
        Ok(Id::plain(number))
    }

    fn visit_unit<E>(self) -> Result<Id, E> {
        Ok(Id::default())
    }
}

/// Any value below what decides, passed over with its names checked.
#[derive(Clone, Copy)]
struct PassOver {
    depth: usize,
}

impl PassOver {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth.saturating_add(1);
        if depth > MAX_DEPTH { Err(E::custom(TOO_DEEP)) } else { Ok(Self { depth }) }
    }
}

impl<'a> DeserializeSeed<'a> for PassOver {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for PassOver {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut elements: A) -> Result<(), A::Error> {
        let element = self.deeper()?;
        while elements.next_element_seed(element)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<(), A::Error> {
        let (member, mut names) = (self.deeper()?, Names::default());
        while names.next(&mut members)?.is_some() {
            members.next_value_seed(member)?;
        }
        Ok(())
    }
}

/// The text of a string. Any other value is ignored, because it selects no connector.
struct TextOrOther(PassOver);

impl<'a> DeserializeSeed<'a> for TextOrOther {
    type Value = Option<Cow<'a, str>>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for TextOrOther {
    type Value = Option<Cow<'a, str>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, elements: A) -> Result<Self::Value, A::Error> {
        self.0.visit_seq(elements).map(|()| None)
    }

    fn visit_map<A: MapAccess<'a>>(self, members: A) -> Result<Self::Value, A::Error> {
        self.0.visit_map(members).map(|()| None)
    }
}

/// An object whose members are read by name.
trait Members<'a>: Default {
    /// Reads the member `name`.
    fn read<A: MapAccess<'a>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error>;
}

impl<'a> Members<'a> for Parts<'a> {
    fn read<A: MapAccess<'a>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error> {
        match name {
            "jsonrpc" => self.is_version_2 = members.next_value_seed(TextSeed)? == "2.0",
            "method" => self.method = Some(members.next_value_seed(TextSeed)?),
            "id" => self.id = members.next_value_seed(IdSeed)?,
            "params" => self.params = members.next_value_seed(ObjectSeed(PhantomData))?,
            "result" | "error" => {
                self.is_response = true;
                members.next_value_seed(PassOver { depth: 1 })?;
            }
            _ => members.next_value_seed(PassOver { depth: 1 })?,
        }
        Ok(())
    }
}

impl<'a> Members<'a> for Params<'a> {
    fn read<A: MapAccess<'a>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error> {
        match name {
            "name" => self.name = Some(members.next_value_seed(LiteralSeed)?),
            "uri" => self.uri = Some(members.next_value_seed(LiteralSeed)?),
            "ref" => self.reference = Some(members.next_value_seed(ObjectSeed(PhantomData))?),
            "taskId" => self.task_id = members.next_value_seed(TextOrOther(PassOver { depth: 2 }))?,
            _ => members.next_value_seed(PassOver { depth: 2 })?,
        }
        Ok(())
    }
}

impl<'a> Members<'a> for Reference<'a> {
    fn read<A: MapAccess<'a>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error> {
        match name {
            "type" => self.kind = Some(members.next_value_seed(TextSeed)?),
            "name" => self.name = Some(members.next_value_seed(LiteralSeed)?),
            "uri" => self.uri = Some(members.next_value_seed(LiteralSeed)?),
            _ => members.next_value_seed(PassOver { depth: 3 })?,
        }
        Ok(())
    }
}

/// An object on the way to what decides.
struct ObjectSeed<T>(PhantomData<T>);

impl<'a, T: Members<'a>> DeserializeSeed<'a> for ObjectSeed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a, T: Members<'a>> Visitor<'a> for ObjectSeed<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<T, A::Error> {
        let (mut object, mut names) = (T::default(), Names::default());
        while let Some(name) = names.next_deciding(&mut members)? {
            object.read(&name, &mut members)?;
        }
        Ok(object)
    }
}

struct BodySeed;

impl<'a> DeserializeSeed<'a> for BodySeed {
    type Value = (Vec<Parts<'a>>, bool);

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for BodySeed {
    type Value = (Vec<Parts<'a>>, bool);

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON-RPC message or a batch of them")
    }

    fn visit_map<A: MapAccess<'a>>(self, members: A) -> Result<Self::Value, A::Error> {
        Ok((vec![ObjectSeed::<Parts<'a>>(PhantomData).visit_map(members)?], false))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut messages = Vec::new();
        while let Some(message) = elements.next_element_seed(ObjectSeed::<Parts<'a>>(PhantomData))? {
            messages.push(message);
        }
        Ok((messages, true))
    }
}

#[cfg(test)]
mod tests;
