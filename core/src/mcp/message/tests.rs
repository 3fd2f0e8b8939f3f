use proptest::prelude::*;
use serde_json::json;

use super::reader::{DUPLICATE, LOOKALIKE, TOO_DEEP, UNNAMED};
use super::*;

fn read(text: &str) -> Result<Body, MessageError> {
    Body::parse(text.as_bytes(), "__")
}

fn target(message: &Value) -> Target {
    match read(&message.to_string()).unwrap().messages.as_slice() {
        [message] => message.target.clone(),
        other => panic!("{other:?}"),
    }
}

fn call(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

fn connector(name: &str) -> Target {
    Target::Connector(ConnectorId::parse(name).unwrap())
}

#[test]
fn every_method_has_its_target() {
    for (method, params, expected) in [
        ("tools/call", json!({"name": "notes__read", "arguments": {"a.b": {"c.d": [{}]}}}), connector("notes")),
        ("tools/call", json!({"name": "read"}), Target::Untied),
        ("prompts/get", json!({"name": "notes__summarize"}), connector("notes")),
        ("resources/read", json!({"uri": "notes+note://welcome"}), connector("notes")),
        ("resources/subscribe", json!({"uri": "notes+note://welcome"}), connector("notes")),
        ("resources/unsubscribe", json!({"uri": "note://welcome"}), Target::Untied),
        ("completion/complete", json!({"ref": {"type": "ref/prompt", "name": "notes__p"}}), connector("notes")),
        ("completion/complete", json!({"ref": {"type": "ref/resource", "uri": "notes+n://{t}"}}), connector("notes")),
        ("completion/complete", json!({"ref": {"type": "ref/other", "name": "notes__p"}}), Target::Untied),
        ("tools/list", json!({"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}), Target::Lists),
        ("prompts/list", json!({}), Target::Lists),
        ("resources/list", json!({}), Target::Lists),
        ("resources/templates/list", json!({}), Target::Lists),
        ("initialize", json!({"protocolVersion": "2025-06-18", "clientInfo": {"name": "clock__x"}}), Target::Nothing),
        ("ping", Value::Null, Target::Nothing),
        ("server/discover", json!({}), Target::Nothing),
        ("notifications/initialized", json!({}), Target::Nothing),
        ("notifications/cancelled", json!({"requestId": 1}), Target::Nothing),
        ("notifications/progress", json!({}), Target::Nothing),
        ("notifications/roots/list_changed", json!({}), Target::Nothing),
        ("notifications/anything", json!({}), Target::Untied),
        ("logging/setLevel", json!({"level": "debug"}), Target::Untied),
        ("tasks/get", json!({"taskId": "1"}), Target::Untied),
        ("subscriptions/listen", json!({}), Target::Untied),
        ("__jsonrpc_response", json!({}), Target::Untied),
        ("Tools/call", json!({"name": "notes__read"}), Target::Untied),
        ("", json!({}), Target::Untied),
    ] {
        assert_eq!(target(&call(method, &params)), expected, "{method} {params}");
    }
    for (id, expected) in [
        (json!("clock__7"), connector("clock")),
        (json!("7"), Target::Nothing),
        (json!(7), Target::Nothing),
        (json!("a b__7"), Target::Nothing),
    ] {
        assert_eq!(target(&json!({"jsonrpc": "2.0", "id": id, "result": {"a.b": 1}})), expected, "{id}");
        assert_eq!(target(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": 1}})), expected, "{id}");
    }
}

#[test]
fn a_body_that_can_be_read_in_two_ways_is_refused() {
    let call = |params: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
    // The depth includes the message and its params.
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth - 2), "]".repeat(depth - 2));
    let with = |arguments: String| call(&format!(r#"{{"name":"notes__a","arguments":{arguments}}}"#));
    assert!(read(&with(nested(64))).is_ok());
    let deep = nested(65);
    for (text, expected) in [
        (call(r#"{"name":"notes__a","name":"clock__b"}"#), DUPLICATE),
        (call(r#"{"name":"notes__a","\u006eame":"clock__b"}"#), DUPLICATE),
        (call(r#"{"name":"notes__a","arguments":{"x":1,"x":2}}"#), DUPLICATE),
        (call(r#"{"name":"notes__a","arguments":[{"x":1,"x":2}]}"#), DUPLICATE),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#.into(), DUPLICATE),
        (call(r#"{"name":"notes__a","x.name":"clock__b"}"#), LOOKALIKE),
        (call(r#"{"name":"notes__a","Name":"clock__b"}"#), LOOKALIKE),
        (call("{\"name\":\"notes__a\",\"n\u{e4}me\":\"clock__b\"}"), LOOKALIKE),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","x.method":"tools/call"}"#.into(), LOOKALIKE),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","METHOD":"tools/call"}"#.into(), LOOKALIKE),
        (r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"notes__a","b.name":"clock__b"}}}"#.into(), LOOKALIKE),
        (call(r#"{"":{"name":"clock__b"},"name":"notes__a"}"#), UNNAMED),
        (call(r#"{"name":"notes__a","_meta":{"":{},"name":"clock__b"}}"#), UNNAMED),
        (call(r#"{"name":"notes__a","arguments":[[{"":1}]]}"#), UNNAMED),
        (call(r#"{"name":"notes\u005f_a"}"#), ESCAPED),
        (call(r#"{"uri":"notes+note:\/\/a","name":"notes__a"}"#), ESCAPED),
        (r#"{"jsonrpc":"2.0","id":"clock\u005f_1","result":{}}"#.into(), ESCAPED),
        (with(deep), TOO_DEEP),
    ] {
        assert_eq!(read(&text), Err(MessageError::Ambiguous(expected)), "{text}");
    }
}

#[test]
fn an_escape_that_all_readers_understand_is_accepted() {
    let read = |text: &str| read(text).map(|body| (body.messages[0].target.clone(), body.id()));
    for (text, expected, id) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools\/call","params":{"name":"notes__a"}}"#, connector("notes"), json!(1)),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools\/list"}"#, Target::Lists, json!(1)),
        (r#"{"jsonrpc":"2.0","method":"notifications\/initialized"}"#, Target::Nothing, Value::Null),
        (r#"{"jsonrpc":"2.0","id":1,"method":"\u0070ing"}"#, Target::Nothing, json!(1)),
        (r#"{"jsonrpc":"2\u002e0","id":1,"method":"ping"}"#, Target::Nothing, json!(1)),
        (r#"{"jsonrpc":"2.0","id":"a\/b\u0031","method":"ping"}"#, Target::Nothing, json!("a/b1")),
        (r#"{"jsonrpc":"2.0","i\u0064":1,"m\u0065thod":"ping"}"#, Target::Nothing, json!(1)),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"completion\/complete","params":{"ref":{"type":"ref\/prompt","name":"notes__p"}}}"#,
            connector("notes"),
            json!(1),
        ),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tasks\/get"}"#, Target::Untied, json!(1)),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools\/call\u0000","params":{"name":"notes__a"}}"#, Target::Untied, json!(1)),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools\\/call","params":{"name":"notes__a"}}"#, Target::Untied, json!(1)),
    ] {
        assert_eq!(read(text), Ok((expected, id)), "{text}");
    }
    assert_eq!(read(r#"{"jsonrpc":"1\u002e0","id":1,"method":"ping"}"#), Err(MessageError::NotJsonRpc));
}

#[test]
fn a_task_id_may_be_any_unambiguous_value() {
    let task = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{{"taskId":{id}}}}}"#);
    for (id, name) in
        [(r#""a\/b""#, Some("a/b")), (r#""clock__a""#, Some("clock__a")), ("7", None), ("null", None), ("[{}]", None)]
    {
        let body = read(&task(id)).unwrap();
        assert_eq!((body.messages[0].name.as_deref(), &body.messages[0].target), (name, &Target::Untied), "{id}");
    }
    assert_eq!(read(&task(r#"{"a":1,"a":2}"#)), Err(MessageError::Ambiguous(DUPLICATE)));
    assert_eq!(read(&task(r#"[{"":1}]"#)), Err(MessageError::Ambiguous(UNNAMED)));
}

#[test]
fn a_body_that_is_not_a_message_is_refused() {
    for text in [
        "",
        "{",
        "nonsense",
        "{} {}",
        "{'a':1}",
        "{a:1}",
        "{\"a\":1,}",
        "[{}",
        "\u{feff}{}",
        "{\"a\":NaN}",
        "// c\n{}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":01}",
        "{\"a\":\"\n\"}",
    ] {
        assert_eq!(read(text), Err(MessageError::NotJson), "{text:?}");
    }
    assert_eq!(Body::parse(b"{\"a\":\"\xff\"}", "__"), Err(MessageError::NotJson));
    let utf16: Vec<u8> = r#"{"jsonrpc":"2.0"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(Body::parse(&utf16, "__"), Err(MessageError::NotJson));
    for text in [
        "{}",
        "[]",
        "7",
        "null",
        "\"a\"",
        "[7]",
        "[null]",
        "[[]]",
        r#"{"jsonrpc":"2.0"}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#,
        r#"{"id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
        r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["notes__a"]}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"name":"notes__a"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt"}}}"#,
        r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{}]"#,
    ] {
        assert_eq!(read(text), Err(MessageError::NotJsonRpc), "{text}");
    }
}

#[test]
fn the_smallest_scope_that_covers_all_messages_is_named() {
    let held: ScopeSet = ["mcp:call:notes", "mcp:call:files"].into_iter().filter_map(Scope::parse).collect();
    let lacks = |names: &[&str]| {
        let batch: Vec<Value> = names.iter().map(|name| call("tools/call", &json!({"name": name}))).collect();
        read(&Value::from(batch).to_string()).unwrap().lacks(&held).map(|scope| scope.to_string())
    };
    assert_eq!(lacks(&["notes__a"]), None);
    assert_eq!(lacks(&["notes__a", "files__b"]), None);
    assert_eq!(lacks(&["clock__a"]).as_deref(), Some("mcp:call:clock"));
    assert_eq!(lacks(&["clock__a", "clock__b"]).as_deref(), Some("mcp:call:clock"));
    assert_eq!(lacks(&["notes__a", "clock__b"]).as_deref(), Some("mcp:call"));
    assert_eq!(lacks(&["read"]).as_deref(), Some("mcp:call"));
    let all: ScopeSet = Scope::parse("mcp:call").into_iter().collect();
    assert_eq!(read(&call("tools/call", &json!({"name": "read"})).to_string()).unwrap().lacks(&all), None);
}

/// JSON whose members may have any names.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z.]{1,5}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arguments_and_meta_select_no_connector(arguments in json_value(), meta in json_value()) {
        let message = call("tools/call", &json!({"_meta": meta, "name": "notes__read", "arguments": arguments}));
        prop_assert_eq!(target(&message), connector("notes"));
    }

    #[test]
    fn never_panics(bytes: Vec<u8>) {
        let _ = Body::parse(&bytes, "__");
    }
}
