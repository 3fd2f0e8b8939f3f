//! Plugin configurations. As JSON text and as a `Struct` they mean the same, and an accepted configuration is within
//! the documented limits.

use std::time::Duration;

use apexmcp_core::config::Config;
use apexmcp_core::policy::source::PolicySource;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::Value;

use super::policy::Names;
use apexmcp_core::testing::{MemoryHost, Signatures};

const SECRET: &str = "secret-of-the-environment";

/// `data` is a configuration in the form in which Envoy passes it.
pub fn check(data: &[u8]) -> bool {
    let environment = |name: &str| (name == "TOKEN").then(|| SECRET.to_owned());
    let parsed = Config::parse(data, &environment);
    if let Ok((config, _)) = &parsed {
        let origin = &config.gateway.origin;
        assert!(origin.starts_with("http") && !origin.ends_with('/') && *origin == origin.to_ascii_lowercase(), "{origin}");
        assert!(config.gateway.token_path.starts_with('/'));
        assert!(config.tokens.clock_skew <= Duration::from_secs(600) && config.tokens.ttl <= Duration::from_secs(86_400));
        assert!(config.jwks.timeout >= Duration::from_millis(1) && config.jwks.timeout <= Duration::from_secs(60));
        assert!(config.forward.header_prefix.len() > 1 && config.forward.header_prefix.ends_with('-'));
        assert!(config.tokens.cache_size <= 1_000_000);
    }
    if let Err(problems) = &parsed {
        assert!(!problems.is_empty(), "refused without a reason");
        // A message never shows a value of the environment.
        let shows_secret = problems.iter().any(|problem| problem.to_string().contains(SECRET));
        assert!(!shows_secret || String::from_utf8_lossy(data).contains(SECRET));
    }
    let Ok(Value::Object(members)) = serde_json::from_slice::<Value>(data) else { return parsed.is_ok() };
    // Both forms of the configuration, as Envoy would pass them. A repeated member is in neither, because the JSON was
    // parsed.
    let text = Value::Object(members.clone()).to_string();
    let bytes = structure(&members).encode_to_vec();
    let as_text = Config::parse(text.as_bytes(), &environment);
    let as_struct = Config::parse(&bytes, &environment);
    let inline = members.get("policy").and_then(|policy| policy.get("inline")).cloned().unwrap_or_default();
    if !has_inexact_number(&Value::Object(members)) {
        match (as_text, as_struct) {
            (Ok((config, policy)), Ok((other_config, other_policy))) => {
                assert_eq!(format!("{config:?}"), format!("{other_config:?}"));
                let mut names = Names::default();
                names.note(&inline.to_string());
                names.assert_same(
                    &PolicySource::Inline(policy),
                    &PolicySource::Inline(other_policy),
                    &MemoryHost::with(Signatures::Hash),
                );
            }
            // The first problem may differ, because the members of a `Struct` have no order.
            (Err(_), Err(_)) => {}
            (as_text, as_struct) => panic!("{:?} {:?}", as_text.err(), as_struct.err()),
        }
    }
    parsed.is_ok()
}

/// A `Struct` stores each number as a 64-bit float. Integers beyond 2^53 change, and `1.0` is read as an integer only from a
/// `Struct`.
fn has_inexact_number(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64() || number.as_f64().is_none_or(|number| number.abs() > 9e15),
        Value::Array(values) => values.iter().any(has_inexact_number),
        Value::Object(members) => members.values().any(has_inexact_number),
        _ => false,
    }
}

fn structure(members: &serde_json::Map<String, Value>) -> Struct {
    Struct { fields: members.iter().map(|(name, value)| (name.clone(), proto(value))).collect() }
}

fn proto(value: &Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(proto).collect() }),
        Value::Object(members) => Kind::StructValue(structure(members)),
    };
    ProtoValue { kind: Some(kind) }
}
