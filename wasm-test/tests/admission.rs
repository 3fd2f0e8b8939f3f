//! Requests that are admitted, and the parts of them that reach the connectors.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wasm_test::eventually;
use wasm_test::gateway::{Setup, plugin};
use wasm_test::http::Request;
use wasm_test::issuer::Issuer;
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::token::{Key, now};
use wasm_test::upstream::{self, Arrived};

const PREFIX: &str = "x-apexmcp-";

fn identity(org: &str, principal: &str, subject: &str, method: &str, scope: &str) -> BTreeMap<String, String> {
    [("org", org), ("principal", principal), ("subject", subject), ("method", method), ("scope", scope)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

#[tokio::test]
async fn a_valid_api_key_is_admitted() {
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin(&json!({"acme": {"api_keys": [
        api_key_record("key_all"),
        merged(api_key_record("key_two"), &json!({"connectors": ["notes", "clock"]})),
        merged(api_key_record("key_later"), &json!({"expires_at": "2999-01-01T00:00:00+02:00"})),
        merged(api_key_record("key_kept"), &json!({"revoked": false, "name": "ci agent"})),
    ]}})))
    .start(&upstream)
    .await;
    for (path, id, scope) in [
        ("/mcp/acme", "key_all", "mcp:call"),
        ("/mcp/acme?session=1&api_key=ignored", "key_all", "mcp:call"),
        ("/mcp/acme/notes", "key_all", "mcp:call"),
        ("/mcp/acme/notes", "key_two", "mcp:call:clock mcp:call:notes"),
        ("/mcp/acme/clock", "key_two", "mcp:call:clock mcp:call:notes"),
        ("/mcp/acme", "key_later", "mcp:call"),
        ("/mcp/acme", "key_kept", "mcp:call"),
    ] {
        let what = format!("{id} at {path}");
        let before = gateway.counted("allowed", "ok", "api_key").await;
        let arrived = gateway.admits(&what, &Request::tools_list(path).api_key(&api_key(id))).await;
        let expected = identity("acme", &format!("acme/key/{id}"), id, "api_key", scope);
        assert_eq!(arrived.headers_below(PREFIX), expected, "{what}");
        assert_eq!(arrived.path, path, "{what}: the path stays unchanged");
        assert!(arrived.body.contains("tools/list"), "{what}: the body arrives");
        assert!(!arrived.has("x-api-key"), "{what}: the credential is removed");
        assert_eq!(gateway.counted("allowed", "ok", "api_key").await, before + 1, "{what}");
    }
    for request in [Request::get("/mcp/acme"), Request::post("/mcp/acme"), Request::post("/mcp/acme").body(vec![b'x'; 500_000])] {
        let arrived = gateway.admits("any method and body", &request.api_key(&api_key("key_all"))).await;
        assert!(arrived.has("x-apexmcp-org"));
    }
}

#[tokio::test]
async fn a_valid_provider_token_is_admitted() {
    let upstream = upstream::start().await;
    let (first, second) = (Key::first("first"), Key::second("second"));
    let (issuer, modest) = (Issuer::start(&[&first, &second]).await, Issuer::start(&[&second]).await);
    let gateway = Setup::new(plugin(&json!({
        "acme": {"identity_providers": [
            issuer.record(),
            merged(modest.record(), &json!({"audience": ["a", "b"], "default_scopes": ["mcp:call:notes"]})),
        ]},
        "other": {"identity_providers": [issuer.record()]},
    })))
    .start(&upstream)
    .await;

    let all = "mcp:call";
    let with = |changes| first.token(&issuer.claims_with(&changes));
    let headed = |changes| first.token_with(&merged(first.header(), &changes), &issuer.claims());
    let modest_with = |changes| second.token(&modest.claims_with(&changes));
    let table = [
        ("as it should be", "/mcp/acme", all, with(json!({}))),
        ("without jti, iat, nbf", "/mcp/acme", all, with(json!({"iat": null}))),
        ("aud among others", "/mcp/acme", all, with(json!({"aud": ["account", "apexmcp"]}))),
        ("one audience of a list", "/mcp/acme/notes", "mcp:call:notes", modest_with(json!({"aud": "b"}))),
        ("within the skew after exp", "/mcp/acme", all, with(json!({"exp": now() - 30}))),
        ("within the skew before nbf and iat", "/mcp/acme", all, with(json!({"nbf": now() + 30, "iat": now() + 30}))),
        ("exp with a fraction", "/mcp/acme", all, with(json!({"exp": 4_000_000_000.5}))),
        ("scope", "/mcp/acme/notes", "mcp:call:notes", with(json!({"scope": "openid mcp:call:notes"}))),
        ("scope array", "/mcp/acme", all, with(json!({"scope": ["openid", "mcp:call"]}))),
        ("scp string, as of Entra", "/mcp/acme/clock", "mcp:call:clock", with(json!({"scp": "mcp:call:clock"}))),
        ("scp array, as of Okta", "/mcp/acme/clock", "mcp:call:clock mcp:call:notes", {
            with(json!({"scp": ["mcp:call:notes", "mcp:call:clock"]}))
        }),
        ("no scope of the gateway: the default applies", "/mcp/acme", all, with(json!({"scope": "openid profile"}))),
        ("the default of another provider", "/mcp/acme/notes", "mcp:call:notes", modest_with(json!({"aud": "a"}))),
        ("the second key", "/mcp/acme", all, second.token(&issuer.claims())),
        ("no kid", "/mcp/acme", all, headed(json!({"kid": null}))),
        ("no kid, second key", "/mcp/acme", all, { second.token_with(&json!({"alg": "RS256"}), &issuer.claims()) }),
        ("typ of RFC 9068", "/mcp/acme", all, headed(json!({"typ": "at+jwt"}))),
        ("no typ", "/mcp/acme", all, headed(json!({"typ": null}))),
        ("an unknown header", "/mcp/acme", all, headed(json!({"x5t": "thumbprint"}))),
        ("the same issuer in another org", "/mcp/other", all, with(json!({}))),
    ];
    for (what, path, scope, token) in &table {
        for outcome in ["miss", "hit"] {
            let looked_up = async || gateway.metric("apexmcp_token_cache", &[("outcome", outcome)]).await;
            let before = looked_up().await;
            let arrived = gateway.admits(what, &Request::tools_list(path).bearer(token)).await;
            assert_eq!(looked_up().await, before + 1, "{what}: {outcome}");
            let found = arrived.headers_below(PREFIX);
            let org = path.split('/').nth(2);
            assert_eq!((found.get("org").map(String::as_str), found["scope"].as_str()), (org, *scope), "{what}");
            assert!(!arrived.has("authorization"), "{what}");
        }
    }

    // A cached token is valid only for its org, for its scope, and as an exact copy of every byte.
    let scoped = with(json!({"scope": "mcp:call:notes"}));
    gateway.admits("a scoped token", &Request::tools_list("/mcp/acme/notes").bearer(&scoped)).await;
    for (what, path, token, reason) in [
        ("another connector", "/mcp/acme/clock", scoped.clone(), "scope_insufficient"),
        ("an org that does not know the issuer", "/mcp/third", scoped.clone(), "issuer_unknown"),
        ("another signature", "/mcp/acme/notes", format!("{}AAAA", &scoped[..scoped.len() - 4]), "signature_invalid"),
    ] {
        assert_eq!(gateway.refuses(what, &Request::tools_list(path).bearer(&token)).await.reason, reason, "{what}");
    }

    for spelling in ["Bearer", "bearer", "BEARER"] {
        let value = format!("{spelling}  {}", with(json!({})));
        gateway.admits(spelling, &Request::tools_list("/mcp/acme").header("authorization", value)).await;
    }
    assert_eq!((issuer.requests(), modest.requests()), (1, 1), "one fetch each");
    // Each thread sets the gauge to the number of keys that it has. The gauge stays at 3 when the last thread has all
    // three keys.
    let are_all_told = async || gateway.metric("apexmcp_jwks_keys", &[]).await == 3;
    eventually("the gauge shows three keys", async || are_all_told().await.then_some(())).await;
}

/// Providers write scopes and roles in their own forms. A grant in an unknown form must not become the default scopes.
#[tokio::test]
async fn a_narrow_grant_never_becomes_a_wide_one() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let (implied, written) = (Issuer::start(&[&key]).await, Issuer::start(&[&key]).await);
    let gateway = Setup::new(plugin(&json!({"acme": {"identity_providers": [
        implied.record(),
        merged(written.record(), &json!({"default_scopes": ["mcp:call:notes"]})),
    ]}})))
    .start(&upstream)
    .await;
    for grant in [
        json!({"scope": "apexmcp/mcp:call:github"}),
        json!({"roles": ["mcp:call:github"]}),
        json!({"resource_access": {"apexmcp": {"roles": ["mcp:call:github"]}}}),
        json!({"https://idp.example/entitlements": "mcp:call:github"}),
    ] {
        let what = grant.to_string();
        for path in ["/mcp/acme", "/mcp/acme/github"] {
            let refusal =
                gateway.refuses(&what, &Request::tools_list(path).bearer(&key.token(&implied.claims_with(&grant)))).await;
            assert_eq!((refusal.status, &*refusal.reason), (403, "scope_insufficient"), "{what}");
        }
        let token = key.token(&written.claims_with(&grant));
        let arrived = gateway.admits(&what, &Request::tools_list("/mcp/acme/notes").bearer(&token)).await;
        assert_eq!(arrived.headers_below(PREFIX)["scope"], "mcp:call:notes", "{what}");
    }
    let log = gateway.log();
    let lines = log.matches("which is no scope of this gateway").count();
    // A worker logs at most one such line in ten seconds.
    assert!((1..8).contains(&lines) && log.contains(r#""apexmcp/mcp:call:github" in the claim "scope""#), "{lines}: {log}");
}

/// A valid signature proves an issuer only with the key set that the addressed org configured for this issuer.
#[tokio::test]
async fn a_provider_signs_only_for_its_own_issuer_and_org() {
    let upstream = upstream::start().await;
    // Both keys have the same `kid`, so the `kid` does not tell them apart.
    let (ours, theirs, their_second) = (Key::first("a"), Key::second("a"), Key::second("b"));
    let (of_acme, of_other) = (Issuer::start(&[&ours]).await, Issuer::start(&[&theirs, &their_second]).await);
    let gateway = Setup::new(plugin(&json!({
        "acme": {"identity_providers": [of_acme.record()]},
        "other": {"identity_providers": [of_other.record()]},
        // The administrator of this org configures acme's issuer with the keys of another provider.
        "mimic": {"identity_providers": [merged(of_acme.record(), &json!({"jwks_uri": of_other.jwks_uri()}))]},
    })))
    .start(&upstream)
    .await;

    let (at_acme, at_other, at_mimic) = ("/mcp/acme", "/mcp/other", "/mcp/mimic");
    let (our_own, their_own) = (ours.token(&of_acme.claims()), theirs.token(&of_other.claims()));
    let (as_acme, as_other) = (theirs.token(&of_acme.claims()), ours.token(&of_other.claims()));
    let without_kid = |key: &Key, claims| key.token_with(&json!({"alg": "RS256"}), &claims);
    let refused = [
        ("the provider of other for acme's issuer", at_acme, as_acme.clone(), "signature_invalid"),
        ("the same token at a connector", "/mcp/acme/notes", as_acme.clone(), "signature_invalid"),
        ("the same token at its own org", at_other, as_acme.clone(), "issuer_unknown"),
        ("with a kid that is not in acme's key set", at_acme, their_second.token(&of_acme.claims()), "key_unknown"),
        ("without kid", at_acme, without_kid(&theirs, of_acme.claims()), "signature_invalid"),
        ("without kid at its own org", at_other, without_kid(&theirs, of_acme.claims()), "issuer_unknown"),
        ("the provider of acme for other's issuer", at_other, as_other.clone(), "signature_invalid"),
        ("the same token at its own org", at_acme, as_other, "issuer_unknown"),
        ("a token that is valid at acme", at_other, our_own.clone(), "issuer_unknown"),
        ("a token that is valid at other", at_acme, their_own.clone(), "issuer_unknown"),
        ("a token that acme's issuer really signed", at_mimic, our_own.clone(), "signature_invalid"),
    ];
    // Twice, so that the second round uses cached tokens. One of them is valid at only one of two orgs with its
    // issuer.
    for _ in 0..2 {
        for (path, token) in [(at_acme, &our_own), (at_other, &their_own), (at_mimic, &as_acme)] {
            let arrived = gateway.admits(path, &Request::tools_list(path).bearer(token)).await;
            assert_eq!(Some(&*arrived.headers_below(PREFIX)["org"]), path.split('/').nth(2), "{path}");
        }
        for (what, path, token, reason) in &refused {
            let refusal = gateway.refuses(what, &Request::tools_list(path).bearer(token)).await;
            assert_eq!((refusal.status, &*refusal.reason), (401, *reason), "{what}");
        }
    }
}

#[tokio::test]
async fn the_identity_is_exact_and_logged() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[&key]).await;
    let orgs = json!({"acme": {"api_keys": [api_key_record("key_1f9c")], "identity_providers": [issuer.record()]}});
    let gateway = Setup::new(plugin(&orgs)).start(&upstream).await;
    let by_key = Request::tools_list("/mcp/acme").api_key(&api_key("key_1f9c"));
    let by_token = |sub: &str| {
        let request = Request::tools_list("/mcp/acme").bearer(&key.token(&issuer.claims_with(&json!({"sub": sub}))));
        let principal = format!("acme/idp/{}#", issuer.url());
        (request, principal)
    };
    let (plain, prefix) = by_token("agent-7");
    let (hostile, _) = by_token("a\r\nx-apexmcp-org: other\u{e4} %");
    let escaped = "a%0D%0Ax-apexmcp-org:%20other%C3%A4%20%25";
    for (request, expected) in [
        (by_key, identity("acme", "acme/key/key_1f9c", "key_1f9c", "api_key", "mcp:call")),
        (plain, identity("acme", &format!("{prefix}agent-7"), "agent-7", "byoidp", "mcp:call")),
        (hostile, identity("acme", &format!("{prefix}{escaped}"), escaped, "byoidp", "mcp:call")),
    ] {
        let reply = gateway.send(&request).await;
        let arrived = Arrived::of(&reply).expect("it is admitted");
        assert_eq!(arrived.headers_below(PREFIX), expected);
        let logged = gateway.logged(&reply).await;
        for (name, value) in &expected {
            assert_eq!(logged[name], json!(value), "filter state of {name}");
        }
    }
    let (refused, _) = by_token("agent-7");
    let reply = gateway.send(&refused.api_key("second")).await;
    let logged = gateway.logged(&reply).await;
    assert_eq!((&logged["org"], &logged["principal"]), (&Value::Null, &Value::Null), "a refused request names no identity");
}

