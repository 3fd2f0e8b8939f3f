//! The policy of a Settings service. One thread fetches and checks the whole document, and writes it to shared data in small
//! parts. The other threads read the parts that they need.
//!
//! A worker that parsed a document of 20 MB would delay its requests by half a second, whenever one key changes. So one thread
//! parses it, preferably Envoy's main thread, which serves no requests. It cuts the document into small documents of the same
//! form: an organization without its keys, or a few dozen keys. It writes only the parts that changed. A worker reads a part
//! again only if it was written since.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::rc::Rc;

use lru::LruCache;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::check::Surroundings;
use super::raw::{Members, RawPolicy};
use super::{Org, Policy};
use crate::api_key::KeyDigest;
use crate::host::Host;
use crate::jwks::Clusters;
use crate::names::OrgName;
use crate::oauth_client::OauthClient;
use crate::principal::Principal;
use crate::problem::{self, Problem, Problems};
use crate::reason::Reason;
use crate::scope::Scope;
use crate::signing_key::SigningKey;
use crate::time::UnixTime;

/// Number of keys in one part. Such a part is parsed in a fraction of a millisecond.
const KEYS_IN_PART: usize = 64;
/// Maximum number of parts in the cache of a thread. A part that was evicted is read again.
const MAX_PARTS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// Maximum length of a document, in bytes: that of Envoy for the answer to a callout. A document with 10,000 organizations and
/// 100,000 keys has 20 MB.
pub const MAX_DOCUMENT_LENGTH: usize = 32 << 20;

const HEAD: &str = "head";
const MANIFEST: &str = "manifest";
const SIGNING: &str = "signing";
/// Prefix of names in the manifest: the next publication clears these parts.
const LEAVING: char = '~';

/// A remote policy cannot read environment variables of this Envoy. `private_key_env` is for inline policies only.
const NO_ENVIRONMENT: fn(&str) -> Option<String> = |_| None;

/// The prefix of the names of one policy in shared data. It has a version, because an old and a new module may run side by
/// side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(Box<str>);

impl Place {
    /// The place of the policy that is fetched with these settings.
    pub fn of(cluster: &str, authority: &str, path: &str) -> Self {
        let source = hex::encode(Sha256::digest(format!("{cluster}\n{authority}\n{path}")));
        Self(format!("apexmcp/policy/1/{}/", source.get(..16).unwrap_or(&source)).into())
    }

    /// The name of the value `part` in shared data.
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", self.0)
    }
}

/// The head of the policy in force, which all threads read.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Head {
    /// Grows with each publication. Zero before the first.
    generation: u64,
    /// The document's `version`.
    version: String,
}

fn org_part(org: &str) -> String {
    format!("org/{org}")
}

fn client_part(id: &str) -> String {
    format!("client/{id}")
}

/// The name of the part that has a key, for an organization with this number of key parts. The name contains the number: when
/// it changes, the old parts stay for threads that have not read the new number.
fn keys_part(org: &str, parts: usize, first_bytes: u32) -> String {
    let index = usize::try_from(first_bytes).unwrap_or(0).checked_rem(parts).unwrap_or(0);
    format!("keys/{org}/{parts}/{index}")
}

/// A document, cut into parts.
#[derive(Debug)]
pub struct Publication {
    version: String,
    /// The parts in the order in which they are written. A part comes before the parts that refer to it.
    parts: Vec<(String, String)>,
    warnings: Vec<Problem>,
    conflicts: Vec<Problem>,
}

/// A document whose records stay as they are in its text. The parts are written with the same types.
#[derive(Default, Serialize, Deserialize)]
struct Document<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    signing_keys: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Members::is_empty")]
    orgs: Members<DocumentOrg<'a>>,
}

