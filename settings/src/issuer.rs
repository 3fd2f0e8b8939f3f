//! What an identity provider says of itself, before the gateway believes its tokens.

use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use apexmcp_auth::jose::jwk::JwkSet;
use apexmcp_auth::jwks::JwksUri;
use serde::Serialize;
use serde_json::Value;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::address::is_public;
use crate::failure::Failure;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The gateway takes no longer key sets either.
const MAX_LENGTH: u64 = 256 << 10;
/// Real ones stay below 200 characters.
const MAX_URL_LENGTH: usize = 2048;
/// Names that mean something within a network alone: RFC 6761, RFC 6762, RFC 8375, and those of clouds and clusters.
const PRIVATE_SUFFIXES: [&str; 7] = [".localhost", ".local", ".internal", ".home.arpa", ".svc", ".lan", ".corp"];

/// Where answers may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// From the public Internet, by https.
    Public,
    /// From anywhere: test networks, and providers within the operator's network.
    Anywhere,
}

/// Something that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub finding: String,
}

impl Finding {
    fn new(ok: bool, finding: impl Into<String>) -> Self {
        Self { ok, finding: finding.into() }
    }
}

/// Fetches the discovery document of `issuer`, and the keys at `jwks_uri`.
///
/// # Errors
/// Where the gateway would refuse one of the two, or must not be led there. Whatever else is wrong is a finding.
pub fn inspect(issuer: &str, jwks_uri: &str, reach: Reach) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    for (option, url) in [("--issuer", issuer), ("--jwks-uri", jwks_uri)] {
        // As the gateway reads them: https or http, a host, no user information.
        let parsed = JwksUri::parse(url).map_err(|wrong| Failure::new(format!("{option} {wrong}")))?;
        if url.len() > MAX_URL_LENGTH {
            return Err(Failure::new(format!("{option} must have at most {MAX_URL_LENGTH} characters")));
        }
        match (parsed.scheme(), reach) {
            // A gateway without jwks.http_cluster refuses a policy with such a URI, and with it the changes of all orgs.
            ("http", Reach::Public) => {
                return Err(Failure::new(format!(
                    "{option} must be https: whoever is on the way could put keys of his own in; --allow-private-address allows http"
                )));
            }
            ("http", Reach::Anywhere) => findings.push(Finding::new(
                true,
                format!("{url} is not https: gateways without jwks.http_cluster refuse the whole policy"),
            )),
            (_, Reach::Public) => refuse_private(option, &parsed)?,
            (_, Reach::Anywhere) => {}
        }
    }
    let agent = agent(reach);
    discover(&agent, issuer, jwks_uri, &mut findings);
    findings.push(match fetch(&agent, jwks_uri) {
        Err(why) => Finding::new(false, format!("{jwks_uri} {why}")),
        Ok(body) => match JwkSet::parse(&body) {
            Err(why) => Finding::new(false, format!("{jwks_uri} is no key set for RS256: {why}")),
            Ok(keys) => Finding::new(true, format!("{jwks_uri} has {} usable RS256 keys", keys.len())),
        },
    });
    Ok(findings)
}

/// OpenID Connect Discovery §4, else RFC 8414 §3.
fn discover(agent: &Agent, issuer: &str, jwks_uri: &str, findings: &mut Vec<Finding>) {
    let base = issuer.trim_end_matches('/');
    let oidc = format!("{base}/.well-known/openid-configuration");
    let oauth = base.split_once("://").map(|(scheme, rest)| {
        let (authority, path) =
            rest.split_once('/').map_or((rest, String::new()), |(authority, path)| (authority, format!("/{path}")));
        format!("{scheme}://{authority}/.well-known/oauth-authorization-server{path}")
    });
    let document = fetch(agent, &oidc).map(|body| (oidc.clone(), body)).or_else(|why| {
        let oauth = oauth.ok_or_else(|| why.clone())?;
        fetch(agent, &oauth).map(|body| (oauth, body)).map_err(|_| why)
    });
    let (url, body) = match document {
        Ok(found) => found,
        Err(why) => return findings.push(Finding::new(false, format!("{oidc} {why}"))),
    };
    let Ok(document) = serde_json::from_slice::<Value>(&body) else {
        return findings.push(Finding::new(false, format!("{url} is no JSON")));
    };
    for (member, expected, option) in [("issuer", issuer, "--issuer"), ("jwks_uri", jwks_uri, "--jwks-uri")] {
        let found = document.get(member).and_then(Value::as_str);
        findings.push(match found {
            Some(found) if found == expected => Finding::new(true, format!("{url} names this {member}")),
            Some(found) => Finding::new(false, format!("{url} names the {member} {found:?}: is that the right {option}?")),
            None => Finding::new(false, format!("{url} names no {member}")),
        });
    }
}

