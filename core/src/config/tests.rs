//! Every documented field, default, range and error of a plugin configuration. The file is long because the tests share one
//! list of settings.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::documents::{Page, codes, schema};
use crate::mcp::call::Part;
use serde_json::{Value, json};

fn minimal() -> Value {
    json!({"gateway": {"origin": "https://gw.example"}, "policy": {"inline": {"orgs": {}}}})
}

fn problems_of(config: &Value) -> Vec<String> {
    Config::parse(config.to_string().as_bytes(), &|_| None).err().unwrap_or_default().iter().map(Problem::to_string).collect()
}

#[test]
fn the_smallest_configuration_has_the_documented_defaults() {
    let (config, _) = Config::parse(minimal().to_string().as_bytes(), &|_| None).unwrap();
    assert_eq!(config.gateway.mcp_path, McpPath::parse("/mcp/{org}").unwrap());
    assert_eq!(config.gateway.unmatched_paths, UnmatchedPaths::Deny);
    assert_eq!(config.tokens.clock_skew, Duration::from_secs(60));
    assert_eq!(config.tokens.cache_size, 4096);
    assert_eq!(config.jwks.max_stale, Duration::from_secs(86_400));
    assert_eq!(config.forward.header_prefix, "x-apexmcp-");
    let headers: Vec<_> = config.forward.headers.iter().map(|(_, name)| name.as_str()).collect();
    let names = ["x-apexmcp-org", "x-apexmcp-principal", "x-apexmcp-subject", "x-apexmcp-method", "x-apexmcp-scope"];
    assert_eq!(headers, names);
    assert_eq!(config.forward.filter_state, Attribute::ALL);
    assert!(config.forward.strip_credentials && !config.gateway.route_metadata);
    assert_eq!(config.gateway.host_holds_bodies, None);
    assert_eq!(config.mode, Mode::Enforce);
}

#[test]
fn every_problem_is_named_at_once_with_its_path() {
    let config = json!({
        "gateway": {"origin": "gw.example/x", "mcp_path": "/mcp", "colour": "red"},
        "policy": {"inline": {"orgs": {"a/b": {}, "acme": {"api_keys": [{"id": "k", "sha256": "zz", "conectors": []}]}}}},
        "tokens": {"clock_skew": "1 fortnight"},
        "extra": 1,
    });
    let problems = problems_of(&config);
    for path in [
        "gateway.colour: unknown field",
        "policy.inline.orgs.acme.api_keys[0].conectors: unknown field",
        "extra: unknown field",
        "gateway.origin: ",
        "gateway.mcp_path: ",
        "policy.inline.orgs.a/b: ",
        "policy.inline.orgs.acme.api_keys[0].sha256: ",
        "tokens.clock_skew: ",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(path)), "{path} is not in {problems:#?}");
    }
    assert_eq!(problems.len(), 8, "{problems:#?}");
}

#[test]
fn what_does_nothing_is_warned_of() {
    let mut config = minimal();
    let key = json!({"id": "k", "sha256": "0".repeat(64), "connectors": ["notes", "my__notes"]});
    config["policy"]["inline"]["orgs"]["acme"] = json!({ "api_keys": [key] });
    let (read, _) = Config::parse(config.to_string().as_bytes(), &|_| None).unwrap();
    let warnings: Vec<String> = read.warnings.iter().map(Problem::to_string).collect();
    let expected = "policy.inline.orgs.acme.api_keys[0].connectors[1]: \"my__notes\" contains gateway.connector_separator, or ";
    assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{warnings:?}");
}

