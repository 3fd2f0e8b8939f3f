//! Discovery documents for clients: RFC 8414, OpenID Connect Discovery, RFC 9728, RFC 7517 §5.
//!
//! Every URL in them begins with the configured origin, so the URLs are right behind any proxy.

use serde_json::{Map, Value, json};

use crate::config::{Config, PROTECTED_RESOURCE};
use crate::denial::{Denial, LocalReply};
use crate::host::Host;
use crate::path::Resource;
use crate::policy::source::PolicySource;
use crate::reason::{OK, Reason};
use crate::request::RequestHead;

const AUTHORIZATION_SERVER: &str = "/.well-known/oauth-authorization-server";
const OPENID_CONFIGURATION: &str = "/.well-known/openid-configuration";
const JWKS: &str = "/.well-known/jwks.json";
const AUTHORIZE: &str = "/oauth/authorize";

/// The `cache-control` of a document: 60 seconds. So publish a new signing key 60 seconds before it signs.
const MAX_AGE: &str = "public, max-age=60";

/// An address that the filter answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The token endpoint, RFC 6749 §3.2.
    Token,
    /// The authorization endpoint, RFC 6749 §3.1. It refuses every request, but MCP clients refuse metadata without it.
    Authorization,
    Document(Document),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// RFC 8414 §3.
    AuthorizationServer,
    /// OpenID Connect Discovery §4, for clients that look for this document.
    OpenidConfiguration,
    /// The public keys of the gateway's tokens.
    Jwks,
    /// RFC 9728 §3.
    ProtectedResource(Resource),
}

impl Endpoint {
    /// The endpoint at `path`, if the filter answers this path itself.
    pub fn at(path: &[u8], config: &Config) -> Option<Self> {
        if path == config.gateway.token_path.as_bytes() {
            return Some(Self::Token);
        }
        if path == AUTHORIZE.as_bytes() {
            return Some(Self::Authorization);
        }
        let document = if path == AUTHORIZATION_SERVER.as_bytes() {
            Document::AuthorizationServer
        } else if path == OPENID_CONFIGURATION.as_bytes() {
            Document::OpenidConfiguration
        } else if path == JWKS.as_bytes() {
            Document::Jwks
        } else {
            Document::ProtectedResource(config.gateway.mcp_path.resource(path.strip_prefix(PROTECTED_RESOURCE.as_bytes())?)?)
        };
        Some(Self::Document(document))
    }

    /// The word in metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Authorization => "authorize",
            Self::Document(Document::AuthorizationServer) => "authorization_server_metadata",
            Self::Document(Document::OpenidConfiguration) => "openid_configuration",
            Self::Document(Document::Jwks) => "jwks",
            Self::Document(Document::ProtectedResource(_)) => "protected_resource_metadata",
        }
    }
}

impl Document {
    /// Answers a request for this document. The word counts the answer in metrics.
    pub fn answer(
        &self,
        head: &RequestHead,
        config: &Config,
        policy: &PolicySource,
        host: &dyn Host,
    ) -> (LocalReply, &'static str) {
        match head.method() {
            b"GET" | b"HEAD" => match self.content(config, policy, host) {
                Some(content) => {
                    let headers = vec![
                        ("content-type", "application/json".to_owned()),
                        ("cache-control", MAX_AGE.to_owned()),
                        ("access-control-allow-origin", "*".to_owned()),
                    ];
                    (LocalReply { status: 200, headers, body: content.to_string() }, OK)
                }
                None => (Denial::from(Reason::PathUnmatched).reply(None), Reason::PathUnmatched.word()),
            },
            b"OPTIONS" => (options(), OK),
            _ => (method_not_allowed("GET, HEAD, OPTIONS"), "method_not_allowed"),
        }
    }

