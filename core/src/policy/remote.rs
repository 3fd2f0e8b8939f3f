//! One thread's view of the policy of a Settings service.
//!
//! A worker that parsed a whole policy would delay its requests whenever one key changes. So one thread fetches the changes,
//! preferably Envoy's main thread, which serves no requests, and writes them to shared data in small parts (`store.rs`). The
//! other threads read the parts that they need, and read a part again only if it was written since.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;

use lru::LruCache;
use serde_json::value::RawValue;

use super::check::{Extent, Surroundings};
use super::parts::{KeyRange, OrgPart, PartName};
use super::publication::NO_ENVIRONMENT;
use super::raw::RawPolicy;
use super::store::{Head, Place};
use super::{Org, Policy};
use crate::api_key::KeyDigest;
use crate::host::Host;
use crate::jwks::Clusters;
use crate::names::OrgName;
use crate::oauth_client::OauthClient;
use crate::principal::Principal;
use crate::problem::{self, Problem, Problems};
use crate::reason::Reason;
use crate::signing_key::SigningKey;
use crate::time::UnixTime;

/// Maximum number of parts in the cache of a thread. A part that was evicted is read again.
const MAX_PARTS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// How the parts of a policy are read by this gateway.
#[derive(Debug)]
pub struct PartReader {
    pub clusters: Clusters,
    /// `gateway.connector_separator`
    pub separator: Box<str>,
}

/// What an operator should know about a part that is accepted.
#[derive(Debug, Default)]
pub struct Notes {
    /// Warnings.
    pub warnings: Vec<Problem>,
    /// Warnings about connectors that cannot be told apart. Records that name one of them are ignored.
    pub conflicts: Vec<Problem>,
}

/// What a part contains.
#[derive(Clone, Debug)]
enum Content {
    Nothing,
    Org {
        org: Rc<Org>,
        key_parts: u32,
    },
    /// The signing keys, or keys or clients of an organization.
    Policy(Rc<Policy>),
}

impl PartReader {
    /// Checks a part.
    ///
    /// # Errors
    /// All problems, each with its JSON path.
    pub fn check(&self, name: &str, text: &str) -> Result<Notes, Vec<Problem>> {
        // A part of an unknown kind is never read.
        let Some(kind) = PartName::parse(name) else { return Ok(Notes::default()) };
        let (_, notes) = self.read(&kind, text, None)?;
        Ok(notes)
    }

    /// Reads a part. `org` is the organization to which keys or clients belong, if it is known.
    fn read(&self, name: &PartName<'_>, text: &str, org: Option<&Org>) -> Result<(Content, Notes), Vec<Problem>> {
        let unknown = Org::default();
        match name {
            PartName::Org(org) => {
                let part: OrgPart<&RawValue> = serde_json::from_str(text)
                    .map_err(|error| vec![Problem { path: name.to_string(), message: error.to_string() }])?;
                let extent = Extent::Org { has_clients: part.has_clients, connectors: &part.connectors };
                let (policy, notes) = self.parse(name, part.policy.get(), extent)?;
                let org = OrgName::parse(org).and_then(|org| policy.org(&org));
                let missing = || vec![Problem { path: name.to_string(), message: "lacks its organization".to_owned() }];
                Ok((Content::Org { org: org.ok_or_else(missing)?, key_parts: part.key_parts }, notes))
            }
            PartName::Signing => {
                self.parse(name, text, Extent::Whole).map(|(policy, notes)| (Content::Policy(Rc::new(policy)), notes))
            }
            PartName::Client(_) | PartName::Keys(..) => {
                let extent = Extent::Of(org.unwrap_or(&unknown));
                self.parse(name, text, extent).map(|(policy, notes)| (Content::Policy(Rc::new(policy)), notes))
            }
        }
    }

    fn parse(&self, name: &PartName<'_>, text: &str, extent: Extent<'_>) -> Result<(Policy, Notes), Vec<Problem>> {
        let surroundings = Surroundings {
            clusters: &self.clusters,
            environment: &NO_ENVIRONMENT,
            separator: &self.separator,
            origin: None,
            is_for_many: true,
            extent,
        };
        let mut problems = Problems::default();
        let policy = problem::read::<RawPolicy>(text.as_bytes(), &mut problems)
            .map(|raw| Policy::check_part(raw, &name.to_string(), &surroundings, &mut problems));
        let (mut policy, warnings) = problems.conclude(policy)?;
        let conflicts = std::mem::take(&mut policy.conflicts);
        Ok((policy, Notes { warnings, conflicts }))
    }
}

/// One thread's view of the policy.
#[derive(Debug)]
pub struct RemotePolicy {
    place: Place,
    reader: PartReader,
    generation: Cell<u64>,
    head_revision: Cell<u32>,
    parts: RefCell<LruCache<String, Part>>,
}

