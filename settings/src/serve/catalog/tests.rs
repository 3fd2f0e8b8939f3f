//! Gateways that follow a database by pages: whatever is lost, repeated or restored, they end with its policy.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use apexmcp_core::api_key::KeyDigest;
use apexmcp_core::jwks::Clusters;
use apexmcp_core::names::OrgName;
use apexmcp_core::policy::page::CONTENT_TYPE;
use apexmcp_core::policy::poll::{Next, Poller, Received};
use apexmcp_core::policy::remote::RemotePolicy;
use apexmcp_core::policy::service::RemoteSettings;
use apexmcp_core::principal::Attribute;
use apexmcp_core::testing::MemoryHost;
use apexmcp_core::time::UnixTime;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::super::published::{Published, Shared};
use super::*;
use crate::access::Actor;
use crate::clock::Moment;
use crate::database::{Database, Location};
use crate::records::api_key::{Filter, NewKey};
use crate::records::client::NewClient;
use crate::records::limits::Holder;
use crate::records::{api_key, client, limits, org, revocation, signing_key};
use crate::secret::sha256;
use crate::sql::Range;

/// What happens to the database, or to the messages of a gateway.
#[derive(Clone, Debug)]
enum Event {
    CreateOrg(u8),
    DeleteOrg(u8),
    /// A number of keys at once, with a connector or without.
    CreateKeys(u8, u8, bool),
    RevokeKeys(u8, u8),
    CreateClient(u8),
    RevokeClient(u8),
    Limit(u8, u64),
    RevokeToken(u8, u32),
    BackUp,
    Restore,
    ReplaceServer,
    /// A gateway asks, and gets the answer, nothing, or an answer to an earlier request.
    Ask(u8, Delivery),
}

#[derive(Clone, Copy, Debug)]
enum Delivery {
    Whole,
    Lost,
    Earlier,
}

fn event() -> impl Strategy<Value = Event> {
    let delivery = prop_oneof![4 => Just(Delivery::Whole), 1 => Just(Delivery::Lost), 1 => Just(Delivery::Earlier)];
    prop_oneof![
        2 => (0..3_u8).prop_map(Event::CreateOrg),
        1 => (0..3_u8).prop_map(Event::DeleteOrg),
        6 => (0..3_u8, 1..12_u8, any::<bool>()).prop_map(|(org, count, is_narrow)| Event::CreateKeys(org, count, is_narrow)),
        4 => (0..3_u8, 1..12_u8).prop_map(|(org, count)| Event::RevokeKeys(org, count)),
        2 => (0..3_u8).prop_map(Event::CreateClient),
        1 => (0..3_u8).prop_map(Event::RevokeClient),
        1 => (0..3_u8, 1..9_u64).prop_map(|(org, quota)| Event::Limit(org, quota)),
        1 => (0..3_u8, 0..9_u32).prop_map(|(org, jti)| Event::RevokeToken(org, jti)),
        1 => Just(Event::BackUp),
        1 => Just(Event::Restore),
        1 => Just(Event::ReplaceServer),
        12 => (0..2_u8, delivery).prop_map(|(gateway, delivery)| Event::Ask(gateway, delivery)),
    ]
}

fn settings() -> RemoteSettings {
    RemoteSettings {
        cluster: "settings".into(),
        authority: "settings".into(),
        path: "/v1/policy".into(),
        timeout: Duration::from_secs(5),
        interval: Duration::from_secs(2),
        long_poll: Duration::from_secs(30),
        token: None,
        usage: None,
    }
}

fn clusters() -> Clusters {
    Clusters { https: Some("https".into()), http: None }
}

struct Gateway {
    host: MemoryHost,
    poller: Poller,
    policy: RemotePolicy,
    earlier: Vec<String>,
    /// Whether it may have parts of another state than it thinks.
    is_confused: bool,
}

impl Gateway {
    fn new() -> Self {
        let policy = RemotePolicy::new(settings().place(), clusters(), "__".into());
        Self { host: MemoryHost::default(), poller: Poller::new("this"), policy, earlier: Vec::new(), is_confused: false }
    }

    /// One request and its answer. Returns whether the gateway was told that it has everything.
    fn ask(&mut self, now: UnixTime, shared: &Shared, delivery: Delivery) -> bool {
        let Some(due) = self.poller.tick(now, false, &settings(), &self.host) else { return false };
        self.poller.sent(&due, 7, now);
        let named = due.etag.as_deref().map(|etag| etag.trim_matches('"'));
        let page = shared.read().unwrap().page(named).unwrap();
        let request = self.poller.take(7).unwrap();
        let page = match delivery {
            Delivery::Whole => page,
            Delivery::Lost => {
                request.answered(None, 0, false, now, &settings(), &self.host);
                return false;
            }
            Delivery::Earlier => {
                self.is_confused = true;
                self.earlier.first().cloned().or(page)
            }
        };
        let Some(page) = page else {
            request.answered(Some(304), 0, false, now, &settings(), &self.host);
            self.is_confused = false;
            self.policy.sync(&self.host);
            return true;
        };
        assert_eq!(request.answered(Some(200), page.len(), false, now, &settings(), &self.host), Next::Publish);
        let received = Received { etag: None, content_type: Some(CONTENT_TYPE.to_owned()), body: page.as_bytes() };
        let outcome = self.poller.publish(&request, received, self.policy.reader(), now, &settings(), &self.host);
        assert!(self.is_confused || outcome.counted == Some("success"), "{:?}", outcome.log);
        self.policy.sync(&self.host);
        self.earlier.push(page);
        self.earlier.truncate(3);
        false
    }
}

