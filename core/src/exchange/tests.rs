use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::names::{ConnectorId, OrgName};
use crate::policy::source::PolicySource;
use crate::testing::{self, MemoryHost};

const KEY: &str = "apx_live_sk_0123456789abcdefghijABCDEFGHIJ01";
const KEY_SHA256: &str = "68da3d5e3810933a9dff1f9d7809ad982642279332ed1dced6bf37f389dcc0e9";
const ISSUER: &str = "https://idp.example/oauth2/default";
/// What the head of a message has.
const MESSAGE: [(&str, &str); 2] = [(":method", "POST"), ("content-type", "application/json; charset=utf-8")];
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

struct World {
    gateway: Gateway,
    host: MemoryHost,
    now: UnixTime,
}

impl World {
    fn with(change: impl FnOnce(&mut Value)) -> Self {
        let mut config = json!({
            "gateway": {"origin": "https://gw.example"},
            "jwks": {"https_cluster": "https"},
            "policy": {"inline": {"orgs": {
                "acme": {
                    "api_keys": [{"id": "k1", "sha256": KEY_SHA256}],
                    "identity_providers": [{"issuer": ISSUER, "jwks_uri": "https://idp.example/keys", "audience": "apexmcp"}],
                },
                "other": {},
            }}},
        });
        change(&mut config);
        let (config, policy) = Config::parse(config.to_string().as_bytes(), &|_| None).unwrap();
        Self { gateway: Gateway::new(config, policy), host: MemoryHost::default(), now: NOW }
    }

    fn new() -> Self {
        Self::with(|_| {})
    }

    /// The issuer's keys arrive, by whichever thread.
    fn publish(&mut self, kids: &[&str]) {
        let now = self.now;
        self.fetched(now.plus(self.gateway.config.jwks.refresh_interval), Some(kids));
    }

    /// Starts a fetch, which is due at `due_at`, and ends it with these keys or without keys.
    fn fetched(&mut self, due_at: UnixTime, kids: Option<&[&str]>) {
        let Self { gateway: Gateway { key_sets, config, .. }, host, now } = self;
        let fetch = key_sets.sync(KeySetId::at(0), due_at, &config.jwks, host).unwrap().expect("a fetch is due");
        key_sets.finish(&fetch, kids.map(testing::jwk_set).as_ref(), *now, &config.jwks, host).unwrap();
    }

    fn start_on(&mut self, path: &str, headers: &[(&str, &str)], route: RouteSettings) -> Step {
        let path = [(":path", path)];
        start(&mut self.gateway, testing::head(&[&path, headers].concat()), route, self.now, &self.host)
    }

    fn start(&mut self, path: &str, headers: &[(&str, &str)]) -> Step {
        self.start_on(path, headers, RouteSettings::default())
    }

    fn read(&mut self, awaiting: AwaitingMessage, body: &[u8]) -> Step {
        awaiting.proceed(body, &self.gateway, self.now, &self.host)
    }

    fn bearer(&mut self, token: &str) -> Step {
        self.start("/mcp/acme", &[MESSAGE[0], MESSAGE[1], ("authorization", &format!("Bearer {token}"))])
    }
}

/// The head of [`World::bearer`], which the shell reads again when the request continues.
fn bearer_head(token: &str) -> RequestHead {
    let authorization = format!("Bearer {token}");
    testing::head(&[(":path", "/mcp/acme"), MESSAGE[0], MESSAGE[1], ("authorization", &authorization)])
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "u1", "aud": "apexmcp", "exp": 1_800_000_300})
}

fn token(claims: &Value) -> String {
    testing::sign(&json!({"alg": "RS256", "kid": "a"}), claims)
}

fn reason(step: &Step) -> &'static str {
    match step {
        Step::Pass => "pass",
        Step::AwaitPolicy(_) => "await policy",
        Step::Await(_) => "await",
        Step::ReadBody(_) => "read body",
        Step::Inspect(..) => "inspect",
        Step::Count(..) => "count",
        Step::ReplyAfterRest(_) => "await rest",
        Step::Forward(_, record) | Step::Reply(_, record) => record.reason(),
    }
}

fn status(step: &Step) -> u32 {
    match step {
        Step::Reply(reply, _) => reply.status,
        _ => 0,
    }
}

