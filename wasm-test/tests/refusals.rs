//! Refusals of requests: status, challenge, body, reason and count.

use serde_json::json;
use tokio::task::JoinSet;
use wasm_test::gateway::{ORIGIN, Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::module::Module;
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::token::{Key, now};
use wasm_test::{eventually, upstream};

/// The expected `WWW-Authenticate` of a refusal.
enum Challenge {
    /// No challenge.
    Absent,
    /// A challenge without an error: the request has no credential.
    Bare,
    /// The credential is invalid.
    InvalidToken,
    /// The credential is valid, but does not have this scope.
    InsufficientScope(&'static str),
}

/// Gives the request a body that needs the scope of all connectors.
fn untied(request: Request) -> Request {
    request.body(json!({"jsonrpc": "2.0", "id": 1, "method": "logging/setLevel", "params": {"level": "info"}}).to_string())
}

#[tokio::test]
async fn every_refusal_has_its_status_challenge_reason_and_count() {
    let (good, unpublished) = (Key::first("good"), Key::second("unpublished"));
    let (issuer, broken) = (Issuer::start(&[&good]).await, Issuer::start(&[]).await);
    broken.behave(Behaviour::HangUp);
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin(&json!({
        "acme": {
            "api_keys": [
                api_key_record("key_all"),
                merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]})),
                merged(api_key_record("key_expired"), &json!({"expires_at": "2020-01-01T00:00:00Z"})),
                merged(api_key_record("key_revoked"), &json!({"revoked": true})),
            ],
            "identity_providers": [issuer.record(), broken.record()],
        },
        "other": {"api_keys": [api_key_record("key_other")]},
        "static": {"api_keys": [merged(api_key_record("key_static"), &json!({"connectors": ["notes"]}))]},
    })))
    .start(&upstream)
    .await;

    let to = Request::tools_list;
    let acme = || to("/mcp/acme");
    let key = |id: &str| acme().api_key(&api_key(id));
    let bearer = |changes| acme().bearer(&good.token(&issuer.claims_with(&changes)));
    let tampered = good.token(&issuer.claims()).replacen('.', ".e30", 1);
    let forged = unpublished.token_with(&good.header(), &issuer.claims());
    use Challenge::{Absent, Bare, InsufficientScope, InvalidToken};
    let table = [
        (401, "credential_missing", "none", Bare, acme()),
        (401, "credential_missing", "none", Bare, Request::get("/mcp/acme")),
        (401, "credential_missing", "none", Bare, to("/mcp/acme/notes")),
        (401, "credential_missing", "none", Bare, to("/mcp/static")),
        (401, "credential_missing", "none", Bare, to(&format!("/mcp/acme?api_key={}", api_key("key_all")))),
        (401, "credential_missing", "none", Bare, to(&format!("/mcp/acme?access_token={}", good.token(&issuer.claims())))),
        (401, "credential_malformed", "none", InvalidToken, acme().api_key("")),
        (401, "credential_malformed", "none", InvalidToken, acme().api_key("secret")),
        (401, "credential_malformed", "none", InvalidToken, acme().api_key(&format!("{} ,x", api_key("key_all")))),
        (401, "credential_malformed", "none", InvalidToken, acme().header("authorization", "")),
        (401, "credential_malformed", "none", InvalidToken, acme().header("authorization", "Bearer")),
        (401, "credential_malformed", "none", InvalidToken, acme().header("authorization", "Basic YTpi")),
        (401, "credential_malformed", "none", InvalidToken, acme().header("authorization", api_key("key_all"))),
        (401, "credential_repeated", "none", InvalidToken, key("key_all").api_key(&api_key("key_all"))),
        (401, "credential_repeated", "none", InvalidToken, key("key_all").api_key("")),
        (401, "credential_repeated", "none", InvalidToken, key("key_all").header("authorization", "Basic YTpi")),
        (401, "credential_repeated", "none", InvalidToken, bearer(json!({})).api_key(&api_key("key_all"))),
        (401, "credential_repeated", "none", InvalidToken, bearer(json!({})).bearer(&good.token(&issuer.claims()))),
        (401, "api_key_unknown", "api_key", InvalidToken, key("key_never")),
        (401, "api_key_unknown", "api_key", InvalidToken, key("key_revoked")),
        (401, "api_key_unknown", "api_key", InvalidToken, key("key_other")),
        (401, "api_key_unknown", "api_key", InvalidToken, to("/mcp/static").api_key(&api_key("key_all"))),
        (401, "api_key_expired", "api_key", InvalidToken, key("key_expired")),
        (401, "token_malformed", "byoidp", InvalidToken, acme().bearer("a.b.c")),
        (401, "algorithm_not_allowed", "byoidp", InvalidToken, {
            acme().bearer(&good.token_with(&json!({"alg": "none"}), &issuer.claims()))
        }),
        (401, "issuer_unknown", "byoidp", InvalidToken, bearer(json!({"iss": "https://elsewhere.example"}))),
        (401, "issuer_unknown", "byoidp", InvalidToken, to("/mcp/other").bearer(&good.token(&issuer.claims()))),
        (401, "audience_mismatch", "byoidp", InvalidToken, bearer(json!({"aud": "elsewhere"}))),
        (401, "token_expired", "byoidp", InvalidToken, bearer(json!({"exp": now() - 61}))),
        (401, "token_not_yet_valid", "byoidp", InvalidToken, bearer(json!({"nbf": now() + 120}))),
        (401, "claim_missing", "byoidp", InvalidToken, bearer(json!({"exp": null}))),
        (401, "key_unknown", "byoidp", InvalidToken, acme().bearer(&unpublished.token(&issuer.claims()))),
        (401, "signature_invalid", "byoidp", InvalidToken, acme().bearer(&forged)),
        (401, "token_malformed", "byoidp", InvalidToken, acme().bearer(&tampered)),
        (403, "scope_insufficient", "api_key", InsufficientScope("mcp:call"), untied(key("key_notes"))),
        (403, "scope_insufficient", "api_key", InsufficientScope("mcp:call:clock"), {
            to("/mcp/acme/clock").api_key(&api_key("key_notes"))
        }),
        (
            403,
            "scope_insufficient",
            "api_key",
            InsufficientScope("mcp:call"),
            untied(to("/mcp/static").api_key(&api_key("key_static"))),
        ),
        (403, "scope_insufficient", "byoidp", InsufficientScope("mcp:call"), untied(bearer(json!({"scope": "mcp:call:notes"})))),
        (403, "scope_insufficient", "byoidp", InsufficientScope("mcp:call"), bearer(json!({"scp": ["mcp:admin"]}))),
        (404, "path_unmatched", "none", Absent, to("/elsewhere").api_key(&api_key("key_all"))),
        (503, "jwks_unavailable", "byoidp", Absent, acme().bearer(&good.token(&broken.claims()))),
    ];
    for (index, (status, reason, method, challenge, request)) in table.into_iter().enumerate() {
        let row = format!("row {index}, {reason}: {request:?}");
        let before = gateway.counted("refused", reason, method).await;
        let refusal = gateway.refuses(&row, &request).await;
        assert_eq!((refusal.status, &*refusal.reason), (status, reason), "{row}");
        assert_eq!(gateway.counted("refused", reason, method).await, before + 1, "{row}");

        let metadata = match request.path() {
            path if path.starts_with("/mcp/acme") => {
                let path = path.split('?').next().unwrap_or_default();
                format!(r#"resource_metadata="{ORIGIN}/.well-known/oauth-protected-resource{path}""#)
            }
            _ => String::new(),
        };
        let description = &refusal.description;
        let (error, expected) = match challenge {
            Absent => (if status == 404 { "not_found" } else { "temporarily_unavailable" }, vec![]),
            Bare => {
                let scope = if request.path() == "/mcp/acme/notes" { "mcp:call:notes" } else { "mcp:call" };
                ("invalid_token", vec![metadata, format!(r#"scope="{scope}""#)])
            }
            InvalidToken => {
                let parts = [r#"error="invalid_token""#.into(), format!(r#"error_description="{description}""#), metadata];
                ("invalid_token", parts.into())
            }
            InsufficientScope(scope) => {
                let parts = [r#"error="insufficient_scope""#.into(), format!(r#"scope="{scope}""#), metadata];
                ("insufficient_scope", parts.into())
            }
        };
        let expected: Vec<String> = expected.into_iter().filter(|part| !part.is_empty()).collect();
        let expected = (!expected.is_empty()).then(|| format!("Bearer {}", expected.join(", ")));
        assert_eq!(refusal.challenge, expected, "{row}");
        assert_eq!(refusal.error, error, "{row}");
        assert!(!description.is_empty() && !description.contains(['"', '\\', '=']), "{row}: {description}");
        let seconds = refusal.retry_after.map(|seconds| seconds.parse::<u64>().expect("whole seconds"));
        assert_eq!(seconds.is_some_and(|seconds| seconds > 0), status == 503, "{row}: {seconds:?}");
    }
    assert_eq!(upstream.requests(), 0, "a refused request is not forwarded");

    let expired = gateway.refuses("an expired token", &bearer(json!({"exp": 1}))).await;
    assert_eq!(expired.description, "The access token expired.");

    // `wasm:debug` is on. No log may contain a credential, the hash of one, or a part of a token.
    let token = good.token(&issuer.claims());
    let logs = gateway.log() + &gateway.folder().read("stdout");
    assert!(logs.contains("api_key_unknown") && logs.contains("policy version"), "the logs were read");
    for id in ["key_all", "key_notes", "key_expired", "key_other", "key_never"] {
        assert!(!logs.contains(&api_key(id)), "{id} is in the logs");
        assert!(!logs.contains(api_key_record(id)["sha256"].as_str().expect("a hash")), "the hash of {id} is in the logs");
    }
    for part in token.split('.').chain(forged.split('.')) {
        assert!(!logs.contains(part), "{part} is in the logs");
    }
}

#[tokio::test]
async fn refusals_do_not_reveal_whether_an_org_exists() {
    let upstream = upstream::start().await;
    let issuer = Issuer::start(&[]).await;
    let orgs = json!({
        "exists": {"api_keys": [api_key_record("key_exists")]},
        "another": {"api_keys": [api_key_record("key_another")], "identity_providers": [issuer.record()]},
    });
    let gateway = Setup::new(plugin(&orgs)).start(&upstream).await;
    let token = Key::first("a").token(&issuer.claims());
    type Credential = fn(Request, &str) -> Request;
    let table: [(&str, Credential); 6] = [
        ("no credential", |request, _| request),
        ("an unknown key", |request, _| request.api_key(&api_key("key_never"))),
        ("another org's key", |request, _| request.api_key(&api_key("key_another"))),
        ("no key at all", |request, _| request.api_key("hello")),
        ("another org's token", |request, token| request.bearer(token)),
        ("two credentials", |request, token| request.bearer(token).api_key(&api_key("key_exists"))),
    ];
    for (what, credential) in table {
        for connector in ["", "/notes"] {
            let refused = async |org: &str| {
                let request = credential(Request::tools_list(&format!("/mcp/{org}{connector}")), &token);
                let mut reply = gateway.send(&request).await;
                assert_eq!(reply.status, 401, "{what}");
                reply.headers.remove("date");
                (reply.headers, reply.body)
            };
            assert_eq!(refused("exists").await, refused("unknown").await, "{what}");
        }
    }
}

/// Sends `first`, which is refused, and one more request on the same connection. Returns the statuses of the replies.
async fn replies_on_one_connection(client: &Client, first: &str) -> Vec<String> {
    let last = "GET /mcp/acme HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n";
    let replies = client.send_bytes([first, last].concat().as_bytes()).await;
    replies.split("HTTP/1.1 ").skip(1).map(|reply| reply.split(' ').next().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_refusal_keeps_the_connection_for_the_next_request() {
    let upstream = upstream::start().await;
    let plugin = plugin(&json!({"acme": {"api_keys": [api_key_record("key_all")]}}));
    let gateway = Setup::new(plugin.clone()).start(&upstream).await;
    let post = "POST /mcp/acme HTTP/1.1\r\nhost: gateway\r\n";
    let whole = format!("{post}content-length: 2\r\n\r\n{{}}");
    let key = format!("x-api-key: {}\r\n", api_key("key_none"));
    for first in [&whole, &whole.replace("\r\nhost", &format!("\r\n{key}host"))] {
        assert_eq!(replies_on_one_connection(gateway.client(), first).await, ["401", "401"], "{first}");
    }
    // The length of the rest is unknown or too large. The refusal is sent immediately, and Envoy closes the
    // connection.
    for first in [format!("{post}transfer-encoding: chunked\r\n\r\n"), format!("{post}content-length: 20000\r\n\r\n")] {
        assert_eq!(gateway.client().send_bytes(first.as_bytes()).await.matches("HTTP/1.1 401").count(), 1, "{first}");
    }
    // The rest never arrives. The refusal is sent nevertheless.
    let unfinished = format!("{post}content-length: 2\r\n\r\n");
    assert_eq!(gateway.client().send_bytes(unfinished.as_bytes()).await.matches("HTTP/1.1 401").count(), 1);

    // If Envoy holds the body together with the head, the rest never reaches the filter. The operator configures this,
    // and a refusal is sent immediately.
    let mut told = plugin.clone();
    told["gateway"]["host_holds_bodies"] = json!(true);
    let holding = Setup::new(told).holding_bodies().start(&upstream).await;
    // The dynamic module gets every body, whatever the configuration says.
    let expected: &[&str] = if Module::under_test() == Module::Native { &["401", "401"] } else { &["401"] };
    assert_eq!(replies_on_one_connection(holding.client(), &whole).await, expected);
    // If the operator does not configure it, a refusal waits for a short time, and the connection is kept.
    let holding = Setup::new(plugin.clone()).holding_bodies().start(&upstream).await;
    assert_eq!(replies_on_one_connection(holding.client(), &whole).await, ["401", "401"]);
    // A slow client that comes first changes nothing for the clients after it.
    let gateway = Setup::new(plugin).start(&upstream).await;
    assert_eq!(gateway.client().send_bytes(unfinished.as_bytes()).await.matches("HTTP/1.1 401").count(), 1);
    let clients: JoinSet<_> = std::iter::repeat_n((gateway.client().clone(), whole.clone()), 64)
        .map(async |(client, first)| replies_on_one_connection(&client, &first).await)
        .collect();
    let replies = clients.join_all().await;
    assert!(replies.iter().all(|replies| replies == &["401", "401"]), "{replies:?}");
}

#[tokio::test]
async fn the_log_quotes_what_did_not_match_but_not_the_token() {
    let key = Key::first("first");
    let issuer = Issuer::start(&[&key]).await;
    let upstream = upstream::start().await;
    let policy = json!({"acme": {"identity_providers": [issuer.record()]}});
    let gateway = Setup::new(plugin(&policy)).start(&upstream).await;
    for (changes, expected) in [
        (json!({"iss": "https://other.example"}), r#"the issuer "https://other.example", which is no identity provider"#),
        (json!({"aud": "elsewhere"}), r#"the audience "elsewhere""#),
    ] {
        let token = key.token(&issuer.claims_with(&changes));
        let reply = gateway.send(&Request::tools_list("/mcp/acme").bearer(&token)).await;
        assert_eq!(reply.status, 401);
        let log = eventually("a line at level debug", async || Some(gateway.log()).filter(|log| log.contains(expected))).await;
        assert!(!log.contains(&token));
    }
}
