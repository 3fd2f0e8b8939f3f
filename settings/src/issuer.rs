//! Inspects what an identity provider publishes, before the gateway accepts its tokens.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use apexmcp_core::jose::jwk::JwkSet;
use apexmcp_core::json::without_byte_order_mark;
use apexmcp_core::jwks::{self, JwksUri};
use apexmcp_core::policy::issuer::{check as check_issuer, is_url};
use serde::Serialize;
use serde_json::Value;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use utoipa::ToSchema;

use crate::address::is_public;
use crate::failure::{Failure, Reason};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a document, in bytes. The gateway has the same limit for key sets.
const MAX_LENGTH: u64 = 256 << 10;
/// Maximum length of a URL. Real ones stay below 200 characters.
const MAX_URL_LENGTH: usize = 2048;
/// Maximum number of keys that [`published`] describes. The gateway accepts no more in a key set.
const MAX_SHOWN_KEYS: usize = 100;
/// The `Accept` header for metadata documents. It accepts every type, because a document is judged by its content.
const ACCEPT_METADATA: &str = "application/json, */*;q=0.1";
/// Suffixes of names that exist only within a network: RFC 6761, RFC 6762, RFC 8375, and those of clouds and clusters.
const PRIVATE_SUFFIXES: [&str; 7] = [".localhost", ".local", ".internal", ".home.arpa", ".svc", ".lan", ".corp"];

/// The rule for addresses. A sentence continues it with what is wrong.
const PUBLIC_ONLY: &str = "must be on the public Internet, because only operators can allow a private network";
/// The option of the command line that allows such addresses.
const ALLOW: &str = "Pass --allow-private-address to allow it";

/// The addresses from which documents may be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Addresses of the public Internet, by https.
    Public,
    /// All addresses, also by http: for test networks, and for providers within the operator's network.
    Anywhere,
}

impl Reach {
    /// The reach of somebody who may, or may not, lead into the operator's network.
    pub fn allowing_private(is_allowed: bool) -> Self {
        if is_allowed { Self::Anywhere } else { Self::Public }
    }
}

/// The result of one check.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Whether the check passed. If not, only `--force` saves the provider.
    pub ok: bool,
    /// Whether somebody should look at the result although the check passed.
    pub warning: bool,
    /// The result in words.
    pub finding: String,
}

impl Finding {
    fn new(ok: bool, finding: impl Into<String>) -> Self {
        Self { ok, warning: false, finding: finding.into() }
    }

    /// A result that does not prevent the provider from being saved.
    pub fn warning(finding: impl Into<String>) -> Self {
        Self { ok: true, warning: true, finding: finding.into() }
    }

    /// The mark in the text for a person.
    pub fn mark(&self) -> &'static str {
        match (self.ok, self.warning) {
            (false, _) => "FAIL",
            (true, true) => "warn",
            (true, false) => "ok  ",
        }
    }
}

/// The result of an inspection of a provider.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The findings, in the order of the checks.
    pub findings: Vec<Finding>,
    /// `scopes_supported` of the provider's metadata (RFC 8414 §2), if present.
    pub scopes_supported: Option<Vec<String>>,
}

/// Fetches the keys at `jwks_uri`, and the discovery document of `issuer` if that is a URL.
///
/// # Errors
/// If the gateway would refuse one of the two URLs, or must not fetch from it. Every other problem is a finding.
pub fn inspect(issuer: &str, jwks_uri: &str, reach: Reach) -> Result<Inspection, Failure> {
    let mut findings = Vec::new();
    let issuer_url = is_url(issuer).then_some(("issuer", issuer));
    if issuer_url.is_none() {
        check_issuer(issuer.to_owned()).map_err(|wrong| Failure::of("issuer", wrong.to_string()))?;
        if issuer.len() > MAX_URL_LENGTH {
            return Err(Failure::of("issuer", format!("must have at most {MAX_URL_LENGTH} characters")));
        }
        findings.push(Finding::new(true, format!("the issuer {issuer:?} is not a URL, so its metadata cannot be checked")));
    }
    for (field, url) in issuer_url.into_iter().chain([("jwks_uri", jwks_uri)]) {
        // As the gateway reads them: https or http, a host, no user information.
        let parsed = JwksUri::parse(url).map_err(|wrong| Failure::of(field, wrong.to_string()))?;
        findings.extend(judge_url(field, &parsed, reach)?);
    }
    let scopes_supported = look(reach, issuer, jwks_uri, &mut findings)?;
    Ok(Inspection { findings, scopes_supported })
}

