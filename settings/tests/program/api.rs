//! The management API of `serve`.

use std::collections::BTreeSet;

use apexmcp_core::testing::{jwk_set, sign};
use serde_json::{Value, json};

use crate::support::{Api, Settings, website};

const KEYS: &str = "/orgs/acme/keys";

/// Whether the policy of gateways has a key with this hash.
fn is_admitted(settings: &Settings, id: &str) -> bool {
    let policy = settings.policy();
    policy["orgs"]["acme"]["api_keys"].as_array().is_some_and(|keys| keys.iter().any(|key| key["id"] == id))
}

#[test]
fn a_key_is_created_changed_rolled_and_revoked() {
    let settings = Settings::new();
    let api = settings.api(&["admin", "--org", "acme"]);
    let made = api.post(KEYS, &json!({"name": "ci", "connectors": ["github"], "expires_at": "2099-01-01T00:00:00Z"}));
    assert_eq!((made.status, made.header("cache-control")), (201, "no-store"), "{made:?}");
    let (id, secret) = (made.json["id"].as_str().unwrap(), made.json["key"].as_str().unwrap());
    assert!(secret.starts_with("apx_live_sk_") && is_admitted(&settings, id));
    let path = format!("{KEYS}/{id}");
    let shown = api.get(&path);
    assert!(shown.status == 200 && !shown.text.contains(secret), "{shown:?}");
    assert_eq!(shown.header("etag"), made.header("etag"), "the tag is that of the record without its secret");

    let limits = json!({"rate": {"requests": 10, "per": "minute"}});
    let changed = api.ask("PATCH", &path, &[], &json!({"name": "CI", "connectors": null, "limits": limits}));
    assert_eq!((changed.status, &changed.json["connectors"], &changed.json["limits"]), (200, &json!(null), &limits));
    assert_eq!(changed.json["expires_at"], "2099-01-01T00:00:00Z", "an absent member stays");
    for (body, field) in [
        (json!({"name": ""}), "name"),
        (json!({"connectors": []}), "connectors"),
        (json!({"expires_at": "2001-01-01T00:00:00Z"}), "expires_at"),
        (json!({"expires_at": "soon"}), "expires_at"),
    ] {
        let refused = api.ask("PATCH", &path, &[], &body);
        assert_eq!((refused.status, refused.problem()), (422, "invalid_argument"), "{body}");
        assert_eq!(refused.json["field"], field, "{body}");
    }
    let wrong = api.ask("PATCH", &path, &[], &json!({"limits": {"rate": {"requests": 0, "per": "minute"}}}));
    assert_eq!(wrong.problem(), "policy_refused", "{wrong:?}");

    let rolled = api.post(&format!("{path}/roll"), &json!({"overlap": "1h"}));
    assert_eq!((rolled.status, &rolled.json["name"], &rolled.json["limits"]), (201, &json!("CI"), &limits), "{rolled:?}");
    let old = api.get(&path).json;
    assert!(old["expires_at"].as_str().unwrap() < "2099" && old["revoked"] == false, "{old}");
    let new = rolled.json["id"].as_str().unwrap();
    let again = api.post(&format!("{KEYS}/{new}/roll"), &json!({"overlap": "0s"}));
    assert_eq!((again.status, &api.get(&format!("{KEYS}/{new}")).json["revoked"]), (201, &json!(true)));
    assert_eq!(api.post(&format!("{KEYS}/{new}/roll"), &Value::Null).problem(), "conflict");

    assert_eq!(api.post(&format!("{path}/roll"), &Value::Null).problem(), "conflict", "a key is rolled once");
    let revoked = api.post(&format!("{path}/revoke"), &Value::Null);
    assert_eq!((revoked.status, &revoked.json["revoked"], is_admitted(&settings, id)), (200, &json!(true), false));
    let stored = settings.text(&["audit", "list"]) + &api.get("/audit").text;
    assert!(stored.contains("key.roll") && stored.contains("test (adm_") && !stored.contains(secret));
}

