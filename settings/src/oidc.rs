//! Sign-in to the console with the operator's own OpenID Connect provider: the authorization code flow with PKCE, state and nonce.
//!
//! The crate `openidconnect` makes the requests and checks the ID token. This module decides who the person is.

use std::sync::Arc;
use std::time::Duration;

use apexmcp_core::names::is_plain;
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreErrorResponseType, CoreGenderClaim,
    CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata, CoreRevocableToken,
    CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::{
    AdditionalClaims, AuthType, AuthorizationCode, Client, ClientId, ClientSecret, CsrfToken, EmptyExtraTokenFields,
    EndpointMaybeSet, EndpointNotSet, EndpointSet, IdTokenFields, IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeChallenge,
    PkceCodeVerifier, RedirectUrl, Scope, StandardErrorResponse, StandardTokenResponse, TokenResponse, UserInfoClaims,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use crate::database::pool::in_thread;
use crate::failure::{Failure, Reason, visible};
use crate::issuer::{self, Reach};
use crate::serve::log;

/// How long the documents of the provider are used, and how long a failure to fetch them is remembered.
const MAX_AGE: Duration = Duration::from_secs(60);
const MAX_AGE_OF_FAILURE: Duration = Duration::from_secs(10);
/// Maximum number of requests to the provider at the same time.
const MAX_REQUESTS: usize = 4;
/// Maximum length of a value that a browser sends back, in bytes. Authorization codes of real providers stay below 2 KiB.
const MAX_VALUE_LENGTH: usize = 4096;

/// Maximum length of the name of a person, in characters.
const MAX_NAME_LENGTH: usize = 254;
/// Maximum length of an answer of the provider, in bytes.
const MAX_ANSWER_LENGTH: u64 = 256 << 10;

/// The path below the URL of the console to which the provider sends people back.
pub const CALLBACK: &str = "/sign-in/callback";

/// The condition under which a person is an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperatorRule {
    /// The person has this address, in lower case, and the provider has verified it.
    Email(String),
    /// The claim of the ID token is this value, or a list with it.
    Claim { name: String, value: String },
}

impl std::str::FromStr for OperatorRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("email", _)) => Err("must be the address alone, such as ada@example.com".to_owned()),
            Some((name, value)) if !name.is_empty() && !value.is_empty() && !name.contains('@') => {
                Ok(Self::Claim { name: name.to_owned(), value: value.to_owned() })
            }
            None if text.contains('@') => Ok(Self::Email(text.to_ascii_lowercase())),
            _ => Err("must be an address such as ada@example.com, or a claim such as groups=platform".to_owned()),
        }
    }
}

/// The configuration of sign-in with a provider.
#[derive(Clone, Debug)]
pub struct Config {
    /// The issuer, exactly as in the provider's metadata.
    pub issuer: String,
    pub client_id: String,
    /// `None`: a public client. PKCE protects both kinds.
    pub client_secret: Option<String>,
    pub operators: Vec<OperatorRule>,
    /// The scopes to request besides openid.
    pub scopes: Vec<String>,
    /// The URL at which people reach the console, without a slash at its end.
    pub console_url: String,
}

impl Config {
    /// Checks the configuration.
    ///
    /// # Errors
    /// If a URL is no URL, or the issuer is not https. An attacker on the network could otherwise replace the provider's keys.
    pub fn check(&self) -> Result<(), Failure> {
        let wrong = |option: &str, line: &str| Failure::new(Reason::InvalidArgument, format!("{option} {line}"));
        let issuer = IssuerUrl::new(self.issuer.clone()).map_err(|_| wrong("--sign-in-issuer", "must be a URL"))?;
        let is_own = matches!(issuer.url().host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if issuer.url().scheme() != "https" && !is_own {
            return Err(wrong(
                "--sign-in-issuer",
                "must be https: with http, an attacker on the network could sign in as anybody",
            ));
        }
        self.redirect().map(|_| ())
    }

    fn redirect(&self) -> Result<RedirectUrl, Failure> {
        let line = "--console-url must be a URL such as https://settings.example.com";
        let failure = |_| Failure::new(Reason::InvalidArgument, line);
        RedirectUrl::new(format!("{}{CALLBACK}", self.console_url)).map_err(failure)
    }
}

/// What the browser keeps while the person is at the provider.
#[derive(Debug)]
pub struct Attempt {
    state: String,
    nonce: String,
    verifier: String,
}

impl Attempt {
    /// Whether the provider's answer with this `state` belongs to the attempt (RFC 6749 §10.12).
    pub fn is_of(&self, state: &str) -> bool {
        self.state.as_bytes().ct_eq(state.as_bytes()).into()
    }

