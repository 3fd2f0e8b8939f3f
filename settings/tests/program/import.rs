//! `apexmcp policy import`.

use serde_json::{Value, json};

use crate::support::Settings;

/// A hash that no other number has.
fn hash(number: u32) -> String {
    apexmcp_settings::secret::sha256(&number.to_string())
}

fn policy() -> Value {
    json!({"version": "hand-written", "orgs": {
        "acme": {
            "api_keys": [
                {"id": "ci", "name": "ci agent", "sha256": hash(1).to_uppercase(), "connectors": ["github"], "expires_at": "2999-01-01T02:00:00+02:00"},
                {"id": "ops", "sha256": hash(2), "limits": {"monthly_quota": 5}},
                {"id": "gone", "sha256": hash(3), "revoked": true},
            ],
            "oauth_clients": [{"client_id": "billing", "secret_sha256": [hash(4), hash(5)], "scopes": ["mcp:call:github"]}],
            "identity_providers": [{"issuer": "https://idp.example", "jwks_uri": "https://idp.example/keys", "audience": "apexmcp"}],
            "limits": {"rate": {"requests": 10, "per": "second", "burst": 5}},
            "revoked_tokens": {"jti": ["t1"], "issued_before": {"billing": "2026-01-01T00:00:00Z"}},
        },
        "beta": {},
    }})
}

#[test]
fn an_import_creates_what_is_not_there() {
    let settings = Settings::empty();
    settings.json(&["init"]);
    let file = settings.write("policy.json", &policy().to_string());
    let counts = settings.json(&["policy", "import", &file]);
    let expected = json!({
        "orgs": 2, "api_keys": 2, "oauth_clients": 1, "identity_providers": 1, "signing_keys": 0, "limits": 1,
        "revoked_tokens": 2, "unchanged": 0, "revoked": 1,
    });
    assert_eq!(counts, expected);
    let acme = settings.policy()["orgs"]["acme"].clone();
    let expected = json!([
        {"id": "ci", "name": "ci agent", "sha256": hash(1), "connectors": ["github"], "expires_at": "2999-01-01T00:00:00Z"},
        {"id": "ops", "name": "ops", "sha256": hash(2), "limits": {"monthly_quota": 5}},
    ]);
    assert_eq!(acme["api_keys"], expected);
    assert_eq!(acme["oauth_clients"][0]["secret_sha256"], json!([hash(4), hash(5)]));
    assert_eq!(acme["identity_providers"][0]["audience"], json!(["apexmcp"]));
    assert_eq!(acme["limits"], policy()["orgs"]["acme"]["limits"]);
    assert_eq!(acme["revoked_tokens"], policy()["orgs"]["acme"]["revoked_tokens"]);
    assert!(settings.text(&["key", "list", "--org", "acme"]).contains("ci agent"));

    // Once more, with one key more.
    let mut more = policy();
    more["orgs"]["beta"]["api_keys"] = json!([{"id": "late", "sha256": hash(6)}]);
    let file = settings.write("more.json", &more.to_string());
    let counts = settings.json(&["policy", "import", &file]);
    assert_eq!((&counts["api_keys"], &counts["orgs"], &counts["unchanged"]), (&json!(1), &json!(0), &json!(9)));
    settings.json(&["key", "revoke", "ci"]);
    settings.json(&["policy", "import", &file]);
    assert_eq!(settings.policy()["orgs"]["acme"]["api_keys"].as_array().map(Vec::len), Some(1), "a revoked key stays revoked");
}

/// What one database exports, another one imports.
#[test]
fn an_export_can_be_imported() {
    let from = Settings::new();
    from.json(&["key", "create", "--org", "acme", "--name", "k", "--connector", "github"]);
    from.json(&["client", "create", "--org", "acme", "--name", "c", "--scope", "mcp:call"]);
    let exported = from.text(&["policy", "export"]);
    let to = Settings::empty();
    to.json(&["init"]);
    let first_key = to.policy()["signing_keys"][0].clone();
    // Each database makes a key of the day.
    let exported = exported.replacen("\"kid\":\"", "\"kid\":\"from-", 1);
    let file = to.write("exported.json", &exported);
    assert_eq!(to.json(&["policy", "import", &file])["signing_keys"], 1);
    let policy = to.policy();
    assert_eq!(policy["orgs"], from.policy()["orgs"]);
    assert_eq!(policy["signing_keys"][0], first_key, "an imported key does not sign by itself");
    assert_eq!(policy["signing_keys"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_wrong_record_imports_nothing_and_is_named() {
    let settings = Settings::new();
    settings.json(&["org", "create", "beta"]);
    let id = settings.json(&["key", "create", "--org", "acme", "--name", "k"])["id"].as_str().unwrap().to_owned();
    let before = settings.policy();
    let key = |id: &str, sha256: &str| json!({"id": id, "sha256": sha256});
    let org = |record: Value| json!({"orgs": {"gamma": {"api_keys": [key("good", &hash(9))]}, "beta": {"api_keys": [record]}}});
    for (document, path) in [
        (org(key(&id, &hash(1))), "orgs.beta.api_keys[0]: the database has another API key"),
        (org(key("x", "12")), "orgs.beta.api_keys[0]: sha256 must be"),
        (org(key("a b", &hash(1))), "orgs.beta.api_keys[0]: id must be"),
        (org(json!({"id": "x", "sha256": hash(1), "color": "red"})), "orgs.beta.api_keys[0].color: unknown field"),
        (org(json!({"id": "x", "sha256": hash(1), "expires_at": "soon"})), "orgs.beta.api_keys[0]: \"soon\" is not a timestamp"),
        (org(json!({"id": "x", "sha256": hash(1), "connectors": []})), "api_keys[0].connectors"),
        (json!({"signing_keys": [{"kid": "a", "private_key_env": "KEY"}]}), "signing_keys[0]: a key in an environment variable"),
        (json!({"orgs": {"a/b": {}}}), "orgs.a/b: the name"),
        (
            json!({"orgs": {"beta": {"oauth_clients": [{"client_id": "c", "scopes": ["mcp:all"], "secret_sha256": [hash(1)]}]}}}),
            "orgs.beta.oauth_clients[0]: scopes",
        ),
        (json!([]), "."),
    ] {
        let file = settings.write("policy.json", &document.to_string());
        let line = settings.failure(&["policy", "import", &file]);
        assert!(line.contains(path), "{line}");
        assert_eq!(settings.policy(), before, "{line}");
    }
}
