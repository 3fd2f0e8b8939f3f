//! Messages at the joined endpoint of an org, and lists.

use serde_json::json;

use super::*;

#[test]
fn only_the_joined_endpoint_reads_messages_and_only_for_keys_of_some_connectors() {
    let mut world = scoped_world("enforce");
    let step = world.start("/mcp/acme", &[&POST[..], &[("accept-encoding", "gzip")]].concat());
    let Step::EditAndWait(edits, _) = step else { panic!("not read") };
    assert_eq!(edits.remove, ["x-api-key", "accept-encoding"]);
    assert!(edits.accept_identity);
    assert_eq!(edits.principal.unwrap().attribute(Attribute::Principal), "acme/key/k1");
    assert_eq!(reason(&world.start("/mcp/acme/notes", &POST)), "ok");
    assert_eq!(reason(&world.start("/mcp/acme/clock", &POST)), "scope_insufficient");
    let route = RouteSettings { connector: ConnectorId::parse("notes"), ..RouteSettings::default() };
    assert_eq!(reason(&world.start_on("/mcp/acme", &POST, route)), "ok");
    assert_eq!(reason(&World::new().start("/mcp/acme", &POST)), "ok");
}

#[test]
fn heads_after_which_no_message_is_read() {
    let json = ("content-type", "application/json");
    for (method, content, coding, expected, refused) in [
        ("GET", json, "identity", "method_not_allowed", 405),
        ("HEAD", json, "identity", "method_not_allowed", 405),
        ("PUT", json, "identity", "method_not_allowed", 405),
        ("DELETE", json, "gzip", "ok", 0),
        ("POST", json, "identity", "inspect", 0),
        ("POST", json, "gzip", "media_type_unsupported", 415),
        ("POST", ("content-type", "text/plain"), "identity", "media_type_unsupported", 415),
        ("POST", ("content-type", "application/json; charset=utf-7"), "identity", "media_type_unsupported", 415),
        ("POST", ("content-type", "application/json-patch+json"), "identity", "media_type_unsupported", 415),
        ("POST", ("x-other", ""), "identity", "media_type_unsupported", 415),
    ] {
        let headers = [(":method", method), content, ("content-encoding", coding), ("x-api-key", KEY)];
        let step = scoped_world("enforce").start("/mcp/acme", &headers);
        assert_eq!((reason(&step), status(&step)), (expected, refused), "{method} {content:?} {coding}");
        if refused != 0 {
            let step = scoped_world("shadow").start("/mcp/acme", &headers);
            assert_eq!(reason(&step), expected, "shadow {method}");
            let Step::Forward(Forward { edits: Edits { principal: Some(_), remove, .. }, .. }, _) = step else {
                panic!("{step:?}")
            };
            assert_eq!(remove, ["x-api-key"], "shadow {method}: who it is was proven");
        }
    }
}

#[test]
fn a_message_decides() {
    let call = |name: &str| json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name}}).to_string();
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let task = r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"1"}}"#.to_owned();
    let padded = |length: usize| format!("{ping}{}", " ".repeat(length - ping.len()));
    for (mirror, body, expected, refused, challenge) in [
        (None, call("notes__a"), "ok", 0, None),
        (Some("tools/call"), call("files__a"), "ok", 0, None),
        (Some("tools/list"), call("notes__a"), "header_mismatch", 400, None),
        (Some("tools/list"), call("clock__a"), "scope_insufficient", 403, Some("mcp:call:clock")),
        (Some("tools/call"), task.clone(), "scope_insufficient", 403, Some("mcp:call")),
        (Some("ping"), format!("[{}]", call("clock__a")), "scope_insufficient", 403, Some("mcp:call:clock")),
        (Some("ping"), format!("[{}]", call("notes__a")), "header_mismatch", 400, None),
        (None, call("clock__a"), "scope_insufficient", 403, Some("mcp:call:clock")),
        (None, call("a"), "scope_insufficient", 403, Some("mcp:call")),
        (None, "{}".to_owned(), "message_malformed", 400, None),
        (None, String::new(), "message_malformed", 400, None),
        (None, padded(1_048_576), "ok", 0, None),
        (None, padded(1_048_577), "message_too_long", 413, None),
    ] {
        for mode in ["enforce", "shadow"] {
            let mut world = scoped_world(mode);
            let mirror = mirror.map(|method| ("mcp-method", method));
            let headers: Vec<(&str, &str)> = POST.into_iter().chain(mirror).collect();
            let awaiting = pending(world.start("/mcp/acme", &headers));
            match world.read(awaiting, body.as_bytes()) {
                Step::Forward(forward, record) => {
                    let is_untouched =
                        forward.lists.is_none() && forward.edits.remove.is_empty() && forward.edits.principal.is_none();
                    assert!(
                        is_untouched && record.reason() == expected && (refused == 0 || mode == "shadow"),
                        "{mode} {expected}"
                    );
                }
                Step::Reply(reply, record) => {
                    assert_eq!((mode, record.reason(), reply.status), ("enforce", expected, refused));
                    let told = reply.headers.iter().find(|(name, _)| *name == "www-authenticate").map(|(_, value)| value.clone());
                    let needed = challenge.map(|scope| format!(r#"error="insufficient_scope", scope="{scope}""#));
                    assert_eq!(told.is_some(), needed.is_some());
                    assert!(told.unwrap_or_default().contains(&needed.unwrap_or_default()), "{expected}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_list_for_a_full_credential_is_marked_as_private() {
    for (method, path, mode, is_marked) in [
        (Some("tools/list"), "/mcp/acme", "enforce", true),
        (Some("resources/templates/list"), "/mcp/acme", "enforce", true),
        (Some("prompts/list"), "/mcp/acme/notes", "enforce", true),
        (Some("tools/call"), "/mcp/acme", "enforce", false),
        (Some("tools/list "), "/mcp/acme", "enforce", false),
        (None, "/mcp/acme", "enforce", false),
        (Some("tools/list"), "/mcp/acme", "shadow", false),
    ] {
        let mut world = World::with(|config| config["mode"] = json!(mode));
        let method = method.map(|method| ("mcp-method", method));
        let headers = [("x-api-key", KEY), ("accept-encoding", "gzip")];
        let headers: Vec<(&str, &str)> = headers.into_iter().chain(method).collect();
        let Step::Forward(forward, _) = world.start(path, &headers) else { panic!("refused") };
        assert_eq!(forward.lists.is_some(), is_marked, "{method:?} {path} {mode}");
        assert_eq!(forward.edits.accept_identity, is_marked, "{method:?}");
        assert_eq!(forward.edits.remove.contains(&"accept-encoding".into()), is_marked, "{method:?}");
    }
}

#[test]
fn lists_are_cut_only_in_enforce_mode() {
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    for (mode, is_cut) in [("enforce", true), ("shadow", false)] {
        let mut world = scoped_world(mode);
        let awaiting = pending(world.start("/mcp/acme", &POST));
        let Step::Forward(forward, _) = world.read(awaiting, list.as_bytes()) else { panic!("refused") };
        assert_eq!(forward.lists.is_some(), is_cut, "{mode}");
    }
}
