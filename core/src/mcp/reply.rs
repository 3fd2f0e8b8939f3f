//! Responses to requests for lists. In any form and any chunks, only the entries that the credential covers pass, and no
//! cache may share the response.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::list::{self, Permitted};
use super::sse::{self, EventSplitter};
use crate::budget::{Account, Budget, Hold, Waits};
use crate::names::OrgName;

/// Maximum length of a JSON body, or of one event, in bytes. A thousand tools with long schemas stay below.
pub const MAX_LENGTH: usize = 4 << 20;

/// JSON-RPC 2.0 §5.1, internal error.
const INTERNAL_ERROR: i32 = -32603;

/// A request for lists that was let through, before its response began.
#[derive(Debug)]
pub struct ListRequest {
    org: OrgName,
    /// `None` if the credential covers everything. A list is then only marked as private. If the filter cannot read it, the
    /// list passes unchanged, because the client may see all of it.
    permitted: Option<Permitted>,
    id: Value,
}

/// The headers of a response that decide how it is read.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    pub status: u16,
    pub content_type: &'a [u8],
    pub content_encoding: &'a [u8],
}

/// A response that is cut chunk by chunk.
#[derive(Debug)]
pub struct ListReply {
    request: ListRequest,
    form: Form,
    /// The place of this response in the worker's budget. It is kept until the response has ended, because Envoy buffers the
    /// cut list for a slow client. `None` if the response is not read.
    hold: Option<Hold>,
}

#[derive(Debug)]
enum Form {
    Json(Vec<u8>),
    Events(EventSplitter),
    /// These bytes replace the whole response.
    Instead(Vec<u8>),
    /// The rest of the response passes unchanged.
    Passing,
    /// Nothing more passes.
    Ended,
}

impl ListRequest {
    /// A request of `org` with this `id`. Entries that are not `permitted` are removed from its lists.
    pub fn new(org: OrgName, permitted: Permitted, id: Value) -> Self {
        Self { org, permitted: Some(permitted), id }
    }

    /// A request of `org` with a credential that covers everything.
    pub fn of_whole(org: OrgName) -> Self {
        Self { org, permitted: None, id: Value::Null }
    }

    /// Begins to read the response. The kept bytes are charged to `budget`. Returns `None` if the response passes unchanged:
    /// its status shows that it has no list, or the filter cannot read it and the credential covers everything.
    pub fn begin(self, head: ResponseHead<'_>, budget: &Budget) -> Option<ListReply> {
        if !(200..300).contains(&head.status) {
            return None;
        }
        let is_plain = head.content_encoding.is_empty() || head.content_encoding.eq_ignore_ascii_case(b"identity");
        let is_stream = media_type(head.content_type).eq_ignore_ascii_case(b"text/event-stream");
        // The filter did not request compression, and does not read compressed responses.
        let hold = is_plain.then(|| budget.hold(Account::Lists(self.org.clone()), Waits::ForOthers, 0)).flatten();
        if hold.is_none() && self.permitted.is_none() {
            return None;
        }
        let form = match (hold.is_some(), is_stream) {
            (true, true) => Form::Events(EventSplitter::default()),
            // A response with any other content type is read too, because the client may take it for JSON.
            (true, false) => Form::Json(Vec::new()),
            (false, true) => Form::Instead(sse::with_data(&[], &self.error())),
            (false, false) => Form::Instead(self.error().into_bytes()),
        };
        Some(ListReply { request: self, form, hold })
    }

    fn error(&self) -> String {
        let message =
            "The gateway could not read the list, so it could not remove the entries that the credential does not cover.";
        json!({"jsonrpc": "2.0", "id": self.id, "error": {"code": INTERNAL_ERROR, "message": message}}).to_string()
    }
}

