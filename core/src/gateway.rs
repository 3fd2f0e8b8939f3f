//! The state of one thread, and its decision about a credential: authentication first, then the scope.

use std::rc::Rc;
use std::time::Duration;

use crate::access_token;
use crate::body_holding::BodyHolding;
use crate::budget::Budget;
use crate::config::{Config, LimitStore};
use crate::credential::{self, Credential};
use crate::denial::{Denial, Discovery, LocalReply};
use crate::host::Host;
use crate::jose::claims;
use crate::jose::compact::{CompactJws, Type};
use crate::jose::jwk::RsaPublicKey;
use crate::jose::signature;
use crate::jwks::{KeyName, KeySetId, KeySets, Lookup, SYNC_INTERVAL};
use crate::limits;
use crate::limits::local::Exceeded;
use crate::limits::service::OpenQuestions;
use crate::limits::standing::Standing;
use crate::mcp::call::Call;
use crate::names::OrgName;
use crate::oauth::attempts::Attempts;
use crate::oauth::discovery::Document;
use crate::oauth::token_endpoint::{TokenEndpoint, TokenError};
use crate::path::Resource;
use crate::policy::Policy;
use crate::policy::remote::RemotePolicy;
use crate::policy::source::PolicySource;
use crate::principal::{Attribute, Method, Principal};
use crate::reason::Reason;
use crate::request::RequestHead;
use crate::scope::{self, Scope, ScopeSet, UnreadGrant};
use crate::time::UnixTime;
use crate::token_cache::{Basis, Entry, TokenCache};

/// Configuration, policy, key sets and verified tokens of one thread.
#[derive(Debug)]
pub struct Gateway {
    /// The plugin configuration.
    pub config: Config,
    /// This thread's copies of the issuers' keys.
    pub key_sets: KeySets,
    /// The policy in force.
    pub policy: PolicySource,
    tokens: TokenCache,
    attempts: Attempts,
    /// The next note about an unread grant is logged at this time or later.
    next_note: UnixTime,
    /// The budget for all requests and lists that this thread holds.
    pub budget: Budget,
    /// The questions to the rate limit service that are not answered yet.
    pub questions: OpenQuestions,
    /// Whether Envoy holds bodies.
    pub bodies: BodyHolding,
}

/// The result for a request that is not admitted, or not yet.
#[derive(Debug)]
pub enum NotAdmitted {
    /// The request is refused.
    Denied(Denial),
    /// The request cannot be decided before this key set is fetched.
    AwaitKeySet(KeySetId),
}

impl From<Denial> for NotAdmitted {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<Reason> for NotAdmitted {
    fn from(reason: Reason) -> Self {
        Self::Denied(reason.into())
    }
}

/// The extent to which a request is admitted.
#[derive(Debug)]
pub enum Admission {
    /// The request is admitted, whatever its message is.
    Whole(Rc<Principal>),
    /// The request is admitted if the scopes of the principal cover its message. The message must still be read.
    ByMessage(Rc<Principal>),
}

/// How a request is counted.
#[derive(Debug)]
pub enum Count {
    /// No limit applies.
    Free,
    /// The request is counted, or exceeds a limit.
    Done(Result<Standing, Exceeded>),
    /// The rate limit service counts it. This is the question.
    Ask(Vec<u8>),
}

/// What metrics and logs are told about a decision, for an admitted and for a refused request.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The method of authentication that the request tried.
    pub method: Option<Method>,
    /// The proven principal. It may lack the scope that the request needs.
    pub principal: Option<Rc<Principal>>,
    /// Whether access logs know the principal already.
    pub is_identified: bool,
    /// The org of a refused request without a known principal. The policy may not have it.
    pub org: Option<OrgName>,
    /// Whether the cache of verified tokens had the token.
    pub token_cache: Option<CacheOutcome>,
    /// A line for the log, if the operator should know something.
    pub note: Option<String>,
    /// What the request calls, if access logs want it.
    pub call: Option<Call>,
}

/// The result of a look-up in the cache of verified tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheOutcome {
    /// The token was verified before.
    Hit,
    /// The token must be verified.
    Miss,
}

impl Gateway {
    /// A gateway with empty caches.
    pub fn new(config: Config, policy: Policy) -> Self {
        let key_sets = KeySets::new(&policy.key_sets);
        let policy = match &config.remote {
            None => PolicySource::Inline(policy),
            Some(remote) => {
                let separator = config.gateway.connector_separator.clone();
                PolicySource::Remote(RemotePolicy::new(remote.place(), config.clusters.clone(), separator))
            }
        };
        let tokens = TokenCache::new(config.tokens.cache_size);
        Self {
            bodies: BodyHolding::new(config.gateway.host_holds_bodies),
            config,
            key_sets,
            policy,
            tokens,
            attempts: Attempts::default(),
            next_note: UnixTime::default(),
            budget: Budget::default(),
            questions: OpenQuestions::default(),
        }
    }