impl<'a> Document<'a> {
    fn of_org(name: &str, org: DocumentOrg<'a>) -> Self {
        Self { orgs: Members(vec![(name.to_owned(), org)]), ..Self::default() }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct DocumentOrg<'a> {
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    api_keys: Vec<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    oauth_clients: Vec<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    identity_providers: Vec<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    revoked_tokens: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    limits: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct DocumentClient {
    client_id: Option<String>,
    #[serde(default)]
    revoked: bool,
}

#[derive(Deserialize)]
struct DocumentKey {
    sha256: Option<String>,
}

/// The members of a record that may name connectors.
#[derive(Deserialize)]
struct DocumentNames {
    connectors: Option<Vec<String>>,
    scopes: Option<Vec<String>>,
    default_scopes: Option<Vec<String>>,
}

impl Publication {
    /// Checks the whole `document`, and cuts it into parts.
    ///
    /// # Errors
    /// All problems, each with its JSON path.
    pub fn of(document: &[u8], clusters: &Clusters, separator: &str) -> Result<Self, Vec<Problem>> {
        let surroundings = &Surroundings { clusters, environment: &NO_ENVIRONMENT, separator, origin: None, is_for_many: true };
        let mut problems = Problems::default();
        let checked = problem::read::<RawPolicy>(document, &mut problems)
            .map(|raw| Policy::check(raw, "policy", surroundings, &mut problems));
        let (policy, mut warnings) = problems.conclude(checked)?;
        warnings.extend_from_slice(&policy.conflicts);
        let parts = cut(document, &policy.indistinct)
            .map_err(|error| vec![Problem { path: ".".to_owned(), message: error.to_string() }])?;
        let (version, parts) = parts;
        Ok(Self { version, parts, warnings, conflicts: policy.conflicts })
    }

    /// The document's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Warnings about a document that is nevertheless accepted.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// The warnings about records that are left out, because they name connectors that cannot be told apart.
    pub fn conflicts(&self) -> &[Problem] {
        &self.conflicts
    }

    /// Writes the parts that changed, then a new generation, which the other threads notice.
    pub fn publish(&self, place: &Place, host: &dyn Host) {
        let manifest = place.name(MANIFEST);
        let before = host.shared(&manifest).map(|shared| String::from_utf8(shared.bytes).unwrap_or_default()).unwrap_or_default();
        let names: HashSet<&str> = self.parts.iter().map(|(name, _)| name.as_str()).collect();
        let gone = before.lines().filter(|line| !names.contains(line.trim_start_matches(LEAVING)));
        // Threads that have not read the new number of key parts still read the old parts.
        let (leaving, gone): (Vec<&str>, Vec<&str>) = gone.partition(|name| {
            let org = name.strip_prefix("keys/").and_then(|rest| rest.split('/').next());
            org.is_some_and(|org| names.contains(org_part(org).as_str()))
        });
        let mut lines: Vec<String> = self.parts.iter().map(|(name, _)| name.clone()).collect();
        lines.extend(leaving.iter().map(|name| format!("{LEAVING}{name}")));
        // If this thread dies now, the next one must know the name of every part that may exist.
        let all = [lines.join("\n"), gone.join("\n")].join("\n");
        put(&manifest, all.as_bytes(), host);
        for (name, text) in &self.parts {
            put(&place.name(name), text.as_bytes(), host);
        }
        for line in gone {
            put(&place.name(line.trim_start_matches(LEAVING)), &[], host);
        }
        put(&manifest, lines.join("\n").as_bytes(), host);
        host.update(&place.name(HEAD), &mut |bytes| {
            let head: Head = serde_json::from_slice(bytes).unwrap_or_default();
            serde_json::to_vec(&Head { generation: head.generation.saturating_add(1), version: self.version.clone() }).ok()
        });
    }
}

fn put(name: &str, bytes: &[u8], host: &dyn Host) {
    host.update(name, &mut |before| (before != bytes).then(|| bytes.to_vec()));
}

/// A version, and parts by name.
type Cut = (String, Vec<(String, String)>);

/// Whether a record names one of these connectors.
fn names_one_of(connectors: &HashSet<String>, record: &RawValue) -> Result<bool, serde_json::Error> {
    let names: DocumentNames = serde_json::from_str(record.get())?;
    let scopes = names.scopes.iter().chain(&names.default_scopes).flatten();
    let mut of_scopes = scopes.filter_map(|scope| match Scope::parse(scope)? {
        Scope::Connector(connector) => Some(connector),
        Scope::AllConnectors => None,
    });
    let of_keys = names.connectors.iter().flatten();
    Ok(of_scopes.any(|connector| connectors.contains(connector.as_str()))
        || of_keys.into_iter().any(|id| connectors.contains(id)))
}

/// The records that name none of these connectors.
fn without<'a>(connectors: &HashSet<String>, records: Vec<&'a RawValue>) -> Result<Vec<&'a RawValue>, serde_json::Error> {
    let mut kept = Vec::with_capacity(records.len());
    for record in records {
        if !names_one_of(connectors, record)? {
            kept.push(record);
        }
    }
    Ok(kept)
}