    /// A text for a cookie.
    pub fn to_text(&self) -> String {
        [self.state.as_str(), &self.nonce, &self.verifier].join(".")
    }

    /// The attempt in the text of a cookie.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(str::to_owned);
        let attempt = Self { state: parts.next()?, nonce: parts.next()?, verifier: parts.next()? };
        // RFC 7636 §4.1: a verifier has 43 to 128 characters.
        let is_whole = !attempt.state.is_empty() && !attempt.nonce.is_empty() && (43..=128).contains(&attempt.verifier.len());
        (is_whole && parts.next().is_none() && text.len() <= MAX_VALUE_LENGTH).then_some(attempt)
    }
}

/// A person whom the provider has identified.
#[derive(Debug, PartialEq, Eq)]
pub struct Person {
    /// The name for the audit log: the verified address, or else the issuer and the subject.
    pub name: String,
    /// The verified address, in lower case.
    pub email: Option<String>,
    pub is_operator: bool,
}

impl Person {
    /// The person of these claims. An address that the provider has not verified may belong to somebody else.
    fn of(config: &Config, subject: &str, Said { email, is_verified, others }: Said) -> Self {
        let is_address =
            |email: &String| email.len() <= MAX_NAME_LENGTH && email.chars().all(|letter| is_plain(letter) && letter != ' ');
        let email = email.filter(|_| is_verified).filter(is_address).map(|email| email.to_ascii_lowercase());
        let subject: String = subject.chars().flat_map(visible).take(MAX_NAME_LENGTH).collect();
        let has = |name: &str, value: &str| match others.get(name) {
            Some(Value::Array(values)) => values.iter().any(|found| found.as_str() == Some(value)),
            Some(Value::String(found)) => found == value,
            _ => false,
        };
        let is_operator = config.operators.iter().any(|rule| match rule {
            OperatorRule::Email(address) => email.as_ref() == Some(address),
            OperatorRule::Claim { name, value } => has(name, value),
        });
        Self { name: email.clone().unwrap_or_else(|| format!("{}#{subject}", config.issuer)), email, is_operator }
    }
}

/// What the provider says about a person.
#[derive(Debug, Default)]
struct Said {
    email: Option<String>,
    is_verified: bool,
    others: Map<String, Value>,
}

/// The claims that OpenID Connect does not define.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Others(Map<String, Value>);

impl AdditionalClaims for Others {}

type Fields =
    IdTokenFields<Others, EmptyExtraTokenFields, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;
type Answer = StandardTokenResponse<Fields, CoreTokenType>;
type OidcClient = Client<
    Others,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Answer,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// The documents of the provider, or why there are none, and when they were fetched.
type Fetched = Option<(Instant, Result<Arc<CoreProviderMetadata>, String>)>;

/// Sign-in with a provider.
#[derive(Debug)]
pub struct Oidc {
    config: Config,
    /// Held during a fetch, so that all requests share one.
    fetched: Mutex<Fetched>,
    places: Arc<Semaphore>,
}

impl Oidc {
    pub fn new(config: Config) -> Self {
        Self { config, fetched: Mutex::default(), places: Arc::new(Semaphore::new(MAX_REQUESTS)) }
    }

