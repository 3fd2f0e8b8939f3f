//! Publications, their parts in shared data, and the threads that read them.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::policy::publication::Publication;
use crate::principal::Attribute;
use crate::testing::MemoryHost;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn digest_of(number: usize) -> String {
    hex::encode(Sha256::digest(number.to_string()))
}

fn key(number: usize) -> Value {
    json!({"id": format!("k{number}"), "sha256": digest_of(number)})
}

fn clusters() -> Clusters {
    Clusters { https: Some("https".into()), http: None }
}

fn place() -> Place {
    Place::of("settings", "settings", "/v1/policy")
}

#[test]
fn no_org_takes_what_is_anothers() {
    let client = json!({"client_id": "apx_client_1", "secret_sha256": [digest_of(1)], "scopes": ["mcp:call"]});
    for (member, record, problem) in
        [("api_keys", key(1), "another key"), ("oauth_clients", client, "stands twice in this policy")]
    {
        let org = json!({ member: [record] });
        let refused = |orgs: Value| {
            Publication::of(json!({ "orgs": orgs }).to_string().as_bytes(), &clusters(), "__").map(|_| ()).unwrap_err()
        };
        let problems = refused(json!({"acme": org, "other": org}));
        let is_it = |found: &Problem| found.path.starts_with("policy.orgs.other.") && found.message.contains(problem);
        assert!(problems.iter().any(is_it), "{problems:?}");
    }
}

/// A host to which policies are published, and a thread that looks things up.
struct World {
    host: MemoryHost,
    thread: RemotePolicy,
}

impl World {
    fn new() -> Self {
        Self { host: MemoryHost::default(), thread: RemotePolicy::new(place(), clusters(), "__".into()) }
    }

    fn publish(&self, orgs: &Value) -> Option<String> {
        let document = json!({"version": "1", "orgs": orgs}).to_string();
        Publication::of(document.as_bytes(), &clusters(), "__").unwrap().publish(&place(), &self.host);
        self.thread.sync(&self.host)
    }

    fn principal(&self, org: &str, number: usize) -> Option<String> {
        let digest = KeyDigest::from_hex(&digest_of(number)).unwrap();
        let principal = self.thread.api_key(&digest, &OrgName::parse(org).unwrap(), NOW, &self.host);
        principal.ok().map(|principal| principal.attribute(Attribute::Principal).to_owned())
    }

    fn org(&self, name: &str) -> Option<Rc<Org>> {
        self.thread.org(&OrgName::parse(name).unwrap(), &self.host)
    }
}

#[test]
fn what_is_published_is_found_by_every_thread() {
    let world = World::new();
    assert_eq!(world.thread.generation(), 0);
    assert_eq!(world.principal("acme", 1), None, "nothing yet");
    let client = json!({"client_id": "c1", "secret_sha256": [digest_of(0)], "scopes": ["mcp:call"]});
    let signing = json!([{"kid": "a", "private_key_pem": crate::testing::signing_key_pem()}]);
    let document = json!({"version": "7", "signing_keys": signing, "orgs": {
        "acme": {"api_keys": (0..200).map(key).collect::<Vec<_>>(), "oauth_clients": [client]},
        "other": {"api_keys": [key(1000)], "identity_providers": [{"issuer": "https://idp", "jwks_uri": "https://idp/keys", "audience": "a"}]},
    }});
    let publication = Publication::of(document.to_string().as_bytes(), &clusters(), "__").unwrap();
    publication.publish(&place(), &world.host);
    assert_eq!(world.thread.sync(&world.host).as_deref(), Some("7"));
    assert_eq!(world.thread.sync(&world.host), None, "nothing new");
    for number in 0..200 {
        assert_eq!(world.principal("acme", number), Some(format!("acme/key/k{number}")));
        assert_eq!(world.principal("other", number), None);
    }
    assert_eq!(world.principal("acme", 200), None);
    assert_eq!(world.principal("other", 1000).as_deref(), Some("other/key/k1000"));
    assert_eq!(world.principal("nobody", 1), None);
    assert!(world.org("acme").unwrap().has_clients() && world.org("other").unwrap().identity_provider("https://idp").is_some());
    assert_eq!(world.thread.oauth_client("c1", &world.host).unwrap().org.as_str(), "acme");
    assert!(world.thread.oauth_client("c2", &world.host).is_none());
    assert_eq!(world.thread.signing_keys(&world.host).len(), 1);
}