    /// The content. `None` if there is nothing to discover: the answer is then a 404, so that clients do not rely on it.
    fn content(&self, config: &Config, policy: &PolicySource, host: &dyn Host) -> Option<Value> {
        match self {
            Self::ProtectedResource(resource) => protected_resource(resource, config, policy, host),
            _ if policy.signing_keys(host).is_empty() => None,
            Self::Jwks => {
                Some(json!({ "keys": policy.signing_keys(host).iter().map(|key| key.jwk().to_value()).collect::<Vec<_>>() }))
            }
            Self::AuthorizationServer => Some(Value::Object(authorization_server(config))),
            Self::OpenidConfiguration => {
                let mut metadata = authorization_server(config);
                // §3 requires these members, although the gateway issues no ID tokens.
                metadata.insert("subject_types_supported".to_owned(), json!(["public"]));
                metadata.insert("id_token_signing_alg_values_supported".to_owned(), json!(["RS256"]));
                Some(Value::Object(metadata))
            }
        }
    }
}

fn authorization_server(config: &Config) -> Map<String, Value> {
    let origin = &config.gateway.origin;
    let members = [
        ("issuer", json!(origin)),
        ("token_endpoint", json!(format!("{origin}{}", config.gateway.token_path))),
        // MCP clients refuse metadata without the next three members. The authorization endpoint itself refuses every
        // request.
        ("authorization_endpoint", json!(format!("{origin}{AUTHORIZE}"))),
        ("response_types_supported", json!(["code"])),
        ("code_challenge_methods_supported", json!(["S256"])),
        // RFC 9207 §3. The endpoint sends no authorization responses, so none of them lacks `iss`.
        ("authorization_response_iss_parameter_supported", json!(true)),
        ("jwks_uri", json!(format!("{origin}{JWKS}"))),
        ("grant_types_supported", json!(["client_credentials"])),
        ("scopes_supported", json!(["mcp:call"])),
        ("token_endpoint_auth_methods_supported", json!(["client_secret_basic", "client_secret_post", "private_key_jwt"])),
        ("token_endpoint_auth_signing_alg_values_supported", json!(["RS256"])),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn protected_resource(resource: &Resource, config: &Config, policy: &PolicySource, host: &dyn Host) -> Option<Value> {
    let org = policy.org(&resource.org, host).filter(|org| org.offers_oauth())?;
    let own = org.has_clients().then_some(config.gateway.origin.as_str());
    let mut metadata = json!({
        "resource": config.gateway.resource_url(resource),
        "authorization_servers": own.into_iter().chain(org.authorization_servers()).collect::<Vec<_>>(),
        "scopes_supported": org.client_scopes(&resource.needed_scope()),
        "bearer_methods_supported": ["header"],
    });
    if let Some(members) = metadata.as_object_mut() {
        // RFC 9728 §3.2: a member without values is omitted.
        members.retain(|_, value| value.as_array().is_none_or(|values| !values.is_empty()));
    }
    Some(metadata)
}

/// The answer to OPTIONS for any document, including preflights. Every page may read the documents.
pub fn options() -> LocalReply {
    let headers = [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, HEAD, OPTIONS"),
        ("access-control-allow-headers", "Authorization, *"),
        ("access-control-max-age", "86400"),
    ];
    let headers = headers.map(|(name, value)| (name, value.to_owned())).into();
    LocalReply { status: 204, headers, body: String::new() }
}

/// Refuses an authorization request (RFC 6749 §4.1.2.1). The user agent gets the error, because the filter knows no
/// client to which it could redirect.
pub fn refuse_authorization(head: &RequestHead) -> (LocalReply, &'static str) {
    if !matches!(head.method(), b"GET" | b"HEAD") {
        return (method_not_allowed("GET"), "method_not_allowed");
    }
    let description = "This gateway supports only the grant type client_credentials. Use the token endpoint.";
    let body =
        json!({ "error": "unsupported_response_type", "error_description": description, "reason": "unsupported_response_type" });
    let headers = vec![("content-type", "application/json".to_owned()), ("cache-control", "no-store".to_owned())];
    (LocalReply { status: 400, headers, body: body.to_string() }, "unsupported_response_type")
}

fn method_not_allowed(allow: &str) -> LocalReply {
    let body =
        json!({ "error": "invalid_request", "error_description": format!("Use {allow}."), "reason": "method_not_allowed" });
    let headers = vec![("content-type", "application/json".to_owned()), ("allow", allow.to_owned())];
    LocalReply { status: 405, headers, body: body.to_string() }
}