/// Refuses a URL that the gateway must not call. A possible mistake is a finding.
fn judge_url(field: &'static str, url: &JwksUri, reach: Reach) -> Result<Option<Finding>, Failure> {
    if url.as_str().len() > MAX_URL_LENGTH {
        return Err(Failure::of(field, format!("must have at most {MAX_URL_LENGTH} characters")));
    }
    port(field, url.authority())?;
    match (url.scheme(), reach) {
        ("http", Reach::Public) => {
            let line =
                "must be https, because an attacker on the network could replace keys over http. Only operators can allow http";
            Err(Failure::of(field, line).because(Reason::PrivateAddress).hint("--allow-private-address allows http"))
        }
        ("http", Reach::Anywhere) => Ok(Some(Finding::warning(format!(
            "{} is not https: gateways without jwks.http_cluster refuse all tokens of this provider",
            url.as_str()
        )))),
        (_, Reach::Public) => refuse_private(field, url),
        (_, Reach::Anywhere) => Ok(None),
    }
}

/// Fetches the keys at `jwks_uri`. Returns the reason if the gateway could not use them.
pub fn wrong_with_keys(jwks_uri: &str, reach: Reach) -> Option<String> {
    // If this is not a URL, the check of the document reports the error.
    let url = JwksUri::parse(jwks_uri).ok()?;
    match judge_url("jwks_uri", &url, reach) {
        Err(failure) => Some(failure.within("the key set was not fetched").to_string()),
        Ok(_) => {
            Some(fetch_keys(&agent(reach, Arc::default()), jwks_uri)).filter(|finding| !finding.ok).map(|finding| finding.finding)
        }
    }
}

/// Fetches the keys at `jwks_uri`. The error says why there are none.
///
/// # Errors
/// If the gateway could not use what is there, or must not fetch it.
pub fn keys(jwks_uri: &str, reach: Reach) -> Result<JwkSet, String> {
    let url = JwksUri::parse(jwks_uri).map_err(ToOwned::to_owned)?;
    judge_url("jwks_uri", &url, reach).map_err(|failure| failure.line().to_owned())?;
    let body = fetch(&agent(reach, Arc::default()), jwks_uri, jwks::ACCEPT)?;
    JwkSet::parse(&body).map_err(|why| format!("is not a key set for RS256: {why}"))
}

/// Fetches the keys at `jwks_uri` and reports whether they are usable.
fn fetch_keys(agent: &Agent, jwks_uri: &str) -> Finding {
    match fetch(agent, jwks_uri, jwks::ACCEPT) {
        Err(why) => Finding::new(false, format!("{jwks_uri} {why}")),
        Ok(body) => match JwkSet::parse(&body) {
            Err(why) => Finding::new(false, format!("{jwks_uri} is not a key set for RS256: {why}")),
            Ok(keys) => Finding::new(true, format!("{jwks_uri} has {} usable RS256 keys", keys.len())),
        },
    }
}

/// Checks the published documents. Returns `scopes_supported` of the metadata.
fn look(reach: Reach, issuer: &str, jwks_uri: &str, findings: &mut Vec<Finding>) -> Result<Option<Vec<String>>, Failure> {
    let was_private = Arc::new(AtomicBool::new(false));
    let agent = agent(reach, Arc::clone(&was_private));
    let metadata = is_url(issuer).then(|| compare(&agent, issuer, jwks_uri, findings)).flatten();
    let list = |member: &str| {
        let values = metadata.as_ref()?.get(member)?.as_array()?;
        Some(values.iter().filter_map(|value| Some(value.as_str()?.to_owned())).collect::<Vec<_>>())
    };
    findings.extend(
        list("id_token_signing_alg_values_supported").filter(|algorithms| !algorithms.iter().any(|it| it == "RS256")).map(
            |algorithms| {
                let algorithms = algorithms.join(", ");
                Finding::warning(format!(
                    "the metadata of {issuer} names the signature algorithms {algorithms}, and the gateway accepts only RS256: \
                 make the provider sign access tokens with RS256"
                ))
            },
        ),
    );
    findings.push(fetch_keys(&agent, jwks_uri));
    // A failure instead of a finding, which --force would ignore. The name had another address, or none, at the first check.
    match was_private.load(Ordering::Relaxed) {
        true => Err(Failure::new(
            Reason::PrivateAddress,
            format!("issuer and jwks_uri {PUBLIC_ONLY}: one of them has a private address"),
        )
        .hint(ALLOW)),
        false => Ok(list("scopes_supported")),
    }
}

