//! The gateway's own tokens.

use serde_json::{Value, json};

use super::*;

#[test]
fn a_gateway_token_is_accepted_only_at_its_audience() {
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
fn a_revocation_in_the_policy_applies_to_live_tokens() {
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