impl ListReply {
    /// Returns the bytes that replace `chunk`.
    pub fn push(&mut self, chunk: &[u8], is_last: bool) -> Vec<u8> {
        let (passed, form) = match std::mem::replace(&mut self.form, Form::Ended) {
            Form::Ended => (Vec::new(), Form::Ended),
            Form::Passing => (chunk.to_vec(), Form::Passing),
            Form::Instead(passed) => (passed, Form::Ended),
            Form::Json(mut body) => {
                body.extend_from_slice(chunk);
                if !self.keeps(body.len()) {
                    if self.request.permitted.is_none() {
                        (body, Form::Passing)
                    } else {
                        (self.request.error().into_bytes(), Form::Ended)
                    }
                } else if is_last {
                    (self.cut_body(body), Form::Ended)
                } else {
                    (Vec::new(), Form::Json(body))
                }
            }
            Form::Events(mut splitter) => {
                let mut passed = Vec::with_capacity(chunk.len());
                for event in splitter.push(chunk) {
                    passed.append(&mut self.cut_event(event));
                }
                if !self.keeps(splitter.pending()) && self.request.permitted.is_none() {
                    passed.extend(splitter.finish());
                    (passed, Form::Passing)
                } else if !self.keeps(splitter.pending()) {
                    passed.extend(sse::with_data(&[], &self.request.error()));
                    (passed, Form::Ended)
                } else if is_last {
                    passed.extend(self.cut_event(splitter.finish()));
                    (passed, Form::Ended)
                } else {
                    (passed, Form::Events(splitter))
                }
            }
        };
        self.form = form;
        passed
    }

    /// The text that replaces `text`. `None` if it cannot be read.
    fn change<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        match &self.request.permitted {
            Some(permitted) => permitted.cut(text).ok(),
            None => list::mark_private(text).ok().or(Some(Cow::Borrowed(text))),
        }
    }

    /// Whether `length` bytes of this response may be buffered.
    fn keeps(&mut self, length: usize) -> bool {
        let is_kept = length <= MAX_LENGTH && self.hold.as_ref().is_some_and(|hold| hold.try_set_body(length));
        if !is_kept {
            // Nothing is buffered from now on.
            self.hold = None;
        }
        is_kept
    }

    fn cut_body(&self, body: Vec<u8>) -> Vec<u8> {
        if body.is_empty() {
            return body;
        }
        let changed = match std::str::from_utf8(&body).ok().map(|text| self.change(text)) {
            Some(Some(Cow::Borrowed(_))) => None,
            Some(Some(Cow::Owned(changed))) => Some(changed),
            None if self.request.permitted.is_none() => None,
            Some(None) | None => Some(self.request.error()),
        };
        changed.map_or(body, String::into_bytes)
    }

    fn cut_event(&self, event: Vec<u8>) -> Vec<u8> {
        let data = sse::data(&event);
        if data.is_empty() {
            return event;
        }
        let text = std::str::from_utf8(&data).ok();
        if text.is_some_and(holds_no_list) {
            return event;
        }
        match text.map(|text| self.change(text)) {
            Some(Some(Cow::Borrowed(_))) => event,
            Some(Some(Cow::Owned(changed))) => sse::with_data(&event, &changed),
            None if self.request.permitted.is_none() => event,
            Some(None) | None => sse::with_data(&event, &self.request.error()),
        }
    }
}

/// The header with the instructions for HTTP caches (RFC 9111 §5.2).
pub const CACHE_CONTROL: &str = "cache-control";

/// The new `cache-control` of a list, whose server sent the value `said`. `None` if it need not change. By RFC 9111 §3.5,
/// shared caches do not store answers to requests with `Authorization`, but they store answers to requests with
/// `X-API-Key`.
pub fn private_cache_control(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    if said.contains('"') {
        return Some("no-store".to_owned()); // Quoted commas are hard to parse, and in practice no server sends them.
    }
    let is = |directive: &str, name: &str| {
        directive.split('=').next().is_some_and(|said| said.trim_ascii().eq_ignore_ascii_case(name))
    };
    let is_shared = |directive: &&str| is(directive, "public") || is(directive, "s-maxage");
    let directives: Vec<&str> = said.split(',').map(str::trim_ascii).filter(|directive| !directive.is_empty()).collect();
    let is_private = directives.iter().any(|directive| is(directive, "private") || is(directive, "no-store"));
    if is_private && !directives.iter().any(&is_shared) {
        return None;
    }
    let kept = directives.into_iter().filter(|directive| !is_shared(directive) && !is(directive, "private"));
    Some(["private"].into_iter().chain(kept).collect::<Vec<_>>().join(", "))
}

