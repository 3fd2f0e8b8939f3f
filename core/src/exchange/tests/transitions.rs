//! Which event ends the wait of which state, and which held requests an event concerns.

use serde_json::json;

use super::*;

/// A request in each state, named as [`reason`] names it. The call to the rate limit service has the number 7.
fn each_state() -> Vec<(&'static str, World, Pending)> {
    let remote = remote_world();
    let limited = limited_world("rate_limit_service", "allow", "enforce");
    let mut states: Vec<(&str, World, Pending)> = Vec::new();
    for (name, mut world, path, headers) in [
        ("await policy", remote, "/mcp/acme", vec![("x-api-key", KEY)]),
        ("await", World::new(), "/mcp/acme", vec![("authorization", TOKEN)]),
        ("read body", issuing(|_| {}), "/oauth/token", vec![(":method", "POST")]),
        ("inspect", scoped_world("enforce"), "/mcp/acme", POST.to_vec()),
        ("count", limited, "/mcp/acme/notes", POST.to_vec()),
        ("await rest", World::new(), "/mcp/acme", vec![("content-length", "1")]),
    ] {
        let bearer = format!("Bearer {}", token(&claims()));
        let headers: Vec<(&str, &str)> =
            headers.into_iter().map(|(name, value)| (name, if value == TOKEN { bearer.as_str() } else { value })).collect();
        let step = world.start(path, &headers);
        assert_eq!(reason(&step), name);
        let mut pending = pending(step);
        if name == "count" {
            pending = super::pending(world.handle(pending, Event::Asked { stream: 1, call: Some(7) }));
        }
        states.push((name, world, pending));
    }
    states
}

/// Stands for a token in [`each_state`].
const TOKEN: &str = "token";

fn body(length: usize, is_whole: bool) -> BodyProgress {
    BodyProgress { length, is_whole }
}

#[test]
fn each_event_ends_the_wait_of_the_states_that_wait_for_it() {
    let held = |body, host_holds_bodies| Event::Held { body, host_holds_bodies };
    let late = NOW.plus(Duration::from_secs(60));
    for (event, ended) in [
        (held(body(0, false), None), &[][..]),
        (held(body(1, false), Some(false)), &[]),
        (held(body(0, false), Some(true)), &["await rest"]),
        (held(body(1, true), None), &["await rest"]),
        (Event::Tick { now: NOW }, &[]),
        (Event::Tick { now: late }, &["await policy", "await", "read body", "await rest"]),
        (Event::BodyArrived(body(1, false)), &[]),
        (Event::BodyArrived(body(1, true)), &["read body", "inspect", "await rest"]),
        (Event::BodyArrived(body(usize::MAX, false)), &["read body", "inspect"]),
        (Event::Asked { stream: 1, call: Some(8) }, &[]),
        (Event::Asked { stream: 1, call: None }, &[]),
        (Event::Answered { call: 7, message: None }, &["count"]),
        (Event::Answered { call: 8, message: None }, &[]),
        (Event::AnsweredEarly { status: 200 }, &["inspect", "count"]),
        (Event::GivenUp, &[]),
    ] {
        for (name, mut world, mut pending) in each_state() {
            // The first tick sets some of the deadlines.
            assert!(!world.is_due(&mut pending, NOW), "{name}");
            world.now = NOW;
            let is_ended = pending.is_ended_by(&event, &world.gateway);
            assert_eq!(is_ended, ended.contains(&name), "{name} {event:?}");
            let head = [(":path", "/mcp/acme"), (":method", "POST")];
            let (step, _) = world.handle_all(pending, event, &head, b"{}");
            assert_eq!(reason(&step) == name, !is_ended, "{name} {event:?}: {step:?}");
        }
    }
}

#[test]
fn a_question_that_was_not_sent_decides_by_whether_the_service_is_there() {
    for (is_there, on_error, expected) in
        [(true, "allow", "rate_limit"), (false, "allow", "ok"), (false, "deny", "rate_limit_unavailable")]
    {
        let mut world = limited_world("rate_limit_service", on_error, "enforce");
        let asking = pending(world.start("/mcp/acme/notes", &POST));
        world.gateway.questions.end(1, is_there);
        let step = world.handle(asking, Event::Asked { stream: 1, call: None });
        assert_eq!(reason(&step), expected, "{on_error}");
    }
}

