//! Compares the pages in `docs/reference/` with the lists of this crate: each entry of a list must be on its page, and
//! nothing else. The pages of settings are compared in `config/tests.rs`.

mod page;
pub(crate) mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) use page::{Page, codes};

use crate::config::Config;
use crate::denial::Denial;
use crate::limits::Kind;
use crate::limits::local::Exceeded;
use crate::limits::standing::Standing;
use crate::mcp::call::Part;
use crate::mcp::method::{Reach, reach_of};
use crate::oauth::discovery::{Document, Endpoint};
use crate::oauth::token_endpoint::TokenError;
use crate::origin::Sharing;
use crate::path::McpPath;
use crate::policy::raw::RawPolicy;
use crate::principal::{Attribute, Method};
use crate::reason::Reason;
use crate::request::RESERVED_PREFIX;
use crate::serialized_map::SerializedMap;
use crate::testing;

fn set<T: Into<String>>(items: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    items.into_iter().map(Into::into).collect()
}

#[test]
fn every_reason_is_documented_with_its_answer() {
    let page = Page::read("reasons");
    let mut documented = BTreeSet::new();
    for (status, part) in page.sections("## ").filter(|(heading, _)| heading.parse::<u32>().is_ok()) {
        for (word, text) in part.sections("### ") {
            documented.insert((status.to_owned(), codes(word)[0].to_owned()));
            let reason = Reason::ALL.iter().find(|reason| reason.word() == codes(word)[0]).unwrap_or_else(|| panic!("{word}"));
            let reply = Denial::from(*reason).reply(None);
            let body: Value = serde_json::from_str(&reply.body).unwrap();
            let (error, description) = (body["error"].as_str().unwrap(), body["error_description"].as_str().unwrap());
            let first_line = format!("`{error}`: \"{description}\"");
            assert_eq!(text.paragraphs()[0], first_line, "{word}");
        }
    }
    let statuses =
        Reason::ALL.iter().map(|reason| (Denial::from(*reason).reply(None).status.to_string(), reason.word().to_owned()));
    assert_eq!(documented, statuses.collect());
    let misplaced: Value = serde_json::from_str(&Denial::MisplacedApiKey.reply(None).body).unwrap();
    let section = page.section("### `credential_malformed`").paragraphs().join(" ");
    assert!(section.contains(misplaced["error_description"].as_str().unwrap()), "{section}");
}

/// One error of each kind. [`number`] fails to compile if a kind is missing.
fn token_errors() -> Vec<TokenError> {
    let exceeded = Exceeded { kind: Kind::Rate, retry_after: Duration::ZERO, standing: Standing::default() };
    let errors = vec![
        TokenError::InvalidRequest(""),
        TokenError::InvalidClient { basic: false },
        TokenError::UnsupportedGrantType,
        TokenError::InvalidScope,
        TokenError::ScopeTooLong,
        TokenError::InvalidTarget,
        TokenError::TooManyAttempts(Duration::ZERO),
        TokenError::RateLimit(exceeded),
        TokenError::BodyTooLong,
        TokenError::BodyTimeout,
        TokenError::Overloaded,
        TokenError::MethodNotAllowed,
        TokenError::SigningFailed,
    ];
    let number = |error: &TokenError| match error {
        TokenError::InvalidRequest(_) => 0,
        TokenError::InvalidClient { .. } => 1,
        TokenError::UnsupportedGrantType => 2,
        TokenError::InvalidScope => 3,
        TokenError::ScopeTooLong => 4,
        TokenError::InvalidTarget => 5,
        TokenError::TooManyAttempts(_) => 6,
        TokenError::RateLimit(_) => 7,
        TokenError::BodyTooLong => 8,
        TokenError::BodyTimeout => 9,
        TokenError::Overloaded => 10,
        TokenError::MethodNotAllowed => 11,
        TokenError::SigningFailed => 12,
    };
    assert!(errors.iter().map(number).eq(0..errors.len()));
    errors
}

