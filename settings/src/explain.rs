//! Explains what a gateway decides on a credential. The gateway's own code decides, with the policy of one org.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use apexmcp_core::access_token::AccessTokenClaims;
use apexmcp_core::config::Config;
use apexmcp_core::denial::Denial;
use apexmcp_core::gateway::{Findings, Gateway, NotAdmitted};
use apexmcp_core::host::{Host, Shared, Update};
use apexmcp_core::jose::compact::CompactJws;
use apexmcp_core::jose::jwk::{JwkSet, RsaPublicKey};
use apexmcp_core::jose::signature::verify_in_rust;
use apexmcp_core::names::{ConnectorId, OrgName};
use apexmcp_core::path::Resource;
use apexmcp_core::policy::raw::{RawOrg, RawPolicy};
use apexmcp_core::principal::{Attribute, Method, Principal};
use apexmcp_core::request::RequestHead;
use apexmcp_core::scope::{Scope, ScopeSet};
use apexmcp_core::serialized_map::SerializedMap;
use apexmcp_core::signing_key::SigningKey;
use apexmcp_core::time::UnixTime;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::access::Actor;
use crate::clock::Moment;
use crate::document;
use crate::failure::{Failure, Reason};
use crate::issuer::{self, Reach};
use crate::records::{org, provider};
use crate::secret::sha256;
use crate::sql::{Sql, first, rows, values};

/// Maximum number of key sets that one explanation fetches. A token needs the key set of one issuer.
const MAX_FETCHES: usize = 2;

/// What is explained.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A token of the gateway or of an identity provider.
    Token(String),
    ApiKey(String),
}

/// What a gateway decides on a credential, and why.
#[derive(Debug, Serialize, ToSchema)]
pub struct Explanation {
    /// Null: unknown, because the keys of the identity provider could not be fetched from here. Everything but the signature
    /// was checked and is good.
    pub admitted: Option<bool>,
    /// The reason of the refusal, as in access logs. `ok`: there is none.
    pub reason: String,
    /// What the client is told.
    pub description: String,
    /// What did not match.
    pub details: Option<String>,
    /// What to change.
    pub advice: Option<String>,
    /// The principal that the credential proves. It may lack a scope. If `admitted` is null, the principal that the token names.
    pub principal: Option<Proven>,
    /// The header of the token. It is not verified.
    #[schema(value_type = Option<Object>)]
    pub header: Option<Value>,
    /// The claims of the token. They are not verified.
    #[schema(value_type = Option<Object>)]
    pub claims: Option<Value>,
}

/// A proven principal, as in the identity headers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Proven {
    pub principal: String,
    pub subject: String,
    /// `api_key`, `oauth` or `byoidp`.
    pub method: String,
    /// All scopes, separated by spaces.
    pub scope: String,
}

impl Proven {
    fn of(principal: &Principal) -> Self {
        let [principal, subject, method, scope] = [Attribute::Principal, Attribute::Subject, Attribute::Method, Attribute::Scope]
            .map(|it| principal.attribute(it).to_owned());
        Self { principal, subject, method, scope }
    }
}

/// What a gateway needs to decide, and what it does not know.
#[derive(Debug)]
pub struct Question {
    org: String,
    credential: Credential,
    /// The connector that is called. `None`: the endpoint of all connectors.
    connector: Option<String>,
    /// The configuration of a gateway with the records of the org that concern the credential.
    configuration: Vec<u8>,
    /// The JWKS URIs for which an operator allowed private addresses.
    private: Vec<String>,
    /// When this API key was revoked, with its name and id.
    revoked: Option<String>,
    /// The accepted audiences by issuer.
    audiences: HashMap<String, String>,
    now: Moment,
}

