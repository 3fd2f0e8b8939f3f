//! How a configuration reaches the module: JSON text from a `StringValue`, or the bytes of a `google.protobuf.Struct`,
//! which Envoy hands over as they are.

use std::borrow::Cow;

use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value as ProtoValue};
use serde_json::{Map, Number, Value};

/// The JSON text of `bytes`. What is no `Struct` is taken for JSON, and judged as such.
///
/// The two cannot be mistaken: a `Struct` begins with a line feed and a length, and is one to its last byte only by
/// being one.
pub(super) fn json_text(bytes: &[u8]) -> Cow<'_, [u8]> {
    match Struct::decode(bytes) {
        Ok(message) if bytes.starts_with(b"\n") => Cow::Owned(object(message).to_string().into_bytes()),
        _ => Cow::Borrowed(bytes),
    }
}

fn object(message: Struct) -> Value {
    Value::Object(message.fields.into_iter().map(|(name, value)| (name, json(value))).collect::<Map<_, _>>())
}

fn json(value: ProtoValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => flag.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::NumberValue(number)) => number_value(number),
        Some(Kind::StructValue(message)) => object(message),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json).collect(),
    }
}

/// A `Struct` has no integers. Whole numbers up to 2^53 are as exact as they were written.
#[expect(clippy::cast_possible_truncation, reason = "the value is whole and in range")]
fn number_value(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        (number as i64).into()
    } else {
        Number::from_f64(number).map_or(Value::Null, Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn message(value: &Value) -> Struct {
        let fields = value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), proto(value))).collect();
        Struct { fields }
    }

    fn proto(value: &Value) -> ProtoValue {
        let kind = match value {
            Value::Null => Kind::NullValue(0),
            Value::Bool(flag) => Kind::BoolValue(*flag),
            Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
            Value::String(text) => Kind::StringValue(text.clone()),
            Value::Array(values) => Kind::ListValue(prost_types::ListValue { values: values.iter().map(proto).collect() }),
            Value::Object(_) => Kind::StructValue(message(value)),
        };
        ProtoValue { kind: Some(kind) }
    }

    #[test]
    fn a_struct_becomes_the_json_that_was_meant() {
        let value = json!({"gateway": {"route_metadata": true}, "n": [4096, 0.5, -1, null], "s": "\n"});
        let bytes = message(&value).encode_to_vec();
        assert_eq!(serde_json::from_slice::<Value>(&json_text(&bytes)).unwrap(), value);
    }

    #[test]
    fn json_stays_as_it_is() {
        for text in ["{}", "\n{\n  \"gateway\": {}\n}\n", "\n", "", "\n{ nonsense"] {
            assert!(matches!(json_text(text.as_bytes()), Cow::Borrowed(_)), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = json_text(&[b"\n", bytes.as_slice()].concat());
        }
    }
}