#[test]
fn a_question_ends_with_its_timeout_or_with_its_place() {
    let mut world = limited_world("rate_limit_service", "deny", "enforce");
    let asking = pending(world.start("/mcp/acme/notes", &POST));
    let mut asked = pending(world.handle(asking, Event::Asked { stream: 1, call: Some(7) }));
    world.gateway.questions.look(NOW);
    assert!(!world.is_due(&mut asked, NOW));
    world.now = NOW.plus(Duration::from_secs(10));
    world.gateway.questions.look(world.now);
    assert_eq!(reason(&world.tick(asked, &[])), "rate_limit_unavailable");
}

#[test]
fn a_success_before_the_request_was_decided_is_replaced() {
    for (mode, status, replaced) in [("enforce", 200, true), ("enforce", 503, false), ("shadow", 200, false)] {
        let mut world = scoped_world(mode);
        let message = pending(world.start("/mcp/acme", &POST));
        let step = world.handle(message, Event::AnsweredEarly { status });
        let Step::EarlyResponse(reply, record) = step else { panic!("{step:?}") };
        assert_eq!((reply.is_some(), record.reason()), (replaced, "message_unread"), "{mode} {status}");
    }
}

#[test]
fn a_form_that_does_not_come_is_a_warning_unless_envoy_passes_bodies() {
    for (holds, warns) in [(None, true), (Some(true), true), (Some(false), false)] {
        let mut world = issuing(|_| {});
        let form = pending(world.start("/oauth/token", &[(":method", "POST")]));
        world.gateway.bodies = crate::body_holding::BodyHolding::new(holds);
        let request = FakeRequest { headers: &[], body: &[], now: NOW };
        let mut context = Context::new(&mut world.gateway, &world.host, &request);
        let step = form.handle(Event::Tick { now: NOW.plus(Duration::from_secs(10)) }, &mut context);
        assert_eq!((reason(&step), context.warning.is_some()), ("body_timeout", warns), "{holds:?}");
    }
}

/// Holds a new request to the token endpoint for each stream.
fn hold_forms(world: &mut World, held: &mut HeldRequests, streams: std::ops::Range<u32>) {
    for stream in streams {
        let form = pending(world.start("/oauth/token", &[(":method", "POST")]));
        assert!(held.insert(stream, &Rc::default(), form, &world.gateway).is_none());
    }
}

#[test]
fn ready_requests_are_taken_in_bounded_numbers_and_given_up_ones_first() {
    let (mut world, mut held) = (issuing(|_| {}), HeldRequests::default());
    hold_forms(&mut world, &mut held, 0..2048);
    assert!(held.take_ready(NOW, &world.gateway).is_empty());
    assert!(held.take_given_up(&world.gateway).is_empty());
    // Each new request takes the place of the oldest one.
    hold_forms(&mut world, &mut held, 2048..2058);
    let given_up = held.take_given_up(&world.gateway);
    assert_eq!(given_up.len(), 8, "when another request begins");
    assert!(given_up.iter().all(|(stream, held)| *stream < 10 && held.pending.hold().is_given_up()));
    let ready = held.take_ready(NOW.plus(Duration::from_secs(10)), &world.gateway);
    assert_eq!(ready.len(), 64);
    assert_eq!(ready.iter().filter(|(_, held)| held.pending.hold().is_given_up()).count(), 2);
    assert!(ready.iter().take(2).all(|(_, held)| held.pending.hold().is_given_up()), "first");
}

#[test]
fn a_refusal_does_not_wait_for_a_body_that_arrived() {
    let mut world = World::new();
    let mut held = HeldRequests::default();
    for (is_whole, waits) in [(true, false), (false, true)] {
        let flow = Rc::<Flow>::default();
        flow.body_arrived(body(1, is_whole), Some(&world.gateway.bodies));
        let rest = pending(world.start("/mcp/acme", &[("content-length", "1")]));
        assert_eq!(held.insert(1, &flow, rest, &world.gateway).is_none(), waits);
    }
    held.remove(1);
    assert!(held.body_arrived(1, body(1, true), &world.gateway).is_none(), "its stream has ended");
}