#[test]
fn every_error_of_the_token_endpoint_is_documented() {
    let page = Page::read("reasons");
    let items = page.section("## Errors of the token endpoint").items();
    let documented: BTreeSet<(String, String, String)> = items
        .iter()
        .map(|item| {
            let (status, rest) = item.split_once(' ').unwrap();
            let label = codes(rest.split_once(':').unwrap().0);
            (status.to_owned(), label[0].to_owned(), (*label.last().unwrap()).to_owned())
        })
        .collect();
    let expected = token_errors().into_iter().map(|error| {
        let reply = error.reply();
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        (reply.status.to_string(), error.word().to_owned(), body["error"].as_str().unwrap().to_owned())
    });
    assert_eq!(documented, expected.collect());
}

/// One endpoint of each kind.
fn endpoints() -> Vec<Endpoint> {
    let resource = McpPath::parse("/mcp/{org}").unwrap().resource(b"/mcp/acme").unwrap();
    let endpoints = vec![
        Endpoint::Token,
        Endpoint::Authorization,
        Endpoint::Document(Document::AuthorizationServer),
        Endpoint::Document(Document::OpenidConfiguration),
        Endpoint::Document(Document::Jwks),
        Endpoint::Document(Document::ProtectedResource(resource)),
    ];
    let number = |endpoint: &Endpoint| match endpoint {
        Endpoint::Token => 0,
        Endpoint::Authorization => 1,
        Endpoint::Document(Document::AuthorizationServer) => 2,
        Endpoint::Document(Document::OpenidConfiguration) => 3,
        Endpoint::Document(Document::Jwks) => 4,
        Endpoint::Document(Document::ProtectedResource(_)) => 5,
    };
    assert!(endpoints.iter().map(number).eq(0..endpoints.len()));
    endpoints
}

#[test]
fn every_endpoint_is_documented() {
    let config = json!({"gateway": {"origin": "https://gw.example"}, "policy": {"inline": {}}});
    let (config, _) = Config::parse(config.to_string().as_bytes(), &|_| None).unwrap();
    let page = Page::read("endpoints");
    let documented = page.section("## Paths that the filter answers").rows().into_iter().map(|row| {
        let (_, path) = codes(&row[0])[0].split_once(' ').unwrap().to_owned();
        let path = path.replace("<org>", "acme").replace("<connector>", "github");
        let endpoint = Endpoint::at(path.as_bytes(), &config).unwrap_or_else(|| panic!("nothing is served at {path}"));
        endpoint.word()
    });
    let expected = set(endpoints().iter().map(Endpoint::word));
    assert_eq!(set(documented), expected);
    let metrics = Page::read("metrics");
    let labels = metrics.section("### `apexmcp_endpoints`").items();
    assert_eq!(set(codes(&labels[0]).into_iter().skip(1)), expected.into_iter().chain(["preflight".to_owned()]).collect());
}

#[test]
fn every_identity_header_and_every_filter_state_is_documented() {
    let page = Page::read("headers");
    let first = |heading: &str| page.section(heading).rows().iter().map(|row| codes(&row[0])[0].to_owned()).collect::<Vec<_>>();
    assert_eq!(first("## Identity headers"), Attribute::ALL.map(|attribute| format!("{RESERVED_PREFIX}{}", attribute.word())));
    let calls = [Part::Method, Part::Name].map(Part::filter_state);
    let state = Attribute::ALL.map(Attribute::filter_state).into_iter().chain(calls).chain(["wasm.apexmcp_reason"]);
    let state = state.map(str::to_owned);
    assert_eq!(first("## Filter state"), state.collect::<Vec<_>>());
    let methods = [Method::ApiKey, Method::Oauth, Method::Byoidp].map(Method::word);
    let row = &page.section("## Identity headers").rows()[3];
    assert_eq!(codes(&row[1]), methods);
    let labels = Page::read("metrics").section("### `apexmcp_requests`").items()[2].clone();
    assert_eq!(codes(&labels)[1..], [&methods[..], &["none"]].concat());
}

#[test]
fn every_header_that_pages_may_read_is_documented() {
    let changes = Sharing::Public.changes(&SerializedMap::of::<&str, &str>(&[]).unwrap());
    let exposed = changes.into_iter().find(|(name, _)| *name == "access-control-expose-headers").unwrap().1.unwrap();
    let rows = Page::read("headers").section("## Headers for web pages").rows();
    assert_eq!(codes(&rows[1][1]), exposed.split(", ").collect::<Vec<_>>());
}

