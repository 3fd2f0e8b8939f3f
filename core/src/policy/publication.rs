//! A whole policy document, as a server of documents sends it: it is checked, and cut into the parts that threads read.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Policy;
use super::check::{Extent, Surroundings};
use super::parts::{KeyRange, OrgPart, PartName};
use super::raw::{Members, RawPolicy};
use super::store::{Place, Transfer};
use crate::api_key::KeyDigest;
use crate::host::Host;
use crate::jwks::Clusters;
use crate::problem::{self, Problem, Problems};
use crate::scope::Scope;

/// Maximum length of a document, in bytes: that of Envoy for the answer to a callout. A document with 10,000 organizations and
/// 100,000 keys has 20 MB.
pub const MAX_DOCUMENT_LENGTH: usize = 32 << 20;

/// A remote policy cannot read environment variables of this Envoy. `private_key_env` is for inline policies only.
pub(super) const NO_ENVIRONMENT: fn(&str) -> Option<String> = |_| None;

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
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Document<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub signing_keys: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub orgs: Members<DocumentOrg<'a>>,
}

impl<'a> Document<'a> {
    /// A document with one organization.
    pub fn of_org(name: &str, org: DocumentOrg<'a>) -> Self {
        Self { orgs: Members(vec![(name.to_owned(), org)]), ..Self::default() }
    }
}

/// An organization of a [`Document`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct DocumentOrg<'a> {
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub api_keys: Vec<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub oauth_clients: Vec<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub identity_providers: Vec<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub revoked_tokens: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<&'a RawValue>,
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
    #[serde(default)]
    revoked: bool,
    connectors: Option<Vec<String>>,
    scopes: Option<Vec<String>>,
}

impl Publication {
    /// Checks the whole `document`, and cuts it into parts.
    ///
    /// # Errors
    /// All problems, each with its JSON path.
    pub fn of(document: &[u8], clusters: &Clusters, separator: &str) -> Result<Self, Vec<Problem>> {
        let surroundings = &Surroundings {
            clusters,
            environment: &NO_ENVIRONMENT,
            separator,
            origin: None,
            is_for_many: true,
            extent: Extent::Whole,
        };
        let mut problems = Problems::default();
        let checked = problem::read::<RawPolicy>(document, &mut problems)
            .map(|raw| Policy::check(raw, "policy", surroundings, &mut problems));
        let (policy, mut warnings) = problems.conclude(checked)?;
        warnings.extend_from_slice(&policy.conflicts);
        let (version, parts) =
            cut(document).map_err(|error| vec![Problem { path: ".".to_owned(), message: error.to_string() }])?;
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
        let mut transfer = Transfer::from_nothing(place, host);
        transfer.write(self.parts.iter().map(|(name, text)| (name.as_str(), Some(text.as_str()))), place, host);
        transfer.finish(&self.version, place, host);
    }
}

/// A version, and parts by name.
type Cut = (String, Vec<(String, String)>);

/// Splits a document into parts.
fn cut(document: &[u8]) -> Result<Cut, serde_json::Error> {
    let document: Document<'_> = serde_json::from_slice(document)?;
    let (mut keys, mut orgs, mut clients) = (Vec::new(), Vec::new(), Vec::new());
    for (name, mut org) in document.orgs.0 {
        let mut connectors = BTreeSet::new();
        let api_keys = std::mem::take(&mut org.api_keys);
        let key_parts = KeyRange::count(u32::try_from(api_keys.len()).unwrap_or(u32::MAX));
        let mut by_range: HashMap<KeyRange, Vec<&RawValue>> = HashMap::new();
        for key in api_keys {
            let DocumentKey { sha256 } = serde_json::from_str(key.get())?;
            let digest = sha256.and_then(|hex| KeyDigest::from_hex(&hex));
            if let Some(range) = digest.and_then(|digest| KeyRange::of(digest.first_bytes(), key_parts)) {
                note_connectors(key, &mut connectors)?;
                by_range.entry(range).or_default().push(key);
            }
        }
        for range in KeyRange::all(key_parts) {
            let part = DocumentOrg { api_keys: by_range.remove(&range).unwrap_or_default(), ..DocumentOrg::default() };
            let text = serde_json::to_string(&Document::of_org(&name, part))?;
            keys.push((PartName::Keys(&name, range).to_string(), text));
        }
        let mut has_clients = false;
        for client in std::mem::take(&mut org.oauth_clients) {
            let DocumentClient { client_id, revoked } = serde_json::from_str(client.get())?;
            // A revoked record counts as no record, and its id was not checked.
            let Some(id) = client_id.filter(|_| !revoked) else { continue };
            note_connectors(client, &mut connectors)?;
            has_clients = true;
            let part = DocumentOrg { oauth_clients: vec![client], ..DocumentOrg::default() };
            clients.push((PartName::Client(&id).to_string(), serde_json::to_string(&Document::of_org(&name, part))?));
        }
        let connectors = connectors.into_iter().collect();
        let part = OrgPart { key_parts, has_clients, connectors, policy: Document::of_org(&name, org) };
        orgs.push((PartName::Org(&name).to_string(), serde_json::to_string(&part)?));
    }
    let signing = serde_json::to_string(&Document { signing_keys: document.signing_keys, ..Document::default() })?;
    let parts = keys.into_iter().chain(clients).chain(orgs).chain([(PartName::Signing.to_string(), signing)]).collect();
    Ok((document.version.unwrap_or_default(), parts))
}

/// Adds the connectors that a record in force names.
fn note_connectors(record: &RawValue, connectors: &mut BTreeSet<String>) -> Result<(), serde_json::Error> {
    let names: DocumentNames = serde_json::from_str(record.get())?;
    if names.revoked {
        return Ok(());
    }
    let of_scopes = names.scopes.iter().flatten().filter_map(|scope| match Scope::parse(scope)? {
        Scope::Connector(connector) => Some(connector.to_string()),
        Scope::AllConnectors => None,
    });
    connectors.extend(of_scopes);
    connectors.extend(names.connectors.into_iter().flatten());
    Ok(())
}
