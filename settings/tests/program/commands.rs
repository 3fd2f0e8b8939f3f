//! Every command, through the program itself. The file is long because each test is one story through several commands,
//! and stories about different nouns share their steps.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Settings, website};
use apexmcp_settings::cli::Cli;
use clap::CommandFactory;
use serde_json::{Value, json};

#[test]
fn a_key_is_created_listed_and_revoked() {
    let settings = Settings::new();
    let made =
        settings.json(&["key", "create", "--org", "acme", "--name", "ci agent", "--connector", "github", "--expires", "90d"]);
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert!(key.len() == 44 && key.starts_with("apx_live_sk_") && key[12..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let record = &settings.policy()["orgs"]["acme"]["api_keys"][0];
    assert_eq!(record["sha256"], apexmcp_settings::secret::sha256(key));
    assert_eq!(
        (&record["id"], &record["connectors"], &record["expires_at"]),
        (&json!(id), &json!(["github"]), &made["expires_at"])
    );
    let listed = settings.json(&["key", "list", "--org", "acme"]);
    assert_eq!(listed[0]["prefix"], key[..16]);
    assert_eq!(listed[0].get("key"), None);
    assert_eq!(settings.json(&["key", "show", id]), listed[0]);
    let table = settings.text(&["key", "list", "--org", "acme"]);
    assert!(table.contains(&key[..16]) && !table.contains(key), "{table}");

    let revoked = settings.json(&["key", "revoke", id]);
    assert_eq!(revoked["revoked"], true);
    assert_eq!(settings.json(&["key", "revoke", id]), revoked, "a second revocation changes nothing");
    assert_eq!(settings.policy()["orgs"]["acme"], json!({}));
    assert!(settings.text(&["key", "create", "--org", "acme", "--name", "second"]).starts_with("apx_live_sk_"));
}

#[test]
fn a_client_has_two_secrets_during_a_rotation() {
    let settings = Settings::new();
    let made = settings.json(&["client", "create", "--org", "acme", "--name", "billing", "--scope", "mcp:call:github"]);
    let (id, secret) = (made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    assert!(id.len() == 19 && id.starts_with("apx_client_"), "{id}");
    assert!(secret.len() == 35 && secret.starts_with("apx_secret_"));
    let hashes = || settings.policy()["orgs"]["acme"]["oauth_clients"][0]["secret_sha256"].clone();
    let first = apexmcp_settings::secret::sha256(secret);
    assert_eq!(hashes(), json!([first]));
    assert!(settings.failure(&["client", "drop-secret", id]).contains("rotate-secret"));
    let second = settings.json(&["client", "rotate-secret", id])["client_secret"].as_str().unwrap().to_owned();
    let second = apexmcp_settings::secret::sha256(&second);
    assert_eq!(hashes(), json!([first, second]));
    assert!(settings.failure(&["client", "rotate-secret", id]).contains("drop-secret"));
    settings.json(&["client", "drop-secret", id]);
    assert_eq!(hashes(), json!([second]));
    settings.json(&["token", "revoke", "--org", "acme", "--client", id]);
    settings.json(&["token", "revoke", "--org", "acme", "--jti", "a-jti"]);
    let revoked = settings.policy()["orgs"]["acme"]["revoked_tokens"].clone();
    assert_eq!(revoked["jti"], json!(["a-jti"]));
    let since = revoked["issued_before"][id].as_str().unwrap().to_owned();
    settings.json(&["token", "revoke", "--org", "acme", "--client", id, "--issued-before", "2026-01-01T00:00:00Z"]);
    let future = ["token", "revoke", "--org", "acme", "--client", id, "--issued-before", "2999-01-01T00:00:00Z"];
    assert!(settings.failure(&future).contains("must not be in the future"), "it would revoke tokens that are issued later");
    let still = settings.policy()["orgs"]["acme"]["revoked_tokens"]["issued_before"][id].clone();
    assert_eq!(still, since, "an earlier moment makes no revoked token valid");
    settings.json(&["client", "revoke", id]);
    assert_eq!(settings.policy()["orgs"]["acme"].get("oauth_clients"), None);
    assert_eq!(settings.json(&["client", "list", "--org", "acme"])[0]["revoked"], true);
    assert!(settings.failure(&["client", "rotate-secret", id]).contains("was revoked"));
    assert!(settings.text(&["client", "show", id]).contains(id));
}

#[test]
fn a_client_authenticates_with_its_own_keys() {
    let settings = Settings::new();
    let jwk = public_jwk();
    let mut published = jwk.clone();
    published["x5c"] = json!("UNREAD".repeat(1000));
    let document = json!({"keys": [published, {"kty": "EC", "kid": "UNREAD"}], "private": {"d": "SECRET"}});
    let keys = settings.write("keys.json", &document.to_string());
    let made = settings.json(&["client", "create", "--org", "acme", "--name", "signs", "--jwks", &keys]);
    assert_eq!(made.get("client_secret"), None);
    let record = &settings.policy()["orgs"]["acme"]["oauth_clients"][0];
    let kept = ["kty", "kid", "n", "e"].map(|member| (member.to_owned(), jwk[member].clone()));
    let kept = json!({"keys": [serde_json::Map::from_iter(kept)]});
    assert_eq!((&record["jwks"], record.get("secret_sha256")), (&kept, None), "only what the gateway reads is stored");
    let noted = settings.json(&["audit", "list"])[2]["details"].clone();
    assert_eq!(noted, json!({"name": "signs", "scopes": ["mcp:call"], "kids": ["a"]}));
    let id = made["client_id"].as_str().unwrap();
    assert!(settings.failure(&["client", "rotate-secret", id]).contains("its own keys"));
    let private = settings.write("private.json", r#"{"keys": [{"kty": "RSA", "d": "SECRET"}]}"#);
    let line = settings.failure(&["client", "create", "--org", "acme", "--name", "signs", "--jwks", &private]);
    assert!(line.contains("private key") && !line.contains("SECRET"), "{line}");
    let none = settings.write("none.json", r#"{"keys": []}"#);
    let refused = settings.failure(&["client", "create", "--org", "acme", "--name", "signs", "--jwks", &none]);
    assert!(refused.contains("--jwks \"keys\" is empty"), "{refused}");
    for (kid, is_good) in
        [("k".repeat(256), true), ("k".repeat(257), false), ("a\u{202e}".to_owned(), false), ("\n".to_owned(), false)]
    {
        let mut jwk = jwk.clone();
        jwk["kid"] = json!(kid);
        let keys = settings.write("kid.json", &json!({ "keys": [jwk] }).to_string());
        let output = settings.run(&["client", "create", "--org", "acme", "--name", "kid", "--jwks", &keys]);
        assert_eq!(output.status.success(), is_good, "{kid:?}: {output:?}");
    }
}

fn public_jwk() -> Value {
    let pem = apexmcp_settings::records::signing_key::generate().unwrap();
    apexmcp_core::signing_key::SigningKey::from_pem("a", &pem).unwrap().jwk().to_value()
}

#[test]
fn signing_keys_rotate() {
    let settings = Settings::new();
    let kids = || -> Vec<String> {
        let keys = settings.policy()["signing_keys"].as_array().unwrap().clone();
        keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    };
    let [first] = kids().try_into().unwrap();
    settings.json(&["signing-key", "create", "--kid", "next"]);
    assert_eq!(kids(), [first.clone(), "next".to_owned()]);
    assert!(settings.failure(&["signing-key", "remove", &first]).contains("signs new tokens"));
    assert_eq!(settings.json(&["signing-key", "use", "next"])["signs"], true);
    assert_eq!(kids(), ["next".to_owned(), first.clone()]);
    assert!(settings.failure(&["signing-key", "create", "--kid", "next"]).contains("already"));
    settings.json(&["signing-key", "remove", &first]);
    assert_eq!(kids(), ["next"]);
    assert_eq!(settings.json(&["signing-key", "list"])[0]["signs"], true);
    let [third, fourth] = [(), ()].map(|()| settings.json(&["signing-key", "create"])["kid"].clone());
    // A removed key keeps its id, because somebody may still have it in a cache.
    assert_eq!((third, fourth), (json!(format!("{first}-2")), json!(format!("{first}-3"))));
    assert!(settings.failure(&["signing-key", "create", "--kid", &first]).contains("already is, or was"));
}

#[test]
fn limits_of_an_org_and_of_a_key() {
    let settings = Settings::new();
    let key = settings.json(&["key", "create", "--org", "acme", "--name", "k"])["id"].as_str().unwrap().to_owned();
    let all = ["limits", "set", "--org", "acme", "--rate", "600/minute", "--burst", "60", "--monthly-quota", "1000000"];
    settings.json(&all);
    let limits = json!({"rate": {"requests": 600, "per": "minute", "burst": 60}, "monthly_quota": 1_000_000});
    settings.json(&["limits", "set", "--key", &key, "--rate", "1/second"]);
    let org = &settings.policy()["orgs"]["acme"];
    assert_eq!(org["limits"], limits);
    assert_eq!(org["api_keys"][0]["limits"], json!({"rate": {"requests": 1, "per": "second"}}));
    assert_eq!(settings.json(&["limits", "show", "--org", "acme"])["limits"], limits);
    assert!(settings.text(&["limits", "show", "--key", &key]).contains("1/second"));
    settings.json(&["limits", "clear", "--org", "acme"]);
    assert_eq!(settings.policy()["orgs"]["acme"].get("limits"), None);
}

#[test]
fn the_audit_log_records_each_change() {
    let settings = Settings::with_file();
    let key = settings.json(&["--actor", "alice", "key", "create", "--org", "acme", "--name", "k"]);
    let (id, key) = (key["id"].as_str().unwrap(), key["key"].as_str().unwrap());
    settings.json(&["key", "revoke", id]);
    settings.json(&["org", "delete", "acme", "--yes"]);
    let entries = settings.json(&["audit", "list"]);
    let actions: Vec<&str> = entries.as_array().unwrap().iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["signing-key.create", "org.create", "key.create", "key.revoke", "org.delete"]);
    assert_eq!((&entries[2]["actor"], &entries[2]["subject"], &entries[2]["org"]), (&json!("alice"), &json!(id), &json!("acme")));
    assert!(entries[3]["actor"].as_str().is_some_and(|name| !name.is_empty()));
    assert_eq!(settings.policy()["version"], entries[4]["version"].to_string());
    assert_eq!(settings.json(&["audit", "list", "--org", "acme", "--limit", "1"])[0]["action"], "org.delete");
    for file in std::fs::read_dir(&settings.folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()), "a key is stored unhashed");
    }
    let long = "INSERT INTO audit VALUES (99, '2026-01-01T00:00:00Z', ?1, 'key.create', ?1, ?1, '{}')";
    rusqlite::Connection::open(settings.file("test.db")).unwrap().execute(long, ["x".repeat(70_000)]).unwrap();
    assert_eq!(settings.json(&["audit", "list"]).as_array().map(Vec::len), Some(6), "an entry may be long");
    assert!(settings.text(&["audit", "list"]).len() > 6 * 3 * 70_000);
}

#[test]
fn a_refusal_has_one_line_and_a_stable_code() {
    let settings = Settings::new();
    settings.json(&["client", "create", "--org", "acme", "--name", "revoked"]);
    let client = settings.json(&["client", "list", "--org", "acme"])[0]["client_id"].as_str().unwrap().to_owned();
    let kid = settings.policy()["signing_keys"][0]["kid"].as_str().unwrap().to_owned();
    settings.json(&["client", "revoke", &client]);
    let (invalid, missing) = ("invalid_argument", "not_found");
    let notes = settings.write("notes.json", "notes");
    let private = "https://10.0.0.1/";
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/../envoy/ecds/filter.yaml");
    for (arguments, code, part) in [
        (&["init"][..], "already_exists", "already exists"),
        (&["org", "create", "acme"], "already_exists", "already exists"),
        (&["org", "create", "a/b"], invalid, "A-Z a-z 0-9"),
        (&["org", "show", "nobody"], missing, "no org"),
        (&["org", "delete", "nobody", "--yes"], missing, "no org"),
        (&["key", "create", "--org", "nobody", "--name", "k"], missing, "no org"),
        (&["key", "create", "--org", "acme", "--name", ""], invalid, "--name"),
        (&["key", "create", "--org", "acme", "--name", "two\nlines"], invalid, "--name"),
        (&["key", "create", "--org", "acme", "--name", "revoked \u{202e}"], invalid, "--name"),
        (&["key", "create", "--org", "acme", "--name", "k", "--connector", "a/b"], invalid, "--connector"),
        (
            &["key", "create", "--org", "acme", "--name", "k", "--connector", "a__", "--connector", "a"],
            "policy_refused",
            "told apart",
        ),
        (&["key", "create", "--org", "acme", "--name", "k", "--expires", "100000000y"], invalid, "too far"),
        (&["key", "list", "--org", "nobody"], missing, "no org"),
        (&["key", "revoke", "key_none"], missing, "no API key"),
        (&["client", "create", "--org", "acme", "--name", "k", "--scope", "all"], invalid, "--scope \"all\""),
        (&["client", "create", "--org", "acme", "--name", "\u{200b}k", "--scope", "mcp:call"], invalid, "--name"),
        (&["client", "create", "--org", "acme", "--name", "k", "--jwks", "absent.json"], "file_unreadable", "cannot be read"),
        (&["client", "create", "--org", "acme", "--name", "k", "--jwks", &notes], "file_invalid", "is not JSON"),
        (&["client", "revoke", "apx_client_none"], missing, "no client"),
        (&["client", "rotate-secret", &client], "conflict", "was revoked"),
        (&["sso", "remove", "--org", "acme", "--issuer", "https://x"], missing, "exactly the issuer"),
        (
            &["sso", "configure", "--org", "acme", "--issuer", private, "--jwks-uri", private, "--audience", "a"],
            "private_address",
            "10.0.0.1",
        ),
        (&["limits", "set", "--key", "key_none", "--rate", "1/second"], missing, "no API key"),
        (&["key", "create", "--org", "acme", "--name", "k", "--expires", "0s"], invalid, "must be in the future"),
        (&["signing-key", "create", "--kid", "a b"], invalid, "--kid"),
        (&["signing-key", "remove", &kid], "conflict", "signs new tokens"),
        (&["token", "revoke", "--org", "acme", "--jti", &"j".repeat(257)], invalid, "at most 256"),
        (&["signing-key", "use", "none"], missing, "no signing key"),
        (&["token", "revoke", "--org", "acme", "--client", "apx_client_none"], missing, "no client"),
        (&["token", "revoke", "--org", "acme", "--jti", ""], invalid, "--jti"),
        (&["token", "revoke", "--org", "acme", "--principal", "acme/idp/https://idp#a"], missing, "apexmcp sso list"),
        (&["token", "revoke", "--org", "acme", "--jti", "\u{2066}"], invalid, "--jti"),
        (&["policy", "check", "absent.json"], "file_unreadable", "cannot be read"),
        (&["policy", "check", &notes], "file_invalid", "neither"),
        (&["ecds", "write"], "ecds_not_enabled", "ecds enable"),
        (&["ecds", "disable"], "ecds_not_enabled", "ecds enable"),
        (&["ecds", "enable", "--template", template, "--file", "absent/filter.json"], "file_unwritable", "cannot be written"),
        (&["serve"], "token_invalid", "APEXMCP_SETTINGS_TOKEN"),
        (&["plugin-config", "--format", "envoy", "--origin", "gateway"], invalid, "--origin"),
        (&["--actor", " ", "org", "list"], invalid, "--actor"),
        (&["--actor", "al\u{202d}ice", "org", "list"], invalid, "--actor"),
        (&["--db", "absent.db", "org", "list"], "database_missing", "apexmcp init"),
        (&["--db", &notes, "org", "list"], "database_invalid", "not a database of apexmcp"),
    ] {
        let (line, found) = settings.refusal(arguments);
        assert!(line.contains(part), "{arguments:?}: {line}");
        assert_eq!(found, code, "{arguments:?}: {line}");
    }
    assert_eq!(settings.json(&["audit", "list"]).as_array().unwrap().len(), 4, "a refused command changes nothing");
}

#[test]
fn values_up_to_the_documented_limits_are_accepted() {
    let settings = Settings::new();
    let sso = |audiences: &[String], path: usize| {
        let url = format!("http://127.0.0.1:1/{}", "x".repeat(path - "http://127.0.0.1:1/".len()));
        let options =
            ["sso", "configure", "--org", "acme", "--issuer", &url, "--jwks-uri", &url, "--force", "--allow-private-address"];
        let audiences = audiences.iter().flat_map(|audience| ["--audience".to_owned(), audience.clone()]);
        options.into_iter().map(str::to_owned).chain(audiences).collect::<Vec<_>>()
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let many = |count: usize, length: usize| (0..count).map(|number| format!("{number:0>length$}")).collect::<Vec<_>>();
    let key = |count: usize, option: &str, value: &str| {
        let options = many(count, 3).iter().map(|number| format!(" {option} {value}{number}")).collect::<String>();
        words(&format!("create --org acme --name k{options}"))
    };
    let of = |kind: &str, rest: Vec<String>| [vec![kind.to_owned()], rest].concat();
    let scopes = |count: usize| {
        let scopes = many(count, 3).into_iter().flat_map(|number| ["--default-scope".to_owned(), format!("mcp:call:{number}")]);
        [sso(&many(1, 1), 200), scopes.collect()].concat()
    };
    let client_scopes = |count, length| {
        let scopes = many(count, length).into_iter().flat_map(|scope| ["--client-scope".to_owned(), scope]);
        [sso(&many(1, 1), 200), words("--default-scope mcp:call"), scopes.collect()].concat()
    };
    let misnamed = [sso(&many(1, 1), 200), words("--default-scope nope")].concat();
    for (good, bad, part) in [
        (of("key", key(256, "--connector", "c")), of("key", key(257, "--connector", "c")), "--connector must have at most 256"),
        (
            of("client", key(256, "--scope", "mcp:call:")),
            of("client", key(257, "--scope", "mcp:call:")),
            "--scope must have at most 256",
        ),
        (scopes(256), scopes(257), "--default-scope must have at most 256"),
        (client_scopes(16, 256), client_scopes(17, 1), "--client-scope must have at most 16"),
        (client_scopes(1, 256), client_scopes(1, 257), "expected one scope of at most 256"),
        (scopes(1), misnamed, "--default-scope \"nope\" must be"),
        (
            words(&format!("key create --org acme --name {}", "\u{e4}".repeat(200))),
            words(&format!("key create --org acme --name {}", "\u{e4}".repeat(201))),
            "1 to 200",
        ),
        (
            words(&format!("token revoke --org acme --jti {}", "j".repeat(256))),
            words(&format!("token revoke --org acme --jti {}", "j".repeat(257))),
            "at most 256",
        ),
        (words(&format!("org create {}", "o".repeat(128))), words(&format!("org create {}", "o".repeat(129))), "1 to 128"),
        (sso(&many(16, 512), 100), sso(&many(17, 5), 100), "at most 16"),
        (sso(&many(1, 512), 2048), sso(&many(1, 513), 100), "at most 512"),
        (sso(&many(1, 1), 2048), sso(&many(1, 1), 2049), "at most 2048"),
    ] {
        let line = settings.failure(&bad.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(line.contains(part), "{bad:?}: {line}");
        settings.text(&good.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let key = json!({"kty": "RSA", "n": format!("gA{}", "A".repeat(339)) + "Q", "e": "AQAB"});
    for (length, is_read) in [(262_144, true), (262_145, false)] {
        let document = json!({"keys": [key]}).to_string();
        let document = format!("{document}{}", " ".repeat(length - document.len()));
        let origin = website(vec![("/keys", 200, document)]);
        let (issuer, keys) = (&origin, format!("{origin}/keys"));
        let arguments = [
            "sso",
            "configure",
            "--org",
            "acme",
            "--issuer",
            issuer,
            "--jwks-uri",
            &keys,
            "--audience",
            "a",
            "--force",
            "--allow-private-address",
        ];
        let found = settings.json(&arguments)["findings"].to_string();
        assert_eq!(found.contains("usable RS256 keys"), is_read, "{length}: {found}");
        assert_eq!(found.contains("cannot be read"), !is_read, "{length}: {found}");
    }
}

#[test]
fn a_provider_may_negotiate_content_and_send_a_byte_order_mark() {
    let settings = Settings::new();
    let keys = json!({"keys": [public_jwk()]}).to_string();
    for path in ["/only/application/jwk-set+json", "/only/application/json", "/only/text/plain"] {
        let discovery = json!({"issuer": "ORIGIN", "jwks_uri": format!("ORIGIN{path}")}).to_string();
        let origin = website(vec![
            ("/.well-known/openid-configuration", 200, format!("\u{feff}{discovery}")),
            (path, 200, format!("\u{feff}{keys}")),
        ]);
        let jwks_uri = format!("{origin}{path}");
        let provider = ["--issuer", &origin, "--jwks-uri", &jwks_uri, "--audience", "a", "--allow-private-address"];
        let saved = settings.json(&[&["sso", "configure", "--org", "acme"], &provider[..]].concat());
        assert_eq!(saved["saved"], true, "{saved}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    let settings = Settings::new();
    for arguments in [
        &["nonsense"][..],
        &["key", "create", "--org", "acme"],
        &["key", "create", "--org", "acme", "--name", "k", "--expires", "soon"],
        &["limits", "set", "--org", "acme"],
        &["limits", "set", "--org", "acme", "--key", "k", "--rate", "1/second"],
        &["limits", "set", "--org", "acme", "--rate", "1/month"],
        &["limits", "set", "--org", "acme", "--monthly-quota", "0"],
        &["org", "delete", "acme"],
        &["token", "revoke", "--org", "acme"],
        &["token", "revoke", "--org", "acme", "--jti", "j", "--client", "c"],
        &["token", "revoke", "--org", "acme", "--principal", "p", "--client", "c"],
        &["sso", "configure", "--org", "acme", "--issuer", "https://a", "--jwks-uri", "https://a/k"],
        &["plugin-config", "--format", "nginx"],
    ] {
        let output = settings.run(arguments);
        assert!(output.status.code() == Some(2) && output.stdout.is_empty(), "{arguments:?}: {output:?}");
    }
    let mut commands = vec![(Vec::new(), Cli::command())];
    while let Some((path, command)) = commands.pop() as Option<(Vec<String>, clap::Command)> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let help = settings.text(&[&path[..], &["--help"]].concat());
        assert!(help.contains("Usage: apexmcp") && help.contains("--json"), "{help}");
        for child in command.get_subcommands() {
            commands.push((path.iter().map(ToString::to_string).chain([child.get_name().to_owned()]).collect(), child.clone()));
        }
    }
}

#[test]
fn files_of_other_programs_are_not_used() {
    let settings = Settings::empty_file();
    assert!(settings.failure(&["org", "list"]).contains("apexmcp init"));
    settings.write("test.db", "somebody's notes");
    assert!(settings.failure(&["org", "list"]).contains("not a database of apexmcp"));
    assert!(settings.failure(&["init"]).contains("not a database of apexmcp"));
    std::fs::write(settings.file("test.db"), "").unwrap();
    assert!(settings.failure(&["org", "list"]).contains("apexmcp init"), "an interrupted init leaves an empty file");
    settings.json(&["init"]);
    let database = rusqlite::Connection::open(settings.file("test.db")).unwrap();
    assert_eq!(std::fs::metadata(settings.file("test.db")).unwrap().permissions().mode() & 0o777, 0o600);
    database.pragma_update(None, "user_version", 1000).unwrap();
    assert!(settings.failure(&["org", "list"]).contains("newer apexmcp"));
    database.pragma_update(None, "application_id", 1).unwrap();
    assert!(settings.failure(&["org", "list"]).contains("not a database of apexmcp"));
}

#[test]
fn an_addition_that_makes_a_part_too_long_is_refused() {
    let settings = Settings::with_file();
    let id = settings.json(&["key", "create", "--org", "acme", "--name", "k"])["id"].as_str().unwrap().to_owned();
    // Revocations that fill the part. Each takes its own length, two quotes and a comma.
    let fill = "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)
        INSERT INTO revoked_tokens SELECT 'acme', format('%0256d', n), '2026-01-01T00:00:00Z' FROM number";
    rusqlite::Connection::open(settings.file("test.db")).unwrap().execute(fill, [(1 << 20) / 259 + 1]).unwrap();
    let line = settings.failure(&["key", "create", "--org", "acme", "--name", "l"]);
    assert!(line.contains("the part org/acme") && line.contains("at most 1048576"), "{line}");
    assert_eq!(settings.json(&["key", "list", "--org", "acme"]).as_array().map(Vec::len), Some(1), "nothing was created");
    settings.json(&["key", "revoke", &id]);
    assert!(!settings.text(&["policy", "export"]).contains(&id), "a revocation is still possible");
    settings.json(&["org", "create", "other"]);
    settings.json(&["key", "create", "--org", "other", "--name", "k"]);
}

#[test]
fn an_identity_provider_is_checked_before_it_is_saved() {
    let keys = json!({"keys": [public_jwk()]}).to_string();
    let good = json!({"issuer": "ORIGIN", "jwks_uri": "ORIGIN/keys"}).to_string();
    let discovery = "/.well-known/openid-configuration";
    let configure = |settings: &Settings, pages, issuer: &str, more: &[&str]| {
        let origin = website(pages);
        let (issuer, jwks_uri) = (format!("{origin}{issuer}"), format!("{origin}/keys"));
        let arguments = [
            "sso",
            "configure",
            "--org",
            "acme",
            "--issuer",
            &issuer,
            "--jwks-uri",
            &jwks_uri,
            "--audience",
            "apexmcp",
            "--json",
        ];
        let output = settings.run(&[&arguments, more].concat());
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.contains("nothing was saved"), printed["saved"] == false, "{said}");
        let code = (printed["saved"] == false).then_some(&json!("provider_check_failed")).cloned();
        assert_eq!(printed.get("code"), code.as_ref(), "{printed}");
        (output.status.code(), printed)
    };
    for (what, pages, issuer, part) in [
        ("good", vec![(discovery, 200, good.clone()), ("/keys", 200, keys.clone())], "", ""),
        (
            "RFC 8414",
            vec![
                ("/.well-known/oauth-authorization-server/tenant", 200, good.replace(r#""ORIGIN""#, r#""ORIGIN/tenant""#)),
                ("/keys", 200, keys.clone()),
            ],
            "/tenant",
            "",
        ),
        ("no discovery", vec![("/keys", 200, keys.clone())], "", "answered 404"),
        ("another issuer", vec![(discovery, 200, good.clone()), ("/keys", 200, keys.clone())], "/", "right one?"),
        ("other keys", vec![(discovery, 200, good.replace("/keys", "/others")), ("/keys", 200, keys.clone())], "", "right one?"),
        ("nothing said", vec![(discovery, 200, "{}".to_owned()), ("/keys", 200, keys.clone())], "", "names no jwks_uri"),
        ("HTML", vec![(discovery, 200, "<html>".to_owned()), ("/keys", 200, keys.clone())], "", "is not JSON"),
        ("no keys", vec![(discovery, 200, good.clone())], "", "/keys answered 404"),
        (
            "a redirect",
            vec![(discovery, 200, good.clone()), ("/keys", 302, String::new()), ("/elsewhere", 200, keys.clone())],
            "",
            "follows no redirects",
        ),
        (
            "no RSA key",
            vec![(discovery, 200, good.clone()), ("/keys", 200, r#"{"keys":[]}"#.to_owned())],
            "",
            "not a key set for RS256",
        ),
        ("too long", vec![(discovery, 200, good.clone()), ("/keys", 200, " ".repeat(300_000))], "", "/keys cannot be read"),
    ] {
        let settings = Settings::new();
        let (code, printed) = configure(&settings, pages, issuer, &["--allow-private-address"]);
        let failed: Vec<&Value> =
            printed["findings"].as_array().unwrap().iter().filter(|finding| finding["ok"] == false).collect();
        if part.is_empty() {
            assert_eq!((code, failed.len(), &printed["saved"]), (Some(0), 0, &json!(true)), "{what}: {printed}");
        } else {
            assert_eq!((code, &printed["saved"]), (Some(1), &json!(false)), "{what}: {printed}");
            assert!(failed.iter().any(|finding| finding["finding"].as_str().unwrap().contains(part)), "{what}: {printed}");
        }
        assert_eq!(
            settings.json(&["sso", "list", "--org", "acme"]).as_array().unwrap().len(),
            usize::from(part.is_empty()),
            "{what}"
        );
    }

    let settings = Settings::new();
    let (code, printed) =
        configure(&settings, Vec::new(), "", &["--allow-private-address", "--force", "--default-scope", "mcp:call:a"]);
    assert_eq!((code, &printed["saved"]), (Some(0), &json!(true)), "{printed}");
    let record = settings.policy()["orgs"]["acme"]["identity_providers"][0].clone();
    assert_eq!((&record["audience"], &record["default_scopes"]), (&json!(["apexmcp"]), &json!(["mcp:call:a"])));
    assert!(settings.text(&["sso", "list", "--org", "acme"]).contains(record["issuer"].as_str().unwrap()));
    let (issuer, jwks_uri) = (record["issuer"].as_str().unwrap(), record["jwks_uri"].as_str().unwrap());
    let provider = ["--issuer", issuer, "--jwks-uri", jwks_uri, "--audience", "apexmcp", "--force", "--allow-private-address"];
    let command = |options: &[&'static str]| [&["sso", "configure", "--org", "acme"][..], &provider, options].concat();
    let again = |options: &[&'static str]| {
        settings.json(&command(options));
        settings.policy()["orgs"]["acme"]["identity_providers"][0].clone()
    };
    assert_eq!(again(&["--no-default-scope"])["default_scopes"], json!([]));
    // An option that is left out by mistake grants nothing.
    assert!(settings.failure(&command(&[])).contains("--default-scope mcp:call"));
    assert_eq!(settings.policy()["orgs"]["acme"]["identity_providers"][0]["default_scopes"], json!([]));
    let wide = ["--default-scope", "mcp:call"];
    assert_eq!(again(&wide)["default_scopes"], json!(["mcp:call"]));
    assert_eq!(again(&wide).get("client_scopes"), None);
    let and = |options: &[&'static str]| again(&[&wide[..], options].concat());
    assert_eq!(and(&["--no-client-scope"])["client_scopes"], json!([]));
    assert_eq!(
        and(&["--client-scope", "openid", "--client-scope", "api://a/.default"])["client_scopes"],
        json!(["openid", "api://a/.default"])
    );
    assert!(settings.text(&["sso", "list", "--org", "acme"]).contains("openid api://a/.default"));
    settings.json(&["org", "create", "other"]);
    let again = |org: &str, audience: &str| {
        let (issuer, jwks_uri) = (record["issuer"].as_str().unwrap(), record["jwks_uri"].as_str().unwrap());
        let provider = ["--issuer", issuer, "--jwks-uri", jwks_uri, "--audience", "another", "--audience", audience];
        let made =
            settings.json(&[&["sso", "configure", "--org", org, "--force", "--allow-private-address"][..], &provider].concat());
        let warned = |finding: &&Value| finding["finding"].as_str().unwrap().contains("accepted in both");
        let warnings: Vec<Value> = made["findings"].as_array().unwrap().iter().filter(warned).cloned().collect();
        assert!(warnings.iter().all(|finding| finding["ok"] == true && finding["warning"] == true), "{made}");
        warnings.len()
    };
    assert_eq!((again("acme", "apexmcp"), again("other", "mine")), (0, 1), "the audience \"another\" is in both");
    settings.json(&["sso", "remove", "--org", "other", "--issuer", record["issuer"].as_str().unwrap()]);
    settings.json(&["sso", "remove", "--org", "acme", "--issuer", record["issuer"].as_str().unwrap()]);
    assert_eq!(settings.policy()["orgs"]["acme"], json!({}));
}

#[test]
fn advice_depends_on_what_a_provider_publishes() {
    let keys = json!({"keys": [public_jwk()]}).to_string();
    let discovery = "/.well-known/openid-configuration";
    let metadata = |more: Value| {
        let mut metadata = json!({"issuer": "ORIGIN", "jwks_uri": "ORIGIN/keys"});
        metadata.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        metadata.to_string()
    };
    let only = |algorithm: &str| json!({"id_token_signing_alg_values_supported": [algorithm]});
    for (more, options, proposed, warnings) in [
        (json!({}), "--audience apexmcp", json!(null), &[][..]),
        (json!({"scopes_supported": ["openid", "mcp:call"]}), "--audience apexmcp", json!(null), &[]),
        (
            json!({"scopes_supported": ["openid", "a/mcp:call"]}),
            "--audience apexmcp",
            json!(["a/mcp:call"]),
            &["--client-scope a/mcp:call"],
        ),
        (
            json!({"scopes_supported": ["openid", "email"]}),
            "--audience apexmcp",
            json!([]),
            &["its metadata names: openid email"],
        ),
        (json!({"scopes_supported": ["openid", "email"]}), "--audience apexmcp --client-scope email", json!(null), &[]),
        (json!({"scopes_supported": ["openid"]}), "--audience apexmcp --client-scope x", json!(null), &["does not name x:"]),
        (json!({"scopes_supported": ["openid"]}), "--audience apexmcp --no-client-scope", json!(null), &[]),
        (json!({}), "--audience account", json!(null), &["audience account: Keycloak"]),
        (
            json!({}),
            "--audience apexmcp --audience 1.apps.googleusercontent.com",
            json!(null),
            &["audience 1.apps.googleusercontent.com"],
        ),
        (only("RS256"), "--audience apexmcp", json!(null), &[]),
        (only("ES256"), "--audience apexmcp", json!(null), &["ES256, and the gateway accepts only RS256"]),
        (only("PS256"), "--audience apexmcp", json!(null), &["PS256, and the gateway accepts only RS256"]),
        (only("EdDSA"), "--audience apexmcp", json!(null), &["EdDSA, and the gateway accepts only RS256"]),
    ] {
        let settings = Settings::new();
        let origin = website(vec![(discovery, 200, metadata(more.clone())), ("/keys", 200, keys.clone())]);
        let arguments =
            format!("sso configure --org acme --issuer {origin} --jwks-uri {origin}/keys --allow-private-address {options}");
        let printed = settings.json(&arguments.split(' ').collect::<Vec<_>>());
        assert_eq!((&printed["saved"], &printed["proposed_client_scopes"]), (&json!(true), &proposed), "{printed}");
        let is_told = |finding: &&Value| finding["warning"] == true && !finding["finding"].to_string().contains("is not https");
        let told: Vec<&Value> = printed["findings"].as_array().unwrap().iter().filter(is_told).collect();
        assert_eq!(told.len(), warnings.len(), "{more} {options}: {told:?}");
        for part in warnings {
            assert!(told.iter().any(|finding| finding["finding"].as_str().unwrap().contains(part)), "{part}: {told:?}");
        }
    }
}

#[test]
fn a_database_without_client_scopes_is_migrated() {
    let settings = Settings::with_file();
    let url = "https://idp.example";
    let older = "ALTER TABLE identity_providers DROP COLUMN client_scopes;
        ALTER TABLE identity_providers DROP COLUMN allow_private_address; DROP TABLE identity; PRAGMA user_version = 1;
        INSERT INTO identity_providers VALUES ('acme', 'https://idp.example', 'https://idp.example/keys', '[\"a\"]', '[]', '2026-01-01T00:00:00Z');";
    let database = rusqlite::Connection::open(settings.file("test.db")).unwrap();
    let newer = "SELECT group_concat(format('DROP %s %s;', type, name), '') FROM sqlite_schema
        WHERE type = 'trigger' OR name IN ('parts', 'versions', 'key_parts', 'touched', 'api_keys_in_force', 'api_keys_by_connectors',
            'admin_tokens', 'replies', 'members', 'sign_in_links', 'sessions')";
    let newer: String = database.query_row(newer, [], |row| row.get(0)).unwrap();
    database.execute_batch(&(newer + older)).unwrap();
    let listed = settings.json(&["sso", "list", "--org", "acme"]);
    assert_eq!((&listed[0]["issuer"], &listed[0]["client_scopes"]), (&json!(url), &json!(null)));
    assert_eq!(settings.policy()["orgs"]["acme"]["identity_providers"][0]["default_scopes"], json!([]));
}

/// RFC 7519 §4.1.1: an issuer is a StringOrURI. Without a URL, there is no metadata to check.
#[test]
fn an_issuer_need_not_be_a_url() {
    let keys = json!({"keys": [public_jwk()]}).to_string();
    let origin = website(vec![("/keys", 200, keys)]);
    let settings = Settings::new();
    let jwks_uri = format!("{origin}/keys");
    for issuer in
        ["accounts.example.com", "agent@project.iam.example.com", "urn:example:idp", "did:web:idp.example#k%41y", "Our provider"]
    {
        let arguments = ["sso", "configure", "--org", "acme", "--issuer", issuer, "--jwks-uri", &jwks_uri, "--audience", "a"];
        let printed = settings.json(&[&arguments[..], &["--allow-private-address"]].concat());
        assert_eq!(printed["saved"], true, "{printed}");
        assert!(printed["findings"].to_string().contains("is not a URL"), "{printed}");
        let principal = format!("acme/idp/{}#agent-7", issuer.replace('%', "%25").replace('#', "%23").replace(' ', "%20"));
        settings.json(&["token", "revoke", "--org", "acme", "--principal", &principal]);
        let revoked = settings.policy()["orgs"]["acme"]["revoked_tokens"]["issued_before"].clone();
        assert!(revoked.get(&principal).is_some(), "{revoked}");
        let file = settings.write("exported.json", &settings.text(&["policy", "export"]));
        let checked = settings.json(&["policy", "check", &file]);
        assert_eq!((&checked["errors"], checked["notes"].to_string().contains("is not a URL")), (&json!([]), true), "{checked}");
        settings.json(&["sso", "remove", "--org", "acme", "--issuer", issuer]);
    }
    for wrong in ["", " accounts.example.com", "a b:c", "https:/idp.example.com", "1a:b"] {
        let arguments =
            ["sso", "configure", "--org", "acme", "--issuer", wrong, "--jwks-uri", &jwks_uri, "--audience", "a", "--force"];
        assert!(settings.failure(&arguments).starts_with("--issuer must be"), "{wrong}");
    }
}

#[test]
fn fetch_keys_fetches_the_key_sets_of_a_policy() {
    let settings = Settings::new();
    let elliptic = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "a"}]}).to_string();
    let with = |name: &str, value: &str| {
        let mut key = public_jwk();
        key[name] = json!(value);
        json!({ "keys": [key] }).to_string()
    };
    let origin = website(vec![
        ("/good", 200, json!({"keys": [public_jwk()]}).to_string()),
        ("/elliptic", 200, elliptic),
        ("/other-algorithm", 200, with("alg", "PS256")),
        ("/encryption", 200, with("use", "enc")),
    ]);
    for (path, part) in [
        ("/good", None),
        ("/elliptic", Some("not a key set for RS256")),
        ("/other-algorithm", Some("not a key set for RS256")),
        ("/encryption", Some("not a key set for RS256")),
        ("/absent", Some("answered 404")),
    ] {
        let provider = json!({"issuer": "https://idp", "jwks_uri": format!("{origin}{path}"), "audience": "a"});
        let document = json!({"orgs": {"acme": {"identity_providers": [provider]}}});
        let file = settings.write("document.json", &document.to_string());
        let warned = |options: &[&str]| settings.json(&[&["policy", "check", &file], options].concat())["warnings"].clone();
        let is_of_keys = |warning: &&Value| !warning["message"].as_str().unwrap().contains("is not https");
        let offline = warned(&[]);
        assert_eq!(offline.as_array().unwrap().iter().filter(is_of_keys).count(), 0, "{offline}");
        let fetched = warned(&["--fetch-keys", "--allow-private-address"]);
        let told: Vec<&Value> = fetched.as_array().unwrap().iter().filter(is_of_keys).collect();
        assert_eq!(told.len(), usize::from(part.is_some()), "{fetched}");
        assert!(told.iter().all(|it| it["path"] == "policy.orgs.acme.identity_providers[0].jwks_uri"), "{fetched}");
        assert!(told.iter().all(|it| it["message"].as_str().unwrap().contains(part.unwrap())), "{fetched}");
        let refused = warned(&["--fetch-keys"]);
        assert!(refused.to_string().contains("the key set was not fetched"), "{refused}");
    }
}

#[test]
fn only_force_saves_a_provider_without_an_address() {
    let settings = Settings::new();
    // RFC 6761 §6.4: no such name has an address.
    let url = "https://idp.invalid";
    let arguments = ["sso", "configure", "--org", "acme", "--issuer", url, "--jwks-uri", url, "--audience", "a", "--json"];
    for (force, code) in [(&[][..], 1), (&["--force"], 0)] {
        let output = settings.run(&[&arguments, force].concat());
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let unknown = |finding: &Value| {
            finding["ok"] == false && finding["finding"].to_string().contains("has no address in the DNS of this server")
        };
        assert!(printed["findings"].as_array().unwrap().iter().any(unknown), "{printed}");
        assert_eq!((output.status.code(), &printed["saved"]), (Some(code), &json!(code == 0)), "{printed}");
    }
}

#[test]
fn an_org_has_at_most_32_identity_providers() {
    let settings = Settings::new();
    settings.json(&["org", "create", "other"]);
    let run = |org: &str, number: usize| {
        let url = format!("http://127.0.0.1:1/{number}");
        let provider = ["--org", org, "--issuer", &url, "--jwks-uri", &url, "--audience", "a"];
        settings.run(&[&["sso", "configure", "--force", "--allow-private-address"][..], &provider].concat())
    };
    for number in 0..32 {
        assert!(run("acme", number).status.success(), "{number}");
    }
    let output = run("acme", 32);
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && line.contains("acme has 32 identity providers"), "{line}");
    assert!(output.stdout.is_empty(), "nothing was fetched for a provider that cannot be saved");
    assert!(run("acme", 0).status.success(), "a provider that is there can be changed");
    assert!(run("other", 32).status.success(), "another organization is not affected");
    settings.json(&["sso", "remove", "--org", "acme", "--issuer", "http://127.0.0.1:1/7"]);
    assert!(run("acme", 32).status.success());
}

#[test]
fn urls_into_the_network_of_the_operator_are_refused() {
    let settings = Settings::new();
    for host in ["kubernetes.default.svc", "metadata.google.internal", "localhost.", "intranet", "[fe80::1%25eth0]"] {
        let url = format!("https://{host}/");
        let arguments = ["sso", "configure", "--org", "acme", "--issuer", &url, "--jwks-uri", &url, "--audience", "a", "--force"];
        settings.failure(&arguments);
    }
    for authority in ["10.0.0.1:", "[::1]:", "10.0.0.1:99999", "10.0.0.1:0", "metadata.google.internal:", "idp.example.com:"] {
        let url = format!("https://{authority}/");
        let arguments = ["sso", "configure", "--org", "acme", "--issuer", &url, "--jwks-uri", &url, "--audience", "a", "--force"];
        for allowed in [&[][..], &["--allow-private-address"]] {
            let line = settings.failure(&[&arguments, allowed].concat());
            assert!(
                line.starts_with("--issuer has the authority") || line.starts_with("--issuer must be"),
                "{authority}: {line}"
            );
        }
    }
    let plain = "http://idp.example.com/";
    let arguments = ["sso", "configure", "--org", "acme", "--issuer", plain, "--jwks-uri", plain, "--audience", "a", "--force"];
    assert!(settings.failure(&arguments).contains("must be https"), "an attacker on the network could replace the keys");
    assert_eq!(settings.json(&["sso", "list", "--org", "acme"]), json!([]));
    for host in
        ["127.0.0.1", "localhost", "[::1]", "[::ffff:10.0.0.1]", "10.0.0.1:8443", "169.254.169.254", "2130706433", "0x7f.1"]
    {
        for (issuer, jwks_uri) in [(host, "192.0.2.1"), ("8.8.8.8", host)] {
            let (issuer, jwks_uri) = (format!("https://{issuer}/"), format!("https://{jwks_uri}/keys"));
            let arguments =
                ["sso", "configure", "--org", "acme", "--issuer", &issuer, "--jwks-uri", &jwks_uri, "--audience", "a", "--force"];
            let line = settings.failure(&arguments);
            assert!(line.contains("--allow-private-address"), "{line}");
        }
    }
    for (wrong, is_issuer) in
        [("ftp://idp.example.com", true), ("idp.example.com", true), ("https://user@idp.example.com", false), ("https://", false)]
    {
        let arguments =
            ["sso", "configure", "--org", "acme", "--issuer", wrong, "--jwks-uri", wrong, "--audience", "a", "--force"];
        let expected = if is_issuer { "--jwks-uri must be" } else { "--issuer must be" };
        assert!(settings.failure(&arguments).starts_with(expected), "{wrong}");
    }
}

#[test]
fn connectors_that_cannot_be_told_apart_are_refused() {
    let settings = Settings::new();
    let create = |kind: &str, connectors: &[&str]| {
        let flag = if kind == "key" { "--connector" } else { "--scope" };
        let value = |connector: &&str| if kind == "key" { (*connector).to_owned() } else { format!("mcp:call:{connector}") };
        let values: Vec<String> = connectors.iter().map(value).collect();
        let mut arguments = vec![kind, "create", "--org", "acme", "--name", "x"];
        values.iter().for_each(|value| arguments.extend([flag, value]));
        settings.run(&arguments)
    };
    assert!(create("key", &["notes", "my_files"]).status.success());
    for (kind, connectors) in [("key", &["notes_"][..]), ("client", &["notes__v2"]), ("client", &["a__b", "a"])] {
        let output = create(kind, connectors);
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && line.contains("cannot be told apart"), "{kind} {connectors:?}: {line}");
    }
    assert!(create("client", &["_notes", "files"]).status.success());
    assert_eq!(settings.policy()["orgs"]["acme"]["api_keys"].as_array().map(Vec::len), Some(1), "nothing was saved");

    let gateway = json!({"gateway": {"origin": "https://g"}, "policy": {"remote": {"cluster": "s"}}}).to_string();
    let file = settings.write("gateway.json", &gateway);
    for (connectors, is_good) in [(["notes", "notes_"], false), (["a__b", "a"], false), (["notes", "my_notes"], true)] {
        let [one, other] = connectors;
        let output = settings.run(&["policy", "check", &file, "--connector", one, "--connector", other]);
        let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(
            (output.status.success(), told.contains("cannot be told apart")),
            (is_good, !is_good),
            "{connectors:?}: {told}"
        );
    }
}

#[test]
fn policy_check_finds_errors_and_unwise_settings() {
    let settings = Settings::new();
    let hash = "ab".repeat(32);
    let idp = json!({"issuer": "https://idp", "jwks_uri": "https://idp/keys", "audience": "apexmcp"});
    let key = json!({"id": "k", "sha256": hash, "expires_at": "2099-01-01T00:00:00Z"});
    let with = |base: &Value, name: &str, value: Value| {
        let mut base = base.clone();
        base[name] = value;
        base
    };
    let without_audience = json!({"issuer": "https://idp", "jwks_uri": "https://idp/keys"});
    let org = |org: Value| json!({"orgs": {"acme": org}});
    let remote = json!({"gateway": {"origin": "https://g"}, "policy": {"remote": {"cluster": "absent", "token_env": "NOT_SET_HERE"}}, "jwks": {"https_cluster": "known"}});
    let many_providers: Vec<Value> = (0..33).map(|number| with(&idp, "issuer", json!(format!("https://idp/{number}")))).collect();
    let weak = json!({"version": "1", "signing_keys": [{"kid": "a", "private_key_pem": "x"}]});
    for (document, errors, warnings) in [
        (org(json!({"api_keys": [key], "identity_providers": [idp]})), &[][..], &[][..]),
        (org(json!({"identity_providers": [without_audience]})), &["identity_providers[0].audience: is required"], &[]),
        (org(json!({"identity_providers": [idp, idp]})), &["identity_providers[1].issuer: stands twice"], &[]),
        (
            org(json!({"identity_providers": many_providers})),
            &[],
            &["identity_providers: expected at most 32 providers, found 33"],
        ),
        (
            with(
                &with(&remote, "policy", json!({"inline": org(json!({"identity_providers": many_providers}))})),
                "jwks",
                json!({"https_cluster": "known"}),
            ),
            &["policy.inline.orgs.acme.identity_providers: expected at most 32 providers, found 33"],
            &[],
        ),
        (json!({"orgs": {"a": {"identity_providers": [idp]}, "b": {"identity_providers": [idp]}}}), &[], &["accepted in both"]),
        (
            org(json!({"identity_providers": [with(&idp, "jwks_uri", json!("http://idp/keys"))]})),
            &[],
            &["jwks_uri: is not https"],
        ),
        (
            org(json!({"identity_providers": [with(&idp, "audience", json!(["apexmcp", "account"]))]})),
            &[],
            &["audience: \"account\": Keycloak"],
        ),
        (
            org(json!({"identity_providers": [with(&idp, "audience", json!("1-a.apps.googleusercontent.com"))]})),
            &[],
            &["a client id of Google"],
        ),
        (org(json!({"identity_providers": [with(&idp, "audience", json!("https://idp/"))]})), &[], &["the issuer itself"]),
        (org(json!({"identity_providers": [with(&idp, "client_scopes", json!(["a b"]))]})), &["client_scopes[0]: expected"], &[]),
        (org(json!({"api_keys": [with(&key, "connectors", json!(["nope"]))]})), &[], &["no connector \"nope\""]),
        (
            org(json!({"api_keys": [with(&key, "connectors", json!(["notes", "notes_"]))]})),
            &[
                "connectors[0]: \"notes_\" and \"notes\" cannot be told apart",
                "connectors[1]: \"notes_\" and \"notes\" cannot be",
            ],
            &["no connector \"notes_\""],
        ),
        (
            with(
                &with(
                    &remote,
                    "policy",
                    json!({"inline": org(json!({"api_keys": [with(&key, "connectors", json!(["notes-v2", "notes"]))]}))}),
                ),
                "gateway",
                json!({"origin": "https://g", "connector_separator": "-"}),
            ),
            &["policy.inline.orgs.acme.api_keys[0].connectors[0]: \"notes-v2\" and \"notes\" cannot be told apart"],
            &["no connector \"notes-v2\""],
        ),
        (org(json!({"api_keys": [{"id": "k", "sha256": hash}]})), &[], &["never expires"]),
        (org(json!({"api_keys": [with(&key, "expires_at", json!("2020-01-01T00:00:00Z"))]})), &[], &["has passed"]),
        (org(json!({"api_keys": [with(&key, "revoked", json!(true))], "colour": 1})), &["colour: unknown field"], &[]),
        (weak, &["private_key_pem"], &[]),
        (remote.clone(), &["policy.remote.cluster: there is no cluster \"absent\""], &["token_env: is not set here"]),
        (with(&remote, "gateway", json!({"origin": "http://g"})), &["no cluster"], &["origin: is not https", "token_env"]),
        (json!({"spec": {"pluginConfig": remote}}), &["no cluster"], &["token_env"]),
        (json!({"value": remote.to_string()}), &["no cluster"], &["token_env"]),
    ] {
        let file = settings.write("document.json", &document.to_string());
        let output = settings.run(&["--json", "policy", "check", &file, "--connector", "notes", "--cluster", "known"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        for (kind, expected) in [("errors", errors), ("warnings", warnings)] {
            let found: Vec<String> = report[kind]
                .as_array()
                .unwrap()
                .iter()
                .map(|problem| format!("{}: {}", problem["path"].as_str().unwrap(), problem["message"].as_str().unwrap()))
                .collect();
            let all = found.len() == expected.len() && expected.iter().all(|part| found.iter().any(|line| line.contains(part)));
            assert!(all, "{document}: {kind} {found:?}");
        }
        assert_eq!(output.status.code(), Some(i32::from(!errors.is_empty())), "{document}");
        assert_eq!(report.get("code"), (!errors.is_empty()).then_some(&json!("check_failed")), "{document}");
        let why = if errors.is_empty() { String::new() } else { format!("apexmcp: {file}: {} errors\n", errors.len()) };
        assert_eq!(String::from_utf8(output.stderr).unwrap(), why, "{document}");
    }
    let envoy = |dynamic: Value| {
        json!({
            "static_resources": {"clusters": [{"name": "known"}], "listeners": [{"value": remote}]}, "dynamic_resources": dynamic,
        })
    };
    for (dynamic, kind) in [(json!({}), "errors"), (json!({"lds_config": {}}), "errors"), (json!({"cds_config": {}}), "warnings")]
    {
        let file = settings.write("envoy.json", &envoy(dynamic).to_string());
        let report: Value = serde_json::from_slice(&settings.run(&["--json", "policy", "check", &file]).stdout).unwrap();
        assert!(report[kind].to_string().contains("there is no cluster \\\"absent\\\""), "{kind}: {report}");
    }
    let yaml = "# ours\nversion: '1'\norgs:\n  acme:\n    api_keys:\n      - { id: k, sha256: HASH, expires_at: '2099-01-01T00:00:00Z' }\n";
    let yaml = yaml.replace("HASH", &hash);
    let plugin = "gateway: { origin: https://g }\npolicy: { inline: {} }\n";
    for text in [yaml.as_str(), plugin] {
        let file = settings.write("written.yaml", text);
        assert!(settings.text(&["policy", "check", &file]).ends_with("0 errors, 0 warnings\n"), "{text}");
        let file = settings.write("written.yaml", &format!("{text}colour: red\n"));
        let report: Value = serde_json::from_slice(&settings.run(&["--json", "policy", "check", &file]).stdout).unwrap();
        assert_eq!(report["errors"], json!([{"path": "colour", "message": "unknown field"}]), "{text}");
    }
    // The longest file, and one byte more. From the second byte on, the content is not JSON.
    for (length, part) in [(32_u64 << 20, "32.json"), ((32 << 20) + 1, "longer than 33554432 bytes")] {
        let long = settings.write("32.json", "{");
        std::fs::File::options().write(true).open(&long).unwrap().set_len(length).unwrap();
        let output = settings.run(&["policy", "check", &long]);
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        assert!(output.status.code() == Some(1) && said.contains(part), "{length}: {said}");
        assert_eq!(said.contains("1 errors"), part == "32.json", "{length}: {said}");
    }
    for (default_scopes, is_noted) in [(json!(null), true), (json!(["mcp:call"]), false), (json!([]), false)] {
        let document = org(json!({"identity_providers": [with(&idp, "default_scopes", default_scopes)]}));
        let file = settings.write("defaults.json", &document.to_string());
        let notes = settings.json(&["policy", "check", &file])["notes"].clone();
        let path = "policy.orgs.acme.identity_providers[0].default_scopes";
        let expected = if is_noted { json!(path) } else { json!(null) };
        assert_eq!((&notes[0]["path"], &notes[1]), (&expected, &json!(null)), "{document}");
        assert_eq!(settings.text(&["policy", "check", &file]).contains(&format!("note: {path}: is absent")), is_noted);
    }
    let twice = settings.write("twice.json", r#"{"orgs": {"a": {}, "a": {}}}"#);
    assert_eq!(settings.run(&["policy", "check", &twice]).status.code(), Some(1), "a repeated name");
    let broken = settings.write("broken.json", "{\"orgs\": ");
    assert_eq!(settings.run(&["policy", "check", &broken]).status.code(), Some(1));
    let nothing = settings.write("nothing.yaml", "colour: red\n");
    assert!(settings.failure(&["policy", "check", &nothing]).contains("neither a policy document"));
    let gateway = concat!(env!("CARGO_MANIFEST_DIR"), "/../envoy/envoy.yaml");
    assert!(settings.text(&["policy", "check", gateway]).ends_with("0 errors, 0 warnings\n"));
    for file in ["routes/disabled", "routes/filter-chain", "routes/metadata", "fleet-limits", "tls", "ecds/envoy"] {
        let file = format!("{}/../envoy/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
        assert_eq!(settings.json(&["policy", "check", &file])["errors"], json!([]), "{file}");
    }
    let exported = settings.write("exported.json", &settings.text(&["policy", "export"]));
    assert!(settings.text(&["policy", "check", &exported]).ends_with("0 errors, 0 warnings\n"));
}

#[test]
fn errors_in_a_file_do_not_contain_its_secrets() {
    let settings = Settings::new();
    let pem = "-----BEGIN PRIVATE KEY-----\nMIIEvQSECRET\n-----END PRIVATE KEY-----\n".replace('\n', "\n        ");
    for text in [
        format!("signing_keys:\n  - kid: a\n    private_key_pem: |\n        {pem}\n   orgs: {{}}\n"),
        "signing_keys:\n  - kid: a\n    private_key_pem: MIIEvQSECRET\n   colour: red\n".to_owned(),
        "signing_keys:\n  - kid: a\n    private_key_pem: \"MIIEvQSECRET\n".to_owned(),
        "signing_keys: MIIEvQSECRET\n".to_owned(),
        "signing_keys:\n  - MIIEvQSECRET\n".to_owned(),
        r#"{"signing_keys": [{"kid": "a", "private_key_pem": "MIIEvQSECRET" "#.to_owned(),
        r#"{"signing_keys": "MIIEvQSECRET"}"#.to_owned(),
    ] {
        let file = settings.write("secret.yaml", &text);
        let enable = ["ecds", "enable", "--template", &file, "--file", "filter.json"];
        for arguments in [&["policy", "check", &file][..], &enable] {
            for json in [&[][..], &["--json"]] {
                let output = settings.run(&[arguments, json].concat());
                let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
                assert_eq!(output.status.code(), Some(1), "{text}: {said}");
                assert!(!said.contains("SECRET") && !said.contains("PRIVATE KEY"), "{text}: {said}");
            }
        }
    }
}

#[test]
fn a_key_for_a_connector_that_no_tool_can_name_is_a_warning() {
    let settings = Settings::new();
    let made = settings.run(&["key", "create", "--org", "acme", "--name", "k", "--connector", "a__b", "--json"]);
    assert!(serde_json::from_slice::<Value>(&made.stdout).unwrap()["key"].is_string());
    let said = String::from_utf8(made.stderr).unwrap();
    assert!(made.status.success() && said.starts_with("apexmcp: warning: ") && said.contains("connector_separator"), "{said}");
    let settings = Settings::new();
    assert!(settings.run(&["key", "create", "--org", "acme", "--name", "k", "--connector", "a_b"]).stderr.is_empty());
}

#[test]
fn a_change_that_the_template_does_not_allow_is_refused_but_a_revocation_is_made() {
    let settings = Settings::with_file();
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/../envoy/ecds/filter.yaml");
    let file = settings.file("filter.json");
    settings.json(&["ecds", "enable", "--template", template, "--file", file.to_str().unwrap()]);
    let written = || std::fs::read_to_string(&file).unwrap();
    let keys = ["1", "2"].map(|name| settings.json(&["key", "create", "--org", "acme", "--name", name])["id"].clone());
    let [first, second] = keys.each_ref().map(|id| id.as_str().unwrap());
    let before = (written(), settings.policy());
    // The template has no jwks.http_cluster.
    let url = "http://127.0.0.1:1/";
    let configure = ["sso", "configure", "--org", "acme", "--issuer", url, "--jwks-uri", url, "--audience", "a"];
    let line = settings.failure(&[&configure[..], &["--force", "--allow-private-address"]].concat());
    assert!(line.starts_with("nothing was changed") && line.contains("http_cluster"), "{line}");
    assert_eq!((written(), settings.policy()), before);
    settings.json(&["key", "revoke", first]);
    assert!(!written().contains(first));

    let insert = "INSERT INTO identity_providers VALUES ('acme', ?1, ?1, '[\"a\"]', NULL, '2026-01-01T00:00:00Z', NULL, 0)";
    rusqlite::Connection::open(settings.file("test.db")).unwrap().execute(insert, [url]).unwrap();
    let output = settings.run(&["key", "revoke", second]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("the change is made"), "{said}");
    assert!(!settings.policy().to_string().contains(second), "an older error does not block a revocation");
    settings.json(&["sso", "remove", "--org", "acme", "--issuer", url]);
    assert!(!written().contains(second));
}

#[test]
fn the_filter_accepts_the_configuration_for_each_mesh() {
    let settings = Settings::empty();
    for format in ["envoy", "istio", "envoy-gateway"] {
        let arguments = ["plugin-config", "--format", format, "--origin", "https://gateway.example"];
        let file = settings.write("config.yaml", &settings.text(&arguments));
        let checked = settings.json(&["policy", "check", &file]);
        assert_eq!(checked["errors"], json!([]), "{format}");
        assert!(settings.json(&arguments).to_string().contains(r#""origin":"https://gateway.example""#), "{format}");
    }
    assert!(settings.text(&["completion", "bash"]).contains("complete -F _apexmcp"));
}

#[test]
fn the_file_for_envoy_follows_each_change() {
    let settings = Settings::with_file();
    let template = concat!(env!("CARGO_MANIFEST_DIR"), "/../envoy/ecds/filter.yaml");
    let file = settings.file("filter.json");
    let enable = ["ecds", "enable", "--template", template, "--file", file.to_str().unwrap()];
    settings.json(&enable);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    settings.write(".filter.json.new", "left by a killed command");
    let written = || -> Value {
        let response: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let plugin = response["resources"][0]["typed_config"]["config"]["configuration"]["value"].as_str().unwrap().to_owned();
        serde_json::from_str::<Value>(&plugin).unwrap()["policy"]["inline"].clone()
    };
    settings.json(&["key", "create", "--org", "acme", "--name", "k"]);
    assert_eq!(written(), settings.policy());
    let names = std::fs::read_dir(&settings.folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let others: Vec<String> = names.filter(|name| !name.starts_with("test.db") && name != "filter.json").collect();
    assert!(others.is_empty(), "beside it: {others:?}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640, "the mode stays as the operator set it");

    let copy = settings.write("template.yaml", &std::fs::read_to_string(template).unwrap());
    settings.json(&["ecds", "enable", "--template", &copy, "--file", file.to_str().unwrap()]);
    let before = std::fs::read(&file).unwrap();
    settings.write("template.yaml", &std::fs::read_to_string(template).unwrap().replace("origin:", "origins:"));
    let output = settings.run(&["--json", "key", "create", "--org", "acme", "--name", "k"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("ecds write"));
    let key: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(key["key"].is_string(), "the key is still shown");
    assert_eq!(key["code"], "ecds_not_written", "the code stands beside the members of the answer");
    assert_eq!(std::fs::read(&file).unwrap(), before, "a policy that the gateway would refuse is not written");
    std::fs::copy(template, &copy).unwrap();
    settings.json(&["ecds", "write"]);
    assert_eq!(written(), settings.policy());
    let absent = settings.file("absent/filter.json");
    assert!(
        settings
            .failure(&["ecds", "enable", "--template", template, "--file", absent.to_str().unwrap()])
            .contains("cannot be written")
    );
    settings.json(&["ecds", "write"]);
    settings.json(&["ecds", "disable"]);
    let database = settings.file("test.db");
    for other in [database.to_str().unwrap(), template] {
        let line = settings.failure(&["ecds", "enable", "--template", template, "--file", other]);
        assert!(line.contains("something else"), "{line}");
    }
    let link = settings.file("link.json");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    settings.json(&["ecds", "enable", "--template", template, "--file", link.to_str().unwrap()]);
    assert!(link.is_symlink() && written() == settings.policy(), "a link stays a link");
    settings.json(&["ecds", "disable"]);
    let before = written();
    settings.json(&["org", "create", "other"]);
    assert_eq!(written(), before);
}

#[test]
fn admin_tokens_are_shown_once_and_expire() {
    let settings = Settings::new();
    let create = ["admin-token", "create", "--name", "portal", "--role"];
    let made = settings.json(&[&create[..], &["admin", "--org", "acme", "--expires", "30d"]].concat());
    let (id, token) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    assert!(token.starts_with("apx_admin_") && token.len() == 42 && made["prefix"] == token[..14], "{made}");
    for (arguments, part) in [
        (&["operator", "--org", "acme"][..], "--org is not for operators"),
        (&["admin"], "--org is missing"),
        (&["viewer", "--org", "nope"], "no org has the name"),
        (&["operator", "--expires", "0s"], "--expires must be in the future"),
    ] {
        let line = settings.failure(&[&create[..], arguments].concat());
        assert!(line.contains(part), "{line}");
    }
    let listed = settings.text(&["admin-token", "list", "--json"]);
    assert!(listed.contains(id) && !listed.contains(token));
    assert_eq!(settings.json(&["admin-token", "revoke", id])["revoked"], true);
    assert!(settings.failure(&["admin-token", "revoke", "adm_0"]).contains("no admin token has the id"));
    let noted = settings.json(&["audit", "list", "--org", "acme"]);
    let actions: Vec<&str> = noted.as_array().unwrap().iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["org.create", "admin-token.create", "admin-token.revoke"]);
    assert!(!noted.to_string().contains(token));
    settings.text(&["org", "delete", "acme", "--yes"]);
    assert_eq!(settings.json(&["admin-token", "list"]), json!([]), "the tokens of an org end with it");
}