/// Splits a document into parts. `indistinct` contains, by organization, the connectors that no record may name.
fn cut(document: &[u8], indistinct: &HashMap<String, HashSet<String>>) -> Result<Cut, serde_json::Error> {
    let document: Document<'_> = serde_json::from_slice(document)?;
    let (mut keys, mut orgs, mut clients) = (Vec::new(), Vec::new(), Vec::new());
    for (name, mut org) in document.orgs.0 {
        if let Some(connectors) = indistinct.get(&name) {
            org.api_keys = without(connectors, org.api_keys)?;
            org.oauth_clients = without(connectors, org.oauth_clients)?;
            org.identity_providers = without(connectors, org.identity_providers)?;
        }
        let api_keys = std::mem::take(&mut org.api_keys);
        let parts = api_keys.len().div_ceil(KEYS_IN_PART);
        let mut by_part = vec![Vec::new(); parts];
        for key in api_keys {
            let DocumentKey { sha256 } = serde_json::from_str(key.get())?;
            let digest = sha256.and_then(|hex| KeyDigest::from_hex(&hex));
            let index = digest.and_then(|digest| usize::try_from(digest.first_bytes()).ok()?.checked_rem(parts));
            if let Some(part) = index.and_then(|index| by_part.get_mut(index)) {
                part.push(key);
            }
        }
        for (index, api_keys) in by_part.into_iter().enumerate() {
            let part = DocumentOrg { api_keys, limits: org.limits, ..DocumentOrg::default() };
            let text = serde_json::to_string(&Document::of_org(&name, part))?;
            keys.push((format!("keys/{name}/{parts}/{index}"), text));
        }
        for client in &org.oauth_clients {
            let DocumentClient { client_id, revoked } = serde_json::from_str(client.get())?;
            // A revoked record counts as no record, and its id was not checked.
            clients.extend(client_id.filter(|_| !revoked).map(|id| (client_part(&id), name.clone())));
        }
        let text = serde_json::to_string(&Document::of_org(&name, org))?;
        orgs.push((org_part(&name), format!("{parts}\n{text}")));
    }
    let signing = serde_json::to_string(&Document { signing_keys: document.signing_keys, ..Document::default() })?;
    let parts = keys.into_iter().chain(orgs).chain(clients).chain([(SIGNING.to_owned(), signing)]).collect();
    Ok((document.version.unwrap_or_default(), parts))
}

/// One thread's view of the policy.
#[derive(Debug)]
pub struct RemotePolicy {
    place: Place,
    clusters: Clusters,
    separator: Box<str>,
    generation: Cell<u64>,
    head_revision: Cell<u32>,
    parts: RefCell<LruCache<String, Part>>,
}

#[derive(Debug)]
struct Part {
    /// The generation in which the part was last compared with shared data.
    generation: u64,
    revision: Option<u32>,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Nothing,
    /// The organization of a client.
    Name(Rc<str>),
    Document {
        policy: Rc<Policy>,
        /// The number of its key parts, if the part is an organization.
        key_parts: usize,
    },
}