#[tokio::test]
async fn a_client_cannot_forge_identity_headers() {
    let upstream = upstream::start().await;
    let orgs = json!({"acme": {"api_keys": [api_key_record("key_all")]}});
    let gateway = Setup::new(plugin(&orgs)).start(&upstream).await;
    let mine = identity("acme", "acme/key/key_all", "key_all", "api_key", "mcp:call");
    let good = || Request::tools_list("/mcp/acme").api_key(&api_key("key_all"));
    for request in [
        good().header("x-apexmcp-org", "other"),
        good().header("x-apexmcp-org", "other").header("x-apexmcp-org", "acme"),
        good().header("x-apexmcp-principal", "").header("x-apexmcp-role", "admin").header("x-apexmcp-", "nothing"),
        good().header("x_apexmcp_org", "other").header("x-apexmcp_role", "admin"),
        good().header("x-apexmcp-org", b"\xff\xfe").header("x-apexmcp-\u{7e}", b"\x80"),
    ] {
        assert_eq!(gateway.admits("spoofed", &request).await.headers_below(PREFIX), mine, "{request:?}");
    }
    for name in ["X-Apexmcp-Org", "X-APEXMCP-ORG", "x-ApexMCP-oRG", "X_Apexmcp_Org"] {
        let (key, host) = (api_key("key_all"), gateway.client().authority());
        let request = format!(
            "GET /mcp/acme HTTP/1.1\r\nHost: {host}\r\nX-API-KEY: {key}\r\n{name}: other\r\n{name}: more\r\nConnection: close\r\n\r\n"
        );
        let reply = gateway.client().send_bytes(request.as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 200") && reply.contains(r#"["x-apexmcp-org","acme"]"#), "{name}: {reply}");
        assert!(!reply.contains("other") && !reply.contains("more"), "{name}: {reply}");
    }
    let innocent =
        good().header("x-apexmcp", "1").header("xapexmcp-org", "2").header("x-tenant", b"\xff").header("cookie", "a=b");
    let arrived = gateway.admits("headers of others", &innocent).await;
    for name in ["x-apexmcp", "xapexmcp-org", "x-tenant", "cookie"] {
        assert!(arrived.has(name), "{name} must stay unchanged");
    }
}

#[tokio::test]
async fn forwarding_can_be_configured() {
    let upstream = upstream::start().await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[&key]).await;
    let orgs = json!({"acme": {"api_keys": [api_key_record("key_all")], "identity_providers": [issuer.record()]}});
    let forward = json!({"forward": {"strip_credentials": false, "header_prefix": "x-tenant-"}});
    let gateway = Setup::new(merged(plugin(&orgs), &forward)).start(&upstream).await;

    let by_key = Request::tools_list("/mcp/acme").api_key(&api_key("key_all"));
    let arrived = gateway.admits("by key", &by_key.header("x-tenant-role", "admin").header("x-apexmcp-org", "mine")).await;
    assert_eq!(arrived.headers_below("x-tenant-"), identity("acme", "acme/key/key_all", "key_all", "api_key", "mcp:call"));
    assert!(arrived.has("x-api-key"));

    let by_token = Request::tools_list("/mcp/acme").bearer(&key.token(&issuer.claims()));
    let arrived = gateway.admits("by token", &by_token).await;
    assert!(arrived.has("authorization"));
}