#[test]
fn the_records_of_an_org_are_managed() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    assert_eq!(api.post("/orgs", &json!({"name": "beta"})).status, 201);
    assert_eq!(api.post("/orgs", &json!({"name": "beta"})).problem(), "already_exists");
    assert_eq!(api.get("/orgs/beta").json["api_keys"], 0);
    let made = api.post("/orgs/beta/clients", &json!({"name": "billing", "scopes": ["mcp:call:github"]}));
    let (path, secret) =
        (format!("/orgs/beta/clients/{}", made.json["client_id"].as_str().unwrap()), &made.json["client_secret"]);
    assert!(made.status == 201 && secret.as_str().unwrap().starts_with("apx_secret_"), "{made:?}");
    let second = api.post(&format!("{path}/secrets"), &Value::Null);
    assert!(second.status == 201 && second.json["client_secret"] != *secret, "{second:?}");
    assert_eq!(api.post(&format!("{path}/secrets"), &Value::Null).problem(), "conflict");
    let renamed = api.ask("PATCH", &path, &[], &json!({"scopes": ["mcp:call"]}));
    assert_eq!((&renamed.json["name"], &renamed.json["scopes"]), (&json!("billing"), &json!(["mcp:call"])), "{renamed:?}");
    assert_eq!(api.ask("PATCH", &path, &[], &json!({"name": null})).problem(), "request_malformed");
    let member = api.post("/orgs/beta/members", &json!({"email": "Ada@example.com", "role": "viewer"}));
    assert_eq!((member.status, &member.json["email"]), (201, &json!("ada@example.com")), "{member:?}");
    assert_eq!(api.post("/orgs/beta/members", &json!({"email": "ada", "role": "viewer"})).json["field"], "email");
    let again = api.post("/orgs/beta/members", &json!({"email": "ada@example.com", "role": "admin"}));
    assert_eq!((again.problem(), &again.json["field"]), ("already_exists", &json!("email")), "{again:?}");
    assert_eq!(api.get("/orgs/beta/members").json["items"][0]["role"], "viewer");
    let put = |email: &str, tag: &str| {
        api.ask("PUT", "/orgs/beta/members", &[("if-match", tag)], &json!({"email": email, "role": "admin"}))
    };
    assert_eq!(put("ada@example.com", "\"0\"").problem(), "precondition_failed");
    assert_eq!(put("bob@example.com", "*").problem(), "not_found");
    let changed = put("Ada@example.com", member.header("etag"));
    assert_eq!((changed.status, &changed.json["role"]), (200, &json!("admin")), "{changed:?}");
    assert_eq!(api.ask("DELETE", "/orgs/beta/members?email=ada%40example.com", &[], &Value::Null).status, 204);
    assert_eq!(api.get("/orgs/beta/members").json["items"], json!([]));
    assert_eq!(api.ask("DELETE", &format!("{path}/secrets"), &[], &Value::Null).status, 200);
    let revocation = json!({"client_id": made.json["client_id"]});
    assert_eq!(api.post("/orgs/beta/revoked-tokens", &revocation).status, 204);
    assert_eq!(api.post("/orgs/beta/revoked-tokens", &json!({})).problem(), "invalid_argument");
    assert_eq!(api.post(&format!("{path}/revoke"), &Value::Null).json["revoked"], true);
    let jwks = json!({"keys": [{"kty": "RSA", "d": "SECRET"}]});
    let private = api.post("/orgs/beta/clients", &json!({"name": "signs", "jwks": jwks}));
    assert!(private.json["field"] == "jwks" && !private.text.contains("SECRET"), "{private:?}");

    let limits = json!({"monthly_quota": 5});
    assert_eq!(api.ask("PUT", "/orgs/beta/limits", &[], &limits).json, limits);
    assert_eq!(api.get("/orgs/beta/limits").json, limits);
    for wrong in [json!({"monthly_qouta": 5}), json!({"rate": {"requests": 1, "per": "day", "x": 1}}), Value::Null] {
        assert_eq!(api.ask("PUT", "/orgs/beta/limits", &[], &wrong).problem(), "request_malformed", "{wrong}");
    }
    assert_eq!(api.ask("PUT", "/orgs/beta/limits", &[], &json!({})).json, json!({}));

    let kid = api.post("/signing-keys", &json!({"kid": "next"}));
    assert_eq!((kid.status, &kid.json["signs"]), (201, &json!(false)), "{kid:?}");
    assert_eq!(api.post("/signing-keys/next/use", &Value::Null).json["signs"], true);
    assert_eq!(api.ask("DELETE", "/signing-keys/next", &[], &Value::Null).problem(), "conflict");
    let first = api.get("/signing-keys").json["items"][1]["kid"].as_str().unwrap().to_owned();
    assert_eq!(api.ask("DELETE", &format!("/signing-keys/{first}"), &[], &Value::Null).status, 204);

    let tag = api.get("/orgs/beta").header("etag").to_owned();
    let stale = api.ask("DELETE", "/orgs/beta", &[("if-match", "\"0\"")], &Value::Null);
    assert_eq!((stale.status, stale.problem()), (412, "precondition_failed"));
    assert_eq!(api.ask("DELETE", "/orgs/beta", &[("if-match", &tag)], &Value::Null).status, 204);
    assert_eq!(api.get("/orgs/beta").problem(), "not_found");
}