impl Gateway {
    fn admits(&self, digest: &KeyDigest, org: &OrgName, now: UnixTime) -> bool {
        let found = self.policy.api_key(digest, org, now, &self.host);
        found.is_ok_and(|principal| principal.attribute(Attribute::Org) == org.as_str())
    }
}

struct World {
    folder: tempfile::TempDir,
    /// `None` while the file is replaced.
    database: Option<Database>,
    shared: Shared,
    published: Published,
    gateways: [Gateway; 2],
    now: UnixTime,
    /// The org of each key and client that ever was.
    keys: BTreeMap<String, String>,
    clients: Vec<String>,
}

fn small(catalog: Catalog) -> Shared {
    Arc::new(RwLock::new(Catalog { page_length: 700, ..catalog }))
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let actor = Actor::operator("test", Moment::now());
        let mut database = Database::create(&Location::from(&*folder.path().join("test.db")), |change| {
            signing_key::create(change, &actor, Some("a"), apexmcp_core::testing::signing_key_pem()).map(drop)
        })
        .unwrap();
        let (published, catalog) = Published::read(&mut database).unwrap();
        Self {
            folder,
            database: Some(database),
            shared: small(catalog),
            published,
            gateways: [Gateway::new(), Gateway::new()],
            now: UnixTime::from_secs(1_800_000_000),
            keys: BTreeMap::new(),
            clients: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn happen(&mut self, event: &Event) {
        self.now = self.now.plus(Duration::from_secs(60));
        let actor = &Actor::operator("test", Moment::now());
        let name = |org: &u8| ["acme", "beta", "c.d"][usize::from(*org)];
        let database = self.database.as_mut().unwrap();
        match event {
            Event::CreateOrg(number) => _ = database.change(|change| org::create(change, actor, name(number))),
            Event::DeleteOrg(number) => _ = database.change(|change| org::delete(change, actor, name(number))),
            Event::CreateKeys(number, count, is_narrow) => {
                let connectors = if *is_narrow { vec![format!("c{count}")] } else { Vec::new() };
                let new = NewKey { org: name(number), name: "k", connectors: &connectors, expires_at: None };
                let made = database.change(|change| {
                    (0..*count).map(|_| Ok(api_key::create(change, actor, &new)?.1)).collect::<Result<Vec<_>, Failure>>()
                });
                self.keys.extend(made.into_iter().flat_map(|made| made.value).map(|key| (key, name(number).to_owned())));
            }
            Event::RevokeKeys(number, count) => {
                _ = database.change(|change| {
                    let keys = api_key::list(change, actor, name(number), &Filter::default(), &Range::all())?.items;
                    let mut in_force = keys.iter().filter(|key| !key.revoked).take((*count).into());
                    in_force.try_for_each(|key| api_key::revoke(change, actor, &key.id).map(drop))
                });
            }
            Event::CreateClient(number) => {
                let new = NewClient { org: name(number), name: "c", scopes: &["mcp:call:github".to_owned()], jwks: None };
                let made = database.change(|change| Ok(client::create(change, actor, &new)?.0.client_id));
                self.clients.extend(made.map(|made| made.value));
            }
            Event::RevokeClient(number) => {
                let id = self.clients.get(usize::from(*number)).cloned().unwrap_or_default();
                _ = database.change(|change| client::revoke(change, actor, &id));
            }
            Event::Limit(number, quota) => {
                let quota = serde_json::from_value(json!({ "monthly_quota": quota })).unwrap();
                _ = database.change(|change| limits::set(change, actor, Holder::Org(name(number)), Some(&quota)));
            }
            Event::RevokeToken(number, jti) => {
                _ = database.change(|change| revocation::of_token(change, actor, name(number), &jti.to_string()));
            }
            Event::BackUp => {
                let copy = self.path("copy.db");
                let _ = std::fs::remove_file(&copy);
                let database = rusqlite::Connection::open(self.path("test.db")).unwrap();
                database.execute("VACUUM INTO ?", [copy.to_str()]).unwrap();
            }
            Event::Restore => self.restore(),
            Event::ReplaceServer => {
                let (published, catalog) = Published::read(database).unwrap();
                (self.published, self.shared) = (published, small(catalog));
            }
            Event::Ask(number, delivery) => {
                self.look();
                self.gateways[usize::from(*number)].ask(self.now, &self.shared, *delivery);
            }
        }
    }

    fn restore(&mut self) {
        let copy = self.path("copy.db");
        if !copy.exists() {
            return;
        }
        drop(self.database.take());
        let path = self.path("test.db");
        for ending in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{ending}", path.display()));
        }
        std::fs::copy(&copy, &path).unwrap();
        self.database = Some(Database::open(&Location::from(&*path)).unwrap());
    }

    /// The server looks at the database.
    fn look(&mut self) {
        self.published =
            Published::read_changes(self.database.as_mut().unwrap(), &self.shared, &self.published.database_id).unwrap();
    }

    /// All gateways ask until they have everything, and then decide as the database says.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.look();
        let document = self.database.as_mut().unwrap().read(crate::document::render).unwrap();
        let served = self.shared.read().unwrap().document().unwrap();
        let in_force: serde_json::Value = serde_json::from_str(&document).unwrap();
        prop_assert_eq!(sorted(&in_force), sorted(&serde_json::from_str(&served).unwrap()));
        let in_force: BTreeMap<&str, &str> = in_force["orgs"]
            .as_object()
            .into_iter()
            .flatten()
            .flat_map(|(name, org)| {
                org["api_keys"].as_array().into_iter().flatten().map(|key| (key["sha256"].as_str().unwrap(), name.as_str()))
            })
            .collect();
        for gateway in &mut self.gateways {
            let mut has_everything = false;
            for _ in 0..1_000 {
                self.now = self.now.plus(Duration::from_secs(60));
                has_everything = gateway.ask(self.now, &self.shared, Delivery::Whole);
                if has_everything {
                    break;
                }
            }
            prop_assert!(has_everything, "it never ends");
            prop_assert!(gateway.policy.generation() > 0);
            for (key, org) in &self.keys {
                let hash = sha256(key);
                let digest = KeyDigest::from_hex(&hash).unwrap();
                let org = OrgName::parse(org).unwrap();
                let expected = in_force.get(hash.as_str()) == Some(&org.as_str());
                prop_assert_eq!(gateway.admits(&digest, &org, self.now), expected, "{} of {}", key, org);
            }
        }
        Ok(())
    }
}

