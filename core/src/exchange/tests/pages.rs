//! Requests of web pages.

use serde_json::{Value, json};

use super::*;

const PAGE: &str = "https://app.example";
const ATTACKER: &str = "https://evil.example";

/// A gateway that pages of [`PAGE`] may call.
fn world_with_page(change: impl FnOnce(&mut Value)) -> World {
    World::with(|config| {
        config["gateway"]["allowed_origins"] = json!([PAGE]);
        config["gateway"]["route_metadata"] = json!(true);
        change(config);
    })
}

fn preflight_of(origin: &str) -> [(&str, &str); 3] {
    [(":method", "OPTIONS"), ("origin", origin), ("access-control-request-method", "POST")]
}

/// Every path at which the filter answers or judges, and whether it is public.
const PATHS: [(&str, bool); 10] = [
    ("/mcp/acme", false),
    ("/mcp/acme/github", false),
    ("/mcp/nobody", false),
    ("/oauth/token", false),
    ("/oauth/authorize", false),
    ("/.well-known/jwks.json", true),
    ("/.well-known/oauth-authorization-server", true),
    ("/.well-known/openid-configuration", true),
    ("/.well-known/oauth-protected-resource/mcp/acme", true),
    ("/.well-known/oauth-protected-resource/mcp/nobody/x", true),
];

#[test]
fn a_page_of_another_origin_is_refused_before_its_credential_is_judged() {
    let mut world = world_with_page(|_| {});
    world.publish(&["a"]);
    let bearer = format!("Bearer {}", token(&claims()));
    for origin in [ATTACKER, "null", "", "https://app.example:444", "http://app.example", "https://app.example/"] {
        for credential in [("x-api-key", KEY), ("x-api-key", "wrong"), ("authorization", bearer.as_str()), ("accept", "a/b")] {
            for method in ["GET", "POST", "DELETE", "OPTIONS"] {
                let step = world.start("/mcp/acme", &[(":method", method), ("origin", origin), credential]);
                assert_eq!((reason(&step), status(&step)), ("origin_not_allowed", 403), "{origin} {credential:?}");
                let Step::Reply(reply, Record::Resource { findings, .. }) = step else { panic!("not a reply") };
                assert!(reply.headers.iter().all(|(name, _)| *name != "www-authenticate"));
                assert!(findings.principal.is_none() && findings.method.is_none());
            }
        }
    }
    assert_eq!(world.host.verifications.get(), 0);
    // The route's org makes any path a resource.
    let route = || RouteSettings { org: OrgName::parse("acme"), ..RouteSettings::default() };
    let key = ("x-api-key", KEY);
    assert_eq!(reason(&world.start_on("/any", &[("origin", ATTACKER), key], route())), "origin_not_allowed");
    assert_eq!(reason(&world.start_on("/any", &[("origin", PAGE), key], route())), "ok");
    for origin in [PAGE, "https://APP.example:443", "https://gw.example"] {
        assert_eq!(reason(&world.start("/mcp/acme", &[("origin", origin), key])), "ok", "{origin}");
        assert_eq!(reason(&world.start("/mcp/acme", &[("origin", origin)])), "credential_missing", "{origin}");
    }
}

#[test]
fn preflights_are_answered_without_a_policy_or_a_credential() {
    let remote = |config: &mut Value| config["policy"] = json!({"remote": {"cluster": "settings"}});
    for mut world in [world_with_page(|_| {}), world_with_page(remote)] {
        for (path, is_public) in PATHS {
            let step = world.start(path, &preflight_of(PAGE));
            assert_eq!((reason(&step), status(&step)), ("ok", 204), "{path}");
            assert!(matches!(step, Step::Reply(_, Record::Endpoint { endpoint: "preflight", .. })), "{path}");
            let step = world.start(path, &preflight_of(ATTACKER));
            let expected = if is_public { ("ok", 204) } else { ("origin_not_allowed", 403) };
            assert_eq!((reason(&step), status(&step)), expected, "{path}");
        }
        let step = world.start("/elsewhere", &preflight_of(PAGE));
        assert_eq!((reason(&step), status(&step)), ("path_unmatched", 404));
    }
}