#[test]
fn an_identity_provider_is_examined_before_it_is_saved() {
    let settings = Settings::new();
    let operator = settings.api(&["operator"]);
    let path = "/orgs/acme/identity-providers";
    let keys =
        json!({"keys": [{"kty": "RSA", "alg": "RS256", "kid": "a", "n": format!("gA{}", "A".repeat(339)) + "Q", "e": "AQAB"}]});
    let metadata = json!({"issuer": "ORIGIN", "jwks_uri": "ORIGIN/keys"}).to_string();
    let origin = website(vec![("/.well-known/openid-configuration", 200, metadata), ("/keys", 200, keys.to_string())]);
    let wanted = json!({"issuer": origin, "jwks_uri": format!("{origin}/keys"), "audience": ["apexmcp"]});
    let with = |more: Value| {
        let (mut wanted, more) = (wanted.clone(), more);
        wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        wanted
    };
    assert_eq!(operator.post(path, &wanted).json["field"], "issuer", "http leads out of the Internet");
    let discover = format!("{path}/discover");
    let found = operator.post(&discover, &json!({"issuer": origin, "allow_private_address": true}));
    assert_eq!((found.status, &found.json["jwks_uri"]), (200, &json!(format!("{origin}/keys"))), "{found:?}");
    assert_eq!(found.json["keys"], json!([{"kid": "a", "alg": "RS256", "problem": null}]));
    assert_eq!(operator.post(&discover, &json!({"issuer": origin})).json["field"], "issuer");
    assert_eq!(operator.get(path).json["items"], json!([]), "nothing is saved");
    let saved = operator.post(path, &with(json!({"allow_private_address": true})));
    assert_eq!((saved.status, &saved.json["issuer"]), (201, &json!(origin)), "{saved:?}");
    let again = operator.post(path, &with(json!({"allow_private_address": true})));
    assert_eq!(again.problem(), "already_exists");
    let admin = Api { token: settings.admin_token(&["admin", "--org", "acme"]), ..settings.api(&["operator"]) };
    let elsewhere = |more: Value| {
        let mut wanted = with(json!({"jwks_uri": format!("{origin}/other")}));
        wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        wanted
    };
    assert_eq!(admin.post(path, &elsewhere(json!({"allow_private_address": true}))).problem(), "forbidden");
    assert_eq!(admin.post(path, &with(json!({"issuer": "https://localhost/"}))).problem(), "private_address");

    let one = format!("{path}/{}", saved.json["id"].as_str().unwrap());
    // The permission stays, and an admin can change the rest, but neither the URLs nor the permission.
    assert_eq!(saved.json["allow_private_address"], true);
    let changed = admin.ask("PUT", &one, &[], &with(json!({"audience": ["apexmcp", "b"]})));
    assert_eq!((changed.status, &changed.json["allow_private_address"]), (200, &json!(true)), "{changed:?}");
    assert_eq!(admin.ask("PUT", &one, &[], &elsewhere(json!({}))).json["field"], "issuer");
    assert_eq!(admin.ask("PUT", &one, &[], &elsewhere(json!({"allow_private_address": true}))).problem(), "forbidden");
    assert_eq!(operator.ask("PUT", &one, &[], &with(json!({"allow_private_address": false}))).json["field"], "issuer");
    let saved = admin.ask("PUT", &one, &[], &wanted);
    assert_eq!((saved.status, &saved.json["audience"]), (200, &json!(["apexmcp"])), "{saved:?}");

    let wrong = with(json!({"jwks_uri": format!("{origin}/nothing"), "allow_private_address": true}));
    assert_eq!(operator.ask("PUT", &one, &[], &wrong).problem(), "provider_check_failed");
    let other = with(json!({"issuer": format!("{origin}/other"), "allow_private_address": true}));
    assert_eq!(operator.ask("PUT", &one, &[], &other).json["field"], "issuer");
    let scopes = with(json!({"default_scopes": ["mcp:call:github"], "allow_private_address": true}));
    let replaced = operator.ask("PUT", &one, &[("if-match", saved.header("etag"))], &scopes);
    assert_eq!((replaced.status, &replaced.json["default_scopes"]), (200, &json!(["mcp:call:github"])), "{replaced:?}");
    assert_eq!(operator.ask("DELETE", &one, &[("if-match", saved.header("etag"))], &Value::Null).status, 412);
    assert_eq!(admin.ask("DELETE", &one, &[], &Value::Null).status, 204);
    assert_eq!(admin.get(path).json, json!({"items": [], "next": null}));
}