    /// Decides whether the request with this `head` may use `resource`.
    ///
    /// # Errors
    /// See [`NotAdmitted`].
    pub fn admit(
        &mut self,
        head: &RequestHead,
        resource: &Resource,
        now: UnixTime,
        host: &dyn Host,
        findings: &mut Findings,
    ) -> Result<Admission, NotAdmitted> {
        let principal = match Credential::from_head(head)? {
            Credential::ApiKey(digest) => {
                findings.method = Some(Method::ApiKey);
                self.policy.api_key(&digest, &resource.org, now, host)?
            }
            Credential::Bearer(token) => self.bearer(token, resource, now, host, findings)?,
        };
        findings.principal = Some(Rc::clone(&principal));
        let needed = resource.needed_scope();
        if principal.scopes().covers(&needed) {
            Ok(Admission::Whole(principal))
        } else if resource.connector.is_none() && !principal.scopes().is_empty() {
            Ok(Admission::ByMessage(principal))
        } else {
            Err(Denial::ScopeInsufficient { needed, has_unread_grant: principal.has_unread_grant() }.into())
        }
    }

    /// Whether usage is counted and reported.
    pub fn reports_usage(&self) -> bool {
        self.config.remote.as_ref().is_some_and(|remote| remote.usage.is_some())
    }

    /// Whether a note may be logged now. The interval limits the log, because a provider may issue such tokens all the time.
    fn may_note(&mut self, now: UnixTime) -> bool {
        // If the clock was set back, the log does not stay silent for longer than the interval.
        let is_due = !self.next_note.is_ahead(now, NOTE_INTERVAL);
        if is_due {
            self.next_note = now.plus(NOTE_INTERVAL);
        }
        is_due
    }

    fn bearer(
        &mut self,
        token: &str,
        resource: &Resource,
        now: UnixTime,
        host: &dyn Host,
        findings: &mut Findings,
    ) -> Result<Rc<Principal>, NotAdmitted> {
        let timing = &self.config.jwks;
        let version_of = |id| self.key_sets.up_to_date(id, SYNC_INTERVAL, now, timing, host)?.version(now, timing);
        let holds = |basis: &mut Basis| basis.holds(&self.policy, resource, host);
        if let Some(principal) = self.tokens.get(token, resource, now, version_of, holds) {
            findings.token_cache = Some(CacheOutcome::Hit);
            findings.method = Some(principal.method());
            return Ok(principal);
        }
        credential::check_token(token)?;
        findings.token_cache = Some(CacheOutcome::Miss);
        findings.method = Some(Method::Byoidp);
        let jws = CompactJws::parse(token)?;
        let entry = if claims::issuer(jws.claims())? == self.config.gateway.origin {
            findings.method = Some(Method::Oauth);
            self.gateway_token(jws, resource, now, host)?
        } else {
            self.provider_token(jws, resource, now, host, findings)?
        };
        let principal = Rc::clone(&entry.principal);
        self.tokens.insert(token, entry);
        Ok(principal)
    }