/// Fetches the metadata as in OpenID Connect Discovery §4, or else as in RFC 8414 §3. Returns its URL with it. The error says why
/// there is none.
fn metadata(agent: &Agent, issuer: &str) -> Result<(String, Value), String> {
    let base = issuer.trim_end_matches('/');
    let oidc = format!("{base}/.well-known/openid-configuration");
    let oauth = base.split_once("://").map(|(scheme, rest)| {
        let (authority, path) =
            rest.split_once('/').map_or((rest, String::new()), |(authority, path)| (authority, format!("/{path}")));
        format!("{scheme}://{authority}/.well-known/oauth-authorization-server{path}")
    });
    let document = fetch(agent, &oidc, ACCEPT_METADATA).map(|body| (oidc.clone(), body)).or_else(|why| {
        let oauth = oauth.ok_or_else(|| why.clone())?;
        fetch(agent, &oauth, ACCEPT_METADATA).map(|body| (oauth, body)).map_err(|_| why)
    });
    let (url, body) = document.map_err(|why| format!("{oidc} {why}"))?;
    let read = serde_json::from_slice::<Value>(without_byte_order_mark(&body));
    read.map(|document| (url.clone(), document)).map_err(|_| format!("{url} is not JSON"))
}

/// Compares the metadata of an issuer with a record.
fn compare(agent: &Agent, issuer: &str, jwks_uri: &str, findings: &mut Vec<Finding>) -> Option<Value> {
    let (url, document) = match metadata(agent, issuer) {
        Ok(found) => found,
        Err(why) => {
            findings.push(Finding::new(false, why));
            return None;
        }
    };
    for (member, expected) in [("issuer", issuer), ("jwks_uri", jwks_uri)] {
        let found = document.get(member).and_then(Value::as_str);
        findings.push(match found {
            Some(found) if found == expected => Finding::new(true, format!("{url} names the same {member}")),
            Some(found) => Finding::new(false, format!("{url} names the {member} {found:?}: is that the right one?")),
            None => Finding::new(false, format!("{url} names no {member}")),
        });
    }
    Some(document)
}

/// What an identity provider publishes.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Published {
    /// `issuer` of its metadata. The `iss` claim of its tokens is the same.
    pub issuer: Option<String>,
    /// `jwks_uri` of its metadata.
    pub jwks_uri: Option<String>,
    /// `scopes_supported` of its metadata.
    pub scopes_supported: Option<Vec<String>>,
    pub keys: Vec<PublishedKey>,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// A key of an identity provider.
#[derive(Debug, Serialize, ToSchema)]
pub struct PublishedKey {
    pub kid: Option<String>,
    /// The algorithm for which the key is, or else its type.
    pub alg: Option<String>,
    /// Why the gateway cannot use the key. Null: it can.
    pub problem: Option<String>,
}

impl PublishedKey {
    fn of(key: &Value) -> Self {
        let text = |member: &str| key.get(member).and_then(Value::as_str).map(str::to_owned);
        let alone = serde_json::json!({ "keys": [key] }).to_string();
        let problem = JwkSet::parse(alone.as_bytes()).err().map(|error| error.to_string());
        Self { kid: text("kid"), alg: text("alg").or_else(|| text("kty")), problem }
    }
}

