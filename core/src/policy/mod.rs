//! The checked policy: organizations with their API keys, clients and identity providers, indexed for look-ups. It decides
//! nothing by itself.

pub mod check;
pub mod issuer;
pub mod page;
pub mod parts;
pub mod poll;
pub mod publication;
pub mod raw;
pub mod remote;
pub mod service;
pub mod source;
pub mod store;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use crate::api_key::KeyDigest;
use crate::jwks::JwksUri;
use crate::limits::Subjects;
use crate::names::OrgName;
use crate::oauth_client::OauthClient;
use crate::principal::Principal;
use crate::problem::Problem;
use crate::reason::Reason;
use crate::scope::{Scope, ScopeSet};
use crate::signing_key::SigningKey;
use crate::time::UnixTime;

/// Maximum number of identity providers of one organization. Each costs fetches and memory. Large companies have below ten.
pub const MAX_IDENTITY_PROVIDERS: usize = 32;

/// Maximum number of `client_scopes` of a provider. The header with all of them stays far below 8 KiB, which clients accept.
pub const MAX_CLIENT_SCOPES: usize = 16;
/// Maximum length of a client scope, in bytes. The scopes of Entra and Google are URLs.
pub const MAX_CLIENT_SCOPE_LENGTH: usize = 256;

/// A checked policy document.
#[derive(Debug, Default)]
pub struct Policy {
    /// An opaque text for the log. If it is a decimal number, it is also a metric.
    pub version: String,
    /// The key sets of the identity providers, each once, with the organizations that use it.
    pub key_sets: Vec<(JwksUri, Vec<OrgName>)>,
    /// In a document for many gateways: a problem for each place that names a connector that cannot be told apart.
    pub(crate) conflicts: Vec<Problem>,
    orgs: HashMap<OrgName, Rc<Org>>,
    api_keys: HashMap<KeyDigest, ApiKey>,
    signing_keys: Rc<[SigningKey]>,
    oauth_clients: HashMap<Box<str>, Rc<OauthClient>>,
}

/// The version of a document as the value of a gauge. `None` if the version is not a decimal number.
pub fn version_number(version: &str) -> Option<u64> {
    version.bytes().all(|byte| byte.is_ascii_digit()).then(|| version.parse().ok())?
}

/// An organization without its API keys.
#[derive(Debug, Default)]
pub struct Org {
    identity_providers: Vec<IdentityProvider>,
    has_clients: bool,
    limits: Subjects,
    /// The connectors that cannot be told apart. Records that name one of them are ignored.
    indistinct: HashSet<Box<str>>,
    revoked_jti: HashSet<String>,
    /// By principal: the tokens of the principal that were issued before this moment are revoked.
    issued_before: HashMap<String, UnixTime>,
}

impl Org {
    /// The provider whose issuer identifier is `issuer`, compared letter by letter (RFC 7519 §4.1.1, RFC 9207 §2.4).
    pub fn identity_provider(&self, issuer: &str) -> Option<&IdentityProvider> {
        self.identity_providers.iter().find(|provider| &*provider.issuer == issuer)
    }

    /// Whether OAuth discovery finds an authorization server for this organization.
    pub fn offers_oauth(&self) -> bool {
        self.has_clients || !self.identity_providers.is_empty()
    }

    /// The subjects at which the requests of all its credentials are counted.
    pub fn limits(&self) -> &Subjects {
        &self.limits
    }

    /// Whether a record with these scopes is ignored.
    fn ignores(&self, scopes: &ScopeSet) -> bool {
        !self.indistinct.is_empty() && scopes.connectors().any(|connector| self.indistinct.contains(connector.as_str()))
    }

    /// Whether the organization has OAuth clients.
    pub fn has_clients(&self) -> bool {
        self.has_clients
    }

