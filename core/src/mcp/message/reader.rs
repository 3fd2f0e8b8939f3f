//! Deserializes a request body and refuses what two readers could read differently. The parent module lists these cases.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

pub(super) const DUPLICATE: &str = "The message has a duplicate member.";
pub(super) const UNNAMED: &str = "The message has a member with an empty name.";
pub(super) const LOOKALIKE: &str = "The message has a member whose name can be mistaken for a member that names the target.";
pub(super) const ESCAPED: &str =
    "The message has an escape in a name, a URI or the id of a response. Send these without escapes.";
pub(super) const TOO_DEEP: &str = "The message is nested deeper than 64 levels.";

/// The texts of all refusals of ambiguous messages.
pub(super) const AMBIGUITIES: [&str; 5] = [DUPLICATE, UNNAMED, LOOKALIKE, ESCAPED, TOO_DEEP];

/// The members of one message that select its target, borrowed from its text.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub(super) is_version_2: bool,
    pub(super) method: Option<Cow<'a, str>>,
    pub(super) id: Id,
    pub(super) is_response: bool,
    pub(super) params: Params<'a>,
}

#[derive(Default)]
pub(super) struct Params<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) uri: Option<&'a str>,
    pub(super) task_id: Option<Cow<'a, str>>,
    pub(super) reference: Option<Reference<'a>>,
}

#[derive(Default)]
pub(super) struct Reference<'a> {
    pub(super) kind: Option<Cow<'a, str>>,
    pub(super) name: Option<&'a str>,
    pub(super) uri: Option<&'a str>,
}

/// The `id` of a message, JSON-RPC 2.0 §4.
#[derive(Default)]
pub(super) struct Id {
    pub(super) value: Value,
    pub(super) is_escaped: bool,
}

impl Id {
    fn plain(value: impl Into<Value>) -> Self {
        Self { value: value.into(), is_escaped: false }
    }
}

/// Maximum nesting. Arguments of real tools stay below 20. serde_json itself stops at 128.
const MAX_DEPTH: usize = 64;

/// The names of the members that select the connector.
const DECIDING: [&str; 10] = ["jsonrpc", "method", "id", "params", "result", "error", "name", "uri", "ref", "type"];

/// The names of an object's members. Each name may occur once.
#[derive(Default)]
struct Names<'a> {
    /// The first ones. Most objects have few members, and comparing few names costs less than hashing one.
    few: Vec<Cow<'a, str>>,
    more: HashSet<Cow<'a, str>>,
}

/// Maximum number of names that are compared one by one.
const FEW_NAMES: usize = 8;

impl<'a> Names<'a> {
    /// Reads the name of the next member. Empty and duplicate names are errors.
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

    /// Like [`Self::next`], for an object that selects the connector.
    fn next_deciding<A: MapAccess<'a>>(&mut self, members: &mut A) -> Result<Option<Cow<'a, str>>, A::Error> {
        let name = self.next(members)?;
        if name.as_deref().is_some_and(is_lookalike) { Err(A::Error::custom(LOOKALIKE)) } else { Ok(name) }
    }
}

/// Whether some reader could take `name` for one of [`DECIDING`], although it is another name.
fn is_lookalike(name: &str) -> bool {
    let decides = |decides: &&str| decides.eq_ignore_ascii_case(name);
    name.contains('.') || !name.is_ascii() || DECIDING.iter().find(|one| decides(one)).is_some_and(|one| *one != name)
}

/// A string. It is borrowed from the text if it has no escapes.
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

/// The `id` of a message: a string, a number or null (JSON-RPC 2.0 §4).
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

/// Skips a value that does not select the connector, and checks the names in it.
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

/// The text of a string. Any other value is skipped, because it selects no connector.
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

/// An object that selects the connector: a message, its `params` or its `ref`.
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

pub(super) struct BodySeed;

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