/// Fetches what a provider publishes, of which only the issuer is known.
///
/// # Errors
/// If the issuer is no URL, or one of the URLs leads to an address that `reach` does not allow. Other problems are in the result.
pub fn published(issuer: &str, reach: Reach) -> Result<Published, Failure> {
    if !is_url(issuer) {
        return Err(Failure::of("issuer", "must be a URL; without one, write the JWKS URI yourself"));
    }
    let url = JwksUri::parse(issuer).map_err(|wrong| Failure::of("issuer", wrong.to_string()))?;
    let mut problems: Vec<String> = judge_url("issuer", &url, reach)?.into_iter().map(|finding| finding.finding).collect();
    let was_private = Arc::new(AtomicBool::new(false));
    let agent = agent(reach, Arc::clone(&was_private));
    let mut found = Published::default();
    match metadata(&agent, issuer) {
        Err(why) => problems.push(why),
        Ok((url, document)) => {
            let text = |member: &str| document.get(member).and_then(Value::as_str).map(str::to_owned);
            (found.issuer, found.jwks_uri) = (text("issuer"), text("jwks_uri"));
            let scopes = document.get("scopes_supported").and_then(Value::as_array);
            found.scopes_supported =
                scopes.map(|scopes| scopes.iter().filter_map(|scope| Some(scope.as_str()?.to_owned())).collect());
            if found.issuer.as_deref() != Some(issuer) {
                let named = found.issuer.as_deref().unwrap_or("none");
                problems.push(format!("{url} names the issuer {named}: use that one, exactly as it is"));
            }
            match &found.jwks_uri {
                None => problems.push(format!("{url} names no jwks_uri")),
                Some(uri) => {
                    let parsed = JwksUri::parse(uri).map_err(|wrong| Failure::of("jwks_uri", wrong.to_string()))?;
                    problems.extend(judge_url("jwks_uri", &parsed, reach)?.map(|finding| finding.finding));
                    match fetch(&agent, uri, jwks::ACCEPT) {
                        Err(why) => problems.push(format!("{uri} {why}")),
                        Ok(body) => {
                            let keys = serde_json::from_slice::<Value>(without_byte_order_mark(&body)).unwrap_or_default();
                            let keys = keys.get("keys").and_then(Value::as_array);
                            found.keys = keys.into_iter().flatten().take(MAX_SHOWN_KEYS).map(PublishedKey::of).collect();
                            if let Err(why) = JwkSet::parse(&body) {
                                problems.push(format!("{uri} is not a key set for RS256: {why}"));
                            }
                        }
                    }
                }
            }
        }
    }
    if was_private.load(Ordering::Relaxed) {
        let line = format!("issuer and jwks_uri {PUBLIC_ONLY}: one of them has a private address");
        return Err(Failure::new(Reason::PrivateAddress, line).hint(ALLOW));
    }
    Ok(Published { problems, ..found })
}

/// Fetches the body of a 200. The error says why there is none.
fn fetch(agent: &Agent, url: &str, accept: &str) -> Result<Vec<u8>, String> {
    let answer = agent.get(url).header("accept", accept).header("accept-encoding", "identity").call();
    let mut answer = answer.map_err(|error| format!("cannot be fetched: {error}"))?;
    match answer.status().as_u16() {
        200 => {}
        status @ 300..=399 => return Err(format!("answered {status}, and the gateway follows no redirects")),
        status => return Err(format!("answered {status}")),
    }
    answer.body_mut().with_config().limit(MAX_LENGTH).read_to_vec().map_err(|error| format!("cannot be read: {error}"))
}

/// The host and the port of an authority (RFC 3986 §3.2). The RFC allows a colon without a port. It is refused here, because
/// resolvers and connectors read it in different ways.
fn port<'a>(field: &'static str, authority: &'a str) -> Result<(&'a str, Option<u16>), Failure> {
    // An IPv6 address has colons within its brackets.
    let Some((host, port)) = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) else {
        return Ok((authority, None));
    };
    let number = port.parse().ok().filter(|number| *number > 0 && port.bytes().all(|byte| byte.is_ascii_digit()));
    let wrong = || {
        let line =
            format!("has the authority {authority}: its port must be 1 to 65535; or leave out both the colon and the port");
        Failure::of(field, line)
    };
    number.map(|number| (host, Some(number))).ok_or_else(wrong)
}