/// Reads the records for an explanation. `origin` is that of the gateway.
///
/// # Errors
/// If the actor may not change the records of this org.
pub fn question(
    sql: &dyn Sql,
    actor: &Actor,
    org: &str,
    connector: Option<String>,
    credential: Credential,
    origin: &str,
) -> Result<Question, Failure> {
    org::require_change(sql, actor, org)?;
    let mut revoked = None;
    let mut raw: RawOrg = document::org(sql, org)?.unwrap_or_default();
    match &credential {
        Credential::Token(_) => {
            let query = format!("{} AND org = ?", document::CLIENTS);
            raw.oauth_clients = rows(sql, &query, values![org], document::client)?;
        }
        Credential::ApiKey(key) => {
            let query = "SELECT * FROM api_keys WHERE sha256 = ? AND org = ? AND revoked_at IS NULL";
            raw.api_keys = rows(sql, query, values![sha256(key), org], document::api_key)?;
            let query = "SELECT id, name, revoked_at FROM api_keys WHERE sha256 = ? AND org = ? AND revoked_at IS NOT NULL";
            revoked = first(sql, query, values![sha256(key), org], |row| {
                let [id, name, at] = [row.get::<String>("id")?, row.get("name")?, row.get("revoked_at")?];
                Ok(format!("the key {name:?} ({id}) of this organization was revoked at {at}"))
            })?;
        }
    }
    let orgs = std::iter::once((org.to_owned(), raw)).collect::<std::collections::BTreeMap<_, _>>();
    let policy = RawPolicy { version: Some("1".to_owned()), signing_keys: document::signing_keys(sql)?, orgs: orgs.into() };
    let clusters = json!({"https_cluster": "keys", "http_cluster": "keys"});
    let configuration = json!({"gateway": {"origin": origin}, "jwks": clusters, "policy": {"inline": policy}});
    let providers = provider::list(sql, actor, org)?;
    let audiences = providers.iter().map(|provider| (provider.issuer.clone(), provider.audience.join(", "))).collect();
    let providers = providers.into_iter();
    Ok(Question {
        org: org.to_owned(),
        credential,
        connector,
        configuration: configuration.to_string().into_bytes(),
        private: providers.filter(|provider| provider.allow_private_address).map(|provider| provider.jwks_uri).collect(),
        revoked,
        audiences,
        now: actor.now,
    })
}

/// Lets a gateway decide. It may fetch the key set of an identity provider.
///
/// # Errors
/// If the gateway would refuse the policy, or the question has no credential.
pub fn explain(question: &Question) -> Result<Explanation, Failure> {
    let Question { org, credential, connector, configuration, private, revoked, audiences, now } = question;
    let (moment, now) = (*now, UnixTime::from(*now));
    let refused = |problems: Vec<apexmcp_core::problem::Problem>| {
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        Failure::new(Reason::PolicyRefused, format!("a gateway would refuse the policy of this org: {first}"))
    };
    let (config, policy) = Config::parse(configuration, &|_| None).map_err(refused)?;
    let (mut gateway, host) = (Gateway::new(config, policy), Memory::default());
    let malformed = || Failure::of("token", "must be text that a header can contain");
    let header = match credential {
        Credential::Token(token) => ("authorization", format!("Bearer {token}")),
        Credential::ApiKey(key) => ("x-api-key", key.clone()),
    };
    let connector = connector.as_deref().map(|id| ConnectorId::parse(id).ok_or_else(|| not_a_connector(id))).transpose()?;
    let path = format!("/mcp/{org}");
    let headers = [(":method", "POST"), (":path", path.as_str()), (header.0, header.1.as_str())];
    let head = SerializedMap::of(&headers).and_then(RequestHead::new).ok_or_else(malformed)?;
    let org = OrgName::parse(org).ok_or_else(|| org::unknown(org))?;
    let resource = Resource { org, connector };
    // Why the signature was not checked.
    let mut unchecked = None;
    let mut fetches = 0_usize;
    let (denial, findings) = loop {
        let mut findings = Findings::default();
        let denial = match gateway.admit(&head, &resource, now, &host, &mut findings) {
            Ok(_) => None,
            Err(NotAdmitted::Denied(denial)) => Some(denial),
            Err(NotAdmitted::AwaitKeySet(id)) => {
                let timing = gateway.config.jwks;
                let uri = gateway.key_sets.get(id).map(|set| set.uri().as_str().to_owned());
                let fetch = gateway.key_sets.sync(id, now, &timing, &host).ok().flatten();
                let (Some(uri), Some(fetch)) = (uri, fetch.filter(|_| fetches < MAX_FETCHES)) else {
                    break (Some(apexmcp_core::reason::Reason::JwksUnavailable.into()), findings);
                };
                fetches = fetches.saturating_add(1);
                let keys = issuer::keys(&uri, Reach::allowing_private(private.contains(&uri))).or_else(|why| {
                    unchecked = Some(format!("{uri} {why}"));
                    host.is_blind.set(true);
                    JwkSet::parse(STAND_IN.as_bytes()).map_err(|error| error.to_string())
                });
                // The shared document is that of this call, which can be read.
                let _ = gateway.key_sets.finish(&fetch, keys.as_ref().ok(), now, &timing, &host);
                continue;
            }
        };
        break (denial, findings);
    };
    let [header, claims] = match credential {
        Credential::Token(token) => parts(token),
        Credential::ApiKey(_) => [None, None],
    };
    // Without a checked signature, nothing is proven. The principal is then only shown if nothing else is wrong.
    let is_shown = unchecked.is_none() || denial.is_none();
    let principal = findings.principal.as_deref().filter(|_| is_shown).map(Proven::of);
    let (admitted, word, description) = match (&denial, &unchecked) {
        (Some(denial), _) => (Some(false), denial.reason().word(), told(denial)),
        (None, Some(_)) => (None, apexmcp_core::reason::Reason::JwksUnavailable.word(), UNCHECKED.to_owned()),
        (None, None) => (Some(true), "ok", admitted_at(&resource, findings.principal.as_deref())),
    };
    let details = match (unchecked, denial.as_ref().and_then(Denial::details)) {
        (Some(why), None) => Some(format!("The signature was not checked: {why}")),
        (Some(why), Some(details)) => Some(format!("{details}. The signature was not checked: {why}")),
        (None, Some(details)) => {
            let issuer = claims.as_ref().and_then(|claims| claims.get("iss")).and_then(Value::as_str);
            let accepted = issuer.filter(|_| word == "audience_mismatch").and_then(|issuer| audiences.get(issuer));
            let accepted = accepted.map(|accepted| format!(". Accepted: {accepted}")).unwrap_or_default();
            Some(format!("{details}{accepted}"))
        }
        (None, None) if word == "ok" => findings.note,
        (None, None) => revoked.clone().or_else(|| times(word, claims.as_ref()?, moment)),
    };
    Ok(Explanation {
        admitted,
        reason: word.to_owned(),
        description,
        details,
        advice: advised(word, denial.as_ref(), findings.principal.as_deref(), revoked.is_some()),
        principal,
        header,
        claims,
    })
}

