use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;
use crate::credential::{Credential, check_token};
use crate::testing::{self, MemoryHost};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const ORIGIN: &str = "https://gw.example";
const CLIENT: &str = "apx_client_4b7d9e21";
const SCOPED: &str = "apx_client_scoped00";
const KEYED: &str = "apx_client_keyed000";
const RICH: &str = "apx_client_rich0000";
const SECRET: &str = "apx_secret_0123456789abcdefghijABCD";
const NEXT_SECRET: &str = "apx_secret_next56789abcdefghijABCD";

const PLUS_SECRET: &str = "with space+and%";
const PLUS_SECRET_ENCODED: &str = "with+space%2Band%25";

struct World {
    config: Config,
    policy: PolicySource,
    attempts: Attempts,
    host: MemoryHost,
    now: UnixTime,
}

impl World {
    fn new() -> Self {
        let hash = |secret: &str| hex::encode(Sha256::digest(secret));
        let jwks: Value = serde_json::from_str(&testing::jwk_set(&["c1"]).to_document()).unwrap();
        let many: Vec<String> = (0..100).map(|index| format!("mcp:call:{index:0>128}")).collect();
        let config = json!({
            "gateway": {"origin": ORIGIN},
            "policy": {"inline": {
                "signing_keys": [{"kid": "s1", "private_key_env": "SIGNING_KEY"}],
                "orgs": {
                    "acme": {"oauth_clients": [
                        {"client_id": CLIENT, "secret_sha256": [hash(SECRET), hash(NEXT_SECRET), hash(PLUS_SECRET)], "scopes": ["mcp:call"]},
                        {"client_id": SCOPED, "secret_sha256": [hash(SECRET)], "scopes": ["mcp:call:github", "mcp:call:jira"]},
                        {"client_id": KEYED, "jwks": jwks, "scopes": ["mcp:call"]},
                        {"client_id": BOTH, "secret_sha256": [hash(SECRET)], "jwks": jwks, "scopes": ["mcp:call"]},
                        {"client_id": RICH, "secret_sha256": [hash(SECRET)], "scopes": many},
                        {"client_id": "apx_client_revoked0", "secret_sha256": [hash(SECRET)], "scopes": ["mcp:call"], "revoked": true},
                    ]},
                    "other": {},
                },
            }},
        });
        let environment = |name: &str| (name == "SIGNING_KEY").then(|| testing::signing_key_pem().to_owned());
        let (config, policy) = Config::parse(config.to_string().as_bytes(), &environment).unwrap();
        Self {
            config,
            policy: PolicySource::Inline(policy),
            attempts: Attempts::default(),
            host: MemoryHost::default(),
            now: NOW,
        }
    }

    fn post_to(&mut self, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Value, TokenError> {
        let fixed = [(":method", "POST"), (":path", path)];
        let Self { config, policy, attempts, host, now } = self;
        let mut endpoint = TokenEndpoint { config, policy, attempts, host, now: *now };
        let reply = endpoint.issue(&testing::head(&[&fixed, headers].concat()), body.as_bytes())?;
        assert_eq!(reply.status, 200);
        assert!(reply.headers.contains(&("cache-control", "no-store".to_owned())));
        Ok(serde_json::from_str(&reply.body).unwrap())
    }

    fn post(&mut self, body: &str) -> Result<Value, TokenError> {
        self.post_to("/oauth/token", &[FORM], body)
    }

    fn basic(&mut self, id: &str, secret: &str, body: &str) -> Result<Value, TokenError> {
        let value = format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}")));
        self.post_to("/oauth/token", &[FORM, ("authorization", &value)], body)
    }
}

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

fn with_secret(id: &str, more: &str) -> String {
    format!("grant_type=client_credentials&client_id={id}&client_secret={SECRET}{more}")
}

fn claims_of(answer: &Value) -> Value {
    let jws = answer["access_token"].as_str().unwrap().to_owned();
    let jws = CompactJws::parse(&jws).unwrap();
    assert_eq!((jws.kid(), jws.check_type(&[Type::Named("at+jwt")])), (Some("s1"), Ok(())));
    Value::Object(jws.claims().clone())
}

