//! Responses with lists, as JSON or as event streams. A response that passes contains no entry of a connector outside
//! the scope, however it was divided into chunks.

use apexmcp_core::budget::Budget;
use apexmcp_core::mcp::list::Permitted;
use apexmcp_core::mcp::reply::{ListReply, ListRequest, ResponseHead};
use apexmcp_core::names::OrgName;
use apexmcp_core::scope::parse_words;
use serde_json::Value;

use crate::reader::{self, Json};

/// The first byte of `data` says whether the body is a stream, and how long its chunks are. The rest is the body.
pub fn check(data: &[u8]) -> bool {
    let Some((first, body)) = data.split_first() else { return false };
    let (is_stream, length) = (first & 1 == 1, usize::from(first >> 1) + 1);
    let content_type = if is_stream { "text/event-stream" } else { "application/json" };
    let begin = || {
        let org = OrgName::parse("acme").expect("a name");
        let permitted = Permitted { scopes: parse_words("mcp:call:notes"), separator: "__".into() };
        let head = ResponseHead { status: 200, content_type: content_type.as_bytes(), content_encoding: b"" };
        ListRequest::new(org, permitted, Value::from(7)).begin(head, &Budget::default()).expect("a list")
    };
    let passed = pass(begin(), body, body.len().max(1));
    assert!(passed == pass(begin(), body, length), "chunks of {length} bytes");
    assert!(passed == pass(begin(), &passed, length), "a filtered response stays the same if it is filtered again");

    let texts = if is_stream { reader::events(&passed) } else { vec![passed] };
    let mut is_list = false;
    for text in texts.iter().filter(|text| !text.is_empty()) {
        let Some(message) = Json::read_carelessly(text) else {
            assert!(is_stream && !text.contains(&b'{'), "only a heartbeat has nothing to read");
            continue;
        };
        for result in message.elements().iter().flat_map(|message| message.exactly("result")) {
            for (list, place, separator) in [
                ("tools", "name", "__"),
                ("prompts", "name", "__"),
                ("resources", "uri", "+"),
                ("resourceTemplates", "uriTemplate", "+"),
            ] {
                for entry in result.exactly(list).flat_map(Json::elements).filter(|entry| !matches!(entry, Json::Word)) {
                    let owners: Vec<_> =
                        entry.exactly(place).map(|text| text.text().and_then(|text| text.split(separator).next())).collect();
                    assert_eq!(owners, [Some("notes")], "{list}: {entry:?}");
                    is_list = true;
                }
            }
        }
    }
    is_list
}

fn pass(mut reply: ListReply, body: &[u8], length: usize) -> Vec<u8> {
    let mut passed: Vec<u8> = body.chunks(length).flat_map(|chunk| reply.push(chunk, false)).collect();
    passed.extend(reply.push(&[], true));
    passed
}