    /// The host of the provider, for the button.
    pub fn host(&self) -> &str {
        let rest = self.config.issuer.split_once("://").map_or(self.config.issuer.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default()
    }

    /// Begins a sign-in. Returns the URL at the provider, and what the browser keeps meanwhile.
    ///
    /// # Errors
    /// If the provider cannot be asked.
    pub async fn begin(&self) -> Result<(String, Attempt), Failure> {
        let client = client(&self.config, &*self.metadata().await?)?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let flow = CoreAuthenticationFlow::AuthorizationCode;
        let request = client.authorize_url(flow, CsrfToken::new_random, Nonce::new_random);
        let scopes = self.config.scopes.iter().cloned().map(Scope::new);
        let (url, state, nonce) = request.add_scopes(scopes).set_pkce_challenge(challenge).url();
        let attempt =
            Attempt { state: state.secret().clone(), nonce: nonce.secret().clone(), verifier: verifier.secret().clone() };
        Ok((url.to_string(), attempt))
    }

    /// Ends a sign-in with the code that belongs to the attempt. Returns the person.
    ///
    /// # Errors
    /// `unauthenticated` if the provider did not identify the person. The line is for the log.
    pub async fn complete(&self, attempt: Attempt, code: String) -> Result<Person, Failure> {
        if code.is_empty() || code.len() > MAX_VALUE_LENGTH {
            return Err(refused("the answer of the identity provider has no code"));
        }
        let (config, metadata) = (self.config.clone(), self.metadata().await?);
        in_thread(&self.places, move || {
            let client = client(&config, &metadata)?;
            let request = client.exchange_code(AuthorizationCode::new(code)).map_err(refused)?;
            let answer = request.set_pkce_verifier(PkceCodeVerifier::new(attempt.verifier)).request(&ask).map_err(refused)?;
            let token = answer.id_token().ok_or_else(|| refused("the provider sent no ID token"))?;
            // Neither none nor an algorithm with a shared secret.
            let verifier = client.id_token_verifier().set_allowed_algs([
                CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
                CoreJwsSigningAlgorithm::RsaSsaPssSha256,
                CoreJwsSigningAlgorithm::EcdsaP256Sha256,
                CoreJwsSigningAlgorithm::EcdsaP384Sha384,
                CoreJwsSigningAlgorithm::EdDsa,
            ]);
            let claims = token.claims(&verifier, &Nonce::new(attempt.nonce)).map_err(refused)?;
            let mut said = Said {
                email: claims.email().map(|email| email.as_str().to_owned()),
                is_verified: claims.email_verified() == Some(true),
                others: claims.additional_claims().0.clone(),
            };
            // Many providers say more there than in the ID token (OpenID Connect Core §5.4).
            if metadata.userinfo_endpoint().is_some() && said.email.is_none() {
                let subject = Some(claims.subject().clone());
                let request = client.user_info(answer.access_token().clone(), subject).map_err(refused)?;
                let more: UserInfoClaims<Others, CoreGenderClaim> = request.request(&ask).map_err(refused)?;
                said.email = more.email().map(|email| email.as_str().to_owned());
                said.is_verified = more.email_verified() == Some(true);
                said.others.extend(more.additional_claims().0.clone());
            }
            Ok(Person::of(&config, claims.subject().as_str(), said))
        })
        .await
    }

    /// The documents of the provider.
    async fn metadata(&self) -> Result<Arc<CoreProviderMetadata>, Failure> {
        let mut fetched = self.fetched.lock().await;
        let is_new = |at: &Instant, max: Duration| at.elapsed() < max;
        let known = fetched.as_ref().filter(|(at, found)| is_new(at, if found.is_ok() { MAX_AGE } else { MAX_AGE_OF_FAILURE }));
        let found = match known {
            Some((_, found)) => found.clone(),
            None => {
                let issuer = IssuerUrl::new(self.config.issuer.clone()).map_err(refused)?;
                let fetch = move || CoreProviderMetadata::discover(&issuer, &ask).map_err(refused);
                let found = in_thread(&self.places, fetch).await.map(Arc::new).map_err(|failure| failure.to_string());
                if let Err(line) = &found {
                    log(format_args!("sign-in: the documents of the identity provider cannot be fetched: {line}"));
                }
                *fetched = Some((Instant::now(), found.clone()));
                found
            }
        };
        found.map_err(|line| Failure::new(Reason::ProviderCheckFailed, line))
    }
}

fn client(config: &Config, metadata: &CoreProviderMetadata) -> Result<OidcClient, Failure> {
    let secret = config.client_secret.clone().map(ClientSecret::new);
    // RFC 8414 §2: without the member, the method is client_secret_basic.
    let takes_basic = metadata
        .token_endpoint_auth_methods_supported()
        .is_none_or(|methods| methods.contains(&CoreClientAuthMethod::ClientSecretBasic));
    let client = Client::from_provider_metadata(metadata.clone(), ClientId::new(config.client_id.clone()), secret)
        .set_redirect_uri(config.redirect()?)
        .set_auth_type(if takes_basic { AuthType::BasicAuth } else { AuthType::RequestBody });
    Ok(client)
}

/// Sends a request to the provider. It is the operator's own choice, so it may have a private address.
fn ask(request: openidconnect::HttpRequest) -> Result<openidconnect::HttpResponse, ureq::Error> {
    let mut answer = issuer::agent(Reach::Anywhere, Arc::default()).run(request)?;
    let body = answer.body_mut().with_config().limit(MAX_ANSWER_LENGTH).read_to_vec()?;
    Ok(answer.map(|_| body))
}

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::new(Reason::Unauthenticated, error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(operators: &[&str]) -> Config {
        Config {
            issuer: "https://login.example.com".to_owned(),
            client_id: "console".to_owned(),
            client_secret: None,
            operators: operators.iter().map(|rule| rule.parse().unwrap()).collect(),
            scopes: vec!["email".to_owned()],
            console_url: "https://settings.example.com".to_owned(),
        }
    }

    fn said(email: &str, is_verified: bool, groups: Value) -> Said {
        let others = [("groups".to_owned(), groups)].into_iter().collect();
        Said { email: Some(email.to_owned()), is_verified, others }
    }

    #[test]
    fn a_verified_address_or_a_claim_makes_an_operator() {
        let config = config(&["Ada@Example.com", "groups=platform"]);
        for (email, is_verified, groups, name, is_operator) in [
            ("ADA@example.com", true, json!(null), "ada@example.com", true),
            ("ada@example.com", false, json!(null), "https://login.example.com#7", false),
            ("eve@example.com", true, json!(["web"]), "eve@example.com", false),
            ("eve@example.com", true, json!(["web", "platform"]), "eve@example.com", true),
            ("ada@example.com\nx", true, json!(null), "https://login.example.com#7", false),
            ("eve@example.com", true, json!("platform"), "eve@example.com", true),
            ("eve@example.com", true, json!("the platform"), "eve@example.com", false),
            ("eve@example.com", true, json!({"platform": true}), "eve@example.com", false),
            ("eve@example.com", false, json!(["platform"]), "https://login.example.com#7", true),
        ] {
            let person = Person::of(&config, "7", said(email, is_verified, groups));
            let email = name.contains('@').then(|| name.to_owned());
            assert_eq!(person, Person { name: name.to_owned(), email, is_operator });
        }
    }

    #[test]
    fn a_rule_is_an_address_or_a_claim() {
        let claim = |name: &str, value: &str| Ok(OperatorRule::Claim { name: name.to_owned(), value: value.to_owned() });
        assert_eq!("Ada@Example.com".parse(), Ok(OperatorRule::Email("ada@example.com".to_owned())));
        assert_eq!("groups=platform".parse(), claim("groups", "platform"));
        assert_eq!("mail=ada@example.com".parse(), claim("mail", "ada@example.com"));
        for wrong in ["", "ada", "=platform", "groups=", "email=ada@example.com"] {
            assert!(wrong.parse::<OperatorRule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_a_whole_attempt_is_read() {
        let text = format!("state.nonce.{}", "v".repeat(43));
        assert_eq!(Attempt::from_text(&text).unwrap().to_text(), text);
        for wrong in ["", "state.nonce", "state.nonce.short", &format!("{text}.more"), &format!(".nonce.{}", "v".repeat(43))] {
            assert!(Attempt::from_text(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn an_issuer_is_https_or_on_this_machine() {
        for (issuer, is_ok) in [
            ("https://login.example.com", true),
            ("http://127.0.0.1:4000", true),
            ("http://localhost:4000", true),
            ("http://login.example.com", false),
            ("http://localhost.example.com", false),
            ("login.example.com", false),
        ] {
            assert_eq!(Config { issuer: issuer.to_owned(), ..config(&[]) }.check().is_ok(), is_ok, "{issuer}");
        }
        assert!(Config { console_url: "settings".to_owned(), ..config(&[]) }.check().is_err());
    }
}