#[test]
fn a_token_has_the_documented_members_and_claims() {
    let answer = World::new().post(&with_secret(CLIENT, "&scope=mcp%3Acall")).unwrap();
    assert_eq!(
        (&answer["token_type"], &answer["expires_in"], &answer["scope"]),
        (&json!("Bearer"), &json!(3600), &json!("mcp:call"))
    );
    let mut claims = claims_of(&answer);
    let jti = claims.as_object_mut().unwrap().remove("jti").unwrap();
    assert_eq!(jti.as_str().unwrap().len(), 32);
    assert_eq!(
        claims,
        json!({
            "iss": ORIGIN, "sub": CLIENT, "client_id": CLIENT, "aud": format!("{ORIGIN}/mcp/acme"),
            "iat": 1_800_000_000, "exp": 1_800_003_600, "scope": "mcp:call",
        })
    );
}

#[test]
fn basic_and_form_accept_every_live_secret() {
    let mut world = World::new();
    for (id, secret) in [
        (CLIENT, PLUS_SECRET_ENCODED),
        (CLIENT, "with%20space%2Band%25"),
        (CLIENT, "with+space%2band%25"),
        ("apx%5Fclient_4b7d9e21", SECRET),
    ] {
        assert!(world.basic(id, secret, "grant_type=client_credentials").is_ok(), "{id} {secret}");
    }
    for secret in ["with space and%", "with%2Bspace%2Band%25", "with+space+and%25"] {
        assert!(world.basic(CLIENT, secret, "grant_type=client_credentials").is_err(), "{secret}");
    }
    let form = format!("grant_type=client_credentials&client_id={CLIENT}&client_secret={PLUS_SECRET_ENCODED}");
    assert!(world.post(&form).is_ok(), "the same secret in the form");
    for secret in [SECRET, NEXT_SECRET, "apx%5Fsecret_0123456789abcdefghijABCD"] {
        assert!(world.basic(CLIENT, secret, "grant_type=client_credentials").is_ok(), "{secret}");
    }
    assert!(world.basic(CLIENT, SECRET, &format!("grant_type=client_credentials&client_id={CLIENT}")).is_ok());
    assert!(world.post(&with_secret(CLIENT, "&scope=")).is_ok(), "a parameter without a value counts as omitted");
}

