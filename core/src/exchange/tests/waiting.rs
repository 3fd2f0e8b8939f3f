//! Deadlines of waiting requests, and their places in the budget.

use serde_json::json;

use super::*;

#[test]
fn a_refusal_waits_for_the_rest_of_a_short_request() {
    let mut world = World::new();
    for (length, expected) in [
        (None, "credential_missing"),
        (Some("0"), "credential_missing"),
        (Some("1"), "await rest"),
        (Some("16384"), "await rest"),
        (Some("16385"), "credential_missing"),
        (Some("-1"), "credential_missing"),
        (Some("99999999999999999999"), "credential_missing"),
    ] {
        let headers: Vec<_> = length.map(|length| ("content-length", length)).into_iter().collect();
        assert_eq!(reason(&world.start("/mcp/acme", &headers)), expected, "{length:?}");
    }
    let mut waiting = pending(world.start("/mcp/acme", &[("content-length", "1")]));
    assert!(!world.is_due(&mut waiting, world.now), "the first tick sets the deadline");
    assert!(!world.is_due(&mut waiting, world.now.plus(Duration::from_millis(249))));
    world.now = world.now.plus(Duration::from_millis(250));
    let step = world.tick(waiting, &[]);
    assert_eq!((reason(&step), status(&step)), ("credential_missing", 401));

    // If there are too many, the oldest one is answered at once.
    let waiting: Vec<Step> = (0..2049).map(|_| world.start("/mcp/acme", &[("content-length", "1")])).collect();
    assert!(waiting.iter().all(|step| reason(step) == "await rest"));
    let is_given_up = |step: &Step| matches!(step, Step::Wait(waiting) if waiting.hold().is_given_up());
    assert_eq!(waiting.iter().position(|step| !is_given_up(step)), Some(1));
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_forever() {
    let mut world = issuing(|_| {});
    let mut form = pending(world.start("/oauth/token", &[(":method", "POST")]));
    assert!(!world.is_due(&mut form, world.now.plus(Duration::from_millis(9_999))));
    world.now = world.now.plus(Duration::from_secs(10));
    let step = world.tick(form, &[]);
    assert_eq!((reason(&step), status(&step)), ("body_timeout", 408));
}

#[test]
fn requests_wait_for_the_first_policy_until_their_deadline() {
    let mut world = remote_world();
    let mut awaiting = pending(world.start("/mcp/acme", &[("x-api-key", KEY)]));
    assert!(!world.is_due(&mut awaiting, world.now));
    world.publish_policy(&json!({"acme": {"api_keys": [{"id": "k1", "sha256": KEY_SHA256}]}}));
    assert_eq!(reason(&world.tick(awaiting, &[(":path", "/mcp/acme"), ("x-api-key", KEY)])), "ok");

    let mut world = remote_world();
    let awaiting = pending(world.start("/oauth/token", &[(":method", "POST")]));
    world.now = world.now.plus(Duration::from_secs(5));
    let step = world.tick(awaiting, &[(":path", "/oauth/token"), (":method", "POST")]);
    assert_eq!((reason(&step), status(&step)), ("policy_unavailable", 503));

    let mut held = Vec::new();
    while let Step::Wait(awaiting) = world.start("/mcp/acme", &[]) {
        held.push(awaiting);
    }
    assert_eq!(held.len(), 2048);
    let step = world.start("/mcp/acme", &[]);
    assert_eq!((reason(&step), status(&step)), ("overloaded", 503));
}

#[test]
fn the_oldest_request_without_a_form_makes_room_for_a_new_one() {
    let mut world = issuing(|_| {});
    let mut waiting: Vec<Pending> = (0..=2048).map(|_| pending(world.start("/oauth/token", &[(":method", "POST")]))).collect();
    let oldest = waiting.remove(0);
    assert!(!waiting.iter().any(|waiting| waiting.hold().is_given_up()));
    let step = world.tick(oldest, &[]);
    assert_eq!((reason(&step), status(&step)), ("overloaded", 503));
    let Step::Reply(reply, _) = step else { panic!() };
    assert_eq!(header(&reply, "retry-after"), "1");
    assert!(!world.token("").is_empty(), "a client that sends its form is served");
}

#[test]
fn one_org_holds_up_no_other() {
    let mut world = World::with(|config| {
        let orgs = &mut config["policy"]["inline"]["orgs"];
        orgs["acme"]["api_keys"][0]["connectors"] = json!(["notes"]);
        let provider = json!([{"issuer": ISSUER, "jwks_uri": "https://idp.example/others", "audience": "apexmcp"}]);
        orgs["other"]["identity_providers"] = provider;
    });
    let bearer = format!("Bearer {}", token(&claims()));
    let mut held = Vec::new();
    while let step = world.start("/mcp/acme", &[("authorization", &bearer)])
        && reason(&step) == "await"
    {
        held.push(step);
    }
    assert_eq!(held.len(), 1024);
    assert_eq!(reason(&world.start("/mcp/other", &[("authorization", &bearer)])), "await");
    let message = world.start("/mcp/acme", &POST);
    assert_eq!(reason(&message), "inspect", "strangers take no place from a good credential");
    // If messages do not arrive, the oldest one makes room and is refused.
    let messages: Vec<Step> = (0..1024).map(|_| world.start("/mcp/acme", &POST)).collect();
    assert!(messages.iter().all(|step| reason(step) == "inspect"));
    let oldest = pending(message);
    assert!(oldest.hold().is_given_up());
    let step = world.tick(oldest, &[]);
    assert_eq!((reason(&step), status(&step)), ("overloaded", 503));
}