#[test]
fn what_is_taken_back_is_gone_and_what_stays_is_the_same() {
    let world = World::new();
    let keys = |numbers: std::ops::Range<usize>| numbers.map(key).collect::<Vec<_>>();
    world.publish(&json!({"acme": {"api_keys": keys(0..3)}, "other": {"api_keys": keys(10..12)}, "third": {}}));
    let (acme, other) = (world.org("acme").unwrap(), world.org("other").unwrap());
    assert_eq!(world.principal("acme", 2).as_deref(), Some("acme/key/k2"));
    let mut revoked = keys(0..3);
    revoked[2]["revoked"] = json!(true);
    world.publish(&json!({"acme": {"api_keys": revoked, "limits": {"monthly_quota": 5}}, "other": {"api_keys": keys(10..12)}}));
    assert_eq!(world.principal("acme", 2), None, "revoked");
    assert_eq!(world.principal("acme", 1).as_deref(), Some("acme/key/k1"));
    assert!(world.org("third").is_none(), "removed");
    assert!(!Rc::ptr_eq(&world.org("acme").unwrap(), &acme), "changed");
    assert!(Rc::ptr_eq(&world.org("other").unwrap(), &other), "unchanged");
    world.publish(&json!({"acme": {}}));
    assert_eq!((world.principal("acme", 1), world.principal("other", 10)), (None, None));
    world.publish(&json!({"acme": {"api_keys": keys(0..1)}}));
    assert_eq!((world.principal("acme", 0).is_some(), world.principal("acme", 1)), (true, None));
}

#[test]
fn a_thread_that_has_not_heard_yet_finds_what_it_knows_of() {
    let world = World::new();
    let keys = |count: usize| json!({"acme": {"api_keys": (0..count).map(key).collect::<Vec<_>>()}});
    world.publish(&keys(100));
    assert!(world.principal("acme", 0).is_some());
    // Another number of parts; this thread has not looked yet.
    let document = json!({"version": "2", "orgs": keys(300)}).to_string();
    Publication::of(document.as_bytes(), &clusters(), "__").unwrap().publish(&place(), &world.host);
    for number in 0..100 {
        assert!(world.principal("acme", number).is_some(), "{number}");
    }
    world.thread.sync(&world.host);
    for number in 0..300 {
        assert!(world.principal("acme", number).is_some(), "{number}");
    }
    let kept = world.host.shared(&place().name("keys/acme/5.0")).unwrap();
    assert!(!kept.bytes.is_empty());
    world.publish(&keys(301));
    let kept = world.host.shared(&place().name("keys/acme/5.0")).unwrap();
    assert!(kept.bytes.is_empty(), "one publication later nobody reads it");
}

#[test]
fn parts_are_bounded_in_length_and_in_number() {
    let world = World::new();
    let is_there = |part: &str| world.host.shared(&place().name(part)).is_some_and(|shared| !shared.bytes.is_empty());
    for (keys, first, second) in [(4, "0.0", "1.1"), (5, "1.0", "1.1")] {
        world.publish(&json!({"acme": {"api_keys": (0..keys).map(key).collect::<Vec<_>>()}}));
        assert_eq!((is_there(&format!("keys/acme/{first}")), is_there(&format!("keys/acme/{second}"))), (true, keys == 5));
    }
    for number in 0..16_385 {
        assert!(world.org(&format!("nobody-{number}")).is_none());
        assert_eq!(world.thread.parts.borrow().len(), 16_384.min(number + 1));
    }
}

#[test]
fn a_provider_whose_keys_cannot_be_fetched_here_is_left_out() {
    let world = World::new();
    let provider =
        |scheme: &str| json!({"issuer": format!("{scheme}://idp"), "jwks_uri": format!("{scheme}://idp/keys"), "audience": "a"});
    let orgs = json!({"acme": {"api_keys": [key(1)], "identity_providers": [provider("http"), provider("https")]}, "other": {"api_keys": [key(2)]}});
    let document = json!({"orgs": orgs}).to_string();
    let publication = Publication::of(document.as_bytes(), &clusters(), "__").unwrap();
    let [warning] = publication.warnings() else { panic!("{:?}", publication.warnings()) };
    assert_eq!(warning.path, "policy.orgs.acme.identity_providers[0].jwks_uri");
    publication.publish(&place(), &world.host);
    world.thread.sync(&world.host);
    let acme = world.org("acme").unwrap();
    assert!(acme.identity_provider("http://idp").is_none() && acme.identity_provider("https://idp").is_some());
    assert!(world.principal("acme", 1).is_some() && world.principal("other", 2).is_some());
}

#[test]
fn the_providers_of_an_org_beyond_the_limit_are_left_out() {
    let world = World::new();
    let provider = |number: usize| json!({"issuer": format!("https://idp/{number}"), "jwks_uri": format!("https://idp/{number}/keys"), "audience": "a"});
    let providers: Vec<Value> = (0..34).map(provider).collect();
    let orgs = json!({"acme": {"api_keys": [key(1)], "identity_providers": providers}, "other": {"api_keys": [key(2)]}});
    let document = json!({"orgs": orgs}).to_string();
    let publication = Publication::of(document.as_bytes(), &clusters(), "__").unwrap();
    let [warning] = publication.warnings() else { panic!("{:?}", publication.warnings()) };
    assert_eq!(warning.path, "policy.orgs.acme.identity_providers");
    publication.publish(&place(), &world.host);
    world.thread.sync(&world.host);
    let acme = world.org("acme").unwrap();
    let has = |number: usize| acme.identity_provider(&format!("https://idp/{number}")).is_some();
    assert!(has(0) && has(31) && !has(32) && !has(33));
    assert!(world.principal("acme", 1).is_some() && world.principal("other", 2).is_some());
}