impl RemotePolicy {
    /// A view that has read nothing yet.
    pub fn new(place: Place, clusters: Clusters, separator: Box<str>) -> Self {
        let mut parts = LruCache::unbounded();
        parts.resize(MAX_PARTS);
        let (generation, head_revision) = (Cell::default(), Cell::default());
        Self { place, clusters, separator, generation, head_revision, parts: RefCell::new(parts) }
    }

    /// Looks for a new publication. Returns its version if there is one.
    pub fn sync(&self, host: &dyn Host) -> Option<String> {
        let shared = host.shared(&self.place.name(HEAD)).filter(|shared| shared.revision != self.head_revision.get())?;
        self.head_revision.set(shared.revision);
        let head: Head = serde_json::from_slice(&shared.bytes).ok()?;
        self.generation.set(head.generation);
        Some(head.version)
    }

    /// A number that grows with each publication. Zero: nothing was published.
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    pub(super) fn signing_keys(&self, host: &dyn Host) -> Rc<[SigningKey]> {
        match self.part(SIGNING.to_owned(), host) {
            Content::Document { policy, .. } => policy.signing_keys(),
            _ => Rc::default(),
        }
    }

    pub(super) fn org(&self, name: &OrgName, host: &dyn Host) -> Option<Rc<Org>> {
        match self.part(org_part(name.as_str()), host) {
            Content::Document { policy, .. } => policy.org(name),
            _ => None,
        }
    }

    pub(super) fn oauth_client(&self, id: &str, host: &dyn Host) -> Option<Rc<OauthClient>> {
        let Content::Name(org) = self.part(client_part(id), host) else { return None };
        match self.part(org_part(&org), host) {
            Content::Document { policy, .. } => policy.oauth_client(id),
            _ => None,
        }
    }

    pub(super) fn api_key(
        &self,
        digest: &KeyDigest,
        org: &OrgName,
        now: UnixTime,
        host: &dyn Host,
    ) -> Result<Rc<Principal>, Reason> {
        let Content::Document { key_parts, .. } = self.part(org_part(org.as_str()), host) else {
            return Err(Reason::ApiKeyUnknown);
        };
        match self.part(keys_part(org.as_str(), key_parts, digest.first_bytes()), host) {
            Content::Document { policy, .. } => policy.api_key(digest, org, now),
            _ => Err(Reason::ApiKeyUnknown),
        }
    }

    fn part(&self, name: String, host: &dyn Host) -> Content {
        let generation = self.generation.get();
        let mut parts = self.parts.borrow_mut();
        let known = parts.get_mut(&name);
        if let Some(part) = known.as_ref().filter(|part| part.generation == generation) {
            return part.content.clone();
        }
        let shared = host.shared(&self.place.name(&name));
        let revision = shared.as_ref().map(|shared| shared.revision);
        if let Some(part) = known.filter(|part| part.revision == revision) {
            part.generation = generation;
            return part.content.clone();
        }
        let content = shared.map_or(Content::Nothing, |shared| self.read(&name, &shared.bytes));
        parts.put(name, Part { generation, revision, content: content.clone() });
        content
    }

    /// Parses a part. It was checked before it was published. If it still cannot be read, it is empty, and admits nobody.
    fn read(&self, name: &str, bytes: &[u8]) -> Content {
        let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty()) else { return Content::Nothing };
        if name.starts_with("client/") {
            return Content::Name(text.into());
        }
        let (key_parts, text) = match text.split_once('\n') {
            Some((number, text)) if name.starts_with("org/") => (number.parse().unwrap_or(0), text),
            _ => (0, text),
        };
        let surroundings = Surroundings {
            clusters: &self.clusters,
            environment: &NO_ENVIRONMENT,
            separator: &self.separator,
            origin: None,
            is_for_many: true,
        };
        let mut problems = Problems::default();
        let policy = problem::read::<RawPolicy>(text.as_bytes(), &mut problems)
            .map(|raw| Policy::check_part(raw, name, &surroundings, &mut problems));
        match problems.conclude(policy) {
            Ok((policy, _)) => Content::Document { policy: Rc::new(policy), key_parts },
            Err(_) => Content::Nothing,
        }
    }
}

#[cfg(test)]
mod tests;