/// A document in which the order of keys and clients does not matter.
fn sorted(document: &serde_json::Value) -> serde_json::Value {
    let mut document = document.clone();
    for org in document["orgs"].as_object_mut().into_iter().flatten().map(|(_, org)| org) {
        for (member, id) in [("api_keys", "id"), ("oauth_clients", "client_id")] {
            if let Some(records) = org.get_mut(member).and_then(serde_json::Value::as_array_mut) {
                records.sort_by_key(|record| record[id].to_string());
            }
        }
    }
    document
}

#[test]
fn the_states_that_a_server_remembers_are_bounded() {
    let mut catalog = Catalog::default();
    let tag = |version: i64| (version, format!("{version:x}"));
    let changes = |version: i64| Changes { version, tags: vec![tag(version)], parts: Vec::new() };
    for version in [1, 2, KEPT_VERSIONS.saturating_add(1)] {
        catalog.apply(changes(version)).unwrap();
    }
    let since = |state: &str| catalog.page(Some(state)).unwrap().unwrap().contains("\"since\"");
    assert!(!since("1-1") && since("2-2"), "a gateway with an older state gets all parts");
    assert_eq!(catalog.tags.len(), 2);
}

/// A gateway that is in the middle of a transfer may have parts that changed since. It must not go on if a backup is restored.
#[test]
fn a_transfer_with_newer_parts_begins_again_after_a_restored_backup() {
    let part = |name: &str, version: i64| (name.to_owned(), version, Some(format!("\"{version}\"")));
    let changes = |version: i64, parts| Changes { version, tags: vec![(version, format!("{version:x}"))], parts };
    let mut catalog = Catalog { page_length: 1, ..Catalog::default() };
    catalog.apply(changes(1, ["a", "b", "c"].map(|name| part(name, 1)).into())).unwrap();
    let mut now = Catalog { page_length: 1, ..Catalog::default() };
    now.apply(changes(1, ["a", "b", "c"].map(|name| part(name, 1)).into())).unwrap();
    let next = |page: Option<String>| {
        let page: serde_json::Value = serde_json::from_str(&page.unwrap()).unwrap();
        (page["next"].as_str().unwrap().to_owned(), page.get("since").is_some())
    };
    let (first, _) = next(now.page(None).unwrap());
    assert_eq!(first, "0.1-1.a");
    assert!(next(catalog.page(Some(&first)).unwrap()).1, "nothing changed, so the restored copy can go on");
    now.apply(changes(2, vec![part("b", 2)])).unwrap();
    let (second, is_continued) = next(now.page(Some(&first)).unwrap());
    assert_eq!((second.as_str(), is_continued), ("0.1-1~2-2.b", true));
    assert!(next(now.page(Some(&second)).unwrap()).1);
    assert!(!next(catalog.page(Some(&second)).unwrap()).1, "all parts are sent again");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn gateways_end_with_the_policy_of_the_database(events in vec(event(), 1..60)) {
        let mut world = World::new();
        for (number, event) in events.iter().enumerate() {
            world.happen(event);
            if number % 20 == 19 {
                world.settle()?;
            }
        }
        world.settle()?;
    }
}