/// Each operation of the description with each role. The description is made of the routes, so no operation is forgotten.
#[test]
fn each_role_may_do_what_the_description_says() {
    let mut tried = 0_u32;
    let settings = Settings::new();
    let mut api = settings.api(&["operator"]);
    api.post("/orgs", &json!({"name": "other"}));
    let key = api.post(KEYS, &json!({"name": "k"})).json["id"].as_str().unwrap().to_owned();
    let client = api.post("/orgs/acme/clients", &json!({"name": "c"})).json["client_id"].as_str().unwrap().to_owned();
    let token = |role: &[&str]| settings.admin_token(role);
    let roles = [
        ("operator", token(&["operator"])),
        ("admin", token(&["admin", "--org", "acme"])),
        ("viewer", token(&["viewer", "--org", "acme"])),
        ("stranger", token(&["admin", "--org", "other"])),
        ("nobody", "apx_admin_00000000000000000000000000000000".to_owned()),
    ];
    let description = api.get("/openapi.json").json;
    let mut operations = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            operations += 1;
            let needed = operation["x-role"].as_str().unwrap_or_else(|| panic!("{method} {path} has no x-role"));
            let is_of_org = path.contains("{org}");
            let id = if path.contains("/keys/") { &key } else { &client };
            let at = path.strip_prefix("/api/v1").unwrap().replace("{org}", "acme").replace("{id}", id).replace("{kid}", "none");
            let method = method.to_uppercase();
            let at = if method == "DELETE" && at.ends_with("/members") { at + "?email=nobody" } else { at };
            for (role, token) in &roles {
                api.token.clone_from(token);
                // The least body that each operation reads. Most are refused as invalid, after the role was checked.
                let body = match (method.as_str(), path.rsplit('/').next().unwrap()) {
                    ("POST", "orgs" | "keys" | "clients") => json!({"name": ""}),
                    ("POST", "admin-tokens") => json!({"name": "", "role": "operator"}),
                    ("POST" | "PUT", "identity-providers") | ("PUT", "{id}") => {
                        json!({"issuer": "", "jwks_uri": "", "audience": []})
                    }
                    ("POST", "signing-keys") => json!({"kid": ""}),
                    ("POST", "discover") => json!({"issuer": ""}),
                    ("POST", "explain") => json!({"key": "x"}),
                    ("POST" | "PUT", "members") => json!({"email": "", "role": ""}),
                    ("POST", "roll") => json!({"overlap": "?"}),
                    ("PATCH", _) => json!({"name": ""}),
                    ("PUT", "limits") => json!({"rate": {"requests": 0, "per": "day"}}),
                    ("POST", "revoked-tokens") => json!({"jti": ""}),
                    _ => Value::Null,
                };
                let destroys = *role == "operator" && (method == "DELETE" || at.ends_with("/revoke") || at.ends_with("/secrets"));
                // Each request of nobody comes from another address, because an address has a limit.
                tried += 1;
                let address = format!("198.51.100.{}", tried % 256);
                let mut headers = vec![("x-forwarded-for", address.as_str())];
                headers.extend(destroys.then_some(("if-match", "\"0\"")));
                let answer = api.ask(&method, &at, &headers, &body);
                let what = format!("{role}: {method} {at}: {answer:?}");
                let allows = |least: &str| match needed {
                    "viewer" => true,
                    "admin" => least != "viewer",
                    _ => least == "operator",
                };
                match *role {
                    "nobody" => assert_eq!(answer.problem(), "unauthenticated", "{what}"),
                    "stranger" if is_of_org => assert_eq!(answer.problem(), "not_found", "{what}"),
                    "stranger" if allows("viewer") => {
                        assert!(answer.status == 200 && !answer.text.contains("acme"), "{what}");
                    }
                    "stranger" => assert_eq!(answer.problem(), "forbidden", "{what}"),
                    role if allows(role) => assert!(![401, 403, 500, 503].contains(&answer.status), "{what}"),
                    // A record that is not there is told first.
                    _ if is_of_org && answer.status == 404 => assert!(at.contains("identity-providers/"), "{what}"),
                    _ => assert_eq!(answer.problem(), "forbidden", "{what}"),
                }
            }
        }
    }
    assert!(operations >= 32, "{operations}");
}