#[test]
fn the_methods_of_mcp_are_documented_with_what_they_reach() {
    let rows = Page::read("tokens").section("## Credentials for some connectors").rows();
    let reaches = [Reach::Name, Reach::Uri, Reach::Reference, Reach::List, Reach::Nothing];
    for (row, expected) in rows.iter().zip(reaches) {
        for method in codes(&row[0]) {
            assert_eq!(reach_of(method), expected, "{method}");
        }
    }
    // The other direction: the source is the only list of the methods that are not refused.
    let source = include_str!("mcp/method.rs");
    let known = source.split_once("match method {").unwrap().1.split_once("_ => Reach::Untied").unwrap().0;
    let known = set(known.split('"').skip(1).step_by(2));
    let documented = set(rows.iter().zip(reaches).flat_map(|(row, _)| codes(&row[0])));
    assert_eq!(documented, known);
}

/// The paths of the members that the page of the policy document lists, each with its text.
fn documented_members(page: &Page) -> BTreeMap<String, String> {
    let mut members = BTreeMap::new();
    for (heading, part) in page.sections("## ") {
        let prefix = match codes(heading)[..] {
            [path] => format!("{path}."),
            _ if heading == "The document" => String::new(),
            _ => continue,
        };
        for item in part.items().into_iter().filter(|item| item.starts_with('`')) {
            members.insert(format!("{prefix}{}", codes(&item)[0]), item);
        }
    }
    members
}

#[test]
fn every_member_of_the_policy_is_documented() {
    let schema = schema::of::<RawPolicy>();
    let page = Page::read("policy-document");
    let documented = documented_members(&page);
    let key_limits = "orgs.<name>.api_keys[].limits";
    let members = schema.members.iter().filter(|path| !path.starts_with(key_limits)).cloned();
    let expected: BTreeSet<String> = members.chain([key_limits, "signing_keys[]", "orgs.<name>"].map(str::to_owned)).collect();
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(codes(&documented["orgs.<name>.limits.rate.per"])[2..], schema.values["orgs.<name>.limits.rate.per"]);
}

/// The problems of a policy that is inline.
fn problems(policy: &Value) -> Vec<String> {
    let config = json!({
        "gateway": {"origin": "https://gw.example"},
        "policy": {"inline": policy},
        "jwks": {"https_cluster": "jwks_https"},
    });
    let environment = |_: &str| Some(testing::signing_key_pem().to_owned());
    let problems = Config::parse(config.to_string().as_bytes(), &environment).err().unwrap_or_default();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn the_documented_policy_is_valid_and_its_required_members_are_required() {
    let page = Page::read("policy-document");
    let policy: Value = serde_json::from_str(&page.blocks("json,policy")[0]).unwrap();
    assert_eq!(problems(&policy), Vec::<String>::new());
    let leaves = schema::leaves(&policy, |path| matches!(path, "orgs" | "orgs.<name>.revoked_tokens.issued_before"));
    // A JWK Set may have any members.
    let jwks = "orgs.<name>.oauth_clients[].jwks";
    let shown = set(leaves.iter().map(|path| if path.starts_with(jwks) { jwks } else { path }));
    let unshown: Vec<String> = schema::of::<RawPolicy>().members.into_iter().filter(|path| !shown.contains(path)).collect();
    assert_eq!(
        unshown,
        [
            "orgs.<name>.api_keys[].limits.monthly_quota",
            "orgs.<name>.api_keys[].revoked",
            "orgs.<name>.identity_providers[].revoked",
            "orgs.<name>.oauth_clients[].revoked",
            "signing_keys[].private_key_pem",
        ]
    );
    for (path, text) in documented_members(&page).into_iter().filter(|(path, _)| shown.contains(path)) {
        let mut less = policy.clone();
        let pointer = format!("/{}", path.replace("<name>", "acme-corp").replace("[]", ".0").replace('.', "/"));
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        less.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
        let is_required = problems(&less).iter().any(|problem| problem.ends_with(": is required"));
        assert_eq!(is_required, text.contains("(required"), "{path}: {:?}", problems(&less));
    }
}