#[test]
fn connectors_that_cannot_be_told_apart_are_refused() {
    let key = |connectors: &[&str]| json!({"id": connectors.concat(), "sha256": "0".repeat(64), "connectors": connectors});
    let client = |scope: &str| json!({"client_id": "c", "secret_sha256": ["0".repeat(64)], "scopes": [scope]});
    let provider = |scope: &str| json!({"issuer": "https://idp", "jwks_uri": "https://idp/keys", "audience": "a", "default_scopes": [scope]});
    let keys = |connectors: &[&str]| json!({"api_keys": [key(connectors)]});
    for (separator, acme, path) in [
        ("__", keys(&["notes", "notes_"]), Some("api_keys[0].connectors[1]")),
        ("__", keys(&["my__notes", "my"]), Some("api_keys[0].connectors[0]")),
        ("-", keys(&["notes", "notes-v2"]), Some("api_keys[0].connectors[1]")),
        (
            "__",
            json!({"api_keys": [key(&["notes"])], "oauth_clients": [client("mcp:call:notes_")]}),
            Some("oauth_clients[0].scopes[0]"),
        ),
        (
            "__",
            json!({"identity_providers": [provider("mcp:call:a__b")], "oauth_clients": [client("mcp:call:a")]}),
            Some("identity_providers[0].default_scopes[0]"),
        ),
        ("__", keys(&["notes", "my_notes", "_notes"]), None),
        ("__", keys(&["notes_", "other"]), None),
        ("--", keys(&["notes", "notes_", "my-notes"]), None),
    ] {
        let mut config = minimal();
        config["gateway"]["connector_separator"] = json!(separator);
        config["jwks"] = json!({"https_cluster": "https"});
        config["policy"]["inline"]["orgs"]["acme"] = acme.clone();
        let environment = |_: &str| Some(crate::testing::signing_key_pem().to_owned());
        config["policy"]["inline"]["signing_keys"] = json!([{"kid": "s", "private_key_env": "KEY"}]);
        let problems = Config::parse(config.to_string().as_bytes(), &environment).err().unwrap_or_default();
        let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
        let expected = path.map(|path| format!("policy.inline.orgs.acme.{path}"));
        assert_eq!(paths, expected.iter().map(String::as_str).collect::<Vec<_>>(), "{separator} {acme}");
        assert!(problems.iter().all(|problem| problem.message.contains("cannot be told apart")), "{problems:?}");
    }
    // Each organization has connectors of its own.
    let mut config = minimal();
    let named =
        |connector: &str, digit: &str| json!({"api_keys": [{"id": "k", "sha256": digit.repeat(64), "connectors": [connector]}]});
    config["policy"]["inline"]["orgs"] = json!({"acme": named("notes", "1"), "other": named("notes_", "2")});
    assert_eq!(problems_of(&config), Vec::<String>::new());
}

#[test]
fn no_identity_provider_is_the_gateway_itself() {
    let keys = "https://gw.example/.well-known/jwks.json";
    for (issuer, is_revoked, is_told) in [
        ("https://gw.example", false, true),
        ("https://gw.example", true, false),
        ("https://gw.example/", false, false),
        ("https://idp.example", false, false),
    ] {
        let mut config = minimal();
        config["jwks"] = json!({"https_cluster": "c"});
        let provider = json!({"issuer": issuer, "jwks_uri": keys, "audience": "a", "revoked": is_revoked});
        config["policy"]["inline"]["orgs"]["acme"] = json!({"identity_providers": [provider]});
        let warnings = Config::parse(config.to_string().as_bytes(), &|_| None).expect("no error").0.warnings;
        let told: Vec<String> = warnings.iter().map(Problem::to_string).collect();
        let expected = "policy.inline.orgs.acme.identity_providers[0].issuer: is gateway.origin";
        let is_as_expected = told.len() == usize::from(is_told) && told.iter().all(|it| it.starts_with(expected));
        assert!(is_as_expected, "{issuer}: {told:?}");
    }
}

