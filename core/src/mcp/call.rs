//! The MCP method and the name that a request calls, for access logs. They never decide.

use super::headers;
use super::message::Body;
use crate::request::RequestHead;

/// Maximum length of a part in an access log, in bytes. MCP recommends tool names of at most 128 characters.
const MAX_LENGTH: usize = 256;

/// A part of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The method, such as `tools/call`.
    Method,
    /// The name of the tool or prompt, or the URI of the resource.
    Name,
}

impl Part {
    /// The name of the filter state.
    pub const fn filter_state(self) -> &'static str {
        match self {
            Self::Method => "wasm.apexmcp_mcp_method",
            Self::Name => "wasm.apexmcp_mcp_name",
        }
    }
}

/// What a request calls. A client wrote it, so it is bounded and has only visible ASCII without quotes and backslashes: a log in
/// text form needs no escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    method: String,
    name: String,
}

impl Call {
    /// What the headers of MCP 2026-07-28 say. Nothing compares them with the body here.
    pub fn of_head(head: &RequestHead) -> Self {
        let [method, name] = headers::said(head).map(|values| joined(values.iter().map(AsRef::as_ref)));
        Self { method, name }
    }

    /// What the messages of a body say. Those of a batch are separated by commas.
    pub fn of_body(body: &Body) -> Self {
        let methods = body.messages.iter().filter_map(|message| message.method.as_deref());
        let names = body.messages.iter().filter_map(|message| message.name.as_deref());
        Self { method: joined(methods.map(str::as_bytes)), name: joined(names.map(str::as_bytes)) }
    }

    /// The text of a part. Empty: unknown.
    pub fn part(&self, part: Part) -> &str {
        match part {
            Part::Method => &self.method,
            Part::Name => &self.name,
        }
    }
}

/// Whether a log in text form needs no escape for this byte.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\')
}

/// The values with commas between them. Each character that a log would have to escape is a question mark.
fn joined<'v>(values: impl Iterator<Item = &'v [u8]>) -> String {
    let mut text = String::new();
    for value in values {
        let comma = if text.is_empty() { "" } else { "," };
        text.push_str(comma);
        let left = MAX_LENGTH.saturating_sub(text.len());
        text.extend(value.iter().take(left).map(|byte| if is_plain(*byte) { char::from(*byte) } else { '?' }));
        if text.len() >= MAX_LENGTH {
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::head;

    fn parts(call: &Call) -> [&str; 2] {
        [Part::Method, Part::Name].map(|part| call.part(part))
    }

    #[test]
    fn headers_and_bodies_say_what_is_called() {
        let call = Call::of_head(&head(&[(":method", "POST"), ("mcp-method", "tools/call"), ("mcp-name", "=?base64?YWI=?=")]));
        assert_eq!(parts(&call), ["tools/call", "ab"]);
        assert_eq!(Call::of_head(&head(&[(":method", "POST")])), Call::default());
        let message = |name: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{name}"}}}}"#);
        let of = |text: &str| Call::of_body(&Body::parse(text.as_bytes(), "__").unwrap());
        assert_eq!(parts(&of(&message("github__get"))), ["tools/call", "github__get"]);
        let batch = format!("[{},{}]", message("a__b"), r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#);
        assert_eq!(parts(&of(&batch)), ["tools/call,tools/list", "a__b"]);
    }

    #[test]
    fn a_log_line_cannot_be_forged_or_filled() {
        let twice =
            Call::of_head(&head(&[("mcp-method", "a b\u{e9}"), ("mcp-method", "c\"\\"), ("mcp-name", "=?base64?YQpi?=")]));
        assert_eq!(parts(&twice), ["a?b??,c??", "a?b"]);
        let long = "x".repeat(2 * MAX_LENGTH);
        let call = Call::of_head(&head(&[("mcp-method", &long), ("mcp-method", &long)]));
        assert_eq!(call.part(Part::Method).len(), MAX_LENGTH);
    }
}