/// The body of a 200, or why there is none.
fn fetch(agent: &Agent, url: &str) -> Result<Vec<u8>, String> {
    let mut answer =
        agent.get(url).header("accept", "application/json").call().map_err(|error| format!("cannot be fetched: {error}"))?;
    match answer.status().as_u16() {
        200 => {}
        status @ 300..=399 => return Err(format!("answered {status}, and the gateway follows no redirects")),
        status => return Err(format!("answered {status}")),
    }
    answer.body_mut().with_config().limit(MAX_LENGTH).read_to_vec().map_err(|error| format!("cannot be read: {error}"))
}

fn refuse_private(option: &str, url: &JwksUri) -> Result<(), Failure> {
    let authority = url.authority();
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let host = authority.rsplit_once(':').filter(|_| has_port).map_or(authority, |(host, _)| host);
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let is_number = name.starts_with('[') || name.split('.').all(|part| part.starts_with(|first: char| first.is_ascii_digit()));
    let means_nothing = !is_number && (!name.contains('.') || PRIVATE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)));
    // Such a name may have no address where this runs, and a private one where the gateway does.
    if means_nothing || host.contains('%') {
        return Err(Failure::new(format!(
            "{option}: {host} is no name of the public Internet: an org must not lead the gateway into its operator's network; \
             --allow-private-address allows it"
        )));
    }
    let target = if has_port { authority.to_owned() } else { format!("{authority}:443") };
    // One that has no address is a finding of the fetch.
    let mut addresses = target.to_socket_addrs().into_iter().flatten();
    match addresses.find(|address| !is_public(address.ip())) {
        Some(address) => Err(Failure::new(format!(
            "{option}: {authority} is {}, which is not an address of the public Internet: an org must not lead the gateway into its \
             operator's network; --allow-private-address allows it",
            address.ip()
        ))),
        None => Ok(()),
    }
}

fn agent(reach: Reach) -> Agent {
    let tls = TlsConfig::builder()
        // What the operator's system trusts, a company's own authority too.
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
    Agent::with_parts(config, DefaultConnector::default(), Guard { inner: DefaultResolver::default(), reach })
}

/// Resolves names to the addresses that are then connected to, so that a second answer of the DNS can't lead elsewhere.
#[derive(Debug)]
struct Guard {
    inner: DefaultResolver,
    reach: Reach,
}

impl Resolver for Guard {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = self.inner.resolve(uri, config, timeout)?;
        if self.reach == Reach::Public && addresses.iter().any(|address| !is_public(address.ip())) {
            return Err(ureq::Error::Other("it has a private address".into()));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a name leads to is judged again when it is connected to: it may be another address by then.
    #[test]
    fn nothing_private_is_connected_to() {
        for (reach, is_allowed) in [(Reach::Public, false), (Reach::Anywhere, true)] {
            let guard = Guard { inner: DefaultResolver::default(), reach };
            let addresses = guard.resolve(&Uri::from_static("http://localhost/"), &Config::default(), NextTimeout::default());
            assert_eq!(addresses.is_ok(), is_allowed, "{reach:?}: {addresses:?}");
        }
    }
}