/// Refuses a host outside of the public Internet. A host without an address is a failed finding.
fn refuse_private(field: &'static str, url: &JwksUri) -> Result<Option<Finding>, Failure> {
    let authority = url.authority();
    let (host, port) = port(field, authority)?;
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let is_number = name.starts_with('[') || name.split('.').all(|part| part.starts_with(|first: char| first.is_ascii_digit()));
    let means_nothing = !is_number && (!name.contains('.') || PRIVATE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)));
    // The name may have no address on this machine, and a private address on the machine of the gateway.
    // A resolver reads "10.0.0.1." as a name, or as an address.
    if means_nothing || host.contains('%') || (is_number && host.ends_with('.')) {
        let line = format!("{PUBLIC_ONLY}: {host} is a name of a private network");
        return Err(Failure::of(field, line).because(Reason::PrivateAddress).hint(ALLOW));
    }
    let target = format!("{host}:{}", port.unwrap_or(443));
    let addresses: Vec<IpAddr> = target.to_socket_addrs().into_iter().flatten().map(|address| address.ip()).collect();
    match addresses.iter().find(|address| !is_public(**address)) {
        Some(_) => {
            let line = format!("{PUBLIC_ONLY}: {authority} has a private address");
            Err(Failure::of(field, line).because(Reason::PrivateAddress).hint(ALLOW))
        }
        // Not a failure, because a provider may be configured before it can be reached. --force then saves it.
        None => Ok(addresses.is_empty().then(|| {
            let unknown = "has no address in the DNS of this server: check the spelling. If it is right, this server may have no access \
                           to the Internet: ask an operator";
            Finding::new(false, format!("{host} {unknown}"))
        })),
    }
}

pub(crate) fn agent(reach: Reach, was_private: Arc<AtomicBool>) -> Agent {
    let tls = TlsConfig::builder()
        // The trust store of the system, which may contain the company's own authority.
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = Config::builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .user_agent(concat!("apexmcp/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build();
    Agent::with_parts(config, DefaultConnector::default(), Guard { inner: DefaultResolver::default(), reach, was_private })
}

/// Resolves names and checks the same addresses that are then connected to. A second answer of the DNS cannot change them.
#[derive(Debug)]
struct Guard {
    inner: DefaultResolver,
    reach: Reach,
    /// Whether an address was refused.
    was_private: Arc<AtomicBool>,
}

impl Resolver for Guard {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = self.inner.resolve(uri, config, timeout)?;
        if self.reach == Reach::Public && addresses.iter().any(|address| !is_public(address.ip())) {
            self.was_private.store(true, Ordering::Relaxed);
            return Err(ureq::Error::Other("the host has a private address".into()));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The address of a name is checked again at the connection, because it may have changed.
    #[test]
    fn private_addresses_are_not_connected_to() {
        for (reach, is_allowed) in [(Reach::Public, false), (Reach::Anywhere, true)] {
            let guard = Guard { inner: DefaultResolver::default(), reach, was_private: Arc::default() };
            let addresses = guard.resolve(&Uri::from_static("http://localhost/"), &Config::default(), NextTimeout::default());
            assert_eq!(addresses.is_ok(), is_allowed, "{reach:?}: {addresses:?}");
            let mut findings = Vec::new();
            let looked = look(reach, "https://localhost:1", "https://localhost:1/keys", &mut findings);
            assert_eq!(looked.is_ok(), is_allowed, "{reach:?}: a failure, not a finding that --force would ignore: {findings:?}");
        }
    }

    /// A resolver may read a number with a dot at its end as an address.
    #[test]
    fn a_private_address_with_a_dot_at_its_end_is_refused() {
        for (host, is_refused) in [("10.0.0.1", true), ("10.0.0.1.", true), ("169.254.169.254.", true), ("8.8.8.8", false)] {
            let url = JwksUri::parse(&format!("https://{host}/keys")).unwrap();
            assert_eq!(refuse_private("jwks_uri", &url).is_err(), is_refused, "{host}");
        }
    }

    #[test]
    fn a_colon_without_a_port_is_refused() {
        for (authority, expected) in [
            ("idp", Some(("idp", None))),
            ("idp:1", Some(("idp", Some(1)))),
            ("idp:65535", Some(("idp", Some(65_535)))),
            ("[::1]", Some(("[::1]", None))),
            ("[::1]:443", Some(("[::1]", Some(443)))),
            ("idp:", None),
            ("[::1]:", None),
            ("idp:0", None),
            ("idp:65536", None),
            ("idp:+1", None),
        ] {
            assert_eq!(port("--issuer", authority).ok(), expected, "{authority}");
        }
    }
}