#[test]
fn an_org_has_at_most_32_identity_providers() {
    let provider = |number: usize, is_revoked: bool| {
        let url = format!("https://idp.example/{number}");
        json!({"issuer": url, "jwks_uri": url, "audience": "a", "revoked": is_revoked})
    };
    let problems = |count: usize, revoked: usize| {
        let providers: Vec<Value> = (0..count + revoked).map(|number| provider(number, number >= count)).collect();
        let mut config = minimal();
        config["jwks"] = json!({"https_cluster": "c"});
        config["policy"]["inline"]["orgs"]["acme"] = json!({"identity_providers": providers});
        let problems = Config::parse(config.to_string().as_bytes(), &|_| None).err().unwrap_or_default();
        problems.iter().map(Problem::to_string).collect::<Vec<_>>()
    };
    assert_eq!(problems(32, 10), [""; 0]);
    assert_eq!(
        problems(33, 0),
        ["policy.inline.orgs.acme.identity_providers: expected at most 32 providers, found 33: the gateway must fetch \
          the keys of each. Remove some, or move them to another organization"]
    );
}

#[test]
fn allowed_origins_are_a_list_or_an_asterisk() {
    let read = |origins: &Value| {
        let mut config = minimal();
        config["gateway"]["allowed_origins"] = origins.clone();
        let parsed = Config::parse(config.to_string().as_bytes(), &|_| None);
        parsed.map(|(config, _)| config.gateway.allowed_origins)
    };
    let own = || std::collections::BTreeSet::from(["https://gw.example".to_owned()]);
    for (origins, expected) in [
        (json!(null), AllowedOrigins::Listed(own())),
        (json!([]), AllowedOrigins::Listed(own())),
        (json!("*"), AllowedOrigins::Any),
        (json!(["*"]), AllowedOrigins::Any),
        (json!(["HTTPS://gw.example:443/"]), AllowedOrigins::Listed(own())),
    ] {
        assert_eq!(read(&origins).unwrap(), expected, "{origins}");
    }
    for (origins, expected) in [
        (json!("https://app.example"), "gateway.allowed_origins: must be a list"),
        (json!(["https://a.example", "null"]), "gateway.allowed_origins[1]: must not be null"),
        (json!(["https://*.example"]), "gateway.allowed_origins[0]: must not be a pattern"),
        (json!(["https://app.example/x"]), "gateway.allowed_origins[0]: must be scheme://host[:port]"),
        (json!([5]), "gateway.allowed_origins: "),
        (json!({}), "gateway.allowed_origins: "),
    ] {
        let problems: Vec<String> = read(&origins).unwrap_err().iter().map(Problem::to_string).collect();
        assert!(problems.len() == 1 && problems[0].starts_with(expected), "{origins}: {problems:?}");
    }
}

#[test]
fn client_scopes_are_scopes_of_rfc_6749() {
    let many = |count: usize| (0..count).map(|number| format!("s{number}")).collect::<Vec<_>>();
    for (scopes, wrong) in [
        (json!([]), None),
        (json!(["openid", "https://idp.example/scope?a=b#c", "!~"]), None),
        (json!(["s".repeat(256)]), None),
        (json!(many(16)), None),
        (json!(["s".repeat(257)]), Some("[0]")),
        (json!(many(17)), Some("")),
        (json!(["a", ""]), Some("[1]")),
        (json!(["a b"]), Some("[0]")),
        (json!(["a\"b"]), Some("[0]")),
        (json!(["a\\b"]), Some("[0]")),
        (json!(["a\r\nb"]), Some("[0]")),
        (json!(["\u{e4}"]), Some("[0]")),
        (json!("openid"), Some("")),
    ] {
        let provider = json!({"issuer": "https://idp", "jwks_uri": "https://idp/keys", "audience": "a", "client_scopes": scopes});
        let mut config = minimal();
        config["jwks"] = json!({"https_cluster": "c"});
        config["policy"]["inline"]["orgs"]["acme"] = json!({"identity_providers": [provider]});
        let problems: Vec<String> = Config::parse(config.to_string().as_bytes(), &|_| None)
            .err()
            .unwrap_or_default()
            .iter()
            .map(Problem::to_string)
            .collect();
        let expected = wrong.map(|index| format!("policy.inline.orgs.acme.identity_providers[0].client_scopes{index}: "));
        let is_expected = problems.len() == usize::from(expected.is_some())
            && problems.iter().all(|problem| expected.as_ref().is_some_and(|expected| problem.starts_with(expected)));
        assert!(is_expected, "{scopes}: {problems:?}");
    }
}

