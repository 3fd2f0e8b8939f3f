//! Finding values in JSON that has no fixed schema, and telling null from an absent member.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// All plugin configurations in `value`: as objects, or as JSON in a string.
pub(crate) fn plugins_in(value: &Value) -> Vec<Value> {
    let mut plugins = Vec::new();
    each_object(value, &mut |object| {
        let text = || serde_json::from_str::<Value>(object.get("value")?.as_str()?).ok();
        let is_plugin = |value: &Value| value.get("gateway").is_some() && value.get("policy").is_some();
        if object.contains_key("gateway") && object.contains_key("policy") {
            plugins.push(Value::Object(object.clone()));
        } else if let Some(plugin) = text().filter(is_plugin) {
            plugins.push(plugin);
        }
    });
    plugins
}

/// Calls `visit` for each object in `value`, the outer ones first.
pub(crate) fn each_object(value: &Value, visit: &mut dyn FnMut(&Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            visit(object);
            object.values().for_each(|value| each_object(value, visit));
        }
        Value::Array(values) => values.iter().for_each(|value| each_object(value, visit)),
        _ => {}
    }
}

/// The entries of a list with their indexes. None if the member is absent or is no list.
pub(crate) fn list<'a>(value: &'a Value, member: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    value.get(member).and_then(Value::as_array).into_iter().flatten().enumerate()
}

/// Tells null from an absent member.
pub(crate) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
