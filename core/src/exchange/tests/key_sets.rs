//! Requests whose key set is missing, stale or without the key.

use serde_json::json;

use super::*;

#[test]
fn a_request_waits_for_the_first_keys_until_its_deadline() {
    let mut world = World::new();
    let good = token(&claims());
    let mut first = pending(world.bearer(&good));
    let mut second = pending(world.bearer(&good));
    assert!(!world.is_due(&mut first, world.now));
    world.publish(&["a"]);
    assert!(world.is_due(&mut first, world.now));
    assert_eq!(reason(&world.tick_bearer(first, &good)), "ok");

    let mut world = World::new();
    let later = world.now.plus(world.gateway.config.jwks.timeout);
    assert!(!world.is_due(&mut second, later.minus(Duration::from_millis(1))));
    assert!(world.is_due(&mut second, later));
    // If the clock is set back, the request waits for the full timeout from then, and no longer.
    let put_back = world.now.minus(Duration::from_secs(3600));
    let again = put_back.plus(world.gateway.config.jwks.timeout);
    assert!(!world.is_due(&mut second, put_back) && world.is_due(&mut second, again));
    world.now = later;
    let step = world.tick_bearer(second, &good);
    assert_eq!((reason(&step), status(&step)), ("jwks_unavailable", 503));
}

#[test]
fn requests_that_wait_for_keys_are_bounded_for_each_org() {
    let mut world = World::new();
    let token = token(&claims());
    let mut waiting: Vec<Step> = (0..1024).map(|_| world.bearer(&token)).collect();
    assert!(waiting.iter().all(|step| reason(step) == "await"));
    let step = world.bearer(&token);
    assert_eq!((reason(&step), status(&step)), ("overloaded", 503));
    waiting.pop();
    assert_eq!(reason(&world.bearer(&token)), "await", "a request that leaves makes room");
}

#[test]
fn an_unknown_kid_waits_for_one_fetch_and_is_refused_within_the_cooldown() {
    let mut world = World::new();
    world.publish(&["a"]);
    let unknown = testing::sign(&json!({"alg": "RS256", "kid": "new"}), &claims());
    let waiting = pending(world.bearer(&unknown));
    let (timing, now) = (world.gateway.config.jwks, world.now);
    world.fetched(now, Some(&["a"]));
    assert_eq!(reason(&world.tick_bearer(waiting, &unknown)), "key_unknown");
    assert_eq!(reason(&world.bearer(&unknown)), "key_unknown");
    world.now = now.plus(timing.refetch_cooldown);
    assert_eq!(reason(&world.bearer(&unknown)), "await");
}

#[test]
fn an_unknown_kid_gets_503_while_its_issuer_is_unavailable() {
    let mut world = World::new();
    world.publish(&["a"]);
    let unknown = testing::sign(&json!({"alg": "RS256", "kid": "new"}), &claims());
    assert_eq!(reason(&world.bearer(&unknown)), "await");
    world.fetched(world.now, None);
    let step = world.bearer(&unknown);
    assert_eq!((reason(&step), status(&step)), ("jwks_unavailable", 503));
    let known = token(&claims());
    let forged = format!("{}{}", &known[..known.len() - 8], "AAAAAAAA");
    assert_eq!(reason(&world.bearer(&forged)), "signature_invalid", "this key is known");
}

#[test]
fn tokens_without_kid_survive_a_rotation() {
    let mut world = World::new();
    world.publish(&["a"]);
    let bare = testing::sign(&json!({"alg": "RS256"}), &claims());
    assert_eq!(reason(&world.bearer(&bare)), "ok");
    let forged = format!("{}{}", &bare[..bare.len() - 8], "AAAAAAAA");
    assert_eq!(reason(&world.bearer(&forged)), "await", "it may be signed by a key that is not fetched yet");
}

#[test]
fn a_token_that_names_no_key_delays_the_next_rotation_only_once() {
    for header in [json!({"alg": "RS256"}), json!({"alg": "RS256", "x5t": "retired"}), json!({"alg": "RS256", "kid": "retired"})]
    {
        let mut world = World::new();
        world.publish(&["a"]);
        let stale = testing::sign(&header, &claims());
        let stale = format!("{}{}", &stale[..stale.len() - 8], "AAAAAAAA");
        let cooldown = world.gateway.config.jwks.refetch_cooldown;
        for _ in 0..3 {
            assert_eq!(reason(&world.bearer(&stale)), "await", "once in each cool-down: {header}");
            world.fetched(world.now, Some(&["a"]));
            let refused = if header.get("kid").is_some() { "key_unknown" } else { "signature_invalid" };
            assert_eq!(reason(&world.bearer(&stale)), refused, "{header}");
            world.now = world.now.plus(cooldown);
        }
        assert_eq!(reason(&world.bearer(&stale)), "await");
        world.fetched(world.now, Some(&["a"]));
        let rotated = testing::sign(&json!({"alg": "RS256", "kid": "new"}), &claims());
        assert_eq!(reason(&world.bearer(&rotated)), "await", "no cool-down holds it up: {header}");
        world.fetched(world.now, Some(&["a", "new"]));
        assert_eq!(reason(&world.bearer(&rotated)), "ok");
    }
}

#[test]
fn a_token_whose_kid_no_key_has_is_tried_with_the_keys_without_kid() {
    let mut world = World::new();
    let Gateway { key_sets, config, .. } = &mut world.gateway;
    let fetch = key_sets.sync(KeySetId::at(0), NOW, &config.jwks, &world.host).unwrap().unwrap();
    let document = testing::jwk_set(&["a"]).to_document().replace(r#""kid":"a","#, "");
    assert!(!document.contains("\"kid\""));
    let keys = crate::jose::jwk::JwkSet::parse(document.as_bytes()).unwrap();
    key_sets.finish(&fetch, Some(&keys), NOW, &config.jwks, &world.host).unwrap();
    let token = testing::sign(&json!({"alg": "RS256", "kid": "anything"}), &claims());
    assert_eq!(reason(&world.bearer(&token)), "ok");
    let forged = format!("{}{}", &token[..token.len() - 8], "AAAAAAAA");
    assert_eq!(reason(&world.bearer(&forged)), "await", "the set may have been rotated");
    world.fetched(NOW, Some(&["a"]));
    assert_eq!(reason(&world.bearer(&forged)), "key_unknown");
}