#[test]
fn the_secret_with_the_settings_token_is_checked() {
    let environment = |_: &str| Some("token".to_owned());
    for (remote, expected) in [
        (json!({"token_sds": {"name": "settings-token"}}), None),
        (json!({"token_sds": {"name": "settings-token", "sds_config": {"ads": {}}}}), None),
        (json!({"token_sds": {}}), Some("policy.remote.token_sds.name: is required")),
        (json!({"token_sds": {"name": ""}}), Some("policy.remote.token_sds.name: must be the name of a secret")),
        (json!({"token_sds": {"name": "a", "sds_config": "ads"}}), Some("policy.remote.token_sds.sds_config: ")),
        (
            json!({"token_sds": {"name": "a"}, "token_env": "A"}),
            Some("policy.remote.token_sds: cannot be combined with token_env"),
        ),
    ] {
        let mut config = minimal();
        config["policy"] = json!({"remote": remote});
        config["policy"]["remote"]["cluster"] = json!("settings");
        let problems = Config::parse(config.to_string().as_bytes(), &environment).err().unwrap_or_default();
        let is_expected = problems.len() == usize::from(expected.is_some())
            && problems.iter().all(|problem| expected.is_some_and(|expected| problem.to_string().starts_with(expected)));
        assert!(is_expected, "{remote}: {problems:?}");
    }
}

#[test]
fn limits_are_checked() {
    for (store, expected) in [
        (json!({"store": "redis"}), "limits.store: has a wrong type or value"),
        (json!({"store": "rate_limit_service"}), "limits.rate_limit_service: is required"),
        (json!({"rate_limit_service": {}}), "limits.rate_limit_service.cluster: is required"),
        (json!({"rate_limit_service": {"cluster": "c".repeat(126)}}), "limits.rate_limit_service.cluster: must be at most 125"),
        (json!({"rate_limit_service": {"cluster": "c", "timeout": "0s"}}), "limits.rate_limit_service.timeout: must be"),
        (
            json!({"rate_limit_service": {"cluster": "c", "on_error": "x"}}),
            "limits.rate_limit_service.on_error: has a wrong type or value",
        ),
    ] {
        let mut config = minimal();
        config["limits"] = store;
        let problems = problems_of(&config);
        assert!(problems.len() == 1 && problems[0].starts_with(expected), "{expected}: {problems:?}");
    }
    for (limits, expected) in [
        (json!({"rate": {"requests": 0, "per": "minute"}}), "rate.requests: must be from 1"),
        (json!({"rate": {"requests": 1, "per": "month"}}), "rate.per: has a wrong type or value"),
        (json!({"rate": {"per": "minute"}}), "rate.requests: is required"),
        (json!({"rate": {"requests": 1}}), "rate.per: is required"),
        (json!({"rate": {"requests": 1, "per": "day", "burst": 0}}), "rate.burst: must be from 1"),
        (json!({"monthly_quota": 4_294_967_296_u64}), "monthly_quota: must be from 1"),
        (json!({"rate": {"requests": 4_294_967_296_u64, "per": "day"}}), "rate.requests: must be from 1"),
        (json!({"daily_quota": 5}), "daily_quota: unknown field"),
    ] {
        for path in ["orgs.acme.limits", "orgs.acme.api_keys[0].limits"] {
            let mut config = minimal();
            let acme = &mut config["policy"]["inline"]["orgs"]["acme"];
            *acme = json!({"api_keys": [{"id": "k", "sha256": "0".repeat(64)}]});
            let holder = if path.contains("keys") { &mut acme["api_keys"][0] } else { acme };
            holder["limits"] = limits.clone();
            let problems = problems_of(&config);
            let expected = format!("policy.inline.{path}.{expected}");
            assert!(problems.len() == 1 && problems[0].starts_with(&expected), "{expected}: {problems:?}");
        }
    }
}

