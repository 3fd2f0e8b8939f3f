//! Policy documents. A policy that is divided into records for all threads says the same as the whole document, even
//! after another document.

use std::collections::BTreeSet;

use apexmcp_core::api_key::KeyDigest;
use apexmcp_core::config::Config;
use apexmcp_core::jwks::Clusters;
use apexmcp_core::names::OrgName;
use apexmcp_core::policy::Policy;
use apexmcp_core::policy::publication::Publication;
use apexmcp_core::policy::remote::RemotePolicy;
use apexmcp_core::policy::source::PolicySource;
use apexmcp_core::policy::store::Place;
use apexmcp_core::principal::Principal;
use apexmcp_core::time::UnixTime;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::reader::Json;
use apexmcp_core::testing::{MemoryHost, Signatures};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// `data` is a document, or up to three documents with a line `---` between them. They are published one after the
/// other.
pub fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let clusters = Clusters { https: Some("https".to_owned()), http: Some("http".to_owned()) };
    let (host, place) = (MemoryHost::with(Signatures::Hash), Place::of("settings", "settings", "/v1/policy"));
    let remote = RemotePolicy::new(place.clone(), clusters.clone(), "__".into());
    let mut remote = PolicySource::Remote(remote);
    let mut names = Names::default();
    let mut in_force = None;
    for document in text.split("\n---\n").take(3) {
        names.note(document);
        let whole = whole(document);
        let publication = Publication::of(document.as_bytes(), &clusters, "__");
        // The nesting limit of a configuration is reached earlier than that of a document, because the document is
        // nested in it.
        if serde_json::from_str::<Value>(&inline(document)).is_ok() {
            assert_eq!(whole.is_some(), publication.is_ok(), "{:?}", publication.err());
        }
        if let Ok(publication) = publication {
            publication.publish(&place, &host);
            if let PolicySource::Remote(remote) = &mut remote {
                assert_eq!(remote.sync(&host).as_deref(), Some(publication.version()));
            }
            in_force = Some(whole);
        }
        // A refused document changes nothing.
        if let Some(Some(in_force)) = &in_force {
            names.assert_same(in_force, &remote, &host);
        }
        names.assert_apart(&remote, &host);
    }
    in_force.is_some()
}

/// The document as an inline policy of a configuration.
fn whole(document: &str) -> Option<PolicySource> {
    serde_json::from_str::<IgnoredAny>(document).ok()?;
    let (_, policy): (Config, Policy) = Config::parse(inline(document).as_bytes(), &|_| None).ok()?;
    Some(PolicySource::Inline(policy))
}

fn inline(document: &str) -> String {
    format!(
        r#"{{"gateway":{{"origin":"https://gw.example"}},"jwks":{{"https_cluster":"https","http_cluster":"http"}},"policy":{{"inline":{document}}}}}"#
    )
}

/// The names in all documents of this input.
#[derive(Default)]
pub(super) struct Names {
    orgs: Vec<String>,
    digests: Vec<String>,
    clients: Vec<String>,
    jtis: Vec<String>,
}

impl Names {
    /// Collects the names in a document.
    pub(super) fn note(&mut self, document: &str) {
        let Some(json) = Json::read(document.as_bytes()) else { return };
        let mut texts =
            |value: &Json, list: fn(&mut Self) -> &mut Vec<String>| list(self).extend(value.text().map(str::to_owned));
        for orgs in json.exactly("orgs") {
            let Json::Object(orgs) = orgs else { continue };
            for (name, org) in orgs {
                texts(&Json::Text(name.clone()), |names| &mut names.orgs);
                for key in org.exactly("api_keys").flat_map(Json::elements) {
                    key.exactly("sha256").for_each(|digest| texts(digest, |names| &mut names.digests));
                }
                for client in org.exactly("oauth_clients").flat_map(Json::elements) {
                    client.exactly("client_id").for_each(|id| texts(id, |names| &mut names.clients));
                }
                for jti in org.exactly("revoked_tokens").flat_map(|revoked| revoked.exactly("jti")).flat_map(Json::elements) {
                    texts(jti, |names| &mut names.jtis);
                }
            }
        }
    }

    /// Checks that no API key and no client belongs to two orgs.
    fn assert_apart(&self, policy: &PolicySource, host: &MemoryHost) {
        let orgs: BTreeSet<&str> = self.orgs.iter().map(String::as_str).collect();
        let orgs: Vec<OrgName> = orgs.into_iter().filter_map(OrgName::parse).collect();
        for digest in self.digests.iter().filter_map(|hex| KeyDigest::from_hex(hex)) {
            let holders = orgs.iter().filter_map(|org| Some((org, policy.api_key(&digest, org, NOW, host).ok()?)));
            let holders: Vec<_> = holders.collect();
            assert!(holders.len() <= 1 && holders.iter().all(|(org, principal)| principal.org() == *org), "{holders:?}");
        }
        for client in self.clients.iter().filter_map(|id| policy.oauth_client(id, host)) {
            assert!(orgs.contains(&client.org), "{client:?}");
        }
    }

    /// Checks that both policies say the same about all names.
    pub(super) fn assert_same(&self, whole: &PolicySource, parts: &PolicySource, host: &MemoryHost) {
        let show = |value: &dyn std::fmt::Debug| format!("{value:?}");
        assert_eq!(show(&whole.signing_keys(host)), show(&parts.signing_keys(host)));
        for org in self.orgs.iter().filter_map(|name| OrgName::parse(name)) {
            let (one, other) = (whole.org(&org, host), parts.org(&org, host));
            assert_eq!(one.is_some(), other.is_some(), "{org}");
            if let (Some(one), Some(other)) = (one, other) {
                assert_eq!(
                    (one.limits(), one.offers_oauth(), one.has_clients()),
                    (other.limits(), other.offers_oauth(), other.has_clients())
                );
                assert!(one.issuers().eq(other.issuers()));
                assert!(
                    one.issuers().all(|issuer| show(&one.identity_provider(issuer)) == show(&other.identity_provider(issuer)))
                );
                for client in &self.clients {
                    for jti in self.jtis.iter().map(String::as_str).chain(["none"]) {
                        let moments = [0, 1_700_000_000, 1_800_000_000].map(|at| Some(UnixTime::from_secs(at)));
                        for at in moments.into_iter().chain([None]) {
                            // A name in `issued_before` may be a client id or a principal.
                            for whose in [Principal::name_of_client(&org, client), client.clone()] {
                                assert_eq!(one.has_revoked(jti, &whose, at), other.has_revoked(jti, &whose, at), "{whose}");
                            }
                        }
                    }
                }
            }
            for digest in self.digests.iter().filter_map(|hex| KeyDigest::from_hex(hex)) {
                assert_eq!(whole.api_key(&digest, &org, NOW, host), parts.api_key(&digest, &org, NOW, host), "{org}");
            }
        }
        for id in &self.clients {
            assert_eq!(show(&whole.oauth_client(id, host)), show(&parts.oauth_client(id, host)), "{id}");
        }
    }
}