#[test]
fn a_repeated_request_with_an_idempotency_key_changes_nothing_and_shows_no_secret() {
    let settings = Settings::new();
    let api = settings.api(&["admin", "--org", "acme"]);
    let body = json!({"name": "ci"});
    let create = |key: &str, body: &Value| api.ask("POST", KEYS, &[("idempotency-key", key)], body);
    let first = create("a", &body);
    let again = create("a", &body);
    assert_eq!((again.status, again.header("idempotent-replayed"), again.header("etag")), (201, "true", first.header("etag")));
    assert_eq!((&again.json["id"], &again.json["key"]), (&first.json["id"], &Value::Null));
    assert_eq!(create("a", &json!({"name": "cd"})).problem(), "idempotency_key_reused");
    assert_ne!(create("b", &body).json["id"], first.json["id"]);
    let other = Api { token: settings.admin_token(&["operator"]), ..settings.api(&["operator"]) };
    let of_other = other.ask("POST", KEYS, &[("idempotency-key", "a")], &body);
    assert_ne!(of_other.json["id"], first.json["id"], "the keys of two callers are independent");
    assert_eq!(api.get(KEYS).json["items"].as_array().unwrap().len(), 3);
    assert_eq!(create(&"x".repeat(256), &body).problem(), "request_malformed");
    // The second revocation changes nothing, but its answer is kept as well.
    let revoke = |id: &Value, key: &str| {
        api.ask("POST", &format!("{KEYS}/{}/revoke", id.as_str().unwrap()), &[("idempotency-key", key)], &Value::Null)
    };
    assert_eq!((revoke(&first.json["id"], "c").status, revoke(&first.json["id"], "d").status), (200, 200));
    assert_eq!(revoke(&of_other.json["id"], "d").problem(), "idempotency_key_reused");
}

#[test]
fn lists_have_pages() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let mut expected = BTreeSet::new();
    for number in 0..7 {
        expected.insert(api.post(KEYS, &json!({"name": number.to_string()})).json["id"].as_str().unwrap().to_owned());
        api.post("/orgs", &json!({"name": format!("org-{number}")}));
    }
    let pages = |path: &str, limit: usize| {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page = api.get(&format!("{path}{separator}limit={limit}{cursor}")).json;
            let items = page["items"].as_array().unwrap().clone();
            assert!(items.len() == limit || page["next"].is_null(), "{page}");
            found.extend(items);
            let Some(next) = page["next"].as_str() else { return found };
            cursor = format!("&cursor={next}");
        }
    };
    for limit in [1, 3, 7, 8] {
        let found = pages(KEYS, limit);
        let places: Vec<_> = found.iter().map(|key| ["created_at", "id"].map(|part| key[part].as_str().unwrap())).collect();
        assert!(places.is_sorted_by(|a, b| a > b), "the newest is first: {places:?}");
        let found: Vec<String> = found.iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (7, expected.clone()), "{limit}");
        assert_eq!(pages("/orgs", limit).len(), 8);
        let versions: Vec<i64> = pages("/audit", limit).iter().map(|entry| entry["version"].as_i64().unwrap()).collect();
        assert!(versions.len() >= 16 && versions.is_sorted_by(|a, b| a > b), "{versions:?}");
        assert_eq!(pages("/audit?action=key.create&org=acme", limit).len(), 7);
    }
    assert_eq!(pages("/audit?from=2099-01-01T00:00:00Z", 5).len(), 0);
    for wrong in ["limit=0", "limit=1001", "limit=x", "cursor=!", "cursor=AAAA", "nope=1", "limit=1&limit=2"] {
        let refused = api.get(&format!("{KEYS}?{wrong}"));
        assert!([400, 422].contains(&refused.status), "{wrong}: {refused:?}");
        refused.problem();
    }
    api.post(KEYS, &json!({"name": "=1+1\",x"}));
    let table = api.ask("GET", "/audit?limit=1", &[("accept", "text/csv")], &Value::Null);
    assert_eq!(table.header("content-type"), "text/csv; charset=utf-8");
    assert_eq!(table.text.lines().count(), 2, "{table:?}");
}