/// The paths of all settings. The members of an inline policy have a page of their own.
fn settings() -> schema::Schema {
    let schema::Schema { members, values } = schema::of::<RawConfig>();
    let is_setting = |path: &String| !path.starts_with("policy.inline.");
    let members = members.into_iter().filter(is_setting).chain(["policy.inline".to_owned()]).collect();
    schema::Schema { members, values: values.into_iter().filter(|(path, _)| is_setting(path)).collect() }
}

/// The sections of the page, by the path of their setting.
fn documented() -> BTreeMap<String, Page> {
    let page = Page::read("configuration");
    let sections = page.sections("### ").map(|(heading, text)| (codes(heading)[0].to_owned(), text));
    sections.collect()
}

#[test]
fn every_setting_is_documented_with_its_values() {
    let (schema, documented) = (settings(), documented());
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), schema.members);
    for (path, page) in documented {
        let facts = page.paragraphs()[0].clone();
        let values = facts.split_once("Values: ").map(|(_, rest)| codes(rest.split_once('.').unwrap().0)).unwrap_or_default();
        let expected = schema.values.get(&path).cloned().unwrap_or_default();
        assert_eq!(values, expected, "{path}");
    }
}

#[test]
fn documented_defaults_are_the_defaults() {
    let mut without = Vec::new();
    for (path, page) in documented() {
        let facts = page.paragraphs()[0].clone();
        let Some(default) = facts.strip_prefix("Default: `").and_then(|rest| rest.split('`').next()) else {
            without.push(path);
            continue;
        };
        let mut config = json!({"gateway": {"origin": "https://gw.example"}, "policy": {"remote": {"cluster": "settings"}}});
        if path.starts_with("limits.rate_limit_service.") {
            config["limits"] = json!({"store": "rate_limit_service", "rate_limit_service": {"cluster": "c"}});
        }
        if path.starts_with("policy.remote.usage.") {
            config["policy"]["remote"]["usage"] = json!({"token_env": "TOKEN"});
        }
        let environment = |name: &str| (name == "TOKEN").then(|| "token".to_owned());
        let read = |config: &Value| format!("{:?}", Config::parse(config.to_string().as_bytes(), &environment).unwrap().0);
        let expected = read(&config);
        let member = path.split('.').fold(&mut config, |object, name| &mut object[name]);
        *member = serde_json::from_str(default).unwrap_or_else(|_| json!(default));
        assert_eq!(read(&config), expected, "{path}");
    }
    let expected = [
        "gateway.host_holds_bodies",
        "gateway.origin",
        "jwks.http_cluster",
        "jwks.https_cluster",
        "limits.rate_limit_service.cluster",
        "policy.inline",
        "policy.remote.authority",
        "policy.remote.cluster",
        "policy.remote.token_env",
        "policy.remote.token_sds.name",
        "policy.remote.token_sds.sds_config",
        "policy.remote.usage.token_env",
    ];
    assert_eq!(without, expected);
}

#[test]
fn the_documented_configuration_is_valid_and_has_every_setting() {
    let blocks = Page::read("configuration").blocks("json,configuration");
    let config: Value = serde_json::from_str(&blocks[0]).unwrap();
    let environment = |name: &str| ["APEXMCP_SETTINGS_TOKEN", "APEXMCP_USAGE_TOKEN"].contains(&name).then(|| "token".to_owned());
    assert_eq!(Config::parse(config.to_string().as_bytes(), &environment).err(), None);
    let mut shown = schema::leaves(&config, |_| false);
    // The others of these alternatives are shown.
    let alternatives = ["policy.inline", "policy.remote.token_sds.name", "policy.remote.token_sds.sds_config"];
    shown.extend(alternatives.map(str::to_owned));
    assert_eq!(shown, settings().members);
}