/// The times that matter for this reason.
fn times(reason: &str, claims: &Value, now: Moment) -> Option<String> {
    let time = |claim: &str| claims.get(claim).and_then(Value::as_i64);
    match reason {
        "token_expired" => {
            Some(format!("the token expired at {}, and the time here is {now}", Moment::of_seconds(time("exp")?)?))
        }
        "token_not_yet_valid" => {
            let begin = time("nbf").max(time("iat"))?;
            Some(format!("the token is valid from {}, and the time here is {now}", Moment::of_seconds(begin)?))
        }
        _ => None,
    }
}

/// What the gateway admits: a credential for some connectors may not call the others.
fn admitted_at(resource: &Resource, principal: Option<&Principal>) -> String {
    let scopes = principal.map(Principal::scopes);
    let only: Vec<&str> = scopes.into_iter().flat_map(ScopeSet::connectors).map(ConnectorId::as_str).collect();
    match &resource.connector {
        Some(connector) => {
            format!("The gateway admits it at the connector {connector}. Nothing here checks whether this connector exists.")
        }
        None if scopes.is_some_and(|scopes| !scopes.covers(&resource.needed_scope())) => format!(
            "The gateway admits it at /mcp/{}, but it may call only: {}. If the agent called another connector, write its id below.",
            resource.org,
            only.join(", ")
        ),
        None => "The gateway admits this credential for every connector.".to_owned(),
    }
}

/// What an administrator of the org can do about a refusal.
fn advised(word: &str, denial: Option<&Denial>, principal: Option<&Principal>, is_revoked: bool) -> Option<String> {
    match (denial, principal) {
        _ if is_revoked => Some("Create a new API key.".to_owned()),
        (Some(Denial::ScopeInsufficient { needed, .. }), Some(principal)) => Some(match (principal.method(), needed) {
            (Method::ApiKey, Scope::Connector(id)) => format!("Edit the API key, and add {id} to its connectors."),
            (Method::ApiKey, Scope::AllConnectors) => "Edit the API key, and leave its connectors empty.".to_owned(),
            (Method::Oauth, _) => format!("Use an OAuth client with the scope {needed}, and get a token with this scope."),
            (Method::Byoidp, _) => {
                format!("Let the identity provider grant {needed}, or change the default scopes of this provider.")
            }
        }),
        _ => advice(word).map(str::to_owned),
    }
}

