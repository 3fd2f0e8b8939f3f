//! `Mcp-Method` and `Mcp-Name`: MCP 2026-07-28 repeats parts of a message in headers, for proxies that route by headers.
//! They never decide here. The filter refuses headers that contradict the body, because a server behind the gateway could
//! decide by them.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::message::{Body, Message};
use super::method::{self, Reach};
use crate::request::RequestHead;

const METHOD: &str = "mcp-method";
const NAME: &str = "mcp-name";
const PROTOCOL_VERSION: &str = "mcp-protocol-version";

/// The first version of MCP that any server speaks. Versions are dates (MCP, "Versioning").
const FIRST_VERSION: &[u8] = b"2024-10-07";

/// The JSON-RPC error code of MCP 2026-07-28 for a message that its headers contradict.
pub const MISMATCH_CODE: i32 = -32020;

/// Whether `MCP-Protocol-Version` is absent, or may be a version that the connector speaks. MCP (Transports, "Protocol
/// Version Header") requires 400 for any other version.
///
/// The filter refuses only dates before the first version, which no server can speak. The connector decides about later
/// dates, drafts and other texts. A list of versions would refuse the next version of MCP until the gateway is upgraded.
pub fn may_be_spoken(head: &RequestHead) -> bool {
    head.values(PROTOCOL_VERSION).all(|version| !is_date(version) || version >= FIRST_VERSION)
}

/// Whether `text` has the form `YYYY-MM-DD`.
fn is_date(text: &[u8]) -> bool {
    text.len() == FIRST_VERSION.len()
        && text
            .iter()
            .zip(FIRST_VERSION)
            .all(|(byte, sample)| if *sample == b'-' { *byte == b'-' } else { byte.is_ascii_digit() })
}

/// The headers of a request that repeat parts of its body.
#[derive(Debug, Default)]
pub struct MirrorHeaders {
    method: Option<Mirrored>,
    name: Option<Mirrored>,
}

#[derive(Debug)]
enum Mirrored {
    Once(Box<[u8]>),
    Repeated,
}

/// All values of the two headers, decoded if they can be.
pub(super) fn said(head: &RequestHead) -> [Vec<Cow<'_, [u8]>>; 2] {
    [METHOD, NAME].map(|name| head.values(name).map(|value| decoded(value).unwrap_or(Cow::Borrowed(value))).collect())
}

/// Whether the header `Mcp-Method` of `head` names a request for a list. MCP 2026-07-28 requires this header in each
/// request. Older versions have no hints for caches.
pub fn asks_for_lists(head: &RequestHead) -> bool {
    let method = head.values(METHOD).next().and_then(|method| std::str::from_utf8(method).ok());
    method.is_some_and(|method| method::reach_of(method) == Reach::List)
}

impl MirrorHeaders {
    /// Reads the headers of `head`.
    pub fn of(head: &RequestHead) -> Self {
        let mirrored = |name| {
            let mut values = head.values(name);
            let first = values.next()?;
            Some(if values.next().is_some() { Mirrored::Repeated } else { Mirrored::Once(first.into()) })
        };
        Self { method: mirrored(METHOD), name: mirrored(NAME) }
    }

    /// Whether the headers agree with `body`. An absent header agrees with every body.
    pub fn agree_with(&self, body: &Body) -> bool {
        if self.method.is_none() && self.name.is_none() {
            return true;
        }
        match body.messages.as_slice() {
            [Message { method, name, .. }] if !body.is_batch => {
                agrees(self.method.as_ref(), method.as_deref()) && agrees(self.name.as_ref(), name.as_deref())
            }
            _ => false,
        }
    }
}

fn agrees(header: Option<&Mirrored>, said: Option<&str>) -> bool {
    match header {
        None => true,
        Some(Mirrored::Repeated) => false,
        Some(Mirrored::Once(value)) => said.is_some_and(|said| decoded(value).as_deref() == Some(said.as_bytes())),
    }
}