fn attributes(step: Step) -> Vec<String> {
    match step {
        Step::Forward(Forward { edits: Edits { principal: Some(principal), .. }, .. }, _) => {
            principal.attributes().map(str::to_owned).to_vec()
        }
        other => panic!("not admitted: {other:?}"),
    }
}

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
fn who_is_admitted_as_whom() {
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
    let Step::Await(waiting) = world.bearer(&good) else { panic!("the key may be published again") };
    world.now = world.now.plus(Duration::from_secs(6));
    assert_eq!(reason(&waiting.proceed(bearer_head(&good), &mut world.gateway, world.now, &world.host)), "jwks_unavailable");
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
fn a_request_waits_for_the_first_keys_and_not_forever() {
    let mut world = World::new();
    let good = token(&claims());
    let Step::Await(mut first) = world.bearer(&good) else { panic!("must wait") };
    let Step::Await(mut second) = world.bearer(&good) else { panic!("must wait") };
    assert!(!first.is_ready(&world.gateway, world.now));
    world.publish(&["a"]);
    assert!(first.is_ready(&world.gateway, world.now));
    assert_eq!(reason(&first.proceed(bearer_head(&good), &mut world.gateway, world.now, &world.host)), "ok");

    let mut world = World::new();
    let later = world.now.plus(world.gateway.config.jwks.timeout);
    assert!(!second.is_ready(&world.gateway, later.minus(Duration::from_millis(1))));
    assert!(second.is_ready(&world.gateway, later));
    // Where the clock is put back, the whole time begins anew, and no more than that.
    let put_back = world.now.minus(Duration::from_secs(3600));
    let again = put_back.plus(world.gateway.config.jwks.timeout);
    assert!(!second.is_ready(&world.gateway, put_back) && second.is_ready(&world.gateway, again));
    let step = second.proceed(bearer_head(&good), &mut world.gateway, later, &world.host);
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
    let Step::ReplyAfterRest(mut waiting) = world.start("/mcp/acme", &[("content-length", "1")]) else { panic!("must wait") };
    assert!(!waiting.is_overdue(world.now), "the time begins with the first look");
    assert!(!waiting.is_overdue(world.now.plus(Duration::from_millis(249))));
    assert!(waiting.is_overdue(world.now.plus(Duration::from_millis(250))));
    let step = waiting.proceed();
    assert_eq!((reason(&step), status(&step)), ("credential_missing", 401));

    // If there are too many, the oldest one is answered at once.
    let waiting: Vec<Step> = (0..2049).map(|_| world.start("/mcp/acme", &[("content-length", "1")])).collect();
    assert!(waiting.iter().all(|step| reason(step) == "await rest"));
    let is_given_up = |step: &Step| matches!(step, Step::ReplyAfterRest(waiting) if waiting.hold().is_given_up());
    assert_eq!(waiting.iter().position(|step| !is_given_up(step)), Some(1));
}

#[test]
fn an_unknown_kid_waits_for_one_fetch_and_is_refused_within_the_cooldown() {
    let mut world = World::new();
    world.publish(&["a"]);
    let unknown = testing::sign(&json!({"alg": "RS256", "kid": "new"}), &claims());
    let Step::Await(waiting) = world.bearer(&unknown) else { panic!("must wait for a fetch") };
    let (timing, now) = (world.gateway.config.jwks, world.now);
    world.fetched(now, Some(&["a"]));
    assert_eq!(reason(&waiting.proceed(bearer_head(&unknown), &mut world.gateway, now, &world.host)), "key_unknown");
    assert_eq!(reason(&world.bearer(&unknown)), "key_unknown");
    world.now = now.plus(timing.refetch_cooldown);
    assert_eq!(reason(&world.bearer(&unknown)), "await");
}

#[test]
fn an_unknown_kid_is_not_held_against_the_client_while_its_issuer_cannot_be_asked() {
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
    assert!(!document.contains("kid"));
    let keys = crate::jose::jwk::JwkSet::parse(document.as_bytes()).unwrap();
    key_sets.finish(&fetch, Some(&keys), NOW, &config.jwks, &world.host).unwrap();
    let token = testing::sign(&json!({"alg": "RS256", "kid": "anything"}), &claims());
    assert_eq!(reason(&world.bearer(&token)), "ok");
    let forged = format!("{}{}", &token[..token.len() - 8], "AAAAAAAA");
    assert_eq!(reason(&world.bearer(&forged)), "await", "the set may have been rotated");
    world.fetched(NOW, Some(&["a"]));
    assert_eq!(reason(&world.bearer(&forged)), "key_unknown");
}

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
fn connectors_are_told_by_path_or_route() {
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
fn what_is_removed_on_the_way_on() {
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

const CLIENT: &str = "apx_client_4b7d9e21";
const SECRET: &str = "apx_secret_0123456789abcdefghijABCD";
const SECRET_SHA256: &str = "a86201cae7792e61427faa7d5fe613084cb91f424072b0ebfa73d55f1b37600c";

/// A world in which acme has an OAuth client, changed by `change`.
fn issuing(change: impl FnOnce(&mut Value)) -> World {
    World::with(|config| {
        let policy = &mut config["policy"]["inline"];
        policy["signing_keys"] = json!([{"kid": "s1", "private_key_pem": testing::signing_key_pem()}]);
        policy["orgs"]["acme"]["oauth_clients"] =
            json!([{"client_id": CLIENT, "secret_sha256": [SECRET_SHA256], "scopes": ["mcp:call"]}]);
        change(policy);
    })
}

impl World {
    fn post_token(&mut self, body: &str) -> Step {
        let head = [(":method", "POST"), ("content-type", "application/x-www-form-urlencoded")];
        let Step::ReadBody(mut reading) = self.start("/oauth/token", &head) else { panic!("must read the body") };
        assert!(!reading.is_overdue(self.now));
        let head = testing::head(&[&[(":path", "/oauth/token")], &head[..]].concat());
        reading.proceed(&head, body.as_bytes(), &mut self.gateway, self.now, &self.host)
    }

    fn token(&mut self, more: &str) -> String {
        let body = format!("grant_type=client_credentials&client_id={CLIENT}&client_secret={SECRET}{more}");
        let Step::Reply(reply, _) = self.post_token(&body) else { panic!("must answer") };
        let answer: Value = serde_json::from_str(&reply.body).unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_gateway_token_is_accepted_where_it_is_meant_for() {
    let mut world = issuing(|_| {});
    let token = world.token("");
    let expected = ["acme", &format!("acme/client/{CLIENT}"), CLIENT, "oauth", "mcp:call"];
    assert_eq!(attributes(world.bearer(&token)), expected);
    assert_eq!(attributes(world.bearer(&token)), expected, "remembered");
    assert_eq!(world.host.verifications.get(), 1);
    let for_one = world.token("&resource=https://gw.example/mcp/acme/github");
    let github = "&resource=https://gw.example/mcp/acme/github";
    let for_two = world.token(&format!("{github}&resource=HTTPS://gw.example:443/mcp/acme/jira"));
    let for_all = world.token(&format!("{github}&resource=https://gw.example/mcp/acme"));
    let table = [
        (&token, "/mcp/acme/jira", "ok"),
        (&token, "/mcp/other", "audience_mismatch"),
        (&for_one, "/mcp/acme/github", "ok"),
        (&for_one, "/mcp/acme/jira", "audience_mismatch"),
        (&for_one, "/mcp/acme", "audience_mismatch"),
        (&for_one, "/mcp/acme/github", "ok"),
        (&for_two, "/mcp/acme/github", "ok"),
        (&for_two, "/mcp/acme/jira", "ok"),
        (&for_two, "/mcp/acme/slack", "audience_mismatch"),
        (&for_two, "/mcp/acme", "audience_mismatch"),
        (&for_two, "/mcp/other/jira", "audience_mismatch"),
        (&for_two, "/mcp/acme/jira", "ok"),
        (&for_two, "/mcp/acme/github", "ok"),
        (&for_all, "/mcp/acme/slack", "ok"),
        (&for_all, "/mcp/acme", "ok"),
    ];
    for (token, path, expected) in table {
        let bearer = format!("Bearer {token}");
        assert_eq!(reason(&world.start(path, &[("authorization", &bearer)])), expected, "{path}");
    }
    assert_eq!(world.host.verifications.get(), 4, "each token is verified once for all its resources");
    world.now = world.now.plus(Duration::from_secs(3660));
    assert_eq!(reason(&world.bearer(&token)), "token_expired");
}

#[test]
fn what_the_policy_takes_back_is_taken_back_from_live_tokens() {
    let mut world = issuing(|_| {});
    let token = world.token("");
    let claims: Value = {
        let jws = crate::jose::compact::CompactJws::parse(&token).unwrap();
        Value::Object(jws.claims().clone())
    };
    let jti = claims["jti"].clone();
    for (what, expected, change) in [
        ("nothing", "ok", json!({})),
        (
            "client revoked",
            "client_unknown",
            json!({"oauth_clients": [{"client_id": CLIENT, "secret_sha256": [SECRET_SHA256], "scopes": ["mcp:call"], "revoked": true}]}),
        ),
        ("client gone", "client_unknown", json!({"oauth_clients": []})),
        (
            "scope narrowed",
            "inspect",
            json!({"oauth_clients": [{"client_id": CLIENT, "secret_sha256": [SECRET_SHA256], "scopes": ["mcp:call:github"]}]}),
        ),
        ("jti", "token_revoked", json!({"revoked_tokens": {"jti": [jti]}})),
        ("issued before", "token_revoked", json!({"revoked_tokens": {"issued_before": {CLIENT: "2027-01-15T08:00:01Z"}}})),
        ("issued after", "ok", json!({"revoked_tokens": {"issued_before": {CLIENT: "2027-01-15T08:00:00Z"}}})),
        (
            "other's",
            "ok",
            json!({"revoked_tokens": {"jti": ["x"], "issued_before": {"apx_client_other": "2028-01-01T00:00:00Z"}}}),
        ),
    ] {
        let mut changed = issuing(|policy| {
            for (name, value) in change.as_object().unwrap() {
                policy["orgs"]["acme"][name] = value.clone();
            }
        });
        assert_eq!(reason(&changed.bearer(&token)), expected, "{what}");
    }
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
fn a_client_that_moved_to_another_org_takes_no_token_along() {
    let token = issuing(|_| {}).token("");
    let mut moved = issuing(|policy| {
        let clients = policy["orgs"]["acme"]["oauth_clients"].take();
        policy["orgs"]["acme"] = json!({});
        policy["orgs"]["other"] = json!({ "oauth_clients": clients });
    });
    assert_eq!(reason(&moved.bearer(&token)), "client_unknown");
}

#[test]
fn a_rotated_signing_key_is_accepted_while_it_is_published() {
    let mut world = issuing(|_| {});
    let token = world.token("");
    let other = || json!({"kid": "s2", "private_key_pem": testing::other_signing_key_pem()});
    let mut rotated = issuing(|policy| {
        let old = policy["signing_keys"][0].take();
        policy["signing_keys"] = json!([other(), old]);
    });
    assert_eq!(reason(&rotated.bearer(&token)), "ok");
    let new = rotated.token("");
    assert_eq!(reason(&rotated.bearer(&new)), "ok");
    assert_eq!(reason(&world.bearer(&new)), "key_unknown");
    let mut renamed =
        issuing(|policy| policy["signing_keys"] = json!([{"kid": "s1", "private_key_pem": testing::other_signing_key_pem()}]));
    assert_eq!(reason(&renamed.bearer(&token)), "signature_invalid");
}

#[test]
fn a_gateway_token_is_typed_and_signed_by_the_gateway() {
    let mut world = issuing(|_| {});
    world.publish(&["a", "s1"]);
    let claims = json!({
        "iss": "https://gw.example", "sub": CLIENT, "client_id": CLIENT, "aud": "https://gw.example/mcp/acme",
        "iat": 1_800_000_000, "exp": 1_800_000_300, "jti": "j", "scope": "mcp:call",
    });
    for (header, expected) in [
        (json!({"alg": "RS256", "kid": "s1", "typ": "at+jwt"}), "signature_invalid"),
        (json!({"alg": "RS256", "kid": "a", "typ": "at+jwt"}), "key_unknown"),
        (json!({"alg": "RS256", "typ": "at+jwt"}), "key_unknown"),
        (json!({"alg": "RS256", "kid": "s1", "typ": "JWT"}), "token_malformed"),
        (json!({"alg": "RS256", "kid": "s1"}), "token_malformed"),
    ] {
        assert_eq!(reason(&world.bearer(&testing::sign(&header, &claims))), expected, "{header}");
    }
}

fn document(world: &mut World, method: &str, path: &str) -> (u32, Vec<&'static str>, Value) {
    match world.start(path, &[(":method", method)]) {
        Step::Reply(reply, Record::Endpoint { .. }) => {
            let names = reply.headers.iter().map(|(name, _)| *name).collect();
            (reply.status, names, serde_json::from_str(&reply.body).unwrap_or_default())
        }
        step => panic!("{step:?}"),
    }
}

/// An authorization server refuses a request for a scope that it does not know.
#[test]
fn clients_are_told_scopes_that_their_server_knows() {
    let entra = json!(["api://apexmcp/.default"]);
    let (all, notes) = ("mcp:call", "mcp:call:notes");
    for (has_clients, providers, at_org, at_notes) in [
        (false, vec![], Some(all), Some(notes)),
        (true, vec![], Some(all), Some(notes)),
        (false, vec![json!(null)], Some(all), Some(notes)),
        (true, vec![json!(null)], Some(all), Some(notes)),
        (false, vec![entra.clone()], Some("api://apexmcp/.default"), Some("api://apexmcp/.default")),
        (false, vec![json!(["openid", "a", "openid"]), json!(["a", "openid"])], Some("openid a"), Some("openid a")),
        (false, vec![json!([])], None, None),
        (false, vec![json!([]), json!([])], None, None),
        (false, vec![entra.clone(), json!(null)], None, None),
        (false, vec![entra.clone(), json!([])], None, None),
        (true, vec![entra.clone()], None, None),
        (true, vec![json!(["mcp:call"])], Some(all), None),
    ] {
        let what = format!("clients {has_clients}, providers {providers:?}");
        let mut world = issuing(|policy| {
            let acme = &mut policy["orgs"]["acme"];
            let record = acme["identity_providers"][0].clone();
            let records = providers.iter().enumerate().map(|(index, scopes)| {
                let mut record = record.clone();
                record["issuer"] = json!(format!("https://idp.example/{index}"));
                record["client_scopes"] = scopes.clone();
                record
            });
            acme["identity_providers"] = records.collect();
            if !has_clients {
                acme["oauth_clients"] = json!([]);
            }
        });
        for (path, expected) in [("/mcp/acme", at_org), ("/mcp/acme/notes", at_notes)] {
            let Step::Reply(reply, _) = world.start(path, &[]) else { panic!("{what}") };
            let challenge = &reply.headers.iter().find(|(name, _)| *name == "www-authenticate").unwrap().1;
            let scope = expected.map(|scope| format!("scope=\"{scope}\""));
            let is_oauth = has_clients || !providers.is_empty();
            let url =
                is_oauth.then(|| format!("resource_metadata=\"https://gw.example/.well-known/oauth-protected-resource{path}\""));
            let parameters: Vec<String> = url.into_iter().chain(scope).collect();
            assert_eq!(*challenge, format!("Bearer {}", parameters.join(", ")), "{what}");

            let (status, _, metadata) = document(&mut world, "GET", &format!("/.well-known/oauth-protected-resource{path}"));
            assert_eq!(status == 200, is_oauth, "{what}");
            let list = expected.filter(|_| is_oauth).map(|scope| json!(scope.split(' ').collect::<Vec<_>>()));
            assert_eq!(metadata.get("scopes_supported"), list.as_ref(), "{what} {path}");
        }
    }

    let mut world = World::with(|config| {
        config["policy"]["inline"]["orgs"]["acme"]["identity_providers"][0]["client_scopes"] = entra;
    });
    world.publish(&["a"]);
    let mut narrow = claims();
    narrow["scope"] = json!("mcp:call:clock");
    let authorization = format!("Bearer {}", token(&narrow));
    let Step::Reply(reply, _) = world.start("/mcp/acme/notes", &[("authorization", &authorization)]) else { panic!() };
    let challenge = &reply.headers.iter().find(|(name, _)| *name == "www-authenticate").unwrap().1;
    assert!(challenge.contains(r#"error="insufficient_scope", scope="mcp:call:notes""#), "{challenge}");
}

#[test]
fn discovery() {
    let mut world = issuing(|_| {});
    let resource = "/.well-known/oauth-protected-resource/mcp/acme";
    let (status, headers, metadata) = document(&mut world, "GET", resource);
    assert_eq!((status, headers), (200, vec!["content-type", "cache-control", "access-control-allow-origin"]));
    assert_eq!(
        metadata,
        json!({
            "resource": "https://gw.example/mcp/acme", "authorization_servers": ["https://gw.example", ISSUER],
            "scopes_supported": ["mcp:call"], "bearer_methods_supported": ["header"],
        })
    );
    let (_, _, metadata) = document(&mut world, "GET", &format!("{resource}/github"));
    assert_eq!(metadata["resource"], "https://gw.example/mcp/acme/github");
    assert_eq!(metadata["scopes_supported"], json!(["mcp:call:github"]));
    let (_, _, metadata) = document(&mut world, "GET", "/.well-known/oauth-authorization-server");
    assert_eq!(metadata["issuer"], "https://gw.example");
    assert_eq!(metadata["token_endpoint"], "https://gw.example/oauth/token");
    let (_, _, metadata) = document(&mut world, "HEAD", "/.well-known/openid-configuration");
    assert_eq!(metadata["subject_types_supported"], json!(["public"]));
    let (_, _, keys) = document(&mut world, "GET", "/.well-known/jwks.json?x=1");
    assert_eq!(keys["keys"][0]["kid"], "s1");
    assert!(keys["keys"][0].get("d").is_none(), "public keys alone");
    for (method, path, status) in [
        ("GET", "/.well-known/oauth-protected-resource/mcp/other", 404),
        ("GET", "/.well-known/oauth-protected-resource/mcp/nobody", 404),
        ("OPTIONS", "/.well-known/jwks.json", 204),
        ("POST", "/.well-known/jwks.json", 405),
        ("GET", "/oauth/authorize", 400),
        ("POST", "/oauth/authorize", 405),
        ("GET", "/oauth/token", 405),
        ("OPTIONS", "/oauth/token", 405),
    ] {
        assert_eq!(document(&mut world, method, path).0, status, "{method} {path}");
    }
    // Clients cannot discover a workload's issuer that is not a URL, so it does not affect the named scopes.
    let mut world = issuing(|policy| {
        let providers = policy["orgs"]["acme"]["identity_providers"].as_array_mut().unwrap();
        let mut workload = providers[0].clone();
        workload["issuer"] = json!("agent@project.iam.example.com");
        workload["client_scopes"] = json!([]);
        providers.push(workload);
    });
    let (_, _, metadata) = document(&mut world, "GET", resource);
    assert_eq!(metadata["authorization_servers"], json!(["https://gw.example", ISSUER]));
    assert_eq!(metadata["scopes_supported"], json!(["mcp:call"]));
    let mut world = World::with(|config| {
        config["policy"]["inline"]["orgs"]["acme"]["identity_providers"][0]["issuer"] = json!("accounts.example.com");
    });
    let (status, _, metadata) = document(&mut world, "GET", resource);
    assert_eq!((status, metadata.get("authorization_servers")), (200, None));
    let mut without = World::new();
    assert_eq!(document(&mut without, "GET", resource).2["authorization_servers"], json!([ISSUER]));
    for path in ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/oauth/token", "/oauth/authorize"] {
        assert_eq!(document(&mut without, "GET", path).0, 404, "{path}: nothing is issued here");
    }
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_forever() {
    let mut world = issuing(|_| {});
    let Step::ReadBody(mut reading) = world.start("/oauth/token", &[(":method", "POST")]) else { panic!("must read") };
    assert!(!reading.is_overdue(world.now.plus(Duration::from_millis(9_999))));
    assert!(reading.is_overdue(world.now.plus(Duration::from_secs(10))));
    let step = reading.give_up();
    assert_eq!((reason(&step), status(&step)), ("body_timeout", 408));
}

/// A world whose key covers the connectors `notes` and `files`.
fn scoped_world(mode: &str) -> World {
    World::with(|config| {
        config["mode"] = json!(mode);
        config["policy"]["inline"]["orgs"]["acme"]["api_keys"][0]["connectors"] = json!(["notes", "files"]);
    })
}

const POST: [(&str, &str); 3] = [MESSAGE[0], MESSAGE[1], ("x-api-key", KEY)];

#[test]
fn who_may_use_some_connectors_has_messages_read_at_the_joined_endpoint_alone() {
    let mut world = scoped_world("enforce");
    let Step::Inspect(forward, awaiting) = world.start("/mcp/acme", &[&POST[..], &[("accept-encoding", "gzip")]].concat()) else {
        panic!("not read");
    };
    assert_eq!(forward.remove, ["x-api-key", "accept-encoding"]);
    assert!(forward.accept_identity);
    assert_eq!(awaiting.principal().attributes()[1], "acme/key/k1");
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
            let Step::Inspect(_, awaiting) = world.start("/mcp/acme", &headers) else { panic!("not read") };
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
fn lists_are_cut_where_verdicts_are_enforced() {
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    for (mode, is_cut) in [("enforce", true), ("shadow", false)] {
        let mut world = scoped_world(mode);
        let Step::Inspect(_, awaiting) = world.start("/mcp/acme", &POST) else { panic!("not read") };
        let Step::Forward(forward, _) = world.read(awaiting, list.as_bytes()) else { panic!("refused") };
        assert_eq!(forward.lists.is_some(), is_cut, "{mode}");
    }
}

/// A world with a rate for the org and a quota for its key, counted in `store`.
fn limited_world(store: &str, on_error: &str, mode: &str) -> World {
    World::with(|config| {
        config["mode"] = json!(mode);
        config["limits"] = json!({"store": store, "rate_limit_service": {"cluster": "ratelimit", "on_error": on_error}});
        let acme = &mut config["policy"]["inline"]["orgs"]["acme"];
        acme["limits"] = json!({"rate": {"requests": 2, "per": "minute"}});
        acme["api_keys"][0]["limits"] = json!({"monthly_quota": 3});
        acme["api_keys"][0]["connectors"] = json!(["notes"]);
    })
}

fn header<'a>(reply: &'a LocalReply, wanted: &str) -> &'a str {
    reply.headers.iter().find(|(name, _)| *name == wanted).map_or("", |(_, value)| value)
}

#[test]
fn only_what_would_pass_is_counted() {
    let mut world = limited_world("local", "allow", "enforce");
    let foreign = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "clock__now"}}).to_string();
    let own = foreign.replace("clock", "notes");
    for _ in 0..5 {
        assert_eq!(reason(&world.start("/mcp/acme/clock", &POST)), "scope_insufficient");
        let Step::Inspect(_, awaiting) = world.start("/mcp/acme", &POST) else { panic!("not read") };
        assert_eq!(reason(&world.read(awaiting, foreign.as_bytes())), "scope_insufficient");
    }
    let Step::Forward(forward, _) = world.start("/mcp/acme/notes", &POST) else { panic!("refused") };
    assert_eq!(forward.standing.unwrap().policy(), r#""rate";q=2;w=60, "month";q=3"#);
    let Step::Inspect(_, awaiting) = world.start("/mcp/acme", &POST) else { panic!("not read") };
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
fn in_shadow_mode_what_exceeds_a_limit_passes_as_who_it_is() {
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
        (ServiceAnswer::Message(&[8, 1]), "deny", "ok", ServiceOutcome::Ok),
        (ServiceAnswer::Message(&[8, 2]), "allow", "rate_limit", ServiceOutcome::OverLimit),
        (ServiceAnswer::Message(&[]), "allow", "ok", ServiceOutcome::Error),
        (ServiceAnswer::Message(&[255]), "deny", "rate_limit_unavailable", ServiceOutcome::Error),
        (ServiceAnswer::None, "allow", "ok", ServiceOutcome::Error),
        (ServiceAnswer::None, "deny", "rate_limit_unavailable", ServiceOutcome::Error),
        (ServiceAnswer::Overflow, "allow", "rate_limit", ServiceOutcome::Overloaded),
    ] {
        let mut world = limited_world("rate_limit_service", on_error, "enforce");
        let Step::Count(edits, question, awaiting) = world.start("/mcp/acme/notes", &POST) else { panic!("not asked") };
        assert!(!question.is_empty() && edits.principal.is_some() && edits.remove == ["x-api-key"]);
        let (step, told) = awaiting.proceed(answer, &world.gateway, &world.host);
        assert_eq!((reason(&step), told), (expected, outcome), "{answer:?} {on_error}");
        if let Step::Forward(forward, _) = &step {
            assert!(forward.edits.principal.is_none(), "the headers were edited before the service was asked");
            assert!(forward.standing.is_none(), "an empty list is no field: {step:?}");
        }
    }
}

/// A world whose policy comes from a Settings service.
fn remote_world() -> World {
    World::with(|config| config["policy"] = json!({"remote": {"cluster": "settings"}}))
}

impl World {
    /// A document comes, and this thread takes notice.
    fn publish_policy(&mut self, orgs: &Value) {
        let settings = self.gateway.config.remote.as_ref().unwrap();
        let document = json!({"version": "1", "orgs": orgs}).to_string();
        self.gateway.publish(document.as_bytes(), settings, &self.host).unwrap();
        let PolicySource::Remote(remote) = &self.gateway.policy else { panic!("not remote") };
        assert_eq!(remote.sync(&self.host).as_deref(), Some("1"));
    }
}

#[test]
fn requests_wait_for_the_first_policy_and_not_for_ever() {
    let mut world = remote_world();
    let Step::AwaitPolicy(mut awaiting) = world.start("/mcp/acme", &[("x-api-key", KEY)]) else { panic!("not held") };
    assert!(!awaiting.is_ready(&world.gateway, world.now));
    world.publish_policy(&json!({"acme": {"api_keys": [{"id": "k1", "sha256": KEY_SHA256}]}}));
    assert!(awaiting.is_ready(&world.gateway, world.now));
    let head = testing::head(&[(":path", "/mcp/acme"), ("x-api-key", KEY)]);
    assert_eq!(reason(&awaiting.proceed(head, &mut world.gateway, world.now, &world.host)), "ok");

    let mut world = remote_world();
    let Step::AwaitPolicy(mut awaiting) = world.start("/oauth/token", &[(":method", "POST")]) else { panic!("not held") };
    world.now = world.now.plus(Duration::from_secs(5));
    assert!(awaiting.is_ready(&world.gateway, world.now));
    let head = testing::head(&[(":path", "/oauth/token"), (":method", "POST")]);
    let step = awaiting.proceed(head, &mut world.gateway, world.now, &world.host);
    assert_eq!((reason(&step), status(&step)), ("policy_unavailable", 503));

    let mut held = Vec::new();
    while let Step::AwaitPolicy(awaiting) = world.start("/mcp/acme", &[]) {
        held.push(awaiting);
    }
    assert_eq!(held.len(), 2048);
    let step = world.start("/mcp/acme", &[]);
    assert_eq!((reason(&step), status(&step)), ("overloaded", 503));
}

#[test]
fn the_oldest_request_without_a_form_makes_room_for_a_new_one() {
    let mut world = issuing(|_| {});
    let mut waiting: Vec<AwaitingBody> = Vec::new();
    for _ in 0..=2048 {
        let Step::ReadBody(reading) = world.start("/oauth/token", &[(":method", "POST")]) else { panic!("must read") };
        waiting.push(reading);
    }
    let oldest = waiting.remove(0);
    assert!(waiting.iter_mut().all(|reading| !reading.is_overdue(NOW)));
    let step = oldest.give_up();
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
    let Step::Inspect(_, oldest) = message else { panic!("not read") };
    assert!(oldest.hold().is_given_up());
    let step = oldest.give_up(&world.gateway, &world.host);
    assert_eq!((reason(&step), status(&step)), ("overloaded", 503));
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
    let Some(Step::Count(_, _, awaiting)) = open.pop() else { panic!("not asked") };
    let question = Rc::clone(awaiting.hold());
    drop(awaiting);
    assert_eq!(reason(&world.start("/mcp/acme/notes", &POST)), "rate_limit");
    drop(question);
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
        // Envoy's circuit breaker is full.
        let Some(Step::Count(_, _, awaiting)) = open.into_iter().next() else { panic!("not asked") };
        let (step, outcome) = awaiting.proceed(ServiceAnswer::Overflow, &world.gateway, &world.host);
        let Step::Reply(reply, _) = step else { panic!("not refused") };
        let fields = ["retry-after", "ratelimit-policy", "ratelimit"].map(|name| header(&reply, name));
        assert_eq!((outcome, fields), (ServiceOutcome::Overloaded, ["1", told[0], told[1]]));
    }
}

#[test]
fn a_verified_token_holds_as_long_as_the_policy_says_of_it_what_it_said() {
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
