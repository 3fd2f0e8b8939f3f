//! The members of a document, as serde's derived code reads them. A page can then be compared with the types themselves.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

/// The members of a type.
#[derive(Default)]
pub(crate) struct Schema {
    /// The paths of all members that have no members themselves, such as `orgs.<name>.api_keys[].id`. A list of texts has no
    /// members.
    pub(crate) members: BTreeSet<String>,
    /// The possible values of members that are enums, by path.
    pub(crate) values: BTreeMap<String, Vec<&'static str>>,
}

/// The members of `T`.
pub(crate) fn of<T: DeserializeOwned>() -> Schema {
    let found = RefCell::default();
    T::deserialize(Walker { path: String::new(), found: &found }).map(drop).unwrap();
    found.into_inner()
}

/// The paths of the members of a JSON document that have no members themselves, in the form of [`Schema::members`]. `is_map`
/// tells at which paths the names of members are data.
pub(crate) fn leaves(document: &Value, is_map: fn(&str) -> bool) -> BTreeSet<String> {
    fn walk(path: &str, value: &Value, is_map: fn(&str) -> bool, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    let name = if is_map(path) { "<name>" } else { name };
                    walk(&joined(path, name), value, is_map, found);
                }
            }
            Value::Array(elements) if elements.iter().any(Value::is_object) => {
                elements.iter().for_each(|element| walk(&format!("{path}[]"), element, is_map, found));
            }
            _ => drop(found.insert(without_data(path).to_owned())),
        }
    }
    let mut found = BTreeSet::new();
    walk("", document, is_map, &mut found);
    found
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The path of a list or a map of texts, without the mark for its elements.
fn without_data(path: &str) -> &str {
    path.strip_suffix("[]").or_else(|| path.strip_suffix(".<name>")).unwrap_or(path)
}

/// Pretends to read a document that has every member once.
struct Walker<'s> {
    path: String,
    found: &'s RefCell<Schema>,
}

impl Walker<'_> {
    fn at(&self, path: String) -> Self {
        Walker { path, found: self.found }
    }

    fn note(&self) {
        self.found.borrow_mut().members.insert(without_data(&self.path).to_owned());
    }
}

impl<'de> Deserializer<'de> for Walker<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.note();
        visitor.visit_str("")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.note();
        self.found.borrow_mut().values.insert(self.path, vec!["true", "false"]);
        visitor.visit_bool(true)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.note();
        visitor.visit_u32(1)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.note();
        visitor.visit_u64(1)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.note();
        self.found.borrow_mut().values.insert(self.path, variants.to_vec());
        visitor.visit_enum(StrDeserializer::new(variants[0]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { walker: self, fields: fields.iter(), next: "" })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { walker: self, fields: ["<name>"].iter(), next: "" })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(OneElement(Some(self)))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct tuple
        tuple_struct identifier ignored_any
    }
}

struct Fields<'s> {
    walker: Walker<'s>,
    fields: slice::Iter<'static, &'static str>,
    next: &'static str,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.fields.next() else { return Ok(None) };
        self.next = name;
        seed.deserialize(StrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(self.walker.at(joined(&self.walker.path, self.next)))
    }
}

struct OneElement<'s>(Option<Walker<'s>>);

impl<'de> SeqAccess<'de> for OneElement<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(walker) = self.0.take() else { return Ok(None) };
        let path = format!("{}[]", walker.path);
        seed.deserialize(walker.at(path)).map(Some)
    }
}
