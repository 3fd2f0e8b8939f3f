//! The gateway's own access tokens, RFC 9068.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Serialize, Serializer};

/// The `typ` of an access token, RFC 9068 §2.1.
pub const TYPE: &str = "at+jwt";

/// The claims of an access token, RFC 9068 §2.2.
#[derive(Debug, Serialize)]
pub struct AccessTokenClaims<'c> {
    /// The gateway's origin.
    pub iss: &'c str,
    /// The id of the client: it acts for itself, not for a user.
    pub sub: &'c str,
    pub client_id: &'c str,
    /// The resources for which the token is valid. There is at least one.
    #[serde(serialize_with = "string_or_array")]
    pub aud: &'c [String],
    /// Seconds since the epoch.
    pub iat: u64,
    /// Seconds since the epoch.
    pub exp: u64,
    /// Unique for each token.
    pub jti: &'c str,
    /// Scopes separated by spaces.
    pub scope: &'c str,
}

/// Writes one audience as a string (RFC 7519 §4.1.3), because most readers expect this form.
fn string_or_array<S: Serializer>(audiences: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    match audiences {
        [only] => only.serialize(serializer),
        all => all.serialize(serializer),
    }
}

impl AccessTokenClaims<'_> {
    /// The JWS Signing Input (RFC 7515 §5.1), with `kid` in the header.
    pub fn signing_input(&self, kid: &str) -> Option<String> {
        #[derive(Serialize)]
        struct Header<'h> {
            alg: &'h str,
            typ: &'h str,
            kid: &'h str,
        }
        let header = serde_json::to_vec(&Header { alg: "RS256", typ: TYPE, kid }).ok()?;
        let claims = serde_json::to_vec(self).ok()?;
        Some(format!("{}.{}", BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(claims)))
    }
}

/// Joins a signing input and its signature to a token.
pub fn assemble(signing_input: &str, signature: &[u8]) -> String {
    format!("{signing_input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}
