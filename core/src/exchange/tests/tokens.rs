//! Tokens of identity providers.

use serde_json::{Value, json};

use super::*;

/// RFC 6749 §3.3 leaves the form of scopes to the provider. A scope in an unknown form must not become `mcp:call`.
#[test]
fn a_narrow_grant_never_becomes_a_wide_one() {
    let narrow = [
        json!({"scope": "apexmcp/mcp:call:github"}),
        json!({"roles": ["mcp:call:github"]}),
        json!({"realm_access": {"roles": ["mcp:call:github"]}}),
        json!({"scp": ["api://apexmcp/mcp:call:github"], "permissions": []}),
        json!({"cognito:groups": ["team-mcp:call:github"]}),
    ];
    let with = |changes: &Value| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        token(&claims)
    };
    let mut world = World::new();
    world.publish(&["a"]);
    for (index, changes) in narrow.iter().enumerate() {
        // The second time, the token is remembered.
        for is_new in [true, false] {
            let (reply, record) = match world.bearer(&with(changes)) {
                Step::Reply(reply, record) => (reply, record),
                other => panic!("{changes}: {other:?}"),
            };
            assert_eq!((reply.status, record.reason()), (403, "scope_insufficient"), "{changes}");
            assert!(reply.body.contains("contains mcp:call but is no scope"), "{changes}: {}", reply.body);
            let Record::Resource { findings, .. } = record else { panic!("{changes}") };
            // At most one line in ten seconds.
            assert_eq!(findings.note.is_some(), index == 0 && is_new, "{changes}: {:?}", findings.note);
            assert!(findings.note.is_none_or(|note| note.contains(r#""apexmcp/mcp:call:github" in the claim "scope""#)));
        }
        let bearer = format!("Bearer {}", with(changes));
        assert_eq!(reason(&world.start("/mcp/acme/github", &[("authorization", &bearer)])), "scope_insufficient", "{changes}");
    }
    world.now = world.now.plus(Duration::from_secs(10));
    let late = world.bearer(&with(&json!({"groups": ["mcp:call:\r\n"]})));
    let Step::Reply(_, Record::Resource { findings, .. }) = late else { panic!("{late:?}") };
    assert!(findings.note.is_some_and(|note| note.contains(r#""mcp:call:\r\n" in the claim "groups""#)));
    // A scope that is read counts, even beside unread texts. The policy itself names the issuer and the audiences.
    for changes in [json!({"scope": "mcp:call", "roles": ["mcp:call:github"]}), json!({"scope": "openid"})] {
        assert_eq!(attributes(world.bearer(&with(&changes)))[4], "mcp:call", "{changes}");
    }

    for (default_scopes, scope) in [(json!(["mcp:call:notes"]), Some("mcp:call:notes")), (json!([]), None)] {
        let mut world = World::with(|config| {
            config["policy"]["inline"]["orgs"]["acme"]["identity_providers"][0]["default_scopes"] = default_scopes;
        });
        world.publish(&["a"]);
        for changes in narrow.iter().chain([&json!({}), &json!({"scope": "openid"})]) {
            let bearer = format!("Bearer {}", with(changes));
            let step = world.start("/mcp/acme/notes", &[("authorization", &bearer)]);
            match scope {
                Some(scope) => assert_eq!(attributes(step)[4], scope, "{changes}"),
                None => assert_eq!(reason(&step), "scope_insufficient", "{changes}"),
            }
        }
    }
}

/// RFC 7519 §4.1.1: an issuer is a StringOrURI.
#[test]
fn an_issuer_need_not_be_a_url() {
    for (issuer, name) in [
        ("accounts.example.com", "acme/idp/accounts.example.com#u1"),
        ("agent@project.iam.example.com", "acme/idp/agent@project.iam.example.com#u1"),
        ("urn:example:idp", "acme/idp/urn:example:idp#u1"),
        ("did:web:idp.example#key", "acme/idp/did:web:idp.example%23key#u1"),
    ] {
        let mut world = World::with(|config| {
            config["policy"]["inline"]["orgs"]["acme"]["identity_providers"][0]["issuer"] = json!(issuer);
        });
        world.publish(&["a"]);
        let mut claims = claims();
        claims["iss"] = json!(issuer);
        assert_eq!(attributes(world.bearer(&token(&claims)))[1], name);
        claims["iss"] = json!(format!("https://{issuer}"));
        assert_eq!(reason(&world.bearer(&token(&claims))), "issuer_unknown", "{issuer}");
    }
}

#[test]
fn each_credential_yields_its_principal() {
    let mut world = World::new();
    world.publish(&["a"]);
    assert_eq!(attributes(world.start("/mcp/acme", &[("x-api-key", KEY)])), ["acme", "acme/key/k1", "k1", "api_key", "mcp:call"]);
    let principal = format!("acme/idp/{ISSUER}#u1");
    assert_eq!(attributes(world.bearer(&token(&claims()))), ["acme", &principal, "u1", "byoidp", "mcp:call"]);
    let mut scoped = claims();
    scoped["scp"] = json!(["mcp:call:github", "profile"]);
    let bearer = format!("Bearer {}", token(&scoped));
    let step = world.start("/mcp/acme/github", &[("authorization", &bearer)]);
    assert_eq!(attributes(step), ["acme", &principal, "u1", "byoidp", "mcp:call:github"]);
}

#[test]
fn cheap_checks_come_before_any_signature_and_before_any_wait() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = claims();
        change(&mut claims);
        token(&claims)
    };
    let table: [(&str, &str, String); 9] = [
        ("no iss", "claim_missing", with(&|c| drop(c.as_object_mut().unwrap().remove("iss")))),
        ("no sub", "claim_missing", with(&|c| drop(c.as_object_mut().unwrap().remove("sub")))),
        ("empty sub", "claim_missing", with(&|c| c["sub"] = json!(""))),
        ("iss", "issuer_unknown", with(&|c| c["iss"] = json!(format!("{ISSUER}/")))),
        ("aud", "audience_mismatch", with(&|c| c["aud"] = json!("account"))),
        ("exp", "token_expired", with(&|c| c["exp"] = json!(1_799_999_940))),
        ("nbf", "token_not_yet_valid", with(&|c| c["nbf"] = json!(1_800_000_061))),
        ("alg", "algorithm_not_allowed", testing::sign(&json!({"alg": "none"}), &claims())),
        ("form", "token_malformed", "a.b.c".to_owned()),
    ];
    let mut world = World::new();
    for (what, expected, token) in &table {
        assert_eq!(reason(&world.bearer(token)), *expected, "{what}, no keys yet");
    }
    world.publish(&["a"]);
    for (what, expected, token) in &table {
        let step = world.bearer(token);
        assert_eq!((reason(&step), status(&step)), (*expected, 401), "{what}");
    }
    assert_eq!(world.host.verifications.get(), 0);
}

#[test]
fn a_signature_is_checked_once_for_each_token() {
    let mut world = World::new();
    world.publish(&["a"]);
    let good = token(&claims());
    for _ in 0..3 {
        assert_eq!(reason(&world.bearer(&good)), "ok");
    }
    assert_eq!(world.host.verifications.get(), 1);
    // Another signature over the same claims is another token.
    let forged = format!("{}{}", &good[..good.len() - 8], "AAAAAAAA");
    assert_eq!(reason(&world.bearer(&forged)), "signature_invalid");
    assert_eq!(world.host.verifications.get(), 2);
    // Remembering ends with the token.
    world.now = UnixTime::from_secs(1_800_000_360);
    assert_eq!(reason(&world.bearer(&good)), "token_expired");
}

#[test]
fn a_remembered_token_is_judged_anew_when_its_keys_change() {
    let mut world = World::new();
    world.publish(&["a"]);
    let good = token(&claims());
    assert_eq!(reason(&world.bearer(&good)), "ok");
    world.publish(&["b"]);
    assert_eq!(reason(&world.bearer(&good)), "key_unknown", "the set has just been fetched without it");
    world.now = world.now.plus(world.gateway.config.jwks.refetch_cooldown);
    let waiting = pending(world.bearer(&good));
    world.now = world.now.plus(Duration::from_secs(6));
    assert_eq!(reason(&world.tick_bearer(waiting, &good)), "jwks_unavailable");
}

#[test]
fn a_remembered_token_ends_with_the_age_of_its_keys() {
    let mut world = World::with(|config| config["jwks"]["max_stale"] = json!("5m"));
    world.publish(&["a"]);
    let mut long = claims();
    long["exp"] = json!(1_800_009_999);
    let token = token(&long);
    assert_eq!(reason(&world.bearer(&token)), "ok");
    world.now = NOW.plus(Duration::from_secs(299));
    assert_eq!(reason(&world.bearer(&token)), "ok");
    world.now = NOW.plus(Duration::from_secs(300));
    assert_eq!(reason(&world.bearer(&token)), "await");
}

#[test]
fn a_token_of_a_provider_is_revoked_by_id_and_by_principal() {
    let mut claims = claims();
    claims["jti"] = json!("j1");
    claims["iat"] = json!(1_799_999_990);
    let token = token(&claims);
    let before = |principal: &str| json!({"issued_before": {principal: "2027-01-15T08:00:00Z"}});
    for (revoked, expected) in [
        (json!({}), "ok"),
        (json!({"jti": ["j1"]}), "token_revoked"),
        (json!({"jti": ["j2"]}), "ok"),
        (before(&format!("acme/idp/{ISSUER}#u1")), "token_revoked"),
        (before(&format!("acme/idp/{ISSUER}#u2")), "ok"),
    ] {
        let mut world = World::with(|config| config["policy"]["inline"]["orgs"]["acme"]["revoked_tokens"] = revoked.clone());
        world.publish(&["a"]);
        assert_eq!(reason(&world.bearer(&token)), expected, "{revoked}");
    }
}

#[test]
fn a_verified_token_is_judged_again_when_its_provider_changes() {
    let mut world = remote_world();
    let provider = |audience: &str| json!([{"issuer": ISSUER, "jwks_uri": "https://idp.example/keys", "audience": audience}]);
    world.publish_policy(&json!({"acme": {"identity_providers": provider("apexmcp")}}));
    let token = token(&claims());
    assert_eq!(reason(&world.bearer(&token)), "await");
    world.publish(&["a"]);
    assert_eq!((reason(&world.bearer(&token)), world.host.verifications.get()), ("ok", 1));
    world.publish_policy(&json!({"acme": {"identity_providers": provider("apexmcp")}, "other": {}}));
    assert_eq!((reason(&world.bearer(&token)), world.host.verifications.get()), ("ok", 1), "another org's change");
    world.publish_policy(&json!({"acme": {"identity_providers": provider("elsewhere")}, "other": {}}));
    assert_eq!(reason(&world.bearer(&token)), "audience_mismatch");
    world.publish_policy(&json!({"acme": {"identity_providers": provider("apexmcp")}}));
    assert_eq!((reason(&world.bearer(&token)), world.host.verifications.get()), ("ok", 2));
    world.publish_policy(&json!({"other": {}}));
    assert_eq!(reason(&world.bearer(&token)), "issuer_unknown");
}
