//! The check of a policy document: from its raw form to a [`Policy`], with all problems at once.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::raw::{RawApiKey, RawIdentityProvider, RawOauthClient, RawOrg, RawPolicy, RawSigningKey};
use super::{ApiKey, IdentityProvider, MAX_CLIENT_SCOPE_LENGTH, MAX_CLIENT_SCOPES, MAX_IDENTITY_PROVIDERS, Org, Policy, issuer};
use crate::api_key::KeyDigest;
use crate::jose::compact::MAX_HEADER_VALUE_LENGTH;
use crate::jose::jwk::JwkSet;
use crate::jwks::{Clusters, JwksUri};
use crate::limits::Subjects;
use crate::mcp::address;
use crate::names::{ConnectorId, OrgName, is_plain, is_record_id};
use crate::oauth_client::OauthClient;
use crate::principal::Principal;
use crate::problem::{Problem, Problems};
use crate::scope::{Scope, ScopeSet, is_scope_token};
use crate::signing_key::SigningKey;
use crate::time::UnixTime;

/// Looks up a variable of the VM's environment by its name.
pub type Environment<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// What the check needs besides the document.
pub(crate) struct Surroundings<'a> {
    /// The clusters through which key sets can be fetched.
    pub(crate) clusters: &'a Clusters,
    /// The environment, which may contain private keys.
    pub(crate) environment: &'a Environment<'a>,
    /// `gateway.connector_separator`
    pub(crate) separator: &'a str,
    /// `gateway.origin`. `None` if it is not known.
    pub(crate) origin: Option<&'a str>,
    /// Whether the document is for many gateways. A provider whose keys this gateway cannot fetch is then left out, because an
    /// error of one organization must not block the policy of all.
    pub(crate) is_for_many: bool,
    /// What is checked.
    pub(crate) extent: Extent<'a>,
}

/// The extent of a document.
#[derive(Clone, Copy)]
pub(crate) enum Extent<'a> {
    /// A whole policy, or its signing keys.
    Whole,
    /// An organization without its keys and clients, of which only this is known.
    Org { has_clients: bool, connectors: &'a [String] },
    /// Keys or clients of this organization.
    Of(&'a Org),
}

impl Policy {
    /// Checks a document, and adds its problems. `path` is its JSON path in the configuration.
    pub(crate) fn check(raw: RawPolicy, path: &str, surroundings: &Surroundings<'_>, problems: &mut Problems) -> Self {
        let are_keys_needed = raw.orgs.0.iter().any(|(_, org)| org.oauth_clients.iter().any(|client| !client.revoked));
        if are_keys_needed && raw.signing_keys.is_empty() {
            problems.add(format_args!("{path}.signing_keys"), "is required where there are oauth_clients");
        }
        Self::check_part(raw, path, surroundings, problems)
    }

    /// Checks a part of a document.
    pub(crate) fn check_part(raw: RawPolicy, path: &str, surroundings: &Surroundings<'_>, problems: &mut Problems) -> Self {
        let policy = Self { version: raw.version.unwrap_or_default(), ..Self::default() };
        let mut checker = Checker { policy, surroundings, problems, key_sets: HashMap::new(), named: Vec::new() };
        let mut signing_keys = Vec::new();
        for (index, key) in raw.signing_keys.into_iter().enumerate() {
            checker.signing_key(&format!("{path}.signing_keys[{index}]"), key, &mut signing_keys);
        }
        checker.policy.signing_keys = signing_keys.into();
        for (name, org) in raw.orgs.0 {
            checker.org(&format!("{path}.orgs.{name}"), &name, org);
        }
        checker.policy
    }
}

struct Checker<'a> {
    policy: Policy,
    surroundings: &'a Surroundings<'a>,
    problems: &'a mut Problems,
    /// Indexes in `policy.key_sets`, by URI.
    key_sets: HashMap<Box<str>, usize>,
    /// The connectors that the records of one organization name, each with its JSON path.
    named: Vec<(String, ConnectorId)>,
}