#[test]
fn scopes_are_cut_and_resources_select_the_audience() {
    let mut world = World::new();
    for (client, more, scope, audience) in [
        (CLIENT, "", Ok("mcp:call"), "/mcp/acme"),
        (CLIENT, "&scope=mcp:call:github", Ok("mcp:call:github"), "/mcp/acme"),
        (CLIENT, "&scope=openid", Err(TokenError::InvalidScope), ""),
        (SCOPED, "", Ok("mcp:call:github mcp:call:jira"), "/mcp/acme"),
        (SCOPED, "&scope=mcp:call", Ok("mcp:call:github mcp:call:jira"), "/mcp/acme"),
        (SCOPED, "&scope=mcp:call:jira+mcp:call:slack", Ok("mcp:call:jira"), "/mcp/acme"),
        (SCOPED, "&scope=mcp:call:slack", Err(TokenError::InvalidScope), ""),
        (CLIENT, "&resource=https://gw.example/mcp/acme", Ok("mcp:call"), "/mcp/acme"),
        (CLIENT, "&resource=https://gw.example/mcp/acme/github", Ok("mcp:call"), "/mcp/acme/github"),
        (CLIENT, "&resource=HTTPS://GW.Example:443/mcp/acme", Ok("mcp:call"), "/mcp/acme"),
        (CLIENT, "&resource=https://gw.example:/mcp/%2561cme/x/../github", Ok("mcp:call"), "/mcp/acme/github"),
        (CLIENT, "&resource=https://gw.example/x/%252e./mcp/acme", Ok("mcp:call"), "/mcp/acme"),
        (CLIENT, "&resource=https://gw.example/mcp/ACME", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=https://gw.example:8443/mcp/acme", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=http://gw.example/mcp/acme", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=https://x@gw.example/mcp/acme", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=https://gw.example/mcp/acme%23f", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=https://gw.example/mcp/acme/%2e%2e/other", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=https://gw.example/mcp/other", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=https://gw.example/mcp/acme/", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=https://gw.example.evil/mcp/acme", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=https://evil/mcp/acme", Err(TokenError::InvalidTarget), ""),
        (CLIENT, "&resource=acme", Err(TokenError::InvalidTarget), ""),
    ] {
        let answer = world.post(&with_secret(client, more));
        assert_eq!(
            answer.as_ref().map(|answer| answer["scope"].as_str().unwrap()).map_err(|error| *error),
            scope,
            "{client}{more}"
        );
        if let Ok(answer) = answer {
            assert_eq!(claims_of(&answer)["aud"], format!("{ORIGIN}{audience}"), "{client}{more}");
        }
    }
}

#[test]
fn a_client_may_name_several_resources_of_its_org() {
    let mut world = World::new();
    let url = |path: &str| format!("{ORIGIN}/mcp/{path}");
    for (named, expected) in [
        (vec!["acme/github", "acme/jira"], Ok(json!([url("acme/github"), url("acme/jira")]))),
        (vec!["acme", "acme/github"], Ok(json!([url("acme"), url("acme/github")]))),
        (vec!["acme/github", "ac%256de/github", "acme/./github"], Ok(json!(url("acme/github")))),
        (vec!["acme/jira", "acme/%2567ithub", "acme/jira"], Ok(json!([url("acme/github"), url("acme/jira")]))),
        (vec!["acme/github", "other"], Err(TokenError::InvalidTarget)),
        (vec!["other/github", "acme"], Err(TokenError::InvalidTarget)),
        (vec!["acme", "acme/github/x"], Err(TokenError::InvalidTarget)),
    ] {
        let more: String = named.iter().map(|path| format!("&resource={}", url(path))).collect();
        let answer = world.post(&with_secret(CLIENT, &more));
        // The order of the audiences depends on the signer, which is Envoy or the filter.
        let sorted = |answer| {
            let mut audience = claims_of(&answer)["aud"].clone();
            if let Some(audiences) = audience.as_array_mut() {
                audiences.sort_by_key(Value::to_string);
            }
            audience
        };
        assert_eq!(answer.map(sorted), expected, "{named:?}");
    }
    let one = world.post(&with_secret(CLIENT, "&resource=&resource=https://gw.example/mcp/acme/github&resource=")).unwrap();
    assert_eq!(claims_of(&one)["aud"], url("acme/github"), "a parameter without a value counts as omitted");
    let scoped = world
        .post(&with_secret(SCOPED, "&resource=https://gw.example/mcp/acme/github&resource=https://gw.example/mcp/acme/jira"))
        .unwrap();
    assert_eq!(scoped["scope"], "mcp:call:github mcp:call:jira");
    let many: String = (0..105).map(|index| format!("&resource={}", url(&format!("acme/{index:0>100}")))).collect();
    assert_eq!(world.post(&with_secret(CLIENT, &many)), Err(TokenError::ScopeTooLong), "the token would be too long");
}

#[test]
fn bad_requests_are_refused() {
    let refused = TokenError::InvalidClient { basic: false };
    let mut world = World::new();
    let invalid = |error: TokenError| error.word() == "invalid_request";
    for (what, body) in [
        ("empty", String::new()),
        ("garbage", "\u{0}\u{1}%%%".to_owned()),
        ("json", r#"{"grant_type":"client_credentials"}"#.to_owned()),
        ("no credentials", "grant_type=client_credentials".to_owned()),
        ("id alone", format!("grant_type=client_credentials&client_id={CLIENT}")),
        ("unknown client", with_secret("apx_client_unknown0", "")),
        ("revoked client", with_secret("apx_client_revoked0", "")),
        ("hostile id", with_secret("..%2F..%2F%00", "")),
        ("wrong secret", with_secret(CLIENT, "x")),
        ("keyed client with a secret", with_secret(KEYED, "")),
        ("garbage assertion", format!("client_assertion_type={JWT_BEARER}&client_assertion=a.b.c")),
    ] {
        assert_eq!(world.post(&body), Err(refused), "{what}");
    }
    for (what, body) in [
        ("secret without id", format!("grant_type=client_credentials&client_secret={SECRET}")),
        ("no grant_type", format!("client_id={CLIENT}&client_secret={SECRET}")),
        ("repeated parameter", with_secret(CLIENT, "&scope=mcp:call&scope=mcp:call")),
        ("repeated grant", with_secret(CLIENT, "&grant_type=client_credentials")),
        ("repeated secret", with_secret(CLIENT, &format!("&client_secret={SECRET}"))),
        ("repeated audience", with_secret(CLIENT, "&audience=a&audience=b")),
        ("repeated unknown parameter", with_secret(CLIENT, "&x=1&x=1")),
        ("repeated empty parameter", with_secret(CLIENT, "&scope=&scope=mcp:call")),
        ("secret and assertion", with_secret(CLIENT, "&client_assertion=a.b.c")),
        ("assertion of an unknown kind", "client_assertion_type=saml&client_assertion=a.b.c".to_owned()),
    ] {
        assert!(world.post(&body).is_err_and(invalid), "{what}");
    }
    assert_eq!(
        world.post(&with_secret(CLIENT, "").replace("client_credentials", "password")),
        Err(TokenError::UnsupportedGrantType)
    );
    assert_eq!(world.basic(CLIENT, "wrong", "grant_type=client_credentials"), Err(TokenError::InvalidClient { basic: true }));
    assert!(world.basic(CLIENT, SECRET, &with_secret(CLIENT, "")).is_err_and(invalid), "two methods");
    assert!(world.basic(CLIENT, SECRET, "grant_type=client_credentials&client_id=other").is_err_and(invalid));
    assert!(world.post_to("/oauth/token?client_id=a", &[FORM], &with_secret(CLIENT, "")).is_err_and(invalid));
    assert!(world.post_to("/oauth/token", &[], &with_secret(CLIENT, "")).is_err_and(invalid));
    let json = ("content-type", "application/json");
    assert!(world.post_to("/oauth/token", &[json], &with_secret(CLIENT, "")).is_err_and(invalid));
    let charset = ("content-type", "Application/X-WWW-Form-Urlencoded; charset=UTF-8");
    assert!(world.post_to("/oauth/token", &[charset], &with_secret(CLIENT, "")).is_ok());
    let mut padded = |length: usize| {
        let body = with_secret(CLIENT, "&x=");
        world.post(&format!("{body}{}", "x".repeat(length - body.len())))
    };
    assert!(padded(16_384).is_ok());
    assert_eq!(padded(16_385), Err(TokenError::BodyTooLong));
    for value in ["Basic", "Basic !", "Basic YQ==", "Bearer a.b.c", "Basic \u{e4}"] {
        let answer = world.post_to("/oauth/token", &[FORM, ("authorization", value)], "grant_type=client_credentials");
        assert_eq!(answer, Err(TokenError::InvalidClient { basic: true }), "{value}");
    }
}

#[test]
fn an_assertion_is_accepted_once_and_within_its_limits() {
    let good = || {
        json!({
            "iss": KEYED, "sub": KEYED, "aud": ORIGIN, "exp": 1_800_000_300, "iat": 1_800_000_000, "jti": "j1",
        })
    };
    let header = json!({"alg": "RS256", "kid": "c1", "typ": "JWT"});
    let body = |assertion: &str| {
        format!("grant_type=client_credentials&client_assertion_type={JWT_BEARER}&client_assertion={assertion}")
    };
    let mut world = World::new();
    let first = testing::sign(&header, &good());
    assert!(world.post(&body(&first)).is_ok());
    let refused = Err(TokenError::InvalidClient { basic: false });
    assert_eq!(world.post(&body(&first)), refused, "replayed");
    let with = |name: &str, value: Value| {
        let mut claims = good();
        claims["jti"] = json!(name);
        claims[name] = value;
        claims
    };
    for (index, aud) in
        ["https://GW.example:443", "HTTPS://gw.example/oauth/token", "https://gw.example/oauth/%74oken", "https://gw.example/"]
            .into_iter()
            .enumerate()
    {
        let mut claims = with("aud", json!(aud));
        claims["jti"] = json!(format!("aud {index}"));
        assert!(world.post(&body(&testing::sign(&header, &claims))).is_ok(), "{aud}");
    }
    for claims in [with("aud", json!([format!("{ORIGIN}/oauth/token"), "x"])), with("client_id", json!("anything"))] {
        assert!(world.post(&body(&testing::sign(&header, &claims))).is_ok(), "{claims}");
    }
    for claims in [
        with("iss", json!(CLIENT)),
        with("sub", json!(CLIENT)),
        with("aud", json!("https://evil")),
        with("exp", json!(1_799_999_000)),
        with("iat", json!(1_799_999_340)),
        with("iat", json!(1_800_000_061)),
        with("exp", Value::Null),
        with("jti", json!("")),
        with("jti", Value::Null),
    ] {
        assert_eq!(world.post(&body(&testing::sign(&header, &claims))), refused, "{claims}");
    }
    // The lifetime of ten minutes, and a minute of skew at each end.
    for (exp, is_good) in [(1_800_000_660, true), (1_800_000_661, false)] {
        let mut claims = with("exp", json!(exp));
        claims.as_object_mut().unwrap().remove("iat");
        claims["jti"] = json!(format!("ends {exp}"));
        assert_eq!(world.post(&body(&testing::sign(&header, &claims))).is_ok(), is_good, "{exp}");
    }
    let still = with("iat", json!(1_799_999_341));
    assert!(world.post(&body(&testing::sign(&header, &still))).is_ok());
    let far = with("exp", json!(1_800_003_600));
    assert!(world.post(&body(&testing::sign(&header, &far))).is_ok(), "iat limits the lifetime");
    let mut far_without_iat = with("exp", json!(1_800_003_600));
    far_without_iat.as_object_mut().unwrap().remove("iat");
    far_without_iat["jti"] = json!("j2");
    assert_eq!(world.post(&body(&testing::sign(&header, &far_without_iat))), refused);
    let typed = json!({"alg": "RS256", "kid": "c1", "typ": "at+jwt"});
    assert_eq!(world.post(&body(&testing::sign(&typed, &with("a", json!(1))))), refused, "an access token is no assertion");
    let unknown = json!({"alg": "RS256", "kid": "c2"});
    assert_eq!(world.post(&body(&testing::sign(&unknown, &with("b", json!(1))))), refused);
    let named = format!("{}&client_id={CLIENT}", body(&testing::sign(&header, &with("c", json!(1)))));
    assert_eq!(world.post(&named), refused, "another client_id");
}

#[test]
fn guessing_is_slowed_for_each_known_or_unknown_id() {
    for id in [CLIENT, "apx_client_unknown0"] {
        let mut world = World::new();
        let wrong = format!("grant_type=client_credentials&client_id={id}&client_secret=guess");
        for _ in 0..10 {
            assert_eq!(world.post(&wrong), Err(TokenError::InvalidClient { basic: false }), "{id}");
        }
        assert_eq!(world.post(&wrong), Err(TokenError::TooManyAttempts(Duration::from_secs(6))), "{id}");
        assert!(world.post(&with_secret(SCOPED, "")).is_ok(), "other clients do not wait");
        world.now = world.now.plus(Duration::from_secs(6));
        assert_eq!(world.post(&wrong), Err(TokenError::InvalidClient { basic: false }), "{id}");
    }
}

const BOTH: &str = "apx_client_both0000";
const UNKNOWN: &str = "apx_client_unknown0";

fn assertion(id: &str, kid: &str, jti: &str) -> String {
    let header = json!({"alg": "RS256", "kid": kid});
    let claims = json!({"iss": id, "sub": id, "aud": ORIGIN, "exp": 1_800_000_300, "iat": 1_800_000_000, "jti": jti});
    let assertion = testing::sign(&header, &claims);
    format!("grant_type=client_credentials&client_assertion_type={JWT_BEARER}&client_assertion={assertion}")
}

#[test]
fn wrong_secrets_block_no_assertion_and_get_the_same_answer_for_every_id() {
    let mut answers = Vec::new();
    for id in [CLIENT, KEYED, BOTH, UNKNOWN] {
        for is_basic in [false, true] {
            let mut world = World::new();
            let mut guess = || match is_basic {
                true => world.basic(id, "guess", "grant_type=client_credentials"),
                false => world.post(&format!("grant_type=client_credentials&client_id={id}&client_secret=guess")),
            };
            let errors: Vec<&str> = (0..12).map(|_| guess().unwrap_err().word()).collect();
            answers.push(errors);
            for number in 0..30 {
                let answer = world.post(&assertion(id, "c1", &format!("j{number}")));
                assert_eq!(answer.is_ok(), [KEYED, BOTH].contains(&id), "{id}: {answer:?}");
            }
        }
    }
    let expected = [vec!["invalid_client"; 10], vec!["too_many_attempts"; 2]].concat();
    assert!(answers.iter().all(|errors| *errors == expected), "{answers:?}");
}

#[test]
fn bad_assertions_block_neither_good_ones_nor_a_good_secret() {
    let mut world = World::new();
    let refused = Err(TokenError::InvalidClient { basic: false });
    for id in [KEYED, BOTH, UNKNOWN] {
        let good = assertion(id, "c1", "once");
        let forged = format!("{}AAAA", &good[..good.len() - 4]);
        assert_eq!(world.post(&good).is_ok(), id != UNKNOWN, "{id}");
        for number in 0..15 {
            let of_no_key = assertion(id, "c2", &format!("j{number}"));
            let of_another = format!("{}&client_id={CLIENT}", assertion(id, "c1", &format!("k{number}")));
            for (what, body) in [("forged", &forged), ("used", &good), ("no key", &of_no_key), ("another id", &of_another)] {
                assert_eq!(world.post(body), refused, "{what}: {id}");
            }
        }
        assert_eq!(world.post(&assertion(id, "c1", "twice")).is_ok(), id != UNKNOWN, "{id}");
    }
    assert!(world.post(&with_secret(BOTH, "")).is_ok());
    assert!(world.attempts.is_empty(), "no failure of an assertion is remembered");
}

#[test]
fn no_token_is_longer_than_the_filter_accepts() {
    let mut world = World::new();
    assert_eq!(world.post(&with_secret(RICH, "")), Err(TokenError::ScopeTooLong));
    let some: Vec<String> = (0..80).map(|index| format!("mcp:call:{index:0>128}")).collect();
    let answer = world.post(&with_secret(RICH, &format!("&scope={}", some.join("+")))).unwrap();
    let token = answer["access_token"].as_str().unwrap();
    let head = testing::head(&[("authorization", format!("Bearer {token}"))]);
    let credential = Credential::from_head(&head).unwrap();
    assert!(matches!(credential, Credential::Bearer(taken) if check_token(taken).is_ok()), "{} bytes", token.len());
}

#[test]
fn every_error_has_its_status_and_headers() {
    for (error, status, header) in [
        (TokenError::InvalidRequest("x"), 400, None),
        (TokenError::InvalidClient { basic: true }, 401, Some(("www-authenticate", r#"Basic realm="apexmcp""#))),
        (TokenError::InvalidClient { basic: false }, 401, None),
        (TokenError::UnsupportedGrantType, 400, None),
        (TokenError::InvalidScope, 400, None),
        (TokenError::ScopeTooLong, 400, None),
        (TokenError::InvalidTarget, 400, None),
        (TokenError::TooManyAttempts(Duration::from_millis(1500)), 429, Some(("retry-after", "2"))),
        (TokenError::BodyTooLong, 413, None),
        (TokenError::MethodNotAllowed, 405, Some(("allow", "POST"))),
        (TokenError::SigningFailed, 503, Some(("retry-after", "1"))),
    ] {
        let reply = error.reply();
        assert_eq!(reply.status, status, "{error:?}");
        assert_eq!(reply.headers.get(3).map(|(name, value)| (*name, value.as_str())), header, "{error:?}");
        let is_told = [RATE_LIMIT_POLICY, RATE_LIMIT].map(|wanted| reply.headers.iter().any(|(name, _)| *name == wanted));
        assert_eq!(is_told, [status == 429; 2], "{error:?}");
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        assert!(["error", "error_description", "reason"].iter().all(|name| body[name].is_string()), "{error:?}");
    }
}

#[test]
fn a_429_has_the_headers_of_its_limit() {
    let fields = |error: Result<Value, TokenError>| {
        let headers = error.unwrap_err().reply().headers;
        let value = |wanted| headers.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone()).unwrap();
        ["retry-after", RATE_LIMIT_POLICY, RATE_LIMIT].map(value)
    };
    let mut world = World::new();
    for _ in 0..300 {
        world.post(&with_secret(CLIENT, "")).unwrap();
    }
    let told = fields(world.post(&with_secret(CLIENT, "")));
    assert_eq!(told, ["1", r#""rate";q=10;w=1"#, r#""rate";r=0;t=30"#]);

    let mut world = World::new();
    let wrong = "grant_type=client_credentials&client_id=apx_client_unknown0&client_secret=guess";
    for _ in 0..10 {
        world.post(wrong).unwrap_err();
    }
    assert_eq!(fields(world.post(wrong)), ["6", r#""rate";q=10;w=60"#, r#""rate";r=0;t=6"#]);
}

proptest::proptest! {
    #[test]
    fn never_panics(header: Vec<u8>, body: String) {
        let mut world = World::new();
        let value = String::from_utf8_lossy(&header).into_owned();
        let _ = world.post_to("/oauth/token", &[FORM, ("authorization", &value)], &body);
    }
}