/// Whether even a lenient reader finds no list entries in `text`, such as the data of a heartbeat (`data: ping`). The
/// entries of a list are objects. Some readers also accept an array as an object, as serde does for structs. They find a
/// name in it only if the array contains a string.
fn holds_no_list(text: &str) -> bool {
    let has_array_of_strings = || text.contains('[') && text.contains(['"', '\'', '`']);
    !text.contains('{') && !has_array_of_strings()
}

fn media_type(content_type: &[u8]) -> &[u8] {
    content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::Scope;
    use proptest::prelude::*;

    fn begin(content_type: &str, content_encoding: &str) -> ListReply {
        begin_among(&Budget::default(), "acme", content_type, content_encoding)
    }

    fn begin_among(budget: &Budget, org: &str, content_type: &str, content_encoding: &str) -> ListReply {
        let permitted = Permitted { scopes: Scope::parse("mcp:call:notes").into_iter().collect(), separator: "__".into() };
        let head =
            ResponseHead { status: 200, content_type: content_type.as_bytes(), content_encoding: content_encoding.as_bytes() };
        ListRequest::new(OrgName::parse(org).unwrap(), permitted, json!(7)).begin(head, budget).unwrap()
    }

    /// The bytes that pass if `body` arrives in chunks of these lengths, which repeat.
    fn pass(mut reply: ListReply, body: &[u8], lengths: &[usize]) -> String {
        let (mut passed, mut rest, mut lengths) = (Vec::new(), body, lengths.iter().cycle());
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at((*lengths.next().unwrap()).clamp(1, rest.len()));
            passed.extend(reply.push(chunk, false));
            rest = after;
        }
        passed.extend(reply.push(&[], true));
        String::from_utf8(passed).unwrap()
    }

    const LIST: &str = r#"{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"clock__now"},{"name":"notes__größe"}]}}"#;
    const CUT: &str = r#"{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"notes__größe"}]}}"#;

    #[test]
    fn json_and_event_streams_are_cut() {
        assert_eq!(pass(begin("application/json; charset=utf-8", ""), LIST.as_bytes(), &[10]), CUT);
        assert_eq!(pass(begin("text/plain", "identity"), LIST.as_bytes(), &[10]), CUT);
        assert_eq!(pass(begin("application/json", ""), b"", &[1]), "");
        let stream = format!(
            ": ping\n\nevent: message\ndata: {LIST}\n\ndata: {{\"method\":\"notifications/message\"}}\r\n\r\nid: 1\ndata:\n\n"
        );
        let cut = format!(
            ": ping\n\nevent: message\ndata: {CUT}\n\ndata: {{\"method\":\"notifications/message\"}}\r\n\r\nid: 1\ndata:\n\n"
        );
        assert_eq!(pass(begin("Text/Event-Stream", ""), stream.as_bytes(), &[10]), cut);
        // A lenient client might read an event without its blank line.
        assert_eq!(pass(begin("text/event-stream", ""), format!("data: {LIST}").as_bytes(), &[10]), format!("data: {CUT}\n\n"));
    }

    fn begin_whole(content_type: &str, content_encoding: &str) -> Option<ListReply> {
        let head =
            ResponseHead { status: 200, content_type: content_type.as_bytes(), content_encoding: content_encoding.as_bytes() };
        ListRequest::of_whole(OrgName::parse("acme").unwrap()).begin(head, &Budget::default())
    }

    #[test]
    fn a_list_for_a_full_credential_is_only_marked_as_private() {
        let public = LIST.replace("\"result\":{", "\"result\":{\"ttlMs\":1000,\"cacheScope\":\"public\",");
        let private = public.replace("public", "private");
        let marked = |body: &str, length| pass(begin_whole("application/json", "").unwrap(), body.as_bytes(), &[length]);
        let events = |body: &str, length| pass(begin_whole("text/event-stream", "").unwrap(), body.as_bytes(), &[length]);
        for length in [1, 10, 1 << 16] {
            assert_eq!(marked(&public, length), private);
            assert_eq!(
                events(&format!("data: ping\n\nevent: message\ndata: {public}\n\n"), length),
                format!("data: ping\n\nevent: message\ndata: {private}\n\n")
            );
            // None of these can be read, and the client may see all of them.
            for unread in ["nonsense", "{", r#"{"result":{"tools":[],"tools":[]}}"#, LIST, ""] {
                assert_eq!(marked(unread, length), unread);
                let stream = format!("data: {unread}\n\n");
                assert_eq!(events(&stream, length), stream);
            }
        }
        let long = format!("{public}{}", " ".repeat(2 * MAX_LENGTH));
        assert!(marked(&long, 1 << 16) == long);
        let long = format!("data: {long}\n\n");
        assert!(events(&long, 1 << 16) == long);
        let mut bytes = begin_whole("application/json", "").unwrap();
        assert_eq!(bytes.push(b"\xff", true), b"\xff");
        assert!(begin_whole("application/json", "gzip").is_none(), "a compressed response passes unread");
    }

    #[test]
    fn http_caches_are_told_that_a_list_is_private() {
        for (said, expected) in [
            ("", Some("private")),
            ("public, max-age=60", Some("private, max-age=60")),
            ("Public,S-MaxAge = 60 , no-transform", Some("private, no-transform")),
            ("no-cache, no-transform", Some("private, no-cache, no-transform")),
            ("no-store, public", Some("private, no-store")),
            ("private=\"set-cookie\", max-age=60", Some("no-store")),
            ("private, max-age=60", None),
            ("no-store", None),
        ] {
            assert_eq!(private_cache_control(said.as_bytes()).as_deref(), expected, "{said}");
        }
    }

    #[test]
    fn errors_of_the_connector_pass_unchanged() {
        let permitted = || Permitted { scopes: Default::default(), separator: "__".into() };
        for status in [302, 400, 404, 503] {
            let head = ResponseHead { status, content_type: b"application/json", content_encoding: b"gzip" };
            let request = ListRequest::new(OrgName::parse("acme").unwrap(), permitted(), json!(7));
            assert!(request.begin(head, &Budget::default()).is_none(), "{status}");
        }
    }

    #[test]
    fn an_unreadable_list_becomes_an_error() {
        let is_error = |text: &str| {
            let message: Value = serde_json::from_str(text).unwrap();
            (&message["id"], &message["error"]["code"]) == (&json!(7), &json!(INTERNAL_ERROR)) && !text.contains("clock")
        };
        assert!(is_error(&pass(begin("application/json", "gzip"), LIST.as_bytes(), &[10])), "compressed");
        let event = pass(begin("text/event-stream", "br"), LIST.as_bytes(), &[10]);
        assert!(is_error(event.strip_prefix("data: ").unwrap()), "compressed");
        assert!(is_error(&pass(begin("application/json", ""), &LIST.as_bytes()[..40], &[10])), "cut off");
        assert!(is_error(&pass(begin("application/json", ""), &[0xff; 10], &[10])), "not UTF-8");
        for (length, is_too_long) in [(4_194_304, false), (4_194_305, true)] {
            let body = format!("{LIST}{}", " ".repeat(length - LIST.len()));
            let passed = pass(begin("application/json", ""), body.as_bytes(), &[1 << 16]);
            assert_eq!((is_error(&passed), passed.starts_with(CUT)), (is_too_long, !is_too_long), "{length}");
            let event = format!("data: {LIST}{}", " ".repeat(length - LIST.len() - "data: ".len()));
            let passed = pass(begin("text/event-stream", ""), event.as_bytes(), &[1 << 16]);
            let passed = passed.strip_prefix("data: ").unwrap();
            assert_eq!((is_error(passed), passed.starts_with(CUT)), (is_too_long, !is_too_long), "an event of {length}");
        }
        let event = pass(begin("text/event-stream", ""), b"data: {\"result\":{\"tools\":7}}\n\ndata: {}\n\n", &[10]);
        let (first, second) = event.split_once("\n\n").unwrap();
        assert!(is_error(first.strip_prefix("data: ").unwrap()) && second == "data: {}\n\n", "{event}");
    }

    #[test]
    fn a_heartbeat_passes_and_a_possible_list_does_not() {
        for data in ["ping", "7", "\"keep-alive\"", "null", "[DONE]", "2027-01-15T08:00:00Z", "clock__now", "größe", "a\ndata: b"]
        {
            let stream = format!("data: {data}\n\nevent: message\ndata: {LIST}\n\ndata:{data}\r\n\r\n");
            let cut = stream.replace(LIST, CUT);
            for length in [1, 7, stream.len()] {
                assert_eq!(pass(begin("text/event-stream", ""), stream.as_bytes(), &[length]), cut, "{data}");
            }
        }
        // The rest of a stream passes if it cannot be a list.
        assert_eq!(pass(begin("text/event-stream", ""), b"data: pi", &[3]), "data: pi");
        let error = pass(begin("text/event-stream", "br"), b"", &[1]);
        for data in [
            r#"{"result":{"tools":[{"name":"clock__now"}]}"#,
            r#"{"result":{"tools":[{"name":"clock__now"}]}} ping"#,
            r#"ping {"result":{"tools":[{"name":"clock__now"}]}}"#,
            "{result:{tools:[{name:'clock__now'}]}}",
            r#"["2.0",7,[[["clock__now"]]]"#,
            "['2.0',7,[[['clock__now']]]]",
            "[`clock__now`]",
            "[\ndata: \"clock__now\"",
            "\u{feff}{\"result\":{\"tools\":[{\"name\":\"clock__now\"}]}}",
        ] {
            let stream = format!("data: {data}\n\n");
            assert_eq!(pass(begin("text/event-stream", ""), stream.as_bytes(), &[9]), error, "{data}");
        }
        // A reader that decodes carelessly could find a brace in these bytes.
        let overlong = pass(begin("text/event-stream", ""), b"data: \xc1\xbb\"clock__now\"\xc1\xbd\n\n", &[9]);
        assert_eq!(overlong, error);
    }

    #[test]
    fn the_lists_of_one_org_leave_room_for_those_of_another() {
        let budget = Budget::default();
        let begun = |org, content_type, start: &[u8]| {
            let mut reply = begin_among(&budget, org, content_type, "");
            let mut chunk = start.to_vec();
            chunk.resize(MAX_LENGTH - (64 << 10), b' ');
            let passed = reply.push(&chunk, false);
            (reply, passed)
        };
        let mut open: Vec<ListReply> = Vec::new();
        for index in 0..8 {
            let content_type = if index % 2 == 0 { "application/json" } else { "text/event-stream" };
            let (reply, passed) = begun("acme", content_type, b"data: ");
            assert_eq!(passed.len(), 0, "{index}");
            open.push(reply);
        }
        let (_, passed) = begun("acme", "application/json", b"");
        assert!(String::from_utf8(passed).unwrap().contains("could not read the list"), "one more");
        assert_eq!(begun("other", "application/json", b"").1.len(), 0, "another org has its own share");
        open.pop();
        let (mut reply, passed) = begun("acme", "application/json", LIST.as_bytes());
        assert_eq!(passed.len(), 0, "there is room again");
        assert!(reply.push(b"", true).starts_with(CUT.as_bytes()));
        let (_, passed) = begun("acme", "application/json", b"");
        assert!(!passed.is_empty(), "a cut list counts until its response has ended");
        drop(reply);
        assert_eq!(begun("acme", "application/json", b"").1.len(), 0);
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_chunks(
            tools in prop::collection::vec("(notes|clock)__[a-zß]{1,3}", 0..6),
            ending in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            lengths in prop::collection::vec(1_usize..40, 1..6),
        ) {
            let entries: Vec<Value> = tools.iter().map(|name| json!({"name": name, "description": "a\nb"})).collect();
            let message = json!({"jsonrpc": "2.0", "id": 7, "result": {"tools": entries}});
            let pretty = serde_json::to_string_pretty(&message).unwrap();
            let stream = format!(": c{ending}{ending}{}{ending}{ending}", pretty.lines().map(|line| format!("data: {line}")).collect::<Vec<_>>().join(ending));
            for (content_type, body) in [("application/json", &pretty), ("text/event-stream", &stream)] {
                let cut = pass(begin(content_type, ""), body.as_bytes(), &lengths);
                prop_assert_eq!(&cut, &pass(begin(content_type, ""), body.as_bytes(), &[body.len()]));
                prop_assert!(!cut.contains("clock__"), "{}", cut);
                prop_assert_eq!(cut.matches("notes__").count(), tools.iter().filter(|name| name.starts_with("notes")).count());
            }
        }
    }
}