    /// Checks a token of an identity provider of the organization (RFC 7519 §7.2). The cheapest checks come first, so that no
    /// signature is verified for a token that another check refuses.
    fn provider_token(
        &mut self,
        jws: CompactJws<'_>,
        resource: &Resource,
        now: UnixTime,
        host: &dyn Host,
        findings: &mut Findings,
    ) -> Result<Entry, NotAdmitted> {
        let issuer = claims::issuer(jws.claims())?;
        let Some(org) = self.policy.org(&resource.org, host) else {
            return Err(Denial::issuer_unknown(&resource.org, jws).into());
        };
        let Some(provider) = org.identity_provider(issuer) else {
            return Err(Denial::issuer_unknown(&resource.org, jws).into());
        };
        jws.check_type(&[Type::Untyped, Type::Named("jwt"), Type::Named(access_token::TYPE)])?;
        if let Err(reason) = claims::check_audience(jws.claims(), &provider.audiences) {
            return Err(Denial::audience(reason, jws).into());
        }
        let validity = claims::check_times(jws.claims(), now, self.config.tokens.clock_skew)?;
        claims::subject(jws.claims())?;
        claims::id(jws.claims())?;

        let key_set_id = self.key_sets.at(&provider.jwks_uri, &resource.org);
        let timing = &self.config.jwks;
        let known = self.key_sets.get(key_set_id);
        // If this thread's copy lacks the key, another thread may have just fetched it.
        let is_lacking = jws.kid().is_some() && !known.is_some_and(|set| set.has_named(&jws.key_hint()));
        let max_age = if is_lacking { Duration::ZERO } else { SYNC_INTERVAL };
        let key_set = self.key_sets.up_to_date(key_set_id, max_age, now, timing, host).ok_or(Reason::JwksUnavailable)?;
        let (keys, version) = match key_set.lookup(now, timing) {
            Lookup::Keys(keys, version) => (keys, version),
            Lookup::Pending => return Err(NotAdmitted::AwaitKeySet(key_set_id)),
            Lookup::Unavailable(retry_after) => return Err(Denial::JwksUnavailable { retry_after }.into()),
        };
        let candidates: Vec<&RsaPublicKey> = keys.candidates(jws.key_hint()).collect();
        // After a rotation, tokens have an unknown `kid`. If they have no `kid`, their signature fits no known key.
        let unknown = (!keys.has_named(&jws.key_hint())).then(|| KeyName::in_token(&jws));
        let refusal = if unknown.is_some() && jws.kid().is_some() { Reason::KeyUnknown } else { Reason::SignatureInvalid };
        let verified = match signature::verify(&jws, candidates, host) {
            Some(verified) => verified,
            None => {
                if unknown.is_some_and(|name| key_set.request_key(name, now, timing)) {
                    return Err(NotAdmitted::AwaitKeySet(key_set_id));
                }
                // The issuer may publish the key, but the last fetch of its keys failed.
                return Err(match key_set.retry_after_failure(now).filter(|_| unknown.is_some()) {
                    Some(retry_after) => Denial::JwksUnavailable { retry_after }.into(),
                    None => Denial::key_mismatch(refusal, jws).into(),
                });
            }
        };
        let granted = scope::granted_by(verified.claims()).map_err(|_| Reason::TokenMalformed)?;
        let subject = claims::subject(verified.claims())?;
        let limits = org.limits().clone();
        let (scopes, unread) = match granted.or_else(|| provider.default_scopes.clone()) {
            Some(scopes) => (scopes, None),
            // The default scopes would turn a narrow grant into a wide one.
            None => match scope::unread_grant(verified.claims(), |text| provider.is_named(text)) {
                None => ([Scope::AllConnectors].into_iter().collect(), None),
                Some(unread) => (ScopeSet::default(), Some(unread)),
            },
        };
        let principal = match unread {
            None => Principal::of_identity_provider(&resource.org, &provider.issuer, subject, scopes, limits),
            Some(_) => Principal::of_unread_grant(&resource.org, &provider.issuer, subject, limits),
        };
        if let Some(unread) = unread
            && self.may_note(now)
        {
            findings.note = Some(unread_grant_note(&resource.org, &provider.issuer, unread));
        }
        // Checked after the signature: a forged token must not reveal which tokens are revoked.
        let name = principal.attribute(Attribute::Principal);
        if org.has_revoked(claims::id(verified.claims())?, name, claims::issued_at(verified.claims()).ok()) {
            return Err(Reason::TokenRevoked.into());
        }
        let basis = Basis { generation: self.policy.generation(), org, client: None };
        Ok(Entry { principal, validity, only_for: None, key_set: Some((key_set_id, version)), basis })
    }