fn not_a_connector(id: &str) -> Failure {
    Failure::of("connector", format!("must be the id of one connector, such as github, and {id:?} is none"))
}

/// What the client is told.
fn told(denial: &Denial) -> String {
    let body: Value = serde_json::from_str(&denial.reply(None).body).unwrap_or_default();
    body.get("error_description").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The header and the claims of a token, unverified.
fn parts(token: &str) -> [Option<Value>; 2] {
    let mut parts = token.split('.').map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok());
    [(); 2].map(|()| parts.next().flatten())
}

/// What an administrator of the org can do about a reason.
fn advice(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "issuer_unknown" => {
            "Configure this issuer at SSO, exactly as it is in the claim iss, or use a token of a configured provider. A slash at the end counts."
        }
        "audience_mismatch" => {
            "Let the client request a token for the audience that is configured at SSO, or add the audience of the token there."
        }
        "signature_invalid" => {
            "The token was changed, or another provider made it. Get a new token. Compare the JWKS URI with that of the provider."
        }
        "key_unknown" => {
            "The provider no longer publishes the key of this token. Get a new token. Compare the JWKS URI with that of the provider."
        }
        "jwks_unavailable" => {
            "If the gateways cannot fetch the keys either, they refuse the token. Compare the JWKS URI with that of the provider. If the \
             provider is in a private network, let an operator allow it at SSO."
        }
        "algorithm_not_allowed" => "Let the provider sign access tokens with RS256.",
        "token_malformed" => {
            "Copy the whole token. The gateway reads signed JWTs (three parts with dots), not opaque or encrypted tokens."
        }
        "token_expired" => "Get a new token.",
        "token_not_yet_valid" => "The clock of the provider is ahead. Check the time of both machines.",
        "claim_missing" => "Let the provider put iss, aud, sub, exp and iat into its access tokens.",
        "token_revoked" => "The token was revoked. Get a new one.",
        "client_unknown" => "The OAuth client was revoked, or belongs to another organization. Create one at OAuth clients.",
        "api_key_unknown" => "The key was revoked, mistyped, or belongs to another organization. Create one at API keys.",
        "api_key_expired" => "Create a new key at API keys.",
        "credential_repeated" => "Paste only the token or the API key, and nothing around it.",
        "credential_malformed" => "Copy the whole credential, without spaces and line breaks.",
        _ => return None,
    })
}

/// A key set with one key, which stands in for keys that cannot be fetched. Nothing is verified with it: the host is blind then.
/// Without a `kid`, it stands for the key of every token.
const STAND_IN: &str = concat!(
    r#"{"keys":[{"kty":"RSA","e":"AQAB","n":"w8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8"#,
    "PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8",
    r#"PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDww"}]}"#
);

/// What an administrator is told if the signature was not checked.
const UNCHECKED: &str =
    "It is unknown whether the gateway admits this token. Everything but the signature was checked and is good.";

/// A host for one explanation, without a gateway around it.
#[derive(Default)]
struct Memory {
    shared: RefCell<HashMap<String, Shared>>,
    /// Whether signatures are not checked, because there are no keys. The result is then never "admitted".
    is_blind: Cell<bool>,
}

impl Host for Memory {
    fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool {
        self.is_blind.get() || verify_in_rust(key, jws)
    }

    fn sign(&self, _: &SigningKey, _: &AccessTokenClaims<'_>) -> Option<String> {
        None
    }

    fn random(&self) -> Option<[u8; 16]> {
        crate::secret::random().ok()
    }

    fn shared(&self, name: &str) -> Option<Shared> {
        self.shared.borrow().get(name).cloned()
    }

    fn update(&self, name: &str, change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Update {
        let mut shared = self.shared.borrow_mut();
        let before = shared.get(name);
        let revision = before.map_or(0, |before| before.revision).wrapping_add(1);
        match change(before.map_or(&[], |before| &before.bytes)) {
            None => Update::Unchanged,
            Some(bytes) => {
                shared.insert(name.to_owned(), Shared { bytes, revision });
                Update::Changed
            }
        }
    }
}