#[derive(Debug)]
struct Part {
    /// The generation in which the part was last compared with shared data.
    generation: u64,
    revision: Option<u32>,
    /// The organization with which keys or clients were read.
    org: Option<Rc<Org>>,
    content: Content,
}

impl RemotePolicy {
    /// A view that has read nothing yet.
    pub fn new(place: Place, clusters: Clusters, separator: Box<str>) -> Self {
        let mut parts = LruCache::unbounded();
        parts.resize(MAX_PARTS);
        let (generation, head_revision) = (Cell::default(), Cell::default());
        let reader = PartReader { clusters, separator };
        Self { place, reader, generation, head_revision, parts: RefCell::new(parts) }
    }

    /// How this gateway reads parts.
    pub fn reader(&self) -> &PartReader {
        &self.reader
    }

    /// Looks for a new publication. Returns its version if there is one.
    pub fn sync(&self, host: &dyn Host) -> Option<String> {
        let shared = host.shared(&Head::name(&self.place)).filter(|shared| shared.revision != self.head_revision.get())?;
        self.head_revision.set(shared.revision);
        let head = Head::parse(&shared.bytes)?;
        self.generation.set(head.generation);
        Some(head.version)
    }

    /// A number that grows with each publication. Zero: nothing was published.
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    pub(super) fn signing_keys(&self, host: &dyn Host) -> Rc<[SigningKey]> {
        match self.part(&PartName::Signing, None, host) {
            Content::Policy(policy) => policy.signing_keys(),
            _ => Rc::default(),
        }
    }

    pub(super) fn org(&self, name: &OrgName, host: &dyn Host) -> Option<Rc<Org>> {
        Some(self.org_part(name.as_str(), host)?.0)
    }

    /// An organization, and the number of its key parts.
    fn org_part(&self, name: &str, host: &dyn Host) -> Option<(Rc<Org>, u32)> {
        match self.part(&PartName::Org(name), None, host) {
            Content::Org { org, key_parts } => Some((org, key_parts)),
            _ => None,
        }
    }

    pub(super) fn oauth_client(&self, id: &str, host: &dyn Host) -> Option<Rc<OauthClient>> {
        // The part says to which organization the client belongs.
        let Content::Policy(policy) = self.part(&PartName::Client(id), None, host) else { return None };
        let (org, _) = self.org_part(policy.oauth_client(id)?.org.as_str(), host)?;
        policy.oauth_client(id).filter(|client| !org.ignores(&client.scopes))
    }

    /// The principal of the API key with this digest in `org`.
    ///
    /// # Errors
    /// As [`Policy::api_key`].
    pub fn api_key(&self, digest: &KeyDigest, org: &OrgName, now: UnixTime, host: &dyn Host) -> Result<Rc<Principal>, Reason> {
        let (of, key_parts) = self.org_part(org.as_str(), host).ok_or(Reason::ApiKeyUnknown)?;
        let range = KeyRange::of(digest.first_bytes(), key_parts).ok_or(Reason::ApiKeyUnknown)?;
        match self.part(&PartName::Keys(org.as_str(), range), Some(&of), host) {
            Content::Policy(policy) => policy
                .api_key(digest, org, now)
                .and_then(|principal| if of.ignores(principal.scopes()) { Err(Reason::ApiKeyUnknown) } else { Ok(principal) }),
            _ => Err(Reason::ApiKeyUnknown),
        }
    }

    fn part(&self, name: &PartName<'_>, org: Option<&Rc<Org>>, host: &dyn Host) -> Content {
        let generation = self.generation.get();
        let mut parts = self.parts.borrow_mut();
        let text = name.to_string();
        let is_with = |part: &Part| match (&part.org, org) {
            (Some(of), Some(org)) => Rc::ptr_eq(of, org),
            (of, org) => of.is_none() && org.is_none(),
        };
        let known = parts.get_mut(&text).filter(|part| is_with(part));
        if let Some(part) = known.as_ref().filter(|part| part.generation == generation) {
            return part.content.clone();
        }
        let shared = host.shared(&self.place.name(&text));
        let revision = shared.as_ref().map(|shared| shared.revision);
        if let Some(part) = known.filter(|part| part.revision == revision) {
            part.generation = generation;
            return part.content.clone();
        }
        // A part was checked before it was published. If it still cannot be read, it is empty, and admits nobody.
        let bytes = shared.map(|shared| shared.bytes).unwrap_or_default();
        let content = std::str::from_utf8(&bytes).ok().filter(|text| !text.is_empty()).and_then(|text| {
            let (content, _) = self.reader.read(name, text, org.map(Rc::as_ref)).ok()?;
            Some(content)
        });
        let content = content.unwrap_or(Content::Nothing);
        parts.put(text, Part { generation, revision, org: org.cloned(), content: content.clone() });
        content
    }
}

#[cfg(test)]
mod tests;
