//! A value of a refused token, for the operator's log. Nothing in it is proven, and an attacker may have chosen it.

use std::fmt;

use serde_json::Value;

/// Maximum length of a text that is kept, in bytes. Issuers and audiences are URLs of about a hundred bytes.
const MAX_LENGTH: usize = 200;
/// Maximum number of values of an array that are kept.
const MAX_VALUES: usize = 4;

/// A claim or a header of a refused token, cut to a bounded length. It may be held while a refusal waits.
#[derive(Debug, PartialEq, Eq)]
pub struct Unproven(Value);

impl Unproven {
    /// Cuts `value`: a text, an array of texts, or `None` if the token does not have it. Other values count as absent.
    pub fn new(value: Option<Value>) -> Self {
        Self(match value {
            Some(Value::String(text)) => Value::String(cut(text)),
            Some(Value::Array(mut values)) => {
                if values.len() > MAX_VALUES {
                    values.truncate(MAX_VALUES);
                    values.shrink_to_fit();
                }
                let text = |value| if let Value::String(text) = value { Value::String(cut(text)) } else { Value::Null };
                values.into_iter().map(text).collect()
            }
            _ => Value::Null,
        })
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_LENGTH {
        text.truncate(text.floor_char_boundary(MAX_LENGTH));
        text.shrink_to_fit();
    }
    text
}

/// Quoted and escaped, so that the value can neither break the line nor hide a part of it.
impl fmt::Display for Unproven {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Value::String(text) => write!(formatter, "{text:?}"),
            Value::Array(values) => formatter.debug_list().entries(values.iter().filter_map(Value::as_str)).finish(),
            _ => formatter.write_str("(none)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn foreign_values_are_cut_and_quoted() {
        let shown = |value: Value| Unproven::new(Some(value)).to_string();
        assert_eq!(shown(json!("a\"\u{202e}\n")), r#""a\"\u{202e}\n""#);
        assert_eq!(shown(json!("\u{e4}".repeat(150))), format!("\"{}\"", "\u{e4}".repeat(100)));
        assert_eq!(shown(json!(["a", 7, "b", "c", "d"])), r#"["a", "b", "c"]"#);
        assert_eq!(shown(json!([["a"]])), "[]");
        assert_eq!((shown(json!(7)).as_str(), Unproven::new(None).to_string().as_str()), ("(none)", "(none)"));
    }
}