    /// The issuers of its identity providers.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        self.identity_providers.iter().map(|provider| &*provider.issuer)
    }

    /// The issuers of the identity providers that are URLs. The identifier of an authorization server is always a URL
    /// (RFC 8414 §2), and clients fail on any other text.
    pub fn authorization_servers(&self) -> impl Iterator<Item = &str> {
        self.issuers().filter(|issuer| issuer::is_url(issuer))
    }

    /// The scopes that clients are told to request for an operation that needs `needed`. Each authorization server of the
    /// org, including the gateway, has its own scopes. If they differ, the result is empty and the challenge names none: the
    /// client may ask any of the servers, and a server refuses a request with a scope that it does not know (RFC 6749 §5.2).
    pub fn client_scopes(&self, needed: &Scope) -> Vec<String> {
        let ours = vec![needed.to_string()];
        let own = self.has_clients.then_some(&ours);
        let is_led_nowhere = !self.has_clients && self.authorization_servers().next().is_none();
        // Clients cannot discover the other issuers. If an org has only such issuers, its clients must already know them.
        let is_led_to = |provider: &&IdentityProvider| is_led_nowhere || issuer::is_url(&provider.issuer);
        let providers = self.identity_providers.iter().filter(is_led_to);
        let providers = providers.map(|provider| provider.client_scopes.as_ref().unwrap_or(&ours));
        let mut told = own.into_iter().chain(providers);
        let Some(first) = told.next() else { return ours };
        let set = |scopes: &[String]| -> BTreeSet<String> { scopes.iter().cloned().collect() };
        let is_agreed = told.all(|other| set(other) == set(first));
        if is_agreed { first.clone() } else { Vec::new() }
    }

    /// Whether a token of `principal` is revoked, by its `jti` or by its time of issue. `jti` is empty if the token has none.
    /// A token without a time of issue counts as issued before any moment.
    pub fn has_revoked(&self, jti: &str, principal: &str, issued_at: Option<UnixTime>) -> bool {
        let is_too_old = |before: &UnixTime| issued_at.is_none_or(|issued_at| issued_at < *before);
        (!jti.is_empty() && self.revoked_jti.contains(jti)) || self.issued_before.get(principal).is_some_and(is_too_old)
    }
}

/// An identity provider of an organization.
#[derive(Debug)]
pub struct IdentityProvider {
    /// The `iss` of its tokens.
    pub issuer: Box<str>,
    /// The URL of its key set.
    pub jwks_uri: JwksUri,
    /// The accepted values of `aud`. A token needs one of them.
    pub audiences: Vec<Box<str>>,
    /// The scopes of a token without any `mcp:` scope, if the policy names them. If it does not, the default is `mcp:call`,
    /// except for some tokens: see [`crate::scope::unread_grant`].
    pub default_scopes: Option<ScopeSet>,
    /// The scopes that clients are told to request from this provider. If the list is empty, no scope is named. If it is
    /// absent, the scopes of the gateway are named.
    pub client_scopes: Option<Vec<String>>,
}

impl IdentityProvider {
    /// Whether `text` is the issuer or an audience of this provider.
    pub fn is_named(&self, text: &str) -> bool {
        *self.issuer == *text || self.audiences.iter().any(|audience| **audience == *text)
    }
}

#[derive(Debug)]
struct ApiKey {
    principal: Rc<Principal>,
    expires_at: Option<UnixTime>,
}

impl Policy {
    /// The organization with this name.
    pub fn org(&self, name: &OrgName) -> Option<Rc<Org>> {
        self.orgs.get(name).cloned()
    }

    /// The signing keys of the gateway. The first one signs, and all of them verify.
    pub fn signing_keys(&self) -> Rc<[SigningKey]> {
        Rc::clone(&self.signing_keys)
    }

    /// The OAuth client with this id.
    pub fn oauth_client(&self, id: &str) -> Option<Rc<OauthClient>> {
        self.oauth_clients.get(id).cloned()
    }

    /// The principal of the API key with this digest in `org`.
    ///
    /// # Errors
    /// [`Reason::ApiKeyUnknown`] for an unknown or revoked key and for a key of another organization, and
    /// [`Reason::ApiKeyExpired`].
    pub fn api_key(&self, digest: &KeyDigest, org: &OrgName, now: UnixTime) -> Result<Rc<Principal>, Reason> {
        let key = self.api_keys.get(digest).filter(|key| key.principal.org() == org).ok_or(Reason::ApiKeyUnknown)?;
        if key.expires_at.is_some_and(|expires_at| now >= expires_at) {
            return Err(Reason::ApiKeyExpired);
        }
        Ok(Rc::clone(&key.principal))
    }
}

#[cfg(test)]
mod tests {
    use super::version_number;

    #[test]
    fn versions_that_are_numbers() {
        for (version, number) in [("17", Some(17)), ("0", Some(0)), ("18446744073709551615", Some(u64::MAX))] {
            assert_eq!(version_number(version), number, "{version}");
        }
        for version in ["", "+17", "-1", "1.0", "0x1", "2026-11", "18446744073709551616", "\u{661}"] {
            assert_eq!(version_number(version), None, "{version}");
        }
    }
}