    /// Checks a token of the gateway itself (RFC 9068 §4). Its scopes are cut to those that the policy grants now.
    fn gateway_token(
        &self,
        jws: CompactJws<'_>,
        resource: &Resource,
        now: UnixTime,
        host: &dyn Host,
    ) -> Result<Entry, NotAdmitted> {
        jws.check_type(&[Type::Named(access_token::TYPE)])?;
        let url = |resource: &Resource| self.config.gateway.resource_url(resource).into_boxed_str();
        let whole = url(&Resource { org: resource.org.clone(), connector: None });
        let is_for_whole = claims::check_audience(jws.claims(), std::slice::from_ref(&whole)).is_ok();
        if let Err(reason) = claims::check_audience(jws.claims(), &[whole, url(resource)]) {
            return Err(Denial::audience(reason, jws).into());
        }
        let validity = claims::check_times(jws.claims(), now, self.config.tokens.clock_skew)?;
        let signing_keys = self.policy.signing_keys(host);
        let named = signing_keys.iter().filter(|key| jws.kid() == Some(key.kid()));
        let keys: Vec<&RsaPublicKey> = named.map(|key| key.jwk().key()).collect();
        if keys.is_empty() {
            return Err(Denial::key_mismatch(Reason::KeyUnknown, jws).into());
        }
        let Some(verified) = signature::verify(&jws, keys, host) else {
            return Err(Denial::key_mismatch(Reason::SignatureInvalid, jws).into());
        };

        let claims = verified.claims();
        let id = claims::subject(claims)?;
        let client = self.policy.oauth_client(id, host).filter(|client| client.org == resource.org);
        let (Some(client), Some(org)) = (client, self.policy.org(&resource.org, host)) else {
            return Err(Reason::ClientUnknown.into());
        };
        let granted = scope::granted_by(claims).map_err(|_| Reason::TokenMalformed)?.unwrap_or_default();
        let principal = Principal::of_client(&resource.org, id, client.scopes.cut_to(&granted), org.limits().clone());
        let name = principal.attribute(Attribute::Principal);
        if org.has_revoked(claims::id(claims)?, name, Some(claims::issued_at(claims)?)) {
            return Err(Reason::TokenRevoked.into());
        }
        let is_here = |named: &Resource| named.org == resource.org;
        let named = || claims::audiences(claims).into_iter().filter_map(|url| self.config.gateway.resource_of_url(url));
        let only_for = (!is_for_whole).then(|| named().filter(is_here).collect());
        let basis = Basis { generation: self.policy.generation(), org, client: Some((client, signing_keys)) };
        Ok(Entry { principal, validity, only_for, key_set: None, basis })
    }

    /// Counts a request of `principal`, or returns the question for the rate limit service.
    pub fn count(&self, principal: &Principal, now: UnixTime, host: &dyn Host) -> Count {
        let subjects = principal.limits();
        match &self.config.limits {
            _ if subjects.is_empty() => Count::Free,
            LimitStore::Local => Count::Done(limits::local::take(subjects, now, host)),
            LimitStore::RateLimitService(service) => Count::Ask(limits::service::request(&service.domain, subjects)),
        }
    }

    /// Answers a request for a discovery document. Also returns the word for the metrics.
    pub fn document(&self, document: &Document, head: &RequestHead, host: &dyn Host) -> (LocalReply, &'static str) {
        document.answer(head, &self.config, &self.policy, host)
    }

    /// Whether the gateway issues tokens: it needs a signing key.
    pub fn issues_tokens(&self, host: &dyn Host) -> bool {
        !self.policy.signing_keys(host).is_empty()
    }

    /// Answers a request to the token endpoint.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn issue_token(
        &mut self,
        head: &RequestHead,
        body: &[u8],
        now: UnixTime,
        host: &dyn Host,
    ) -> Result<LocalReply, TokenError> {
        let Self { config, policy, attempts, .. } = self;
        TokenEndpoint { config, policy, attempts, host, now }.issue(head, body)
    }

    /// The reply to a refused request for `resource`.
    pub fn reply(&self, denial: &Denial, resource: Option<&Resource>, host: &dyn Host) -> LocalReply {
        let Some(resource) = resource else { return denial.reply(None) };
        let org = self.policy.org(&resource.org, host);
        let offers_oauth = org.as_ref().is_some_and(|org| org.offers_oauth());
        let resource_metadata = offers_oauth.then(|| self.config.gateway.metadata_url(resource));
        // Only this challenge names the scopes to request. The one for insufficient scope names the scope that is needed.
        let scope = (denial.reason() == Reason::CredentialMissing).then(|| {
            let needed = resource.needed_scope();
            org.map_or_else(|| needed.to_string(), |org| org.client_scopes(&needed).join(" "))
        });
        denial.reply(Some(&Discovery { resource_metadata, scope: scope.filter(|scope| !scope.is_empty()) }))
    }
}

/// Minimum time between two notes of a worker.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum length of a quoted claim in a note, in characters.
const MAX_QUOTED: usize = 80;

/// The log line about a token that carries a grant that could not be read.
fn unread_grant_note(org: &OrgName, issuer: &str, unread: UnreadGrant<'_>) -> String {
    // Escaped, so that a claim cannot break the line.
    let quoted = |text: &str| format!("{:?}", text.chars().take(MAX_QUOTED).collect::<String>());
    format!(
        "org {org}: a token of {issuer} has {} in the claim {}, which is no scope of this gateway, so nothing is granted by default. \
         Let the provider issue mcp:call or mcp:call:<connector> in scope or scp, or write default_scopes in the policy",
        quoted(unread.text),
        quoted(unread.claim)
    )
}