#[test]
fn a_page_of_another_origin_may_not_call_the_token_endpoint_and_may_read_documents() {
    let pem = testing::signing_key_pem();
    let signing = |config: &mut Value| config["policy"]["inline"]["signing_keys"] = json!([{"kid": "s", "private_key_pem": pem}]);
    let mut world = world_with_page(signing);
    let post = [(":method", "POST"), ("origin", ATTACKER)];
    for path in ["/oauth/token", "/oauth/authorize"] {
        let step = world.start(path, &post);
        assert_eq!((reason(&step), status(&step)), ("origin_not_allowed", 403), "{path}");
    }
    assert_eq!(reason(&world.start("/oauth/token", &[post[0], ("origin", PAGE)])), "read body");
    for (path, _) in PATHS.into_iter().filter(|(path, is_public)| *is_public && !path.contains("nobody")) {
        for origin in [ATTACKER, "null", PAGE] {
            let step = world.start(path, &[(":method", "GET"), ("origin", origin)]);
            assert_eq!((reason(&step), status(&step)), ("ok", 200), "{path} {origin}");
        }
    }
}

#[test]
fn shadow_mode_records_the_origin_and_lets_the_request_pass() {
    let mut world = world_with_page(|config| config["mode"] = json!("shadow"));
    for headers in [&[(":method", "POST"), ("origin", ATTACKER), ("x-api-key", KEY)][..], &preflight_of(ATTACKER)] {
        let step = world.start("/mcp/acme", headers);
        assert!(matches!(step, Step::Forward(..)) && reason(&step) == "origin_not_allowed", "{step:?}");
    }
    // The filter's own endpoints answer as always.
    assert_eq!(status(&world.start("/mcp/acme", &preflight_of(PAGE))), 204);
    assert_eq!(status(&world.start("/oauth/token", &[(":method", "POST"), ("origin", ATTACKER)])), 403);
    // A route decides for itself.
    let route = |mode| RouteSettings { mode: Some(mode), ..RouteSettings::default() };
    let enforce = world.start_on("/mcp/acme", &[("origin", ATTACKER)], route(RouteMode::Active(Mode::Enforce)));
    assert_eq!(status(&enforce), 403);
    let disabled = world.start_on("/mcp/acme", &preflight_of(ATTACKER), route(RouteMode::Disabled));
    assert_eq!(reason(&disabled), "pass");
}

#[test]
fn a_page_may_read_each_answer_to_it_and_the_public_documents() {
    use crate::origin::Sharing;
    let world = world_with_page(|_| {});
    let shared =
        |path: &str, headers: &[(&str, &str)]| sharing(&world.gateway, &testing::head(&[&[(":path", path)], headers].concat()));
    for (path, is_public) in PATHS.into_iter().chain([("/elsewhere", false)]) {
        let public = is_public.then_some(Sharing::Public);
        assert_eq!(shared(path, &[]), None);
        assert_eq!(shared(path, &[("origin", ATTACKER)]), public, "{path}");
        let page = if is_public { Sharing::Public } else { Sharing::Pages(PAGE.into()) };
        assert_eq!(shared(path, &[("origin", PAGE)]), Some(page), "{path}");
    }
    // The browser compares this text with the origin of the page.
    assert_eq!(shared("/mcp/acme", &[("origin", "https://APP.example")]), Some(Sharing::Pages("https://APP.example".into())));
    let any = world_with_page(|config| config["gateway"]["allowed_origins"] = json!("*"));
    assert_eq!(
        sharing(&any.gateway, &testing::head(&[(":path", "/mcp/acme"), ("origin", "null")])),
        Some(Sharing::Pages("*".into()))
    );
}
