//! Paths, routes, API keys, and edits of headers.

use serde_json::json;

use super::*;

#[test]
fn an_unknown_org_looks_like_one_without_oauth() {
    let mut world = World::new();
    world.publish(&["a"]);
    let bearer = format!("Bearer {}", token(&claims()));
    for headers in [vec![], vec![("x-api-key", KEY)], vec![("authorization", bearer.as_str())], vec![("x-api-key", "nonsense")]] {
        let replies: Vec<LocalReply> = ["/mcp/other", "/mcp/nobody"]
            .into_iter()
            .map(|path| match world.start(path, &headers) {
                Step::Reply(reply, _) => reply,
                step => panic!("{step:?}"),
            })
            .collect();
        assert_eq!(replies[0], replies[1], "{headers:?}");
        assert!(!format!("{replies:?}").contains("resource_metadata"));
    }
}

#[test]
fn the_path_or_the_route_names_the_connector() {
    let mut world = World::with(|config| {
        config["policy"]["inline"]["orgs"]["acme"]["api_keys"][0]["connectors"] = json!(["github"]);
    });
    let headers = [MESSAGE[0], MESSAGE[1], ("x-api-key", KEY)];
    assert_eq!(reason(&world.start("/mcp/acme", &headers)), "inspect");
    let step = world.start("/mcp/acme/jira", &headers);
    assert_eq!((reason(&step), status(&step)), ("scope_insufficient", 403));
    let Step::Reply(reply, record) = step else { panic!() };
    assert!(format!("{reply:?}").contains(r#"scope=\"mcp:call:jira\""#), "{reply:?}");
    assert!(matches!(record, Record::Resource { findings, .. } if findings.principal.is_some()), "the log may name who it was");
    assert_eq!(reason(&world.start("/mcp/acme/github", &headers)), "ok");
    let route = |org: Option<&str>, connector: Option<&str>| RouteSettings {
        org: org.and_then(crate::names::OrgName::parse),
        connector: connector.and_then(crate::names::ConnectorId::parse),
        mode: None,
    };
    for (path, org, connector, expected) in [
        ("/mcp/acme", None, Some("github"), "ok"),
        ("/mcp/acme/jira", None, Some("github"), "ok"),
        ("/mcp/acme/github", None, Some("jira"), "scope_insufficient"),
        ("/anything", Some("acme"), Some("github"), "ok"),
        ("/anything", Some("acme"), None, "inspect"),
        ("/mcp/acme/github", Some("acme"), None, "ok"),
        ("/mcp/acme/github", Some("other"), None, "api_key_unknown"),
        ("/mcp/other/github", Some("acme"), None, "inspect"),
    ] {
        let step = world.start_on(path, &headers, route(org, connector));
        assert_eq!(reason(&step), expected, "{path} {org:?} {connector:?}");
    }
}

#[test]
fn unmatched_paths() {
    let mut world = World::new();
    let step = world.start("/public", &[("x-api-key", KEY)]);
    assert_eq!((reason(&step), status(&step)), ("path_unmatched", 404));
    let mut world = World::with(|config| config["gateway"]["unmatched_paths"] = json!("allow"));
    assert_eq!(reason(&world.start("/public", &[("x-apexmcp-org", "kept")])), "pass");
    for path in ["/mcp", "/mcp/acme/", "/mcp/a/b/c", "/x/../mcp/acme", "/%6Dcp/acme"] {
        assert_eq!(reason(&world.start(path, &[("x-api-key", KEY)])), "path_unmatched", "{path}");
    }
}

#[test]
fn identity_headers_and_the_credential_are_removed() {
    let spoofed = [("x-api-key", KEY), ("x-apexmcp-org", "evil"), ("x_apexmcp_scope", "mcp:call"), ("accept", "a")];
    let removed = |step: Step| match step {
        Step::Forward(forward, _) => forward.edits.remove,
        step => panic!("{step:?}"),
    };
    assert_eq!(removed(World::new().start("/mcp/acme", &spoofed)), ["x-apexmcp-org", "x_apexmcp_scope", "x-api-key"]);
    let mut keeping = World::with(|config| config["forward"] = json!({"strip_credentials": false}));
    assert_eq!(removed(keeping.start("/mcp/acme", &spoofed)), ["x-apexmcp-org", "x_apexmcp_scope"]);
}

#[test]
fn shadow_mode_records_and_lets_pass() {
    let mut world = World::with(|config| config["mode"] = json!("shadow"));
    let Step::Forward(forward, record) = world.start("/mcp/acme", &[("x-apexmcp-org", "evil"), ("x-api-key", "wrong")]) else {
        panic!("must pass")
    };
    assert_eq!((record.reason(), forward.edits.remove), ("credential_malformed", vec!["x-apexmcp-org".into()]));
    assert!(forward.edits.principal.is_none(), "nothing is asserted that was not proven");
    assert_eq!(attributes(world.start("/mcp/acme", &[("x-api-key", KEY)]))[1], "acme/key/k1");
    let route = |mode| RouteSettings { mode: Some(mode), ..RouteSettings::default() };
    assert_eq!(reason(&world.start_on("/mcp/acme", &[], route(RouteMode::Disabled))), "pass");
    let enforced = world.start_on("/mcp/acme", &[], route(RouteMode::Active(Mode::Enforce)));
    assert_eq!((reason(&enforced), status(&enforced)), ("credential_missing", 401));
}

#[test]
fn keys_expire_and_are_revoked() {
    let mut world = World::with(|config| {
        config["policy"]["inline"]["orgs"]["acme"]["api_keys"][0]["expires_at"] = json!("2027-01-15T08:00:00Z");
    });
    assert_eq!(reason(&world.start("/mcp/acme", &[("x-api-key", KEY)])), "api_key_expired");
    world.now = NOW.minus(Duration::from_millis(1));
    assert_eq!(reason(&world.start("/mcp/acme", &[("x-api-key", KEY)])), "ok");
    let mut world = World::with(|config| config["policy"]["inline"]["orgs"]["acme"]["api_keys"][0]["revoked"] = json!(true));
    assert_eq!(reason(&world.start("/mcp/acme", &[("x-api-key", KEY)])), "api_key_unknown");
}

#[test]
fn what_a_decision_allocates() {
    let mut world = World::new();
    world.publish(&["a"]);
    let bearer = format!("Bearer {}", token(&claims()));
    let other = token(&json!({"iss": "https://elsewhere.example"}));
    // Each is decided a second time: what is allocated once, and kept, does not count.
    for (what, header, value, most) in [
        ("a key", "x-api-key", KEY, 2),
        ("a token seen before", "authorization", bearer.as_str(), 2),
        ("no credential", "x-other", "", 16),
        ("a foreign token", "authorization", &format!("Bearer {other}"), 30),
    ] {
        let head = || testing::head(&[(":path", "/mcp/acme"), (":method", "POST"), (header, value)]);
        let mut decide = |head| start(&mut world.gateway, head, RouteSettings::default(), world.now, &world.host);
        drop(decide(head()));
        let head = head();
        let seen = allocation_counter::measure(|| drop(decide(head))).count_total;
        assert!(seen <= most, "{what}: {seen} allocations, at most {most} expected");
    }
}

#[test]
fn a_version_that_no_server_speaks_is_refused_after_the_credential() {
    let mut world = World::new();
    let old = ("mcp-protocol-version", "1999-01-01");
    assert_eq!(reason(&world.start("/mcp/acme", &[old])), "credential_missing");
    for path in ["/mcp/acme", "/mcp/acme/github"] {
        let step = world.start(path, &[old, ("x-api-key", KEY)]);
        assert_eq!((reason(&step), status(&step)), ("protocol_version_unsupported", 400), "{path}");
        assert_eq!(reason(&world.start(path, &[("mcp-protocol-version", "2999-01-01"), ("x-api-key", KEY)])), "ok", "{path}");
    }
}