#[test]
fn a_body_is_charged_when_it_arrives_and_when_its_request_waits_again() {
    let (mut world, mut held) = (scoped_world("enforce"), HeldRequests::default());
    let flow = Rc::<Flow>::default();
    let message = pending(world.start("/mcp/acme", &POST));
    let head = message.hold().bytes();
    flow.body_arrived(body(100, false), Some(&world.gateway.bodies));
    assert!(held.insert(1, &flow, message, &world.gateway).is_none());
    assert!(held.body_arrived(1, body(300, false), &world.gateway).is_none(), "more is to come");
    let taken = held.body_arrived(1, body(400, true), &world.gateway).unwrap();
    assert_eq!(taken.pending.hold().bytes(), head + 400);
    flow.body_arrived(body(400, true), Some(&world.gateway.bodies));
    assert!(held.insert(1, &flow, taken.pending, &world.gateway).is_none());
    assert!(held.take(1, &Event::AnsweredEarly { status: 200 }, &world.gateway).is_some());
}

#[test]
fn heads_of_messages_without_a_body_are_released_while_it_is_unknown_whether_envoy_holds_bodies() {
    for configured in [None, Some(true), Some(false)] {
        let mut world = World::with(|config| {
            config["gateway"]["host_holds_bodies"] = json!(configured);
            config["policy"]["inline"]["orgs"]["acme"]["api_keys"][0]["connectors"] = json!(["notes"]);
        });
        let mut held = HeldRequests::default();
        let flows: Vec<Rc<Flow>> = (0..3).map(|_| Rc::default()).collect();
        // A part of one body arrived, but the worker did not learn from it that Envoy passes bodies.
        flows[1].body_arrived(body(1, false), None);
        for (stream, flow) in (0..).zip(&flows[..2]) {
            let message = pending(world.start("/mcp/acme", &POST));
            assert!(held.insert(stream, flow, message, &world.gateway).is_none());
        }
        let refused = pending(world.start("/mcp/acme/clock", &[&POST[..], &[("content-length", "1")]].concat()));
        assert_eq!(held.insert(2, &flows[2], refused, &world.gateway).is_some(), configured == Some(true));
        let streams: Vec<u32> = held.heads_to_release(&world.gateway.bodies).iter().map(|(stream, _)| *stream).collect();
        assert_eq!(streams, if configured.is_none() { vec![0] } else { vec![] }, "{configured:?}");
        let passage = if configured == Some(true) { Passage::Head } else { Passage::Closed };
        assert_eq!((flows[0].passage(), flows[1].passage()), (passage, Passage::Closed), "{configured:?}");
    }
}

#[test]
fn an_answer_finds_its_request_even_after_the_timeout_of_its_question() {
    for is_late in [false, true] {
        let (mut world, mut held) = (limited_world("rate_limit_service", "deny", "enforce"), HeldRequests::default());
        for (stream, call) in [(1, 7), (2, 8)] {
            let asking = pending(world.start("/mcp/acme/notes", &POST));
            let asked = pending(world.handle(asking, Event::Asked { stream, call: Some(call) }));
            assert!(held.insert(stream, &Rc::default(), asked, &world.gateway).is_none());
        }
        if is_late {
            world.gateway.questions.look(NOW);
            world.gateway.questions.look(NOW.plus(Duration::from_secs(10)));
        }
        assert!(held.take_answered(9, true, &mut world.gateway).is_none());
        let (stream, _) = held.take_answered(8, true, &mut world.gateway).unwrap();
        assert_eq!(stream, 2, "{is_late}");
        assert!(held.take_answered(8, true, &mut world.gateway).is_none(), "only once");
        held.remove(1);
        assert!(held.take_answered(7, true, &mut world.gateway).is_none(), "its stream has ended");
    }
}