impl Checker<'_> {
    fn org(&mut self, path: &str, name: &str, raw: RawOrg) -> Option<()> {
        let name = self.identifier(path, OrgName::parse(name))?;
        let limit = raw.limits.and_then(|raw| raw.check(format!("org/{name}"), &format!("{path}.limits"), self.problems));
        let mut org = match self.surroundings.extent {
            Extent::Of(org) => Org { limits: org.limits.clone(), ..Org::default() },
            Extent::Whole => Org { limits: Subjects::new(limit), ..Org::default() },
            Extent::Org { has_clients, connectors } => {
                self.listed_connectors(&format!("{path}.connectors"), connectors);
                Org { limits: Subjects::new(limit), has_clients, ..Org::default() }
            }
        };
        let mut ids = HashSet::new();
        for (index, key) in raw.api_keys.into_iter().enumerate() {
            self.api_key(&format!("{path}.api_keys[{index}]"), &name, key, &org.limits, &mut ids);
        }
        let providers = raw.identity_providers.into_iter().enumerate().filter(|(_, provider)| !provider.revoked);
        for (index, provider) in self.bounded(&format!("{path}.identity_providers"), providers.collect()) {
            let path = format!("{path}.identity_providers[{index}]");
            let Some(provider) = self.identity_provider(&path, &name, provider) else { continue };
            if org.identity_provider(&provider.issuer).is_some() {
                self.problems.add(format!("{path}.issuer"), "stands twice in this org");
            }
            org.identity_providers.push(provider);
        }
        for (index, client) in raw.oauth_clients.into_iter().enumerate() {
            org.has_clients |= self.oauth_client(&format!("{path}.oauth_clients[{index}]"), &name, client).is_some();
        }
        org.indistinct = self.tell_apart();
        let is_ignored = |provider: &IdentityProvider| provider.default_scopes.as_ref().is_some_and(|scopes| org.ignores(scopes));
        let ignored: Vec<bool> = org.identity_providers.iter().map(is_ignored).collect();
        let mut ignored = ignored.into_iter();
        org.identity_providers.retain(|_| !ignored.next().unwrap_or(false));
        org.revoked_jti = raw.revoked_tokens.jti.into_iter().collect();
        for (whose, moment) in raw.revoked_tokens.issued_before.0 {
            let path = format!("{path}.revoked_tokens.issued_before.{whose}");
            let principal = self.revoked_principal(&path, &name, whose);
            if let Some(moment) = self.problems.checked(path, UnixTime::from_rfc3339(&moment)) {
                // A client may be named by its id and by its principal. The later moment revokes more tokens.
                let before = org.issued_before.entry(principal).or_insert(moment);
                *before = moment.max(*before);
            }
        }
        self.policy.orgs.insert(name, Rc::new(org));
        Some(())
    }

    /// Finds connectors whose tools look like those of another connector: a credential for the other one would see them.
    /// Returns these connectors if records that name them are ignored. Otherwise it refuses them.
    fn tell_apart(&mut self) -> HashSet<Box<str>> {
        let named = std::mem::take(&mut self.named);
        let names: HashSet<&str> = named.iter().map(|(_, connector)| connector.as_str()).collect();
        let separator = self.surroundings.separator;
        let mut indistinct: HashMap<&str, String> = HashMap::new();
        for (path, connector) in &named {
            let connector = connector.as_str();
            let Some(other) = address::misread_as(connector, separator) else { continue };
            if !names.contains(other) {
                let useless = format!(
                    "{connector:?} contains gateway.connector_separator, or ends with a part of it: no tool name at the joined \
                     endpoint can refer to it. Use the connector at its own path, or rename it"
                );
                self.problems.warn(path, useless);
                continue;
            }
            let conflict = format!(
                "{connector:?} and {other:?} cannot be told apart: a tool name is split at its first gateway.connector_separator \
                 ({separator:?}), so the tools of {connector:?} look like tools of {other:?}. Rename one of the two connectors"
            );
            if self.surroundings.is_for_many {
                indistinct.insert(connector, conflict.clone());
                indistinct.entry(other).or_insert(conflict);
            } else {
                self.problems.add(path, conflict);
            }
        }
        // An error of one organization must not block the policy of all.
        for (path, connector) in named.iter().filter(|(_, connector)| indistinct.contains_key(connector.as_str())) {
            let conflict = indistinct.get(connector.as_str()).map_or("", String::as_str);
            let message = format!("{conflict}. Gateways ignore each record that names one of them");
            self.policy.conflicts.push(Problem { path: path.clone(), message });
        }
        indistinct.into_keys().map(Box::from).collect()
    }

    /// Notes the connectors that the keys and clients of an organization name. They were checked with these records.
    fn listed_connectors(&mut self, path: &str, connectors: &[String]) {
        let listed = connectors.iter().enumerate().filter_map(|(index, id)| Some((index, ConnectorId::parse(id)?)));
        self.named.extend(listed.map(|(index, connector)| (format!("{path}[{index}]"), connector)));
    }

    /// The principal that a member of `issued_before` names: by a client id, or by the principal itself.
    fn revoked_principal(&mut self, path: &str, org: &OrgName, whose: String) -> String {
        if is_record_id(&whose) {
            return Principal::name_of_client(org, &whose);
        }
        let has_tokens = ["client", "idp"].iter().any(|kind| whose.starts_with(&format!("{org}/{kind}/")));
        if !has_tokens {
            // A warning, not an error: a later version of the gateway may know more kinds of principals.
            let wrong = format!("revokes no token: expected a client id, {org}/client/<client_id> or {org}/idp/<issuer>#<sub>");
            self.problems.warn(path, wrong);
        }
        whose
    }

    fn api_key(
        &mut self,
        path: &str,
        org: &OrgName,
        raw: RawApiKey,
        org_limits: &Subjects,
        ids: &mut HashSet<String>,
    ) -> Option<()> {
        if raw.revoked {
            return Some(());
        }
        let id = self.problems.required(format_args!("{path}.id"), raw.id);
        let id = id.and_then(|id| self.identifier(&format!("{path}.id"), is_record_id(&id).then_some(id)));
        self.name(path, raw.name.as_deref());
        let sha256 = self.problems.required(format_args!("{path}.sha256"), raw.sha256);
        let digest = sha256.and_then(|hex| {
            let digest = KeyDigest::from_hex(&hex).ok_or("must be the SHA-256 of the whole key as 64 hexadecimal digits");
            self.problems.checked(format_args!("{path}.sha256"), digest)
        });
        let scopes = match raw.connectors {
            None => Some([Scope::AllConnectors].into_iter().collect()),
            Some(connectors) => self.connector_scopes(&format!("{path}.connectors"), connectors),
        };
        let expires_at = match raw.expires_at {
            None => Some(None),
            Some(text) => self.problems.checked(format_args!("{path}.expires_at"), UnixTime::from_rfc3339(&text)).map(Some),
        };
        let (id, digest, scopes, expires_at) = (id?, digest?, scopes?, expires_at?);
        let own = raw.limits.and_then(|raw| raw.check(format!("key/{org}/{id}"), &format!("{path}.limits"), self.problems));
        let limits = own.map_or_else(|| org_limits.clone(), |own| org_limits.within(own));
        if !ids.insert(id.clone()) {
            self.problems.add(format_args!("{path}.id"), "stands twice in this org");
        }
        match self.policy.api_keys.entry(digest) {
            Entry::Occupied(_) => self.problems.add(format_args!("{path}.sha256"), "is the hash of another key too"),
            Entry::Vacant(place) => {
                place.insert(ApiKey { principal: Principal::of_api_key(org, &id, scopes, limits), expires_at });
            }
        }
        Some(())
    }

    fn signing_key(&mut self, path: &str, raw: RawSigningKey, keys: &mut Vec<SigningKey>) -> Option<()> {
        let kid = self.problems.required(format_args!("{path}.kid"), raw.kid)?;
        if kid.is_empty() || keys.iter().any(|key| key.kid() == kid) {
            self.problems.add(format_args!("{path}.kid"), "must not be empty, nor stand twice");
        }
        if kid.len() > MAX_HEADER_VALUE_LENGTH || !kid.chars().all(is_plain) {
            // The gateway would refuse its own tokens with a longer one.
            let wrong = format!(
                "must be at most {MAX_HEADER_VALUE_LENGTH} bytes, without control characters and marks that are not seen"
            );
            self.problems.add(format_args!("{path}.kid"), wrong);
            return None;
        }
        let (path, pem) = match (raw.private_key_env, raw.private_key_pem) {
            (Some(name), None) => {
                let path = format!("{path}.private_key_env");
                let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                if name.is_empty() || !is_name {
                    // The message does not repeat the value: an operator may have written the key itself here.
                    self.problems.add(path, "must be the name of an environment variable, such as APEXMCP_SIGNING_KEY");
                    return None;
                }
                let missing = format!(
                    "the environment variable {name:?} is not set for the module: set it in vm_config.environment_variables, or for the native module in Envoy's environment"
                );
                let pem = self.problems.checked(&path, (self.surroundings.environment)(&name).ok_or(missing))?;
                (path, pem)
            }
            (None, Some(pem)) => (format!("{path}.private_key_pem"), pem),
            _ => {
                self.problems.add(path, "needs either private_key_env or private_key_pem");
                return None;
            }
        };
        let key = SigningKey::from_pem(&kid, &pem).map_err(|problem| format!("key {kid:?} {problem}"));
        let key = self.problems.checked(path, key)?;
        keys.push(key);
        Some(())
    }

    fn oauth_client(&mut self, path: &str, org: &OrgName, raw: RawOauthClient) -> Option<()> {
        if raw.revoked {
            return None;
        }
        let id = self.problems.required(format_args!("{path}.client_id"), raw.client_id);
        let id = id.and_then(|id| self.identifier(&format!("{path}.client_id"), is_record_id(&id).then_some(id)));
        self.name(path, raw.name.as_deref());
        let secrets: Vec<Option<[u8; 32]>> = raw
            .secret_sha256
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let mut digest = [0; 32];
                let decoded = hex::decode_to_slice(text, &mut digest).map(|()| digest);
                let wrong = "must be the SHA-256 of the secret as 64 hexadecimal digits";
                self.problems.checked(format_args!("{path}.secret_sha256[{index}]"), decoded.map_err(|_| wrong))
            })
            .collect();
        let jwks = match raw.jwks {
            None => None,
            Some(document) => self.problems.checked(format_args!("{path}.jwks"), JwkSet::parse(document.to_string().as_bytes())),
        };
        if secrets.is_empty() && jwks.is_none() {
            self.problems.add(path, "needs secret_sha256 or jwks: it could not authenticate");
        }
        let scopes = self.problems.required(format_args!("{path}.scopes"), raw.scopes);
        let scopes = scopes.and_then(|texts| self.scopes(&format!("{path}.scopes"), &texts));
        let (id, secrets, scopes) = (id?, secrets.into_iter().collect::<Option<_>>()?, scopes?);
        let id: Box<str> = id.into();
        match self.policy.oauth_clients.entry(id.clone()) {
            Entry::Occupied(_) => self.problems.add(format_args!("{path}.client_id"), "stands twice in this policy"),
            Entry::Vacant(place) => {
                place.insert(Rc::new(OauthClient { id, org: org.clone(), scopes, secrets, jwks }));
            }
        }
        Some(())
    }

    fn connector_scopes(&mut self, path: &str, connectors: Vec<String>) -> Option<ScopeSet> {
        if connectors.is_empty() {
            self.problems.add(path, "must name a connector; leave it out to allow all");
        }
        let scopes: Vec<Option<Scope>> = connectors
            .iter()
            .enumerate()
            .map(|(index, id)| self.identifier(&format!("{path}[{index}]"), ConnectorId::parse(id)).map(Scope::Connector))
            .collect();
        self.note_connectors(path, &scopes);
        scopes.into_iter().collect()
    }

    /// The identity providers of an organization, without those beyond the limit.
    fn bounded<T>(&mut self, path: &str, mut providers: Vec<T>) -> Vec<T> {
        let count = providers.len();
        if count > MAX_IDENTITY_PROVIDERS {
            let problem = format!(
                "expected at most {MAX_IDENTITY_PROVIDERS} providers, found {count}: the gateway must fetch the keys of each"
            );
            if self.surroundings.is_for_many {
                // An error of one organization must not block the policy of all.
                self.problems
                    .warn(path, format!("{problem}. It refuses the tokens of those after the first {MAX_IDENTITY_PROVIDERS}"));
                providers.truncate(MAX_IDENTITY_PROVIDERS);
            } else {
                self.problems.add(path, format!("{problem}. Remove some, or move them to another organization"));
            }
        }
        providers
    }

    fn identity_provider(&mut self, path: &str, org: &OrgName, raw: RawIdentityProvider) -> Option<IdentityProvider> {
        let issuer = self.problems.required(format_args!("{path}.issuer"), raw.issuer);
        let issuer = issuer.and_then(|issuer| self.problems.checked(format_args!("{path}.issuer"), issuer::check(issuer)));
        if issuer.is_some() && issuer.as_deref() == self.surroundings.origin {
            // A warning: an error of one organization must not block the policy of all, and this provider never matches.
            let useless =
                "is gateway.origin: whatever names this issuer is judged as the gateway's own token, never as this provider's";
            self.problems.warn(format_args!("{path}.issuer"), useless);
        }
        let jwks_uri = self.problems.required(format_args!("{path}.jwks_uri"), raw.jwks_uri);
        let jwks_uri = jwks_uri.and_then(|uri| self.problems.checked(format_args!("{path}.jwks_uri"), JwksUri::parse(&uri)));
        let jwks_uri = jwks_uri.and_then(|uri| match self.surroundings.clusters.of(&uri) {
            Ok(_) => Some(uri),
            Err(problem) if self.surroundings.is_for_many => {
                self.problems
                    .warn(format_args!("{path}.jwks_uri"), format_args!("{problem}: no token of this provider passes here"));
                None
            }
            Err(problem) => self.problems.checked(format_args!("{path}.jwks_uri"), Err(problem)),
        });
        let audiences = self.problems.required(format_args!("{path}.audience"), raw.audience)?.into_vec();
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            self.problems.add(format_args!("{path}.audience"), "must name an audience");
        }
        let default_scopes = match raw.default_scopes {
            None => Some(None),
            Some(texts) => self.scopes(&format!("{path}.default_scopes"), &texts).map(Some),
        };
        let client_scopes = match raw.client_scopes {
            None => Some(None),
            Some(scopes) => self.client_scopes(&format!("{path}.client_scopes"), scopes).map(Some),
        };
        let jwks_uri = jwks_uri?;
        // Organizations with the same provider share its keys.
        let key_sets = &mut self.policy.key_sets;
        let index = *self.key_sets.entry(jwks_uri.as_str().into()).or_insert(key_sets.len());
        match key_sets.get_mut(index) {
            Some((_, orgs)) => orgs.push(org.clone()),
            None => key_sets.push((jwks_uri.clone(), vec![org.clone()])),
        }
        Some(IdentityProvider {
            issuer: issuer?.into(),
            jwks_uri,
            audiences: audiences.into_iter().map(String::into_boxed_str).collect(),
            default_scopes: default_scopes?,
            client_scopes: client_scopes?,
        })
    }

    /// Checks the scopes of another authorization server, which challenges will name.
    fn client_scopes(&mut self, path: &str, mut scopes: Vec<String>) -> Option<Vec<String>> {
        let mut is_good = true;
        for (index, scope) in scopes.iter().enumerate() {
            if scope.len() > MAX_CLIENT_SCOPE_LENGTH || !is_scope_token(scope) {
                let wrong = format!(
                    "expected one scope of at most {MAX_CLIENT_SCOPE_LENGTH} visible ASCII characters without space, \" and \\ (RFC 6749 §3.3)"
                );
                self.problems.add(format_args!("{path}[{index}]"), wrong);
                is_good = false;
            }
        }
        let mut seen = HashSet::new();
        scopes.retain(|scope| seen.insert(scope.clone()));
        if scopes.len() > MAX_CLIENT_SCOPES {
            let count = scopes.len();
            self.problems.add(path, format_args!("expected at most {MAX_CLIENT_SCOPES} scopes, found {count}"));
            is_good = false;
        }
        is_good.then_some(scopes)
    }

    fn scopes(&mut self, path: &str, texts: &[String]) -> Option<ScopeSet> {
        let wrong = "must be mcp:call or mcp:call:<connector-id>";
        let scopes: Vec<Option<Scope>> = texts
            .iter()
            .enumerate()
            .map(|(index, text)| self.problems.checked(format_args!("{path}[{index}]"), Scope::parse(text).ok_or(wrong)))
            .collect();
        self.note_connectors(path, &scopes);
        scopes.into_iter().collect()
    }

    fn note_connectors(&mut self, path: &str, scopes: &[Option<Scope>]) {
        for (index, scope) in scopes.iter().enumerate() {
            if let Some(Scope::Connector(connector)) = scope {
                self.named.push((format!("{path}[{index}]"), connector.clone()));
            }
        }
    }

    /// Checks the display name of a record. Nothing depends on it, so a bad name is a warning. But people may read the document
    /// in a terminal.
    fn name(&mut self, path: &str, name: Option<&str>) {
        if !name.unwrap_or_default().chars().all(is_plain) {
            self.problems
                .warn(format_args!("{path}.name"), "has control characters or marks that are not seen, which deceive its reader");
        }
    }

    fn identifier<T>(&mut self, path: &str, parsed: Option<T>) -> Option<T> {
        self.problems.checked(path, parsed.ok_or("must be 1 to 128 of A-Z a-z 0-9 . _ ~ -"))
    }
}