#[test]
fn records_of_connectors_that_cannot_be_told_apart_are_left_out() {
    let world = World::new();
    let keyed = |number: u32, connectors: &[&str]| {
        let mut key = key(number as usize);
        key["connectors"] = json!(connectors);
        key
    };
    let client = |id: &str, scopes: &[&str]| json!({"client_id": id, "secret_sha256": ["0".repeat(64)], "scopes": scopes});
    let provider = |name: &str, scope: &str| json!({"issuer": format!("https://{name}"), "jwks_uri": "https://idp/keys", "audience": "a", "default_scopes": [scope]});
    let acme = json!({
        "api_keys": [keyed(1, &["notes", "files"]), keyed(2, &["files"]), key(3), keyed(4, &["notes_"])],
        "oauth_clients": [client("c1", &["mcp:call:notes_"]), client("c2", &["mcp:call:files"]), client("c3", &["mcp:call"])],
        "identity_providers": [provider("idp1", "mcp:call:notes"), provider("idp2", "mcp:call:my__files")],
    });
    let orgs =
        json!({"acme": acme, "other": {"api_keys": [keyed(5, &["notes_"])]}, "third": {"api_keys": [keyed(6, &["notes"])]}});
    let signing = json!([{"kid": "s", "private_key_pem": crate::testing::signing_key_pem()}]);
    let document = json!({"orgs": orgs, "signing_keys": signing}).to_string();
    let publication = Publication::of(document.as_bytes(), &clusters(), "__").unwrap();
    let paths: Vec<&str> = publication.conflicts().iter().map(|problem| problem.path.as_str()).collect();
    let expected = [
        "api_keys[0].connectors[0]",
        "api_keys[3].connectors[0]",
        "identity_providers[0].default_scopes[0]",
        "oauth_clients[0].scopes[0]",
    ];
    assert_eq!(paths, expected.map(|path| format!("policy.orgs.acme.{path}")));
    assert!(publication.conflicts().iter().all(|problem| publication.warnings().contains(problem)));
    // With another separator all can be told apart.
    assert!(Publication::of(document.as_bytes(), &clusters(), "--").unwrap().warnings().is_empty());
    publication.publish(&place(), &world.host);
    world.thread.sync(&world.host);
    for (org, number, is_there) in
        [("acme", 1, false), ("acme", 2, true), ("acme", 3, true), ("acme", 4, false), ("other", 5, true), ("third", 6, true)]
    {
        assert_eq!(world.principal(org, number).is_some(), is_there, "{org} {number}");
    }
    for (id, is_there) in [("c1", false), ("c2", true), ("c3", true)] {
        assert_eq!(world.thread.oauth_client(id, &world.host).is_some(), is_there, "{id}");
    }
    let acme = world.org("acme").unwrap();
    assert!(acme.identity_provider("https://idp1").is_none() && acme.identity_provider("https://idp2").is_some());
}

#[test]
fn the_limits_of_an_org_apply_to_keys_that_did_not_change() {
    let world = World::new();
    let with = |quota: u32| json!({"acme": {"api_keys": [key(1)], "limits": {"monthly_quota": quota}}});
    world.publish(&with(5));
    let digest = KeyDigest::from_hex(&digest_of(1)).unwrap();
    let limits = || {
        let principal = world.thread.api_key(&digest, &OrgName::parse("acme").unwrap(), NOW, &world.host).unwrap();
        format!("{:?}", principal.limits())
    };
    let before = limits();
    let part = || world.host.shared(&place().name("keys/acme/0.0")).unwrap().revision;
    let revision = part();
    world.publish(&with(6));
    assert_ne!(limits(), before);
    assert_eq!(part(), revision, "a change of the limits does not send the keys again");
}

#[test]
fn a_bad_document_changes_nothing() {
    let world = World::new();
    world.publish(&json!({"acme": {"api_keys": [key(1)]}}));
    for document in [
        "",
        "{",
        r#"{"orgs":{"acme":{"api_keys":[{"id":"k"}]}}}"#,
        r#"{"orgs":{"acme":{"colour":1}}}"#,
        r#"{"orgs":{"a":{},"a":{}}}"#,
    ] {
        assert!(Publication::of(document.as_bytes(), &clusters(), "__").is_err(), "{document}");
    }
    let environment = r#"{"signing_keys":[{"kid":"a","private_key_env":"HOME"}]}"#;
    assert!(Publication::of(environment.as_bytes(), &clusters(), "__").is_err(), "this Envoy's environment is not theirs");
    assert_eq!(world.thread.sync(&world.host), None);
    assert!(world.principal("acme", 1).is_some());
}