#[test]
fn a_secret_in_a_wrong_place_is_not_repeated() {
    let pem = "-----BEGIN PRIVATE KEY-----\nSECRET";
    let org = |org: Value| json!({"orgs": {"acme": org}});
    for policy in [
        json!({"signing_keys": pem}),
        json!({"signing_keys": [{"kid": "k", "private_key_env": pem}]}),
        json!({"signing_keys": [{"kid": "k", "private_key_pem": pem}]}),
        json!({"signing_keys": [pem]}),
        org(json!({"api_keys": ["SECRET"]})),
        org(json!({"api_keys": [{"id": "k", "sha256": "SECRET"}]})),
        org(json!({"api_keys": [{"id": "k", "sha256": "0".repeat(64), "expires_at": "SECRET"}]})),
        org(json!({"api_keys": [{"id": "k", "sha256": "0".repeat(64), "revoked": "SECRET"}]})),
        org(json!({"oauth_clients": [{"client_id": "a", "secret_sha256": "SECRET", "scopes": []}]})),
        org(json!({"oauth_clients": [{"client_id": "a", "secret_sha256": ["SECRET"], "scopes": ["SECRET"]}]})),
    ] {
        let mut config = minimal();
        config["policy"]["inline"] = policy.clone();
        let problems = problems_of(&config);
        assert!(!problems.is_empty() && !problems.iter().any(|problem| problem.contains("SECRET")), "{policy}: {problems:?}");
    }
}

#[test]
fn names_neither_break_a_line_nor_deceive_its_reader() {
    for mark in ["\n", "\r", "\u{1b}[2K", "\u{7f}", "\u{202e}", "\u{2066}", "\u{200b}", "\u{2028}", "\u{feff}"] {
        let policy = json!({
            "signing_keys": [{"kid": format!("k{mark}"), "private_key_pem": "x"}],
            "orgs": {
                format!("zz{mark}"): {},
                "acme": {
                    "api_keys": [{"id": format!("k{mark}"), "name": format!("n{mark}"), "sha256": "0".repeat(64)}],
                    "oauth_clients": [
                        {"client_id": format!("c{mark}"), "name": format!("n{mark}"), "secret_sha256": ["0".repeat(64)], "scopes": []},
                    ],
                    "identity_providers": [
                        {"issuer": format!("https://idp/{mark}"), "jwks_uri": format!("https://idp/{mark}"), "audience": "a"},
                    ],
                    "revoked_tokens": {"issued_before": {format!("c{mark}"): "never"}},
                    format!("f{mark}"): 1,
                },
            },
        });
        let mut config = minimal();
        config["policy"]["inline"] = policy;
        config["gateway"]["token_path"] = json!(format!("/t{mark}"));
        config["jwks"] = json!({"https_cluster": "c"});
        let problems = problems_of(&config);
        for path in [
            "gateway.token_path",
            "signing_keys[0].kid",
            "orgs.zz",
            "orgs.acme.api_keys[0].id",
            "orgs.acme.oauth_clients[0].client_id",
            "orgs.acme.identity_providers[0].issuer",
            "orgs.acme.identity_providers[0].jwks_uri",
            "orgs.acme.revoked_tokens.issued_before.c",
            "orgs.acme.f",
        ] {
            let is_at = |problem: &String| problem.trim_start_matches("policy.inline.").starts_with(path);
            assert_eq!(problems.iter().filter(|problem| is_at(problem)).count(), 1, "{mark:?} {path}: {problems:#?}");
        }
        assert!(problems.iter().flat_map(|problem| problem.chars()).all(crate::names::is_plain), "{problems:#?}");
    }
    let kid = |length: usize| json!([{"kid": "k".repeat(length), "private_key_pem": crate::testing::signing_key_pem()}]);
    for (length, is_refused) in [(256, false), (257, true)] {
        let mut config = minimal();
        config["policy"]["inline"]["signing_keys"] = kid(length);
        assert_eq!(problems_of(&config).len(), usize::from(is_refused), "{length}");
    }
}

