//! Rates, quotas and the rate limit service.

use serde_json::json;

use super::*;

#[test]
fn only_requests_that_would_pass_are_counted() {
    let mut world = limited_world("local", "allow", "enforce");
    let foreign = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "clock__now"}}).to_string();
    let own = foreign.replace("clock", "notes");
    for _ in 0..5 {
        assert_eq!(reason(&world.start("/mcp/acme/clock", &POST)), "scope_insufficient");
        let awaiting = pending(world.start("/mcp/acme", &POST));
        assert_eq!(reason(&world.read(awaiting, foreign.as_bytes())), "scope_insufficient");
    }
    let Step::Forward(forward, _) = world.start("/mcp/acme/notes", &POST) else { panic!("refused") };
    assert_eq!(forward.standing.unwrap().policy(), r#""rate";q=2;w=60, "month";q=3"#);
    let awaiting = pending(world.start("/mcp/acme", &POST));
    assert_eq!(reason(&world.read(awaiting, own.as_bytes())), "ok");
    let step = world.start("/mcp/acme/notes", &POST);
    let Step::Reply(reply, record) = step else { panic!("not refused") };
    assert_eq!((record.reason(), reply.status, header(&reply, "retry-after")), ("rate_limit", 429, "30"));
    assert_eq!(header(&reply, "ratelimit-policy"), r#""rate";q=2;w=60"#);
    assert_eq!(header(&reply, "ratelimit"), r#""rate";r=0;t=60"#);
    world.now = world.now.plus(Duration::from_secs(60));
    assert_eq!(reason(&world.start("/mcp/acme/notes", &POST)), "ok");
    assert_eq!(reason(&world.start("/mcp/acme/notes", &POST)), "monthly_quota");
    world.now = world.now.end_of_month();
    assert_eq!(reason(&world.start("/mcp/acme/notes", &POST)), "ok");
}

#[test]
fn shadow_mode_forwards_a_request_over_its_limit_with_its_identity() {
    let mut world = limited_world("local", "allow", "shadow");
    for expected in ["ok", "ok", "rate_limit"] {
        let step = world.start("/mcp/acme/notes", &POST);
        assert!(
            matches!(&step, Step::Forward(Forward { edits: Edits { principal: Some(_), .. }, .. }, _))
                && reason(&step) == expected,
            "{step:?}"
        );
    }
}

#[test]
fn the_rate_limit_service_decides() {
    // RateLimitResponse: overall_code 1 or 2.
    for (answer, on_error, expected, outcome) in [
        (Some(&[8, 1][..]), "deny", "ok", ServiceOutcome::Ok),
        (Some(&[8, 2]), "allow", "rate_limit", ServiceOutcome::OverLimit),
        (Some(&[]), "allow", "ok", ServiceOutcome::Error),
        (Some(&[255]), "deny", "rate_limit_unavailable", ServiceOutcome::Error),
        (None, "allow", "ok", ServiceOutcome::Error),
        (None, "deny", "rate_limit_unavailable", ServiceOutcome::Error),
    ] {
        let mut world = limited_world("rate_limit_service", on_error, "enforce");
        let Step::Ask(edits, question, asking) = world.start("/mcp/acme/notes", &POST) else { panic!("not asked") };
        assert!(!question.message.is_empty() && edits.principal.is_some() && edits.remove == ["x-api-key"]);
        let asked = pending(world.handle(asking, Event::Asked { stream: 1, call: Some(7) }));
        let asked = pending(world.handle(asked, Event::Answered { call: 6, message: answer }));
        let (step, counted) = world.handle_all(asked, Event::Answered { call: 7, message: answer }, &[], &[]);
        assert_eq!((reason(&step), counted), (expected, Some(outcome)), "{answer:?} {on_error}");
        if let Step::Forward(forward, _) = &step {
            assert!(forward.edits.principal.is_none(), "the headers were edited before the service was asked");
            assert!(forward.standing.is_none(), "an empty list is no field: {step:?}");
        }
    }
}

#[test]
fn questions_to_the_rate_limit_service_are_bounded_for_each_org() {
    let mut world = limited_world("rate_limit_service", "allow", "enforce");
    let mut open: Vec<Step> = (0..128).map(|_| world.start("/mcp/acme/notes", &POST)).collect();
    assert!(open.iter().all(|step| reason(step) == "count"));
    let step = world.start("/mcp/acme/notes", &POST);
    assert_eq!((reason(&step), status(&step)), ("rate_limit", 429), "a burst does not lift the limit");
    let Step::Reply(reply, _) = step else { panic!() };
    let told = ["retry-after", "ratelimit-policy", "ratelimit"].map(|name| header(&reply, name));
    assert_eq!(told, ["1", r#""rate";q=2;w=60"#, r#""rate";r=0;t=1"#]);
    // The question stays open when its stream ends.
    let asking = pending(open.pop().unwrap());
    drop(world.handle(asking, Event::Asked { stream: 1, call: Some(7) }));
    assert_eq!(reason(&world.start("/mcp/acme/notes", &POST)), "rate_limit");
    assert_eq!(world.gateway.questions.end(7, true), Some(1));
    assert_eq!(reason(&world.start("/mcp/acme/notes", &POST)), "count");
}

#[test]
fn a_refusal_for_too_many_questions_names_a_limit_that_is_there() {
    for (limits, told) in [
        (json!({"monthly_quota": 3}), [r#""month";q=3"#, r#""month";r=0;t=1"#]),
        (json!({"rate": {"requests": 5, "per": "second"}}), [r#""rate";q=5;w=1"#, r#""rate";r=0;t=1"#]),
    ] {
        let mut world = World::with(|config| {
            let acme = &mut config["policy"]["inline"]["orgs"]["acme"];
            acme["limits"] = limits.clone();
            config["limits"] = json!({"store": "rate_limit_service", "rate_limit_service": {"cluster": "ratelimit"}});
        });
        let open: Vec<Step> = (0..128).map(|_| world.start("/mcp/acme/notes", &POST)).collect();
        assert!(open.iter().all(|step| reason(step) == "count"));
        let Step::Reply(reply, _) = world.start("/mcp/acme/notes", &POST) else { panic!("not refused") };
        let fields = ["retry-after", "ratelimit-policy", "ratelimit"].map(|name| header(&reply, name));
        assert_eq!((reply.status, fields), (429, ["1", told[0], told[1]]));
        // One question is open, and Envoy does not send another one: its circuit breaker is full.
        let mut open = open.into_iter().map(pending);
        let asked = pending(world.handle(open.next().unwrap(), Event::Asked { stream: 1, call: Some(7) }));
        let (step, outcome) = world.handle_all(open.next().unwrap(), Event::Asked { stream: 2, call: None }, &[], &[]);
        drop(asked);
        let Step::Reply(reply, _) = step else { panic!("not refused") };
        let fields = ["retry-after", "ratelimit-policy", "ratelimit"].map(|name| header(&reply, name));
        assert_eq!((outcome, fields), (Some(ServiceOutcome::Overloaded), ["1", told[0], told[1]]));
    }
}