/// Decodes a header value. Clients write text that a header cannot contain as `=?base64?…?=`.
fn decoded(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    match value.strip_prefix(b"=?base64?").and_then(|value| value.strip_suffix(b"?=")) {
        Some(encoded) => BASE64_STANDARD.decode(encoded).ok().map(Cow::Owned),
        None => Some(Cow::Borrowed(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::head;
    use serde_json::json;

    #[test]
    fn headers_must_agree_with_the_body() {
        let body = |message: &serde_json::Value| Body::parse(message.to_string().as_bytes(), "__").unwrap();
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "notes__größe"}});
        let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
        let named =
            |method: &str, params: serde_json::Value| json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let read = named("resources/read", json!({"uri": "notes+n://a", "name": "notes__a"}));
        let get = named("prompts/get", json!({"uri": "notes+n://p", "name": "notes__p", "taskId": "t"}));
        let task = named("tasks/get", json!({"taskId": "786512e2/1", "name": "notes__other"}));
        let cancel = named("tasks/cancel", json!({"taskId": "786512e2/1"}));
        let odd = named("tasks/get", json!({"taskId": 7}));
        let completed = json!({"ref": {"type": "ref/prompt", "name": "notes__p"}, "argument": {"name": "p", "value": ""}});
        let complete = named("completion/complete", completed);
        let response = json!({"jsonrpc": "2.0", "id": 1, "result": {}});
        let encoded = format!("=?base64?{}?=", BASE64_STANDARD.encode("notes__größe"));
        for (message, headers, agree) in [
            (&call, vec![], true),
            (&call, vec![("mcp-method", "tools/call")], true),
            (&call, vec![("mcp-method", "tools/call"), ("mcp-name", &encoded)], true),
            (&call, vec![("mcp-name", "notes__größe")], true),
            (&call, vec![("mcp-method", "tools/list")], false),
            (&call, vec![("mcp-method", "Tools/call")], false),
            (&call, vec![("mcp-method", "tools/call"), ("mcp-method", "tools/call")], false),
            (&call, vec![("mcp-name", "notes__other")], false),
            (&call, vec![("mcp-name", "=?base64?!?=")], false),
            (&call, vec![("mcp-name", "")], false),
            (&list, vec![("mcp-method", "tools/list")], true),
            (&list, vec![("mcp-method", "tools/list"), ("mcp-name", "notes__a")], false),
            (&response, vec![("mcp-method", "tools/list")], false),
            (&read, vec![("mcp-method", "resources/read"), ("mcp-name", "notes+n://a")], true),
            (&read, vec![("mcp-method", "resources/read"), ("mcp-name", "notes__a")], false),
            (&get, vec![("mcp-method", "prompts/get"), ("mcp-name", "notes__p")], true),
            (&get, vec![("mcp-method", "prompts/get"), ("mcp-name", "notes+n://p")], false),
            (&task, vec![("mcp-method", "tasks/get"), ("mcp-name", "786512e2/1")], true),
            (&task, vec![("mcp-method", "tasks/get"), ("mcp-name", "notes__other")], false),
            (&cancel, vec![("mcp-method", "tasks/cancel"), ("mcp-name", "786512e2/1")], true),
            (&complete, vec![("mcp-method", "completion/complete"), ("mcp-name", "notes__p")], true),
            (&complete, vec![("mcp-method", "completion/complete"), ("mcp-name", "p")], false),
            (&odd, vec![("mcp-method", "tasks/get")], true),
            (&odd, vec![("mcp-method", "tasks/get"), ("mcp-name", "7")], false),
            (&json!([list]), vec![("mcp-method", "tools/list")], false),
            (&json!([list]), vec![], true),
        ] {
            let headers: Vec<(&str, &str)> = headers;
            let mirror = MirrorHeaders::of(&crate::testing::head(&headers));
            assert_eq!(mirror.agree_with(&body(message)), agree, "{message} {headers:?}");
        }
    }

    #[test]
    fn versions_before_the_first_one_are_refused() {
        for (version, expected) in [
            ("2024-10-07", true),
            ("2024-11-05", true),
            ("2025-06-18", true),
            ("2026-07-28", true),
            ("2999-01-01", true),
            ("DRAFT-2026-v1", true),
            ("1.0", true),
            ("", true),
            ("1999-01-01x", true),
            ("1999/01/01", true),
            ("1999-01-01", false),
            ("2024-10-06", false),
            ("0000-00-00", false),
        ] {
            assert_eq!(may_be_spoken(&head(&[("mcp-protocol-version", version)])), expected, "{version}");
        }
        assert!(may_be_spoken(&head::<&str, &str>(&[])));
        let repeated = ["2025-06-18", "1999-01-01"].map(|version| ("mcp-protocol-version", version));
        assert!(!may_be_spoken(&head(&repeated)));
    }
}