#[test]
fn wrong_types_and_missing_parts_are_located() {
    for (config, path) in [
        (json!({}), "gateway: is required"),
        (json!({"gateway": {}, "policy": {"inline": {}}}), "gateway.origin: is required"),
        (json!({"gateway": {"origin": "https://a"}, "policy": {}}), "policy: needs either inline or remote"),
        (json!({"gateway": {"origin": 7}}), "gateway.origin: has a wrong type or value, expected a string"),
        (
            json!({"gateway": {"unmatched_paths": "maybe"}}),
            "gateway.unmatched_paths: has a wrong type or value, expected `deny` or `allow`",
        ),
        (json!([]), ".: "),
    ] {
        let problems = problems_of(&config);
        assert!(problems.iter().any(|problem| problem.starts_with(path)), "{path}: {problems:?}");
    }
    for (section, key, value) in [
        ("jwks", "timeout", json!("500us")),
        ("jwks", "refetch_cooldown", json!("0s")),
        ("jwks", "max_stale", json!("1s")),
        ("jwks", "refresh_interval", json!("10ms")),
        ("tokens", "clock_skew", json!("1h")),
        ("tokens", "cache_size", json!(-1)),
        ("forward", "header_prefix", json!("X-")),
        ("forward", "header_prefix", json!("x-")),
        ("gateway", "connector_separator", json!("")),
        ("gateway", "connector_separator", json!("a b")),
    ] {
        let problems = problems_with(section, key, &value);
        assert!(problems.iter().all(|problem| problem.starts_with(&format!("{section}.{key}: "))), "{problems:?}");
        assert_eq!(problems.len(), 1, "{section}.{key}");
    }
}

/// The problems of the smallest configuration with this member.
fn problems_with(section: &str, key: &str, value: &Value) -> Vec<String> {
    let mut config = minimal();
    let object = section.split('.').fold(&mut config, |object, name| &mut object[name]);
    if object.is_null() {
        *object = json!({});
    }
    object[key] = value.clone();
    if section == "policy.remote" {
        config["policy"].as_object_mut().unwrap().remove("inline");
        config["policy"]["remote"]["cluster"] = json!("c");
    }
    if section == "limits.rate_limit_service" {
        config["limits"]["rate_limit_service"]["cluster"] = json!("c");
    }
    problems_of(&config)
}

#[test]
fn ranges_end_where_they_are_said_to() {
    let documented = documented();
    for (section, key, good, bad) in [
        ("jwks", "timeout", json!("1ms"), json!("999us")),
        ("jwks", "timeout", json!("60s"), json!("60s 1ms")),
        ("jwks", "refresh_interval", json!("1s"), json!("999ms")),
        ("jwks", "refetch_cooldown", json!("1ms"), json!("999us")),
        ("jwks", "max_stale", json!("5m"), json!("4m 59s")),
        ("tokens", "clock_skew", json!("10m"), json!("10m 1s")),
        ("tokens", "ttl", json!("1s"), json!("999ms")),
        ("tokens", "ttl", json!("1d"), json!("1d 1s")),
        ("tokens", "cache_size", json!(1_000_000), json!(1_000_001)),
        ("gateway", "connector_separator", json!("_".repeat(16)), json!("_".repeat(17))),
        ("policy.remote", "timeout", json!("1ms"), json!("999us")),
        ("policy.remote", "interval", json!("100ms"), json!("99ms")),
        ("limits.rate_limit_service", "timeout", json!("1ms"), json!("999us")),
    ] {
        assert_eq!(problems_with(section, key, &good), Vec::<String>::new(), "{section}.{key} {good}");
        let problems = problems_with(section, key, &bad);
        assert!(matches!(&problems[..], [only] if only.starts_with(&format!("{section}.{key}: "))), "{bad}: {problems:?}");
        let facts = documented[&format!("{section}.{key}")].paragraphs()[0].clone();
        let end = good.as_str().map_or_else(|| good.to_string(), str::to_owned);
        assert!(key == "connector_separator" || codes(&facts).contains(&end.as_str()), "{section}.{key} {end}: {facts}");
    }
}