#[test]
fn a_request_that_cannot_be_read_is_refused_with_a_problem() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let bearer = format!("Bearer {}", api.token);
    let (json_type, authorization) = (("content-type", "application/json"), ("authorization", bearer.as_str()));
    let post = |headers: &[(&str, &str)], body: &[u8]| api.send("POST", KEYS, headers, body);
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(300_000));
    for (headers, body, problem) in [
        (&[json_type][..], &b"{}"[..], "unauthenticated"),
        (&[json_type, ("authorization", "Basic abc")], b"{}", "unauthenticated"),
        (&[json_type, authorization, authorization], b"{}", "unauthenticated"),
        (&[json_type, ("authorization", TOKEN_OF_GATEWAYS)], b"{}", "unauthenticated"),
        (&[authorization], br#"{"name": "x"}"#, "request_malformed"),
        (&[json_type, authorization], b"{", "request_malformed"),
        (&[json_type, authorization], b"{}", "request_malformed"),
        (&[json_type, authorization], b"\xff", "request_malformed"),
        (&[json_type, authorization], br#"{"name": "x"} {}"#, "request_malformed"),
        (&[json_type, authorization], br#"{"name": "x", "nope": 1}"#, "request_malformed"),
        (&[json_type, authorization], br#"{"name": 1}"#, "request_malformed"),
        (&[json_type, authorization], br#"["name"]"#, "request_malformed"),
        (&[json_type, authorization], br#"{"name": "a\u0000"}"#, "request_malformed"),
        (&[json_type, authorization], b"", "request_malformed"),
        (&[json_type, authorization, ("if-match", "a"), ("if-match", "b")], br#"{"name": "x"}"#, "request_malformed"),
        (&[json_type, authorization], long.as_bytes(), "request_too_long"),
    ] {
        let refused = post(headers, body);
        assert_eq!(refused.problem(), problem, "{headers:?} {refused:?}");
        assert_eq!(refused.header("cache-control"), "no-store");
        assert_eq!(refused.header("www-authenticate"), if problem == "unauthenticated" { "Bearer" } else { "" });
    }
    let nested = api.post("/orgs/acme/clients", &json!({"name": "x", "scopes": ["a", 1]}));
    assert_eq!(nested.json["field"], "scopes[1]", "{nested:?}");
    assert_eq!(api.get("/nothing").problem(), "not_found");
    assert_eq!(api.ask("PUT", KEYS, &[], &json!({})).problem(), "method_not_allowed");
    assert_eq!(api.send("HEAD", KEYS, &[authorization], b"").status, 405);
    for path in ["/orgs/acme/keys/%ff", "/orgs/acme/keys/%00", "/audit?actor=%00"] {
        assert_eq!(api.get(path).problem(), "not_found", "{path}");
    }
    let another = api.post("/orgs", &json!({"name": "other"}));
    assert_eq!(another.status, 201);
    let key = api.post(KEYS, &json!({"name": "k"})).json["id"].as_str().unwrap().to_owned();
    assert_eq!(api.get(&format!("/orgs/other/keys/{key}")).problem(), "not_found", "a key is found only in its own org");
    let revoked = api.get("/admin-tokens").json["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(api.post(&format!("/admin-tokens/{revoked}/revoke"), &Value::Null).status, 200);
    assert_eq!(api.get("/orgs").problem(), "unauthenticated");
    let log = std::fs::read_to_string(settings.file("serve.log")).unwrap();
    assert!(!log.contains(&api.token), "{log}");
}

/// The gateways' token opens nothing here.
const TOKEN_OF_GATEWAYS: &str = "Bearer a-token-of-gateways";

#[test]
fn a_token_creates_no_token_that_outlives_it() {
    let settings = Settings::new();
    let api = settings.api(&["operator", "--expires", "1h"]);
    let create = |expires_at: Value| {
        api.post("/admin-tokens", &json!({"name": "t", "role": "viewer", "org": "acme", "expires_at": expires_at}))
    };
    assert_eq!(create(Value::Null).json["field"], "expires_at");
    assert_eq!(create(json!("2099-01-01T00:00:00Z")).json["field"], "expires_at");
    let own = api.get("/admin-tokens").json["items"][0]["expires_at"].clone();
    let made = create(own);
    assert_eq!(made.status, 201, "{made:?}");
    let viewer = Api { token: made.json["token"].as_str().unwrap().to_owned(), ..settings.api(&["operator"]) };
    assert_eq!(viewer.get("/orgs").json["items"].as_array().unwrap().len(), 1);
    assert!(!settings.text(&["audit", "list", "--json"]).contains(&viewer.token));
}

#[test]
fn a_page_of_long_records_ends_early() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let connectors: Vec<String> = (0..256).map(|number| format!("{number:0>120}")).collect();
    for number in 0..40 {
        assert_eq!(api.post(KEYS, &json!({"name": number.to_string(), "connectors": connectors})).status, 201);
    }
    let first = api.get(KEYS);
    let (found, next) = (first.json["items"].as_array().unwrap().len(), first.json["next"].as_str().unwrap());
    assert!((30..40).contains(&found) && first.text.len() < 1_200_000, "{found}");
    let rest = api.get(&format!("{KEYS}?cursor={next}")).json;
    assert_eq!((rest["items"].as_array().unwrap().len(), rest["next"].is_null()), (40 - found, true));
}

/// Connections to PostgreSQL end after the runtime: otherwise the process aborts.
#[test]
fn the_server_stops_after_requests_to_the_api() {
    let settings = Settings::new();
    let mut api = settings.api(&["operator"]);
    assert_eq!(api.get("/orgs").status, 200);
    api.server.terminate();
    let status = api.server.process.wait().unwrap();
    assert!(status.success(), "{status}");
}

/// A database that is replaced by a copy is used at once. A change in the old file would be lost.
#[test]
fn changes_go_into_a_restored_database() {
    let settings = Settings::with_file();
    let api = settings.api(&["operator"]);
    let copy = settings.file("copy.db");
    settings.text(&["database", "copy", "--to", copy.to_str().unwrap()]);
    api.post(KEYS, &json!({"name": "before"}));
    std::fs::rename(&copy, settings.file("test.db")).unwrap();
    for ending in ["test.db-wal", "test.db-shm"] {
        let _ = std::fs::remove_file(settings.file(ending));
    }
    let made = api.post(KEYS, &json!({"name": "after"}));
    assert_eq!(made.status, 201, "{made:?}");
    let names: Vec<Value> =
        settings.json(&["key", "list", "--org", "acme"]).as_array().unwrap().iter().map(|key| key["name"].clone()).collect();
    assert_eq!(names, ["after"]);
}

/// The gateway's own code judges a token, with the keys that the provider publishes.
#[test]
fn a_refused_token_is_explained() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let keys = jwk_set(&["a"]).to_document();
    let origin = website(vec![("/keys", 200, keys), ("/none", 404, String::new())]);
    let jwks_uri = format!("{origin}/keys");
    let provider =
        json!({"issuer": origin, "jwks_uri": jwks_uri, "audience": ["apexmcp"], "force": true, "allow_private_address": true});
    assert_eq!(api.post("/orgs/acme/identity-providers", &provider).status, 201);
    let claims = |more: Value| {
        let mut claims =
            json!({"iss": origin, "sub": "agent", "aud": "apexmcp", "iat": 1, "exp": 4102444800_u64, "scope": "mcp:call"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let header = json!({"alg": "RS256", "kid": "a"});
    let admin = Api { token: settings.admin_token(&["admin", "--org", "acme"]), ..settings.api(&["operator"]) };
    let ask = |body: Value| api.post("/orgs/acme/explain", &body);
    let explain = |header: &Value, claims: &Value| ask(json!({"token": sign(header, claims)})).json;
    let good = explain(&header, &claims(json!({})));
    assert_eq!(
        (&good["admitted"], &good["reason"], &good["principal"]["subject"]),
        (&json!(true), &json!("ok"), &json!("agent")),
        "{good}"
    );
    for (header, more, reason, part) in [
        (&header, json!({"exp": 5}), "token_expired", "Get a new token"),
        (&header, json!({"aud": "other"}), "audience_mismatch", "audience"),
        (&header, json!({"iss": "https://other.example"}), "issuer_unknown", "Configure this issuer"),
        (&header, json!({"scope": "mcp:call:github", "aud": "apexmcp"}), "ok", ""),
        (&json!({"alg": "RS256", "kid": "b"}), json!({}), "key_unknown", "JWKS URI"),
        (&json!({"alg": "none", "kid": "a"}), json!({}), "algorithm_not_allowed", "RS256"),
    ] {
        let explained = admin.post("/orgs/acme/explain", &json!({"token": sign(header, &claims(more.clone()))})).json;
        assert_eq!(explained["reason"], reason, "an admin, {more}: {explained}");
        let explained = explain(header, &claims(more.clone()));
        assert_eq!(explained["reason"], reason, "{more}: {explained}");
        assert!(explained["advice"].as_str().unwrap_or_default().contains(part), "{explained}");
        assert_eq!(explained["claims"]["sub"], "agent");
    }
    let expired = explain(&header, &claims(json!({"exp": 5})));
    assert!(expired["details"].as_str().unwrap().contains("expired at 1970-01-01T00:00:05Z"), "{expired}");
    let narrow = sign(&header, &claims(json!({"scope": "mcp:call:github"})));
    for (connector, reason) in [("github", "ok"), ("jira", "scope_insufficient")] {
        assert_eq!(ask(json!({"token": narrow, "connector": connector})).json["reason"], reason);
    }
    assert_eq!(ask(json!({"token": narrow, "connector": "a/b"})).json["field"], "connector");
    let changed = sign(&header, &claims(json!({}))) + "x";
    assert_ne!(ask(json!({"token": changed})).json["admitted"], true);
    assert_eq!(ask(json!({"token": "nonsense"})).json["admitted"], false);
    assert_eq!(ask(json!({"token": "a\nb"})).json["admitted"], false);
    let key = api.post(KEYS, &json!({"name": "k"})).json;
    assert_eq!(ask(json!({"key": key["key"]})).json["reason"], "ok");
    api.post(&format!("{KEYS}/{}/revoke", key["id"].as_str().unwrap()), &Value::Null);
    let revoked = ask(json!({"key": key["key"]})).json;
    assert_eq!(revoked["reason"], "api_key_unknown");
    assert!(revoked["details"].as_str().unwrap().contains("was revoked at"), "{revoked}");
    assert_eq!(ask(json!({"key": "a", "token": "b"})).problem(), "invalid_argument");
    let client = api.post("/orgs/acme/clients", &json!({"name": "c"})).json;
    assert!(client["client_secret"].is_string());
    let down = json!({"issuer": origin, "jwks_uri": format!("{origin}/none"), "audience": ["apexmcp"], "force": true, "allow_private_address": true});
    let id = api.get("/orgs/acme/identity-providers").json["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(api.ask("PUT", &format!("/orgs/acme/identity-providers/{id}"), &[], &down).status, 200);
    let expired = explain(&header, &claims(json!({"exp": 5})));
    assert_eq!((&expired["admitted"], &expired["reason"]), (&json!(false), &json!("token_expired")), "{expired}");
    let unavailable = explain(&header, &claims(json!({})));
    assert_eq!((&unavailable["admitted"], &unavailable["reason"]), (&json!(null), &json!("jwks_unavailable")), "{unavailable}");
    assert!(unavailable["details"].as_str().unwrap().contains("answered 404"), "{unavailable}");
    assert_eq!(unavailable["principal"]["subject"], "agent");
    let narrow = sign(&header, &claims(json!({"scope": "mcp:call:github"})));
    let refused = ask(json!({"token": narrow, "connector": "jira"})).json;
    assert_eq!((&refused["admitted"], &refused["principal"]), (&json!(false), &json!(null)), "nothing is proven: {refused}");
    // Neither the log nor the database has a credential.
    let log = std::fs::read_to_string(settings.file("serve.log")).unwrap() + &settings.text(&["audit", "list", "--json"]);
    assert!(!log.contains("eyJ") && !log.contains(key["key"].as_str().unwrap()));
}