/// For an audit of each call, access logs can have the MCP method and the name: of the headers, or of the message if it is read.
#[tokio::test]
async fn access_logs_can_have_what_a_request_calls() {
    let upstream = upstream::start().await;
    let narrow = merged(api_key_record("key_narrow"), &json!({"connectors": ["github"]}));
    let orgs = json!({"acme": {"api_keys": [api_key_record("key_all"), narrow]}});
    let forward = json!({"forward": {"filter_state": ["org", "mcp_method", "mcp_name"]}});
    let gateway = Setup::new(merged(plugin(&orgs), &forward)).start(&upstream).await;
    let call = |tool: &str| {
        let params = json!({"name": tool, "arguments": {}});
        Request::tools_list("/mcp/acme")
            .body(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string())
    };
    let (method, tool) = (json!("tools/call"), json!("github__get"));
    for (what, request, logged_call) in [
        ("headers", call("x").header("mcp-method", "tools/call").header("mcp-name", "github__get"), [&method, &tool]),
        ("no headers", call("github__get"), [&Value::Null, &Value::Null]),
    ] {
        let reply = gateway.send(&request.api_key(&api_key("key_all"))).await;
        let logged = gateway.logged(&reply).await;
        assert_eq!([&logged["mcp_method"], &logged["mcp_name"]], logged_call, "{what}: {logged}");
    }
    for (tool, reason) in [("github__get", "ok"), ("jira__get", "scope_insufficient")] {
        let reply = gateway.send(&call(tool).api_key(&api_key("key_narrow"))).await;
        let logged = gateway.logged(&reply).await;
        assert_eq!([&logged["mcp_method"], &logged["mcp_name"], &logged["reason"]], [&method, &json!(tool), &json!(reason)]);
    }
}

#[tokio::test]
async fn identity_headers_and_filter_state_can_be_chosen() {
    let upstream = upstream::start().await;
    let orgs = json!({"acme": {"api_keys": [api_key_record("key_all")]}});
    let forward = json!({"forward": {"headers": ["subject", "org"], "filter_state": ["method"]}});
    let gateway = Setup::new(merged(plugin(&orgs), &forward)).start(&upstream).await;

    let request = Request::tools_list("/mcp/acme").api_key(&api_key("key_all")).header("x-apexmcp-scope", "forged");
    let arrived = gateway.admits("by key", &request).await;
    let expected = [("org", "acme"), ("subject", "key_all")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(arrived.headers_below(PREFIX), expected.into_iter().collect());
    let reply = gateway.send(&request).await;
    let logged = gateway.logged(&reply).await;
    let [method, reason, org, principal] = ["method", "reason", "org", "principal"].map(|name| logged[name].clone());
    assert_eq!((method, reason), (json!("api_key"), json!("ok")));
    assert_eq!((org, principal), (Value::Null, Value::Null));
}