#[test]
fn identity_headers_and_filter_state_can_be_chosen() {
    let with = |forward: Value| {
        let mut config = minimal();
        config["forward"] = forward;
        config
    };
    let chosen = with(json!({"header_prefix": "x-tenant-", "headers": ["subject", "org"], "filter_state": []}));
    let (config, _) = Config::parse(chosen.to_string().as_bytes(), &|_| None).unwrap();
    let headers = [(Attribute::Subject, "x-tenant-subject".to_owned()), (Attribute::Org, "x-tenant-org".to_owned())];
    assert_eq!(config.forward.headers, headers);
    assert_eq!(config.forward.filter_state, []);
    let calls = with(json!({"filter_state": ["mcp_name", "org", "mcp_method"]}));
    let (config, _) = Config::parse(calls.to_string().as_bytes(), &|_| None).unwrap();
    assert_eq!((config.forward.filter_state, config.forward.call), (vec![Attribute::Org], vec![Part::Name, Part::Method]));

    let wrong = "has a wrong type or value, expected one of `org`, `principal`, `subject`, `method`, `scope`";
    for (forward, problem) in [
        (json!({"headers": ["org", "scope", "org"]}), "forward.headers[2]: repeats \"org\": remove it".to_owned()),
        (json!({"filter_state": ["method", "method"]}), "forward.filter_state[1]: repeats \"method\": remove it".to_owned()),
        (
            json!({"filter_state": ["mcp_name", "mcp_name"]}),
            "forward.filter_state[1]: repeats \"mcp_name\": remove it".to_owned(),
        ),
        (json!({"filter_state": ["reason"]}), format!("forward.filter_state[0]: {wrong}, `mcp_method`, `mcp_name`")),
        (json!({"headers": ["Org"]}), format!("forward.headers[0]: {wrong}")),
    ] {
        let problems = problems_of(&with(forward));
        assert!(problems.len() == 1 && problems[0].starts_with(&problem), "{problem}: {problems:?}");
    }
}

#[test]
fn origins() {
    for (text, origin) in [
        ("https://gw.example", Some("https://gw.example")),
        ("http://127.0.0.1:10000/", Some("http://127.0.0.1:10000")),
        ("htTps://GW.Example:443", Some("https://gw.example")),
        ("http://gw.example:80", Some("http://gw.example")),
        ("http://[::FFFF]:443/", Some("http://[::ffff]:443")),
        ("https://gw.example:", None),
        ("https://gw.example:65536", None),
        ("https://:443", None),
        ("https://gw.example/path", None),
        ("https://gw.example?q", None),
        ("https://gw.example#f", None),
        ("https://user@gw.example", None),
        ("ftp://gw.example", None),
        ("gw.example", None),
        ("", None),
    ] {
        assert_eq!(parse_origin(text).ok().as_deref(), origin, "{text}");
    }
}

#[test]
fn duplicate_members_are_refused() {
    for text in [
        r#"{"gateway":{"origin":"https://a","origin":"https://b"},"policy":{"inline":{}}}"#,
        r#"{"gateway":{"origin":"https://a"},"policy":{"inline":{"orgs":{"a":{},"a":{}}}}}"#,
    ] {
        let problems = Config::parse(text.as_bytes(), &|_| None).err().unwrap();
        assert!(problems.iter().any(|problem| problem.message.contains("duplicate")), "{problems:?}");
    }
}
