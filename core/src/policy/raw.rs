//! The policy document as it is written, before any check. The contract is in README.md.

use std::fmt;
use std::marker::PhantomData;

use crate::limits::raw::RawLimits;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

/// A policy document.
#[derive(Debug, Deserialize)]
pub(crate) struct RawPolicy {
    pub(super) version: Option<String>,
    #[serde(default)]
    pub(super) signing_keys: Vec<RawSigningKey>,
    #[serde(default)]
    pub(super) orgs: Members<RawOrg>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawOrg {
    #[serde(default)]
    pub(super) api_keys: Vec<RawApiKey>,
    #[serde(default)]
    pub(super) oauth_clients: Vec<RawOauthClient>,
    #[serde(default)]
    pub(super) identity_providers: Vec<RawIdentityProvider>,
    #[serde(default)]
    pub(super) revoked_tokens: RawRevokedTokens,
    pub(super) limits: Option<RawLimits>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawSigningKey {
    pub(super) kid: Option<String>,
    pub(super) private_key_env: Option<String>,
    pub(super) private_key_pem: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawOauthClient {
    pub(super) client_id: Option<String>,
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) secret_sha256: Vec<String>,
    pub(super) jwks: Option<serde_json::Value>,
    pub(super) scopes: Option<Vec<String>>,
    #[serde(default)]
    pub(super) revoked: bool,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawRevokedTokens {
    #[serde(default)]
    pub(super) jti: Vec<String>,
    #[serde(default)]
    pub(super) issued_before: Members<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawApiKey {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) sha256: Option<String>,
    pub(super) connectors: Option<Vec<String>>,
    pub(super) expires_at: Option<String>,
    pub(super) limits: Option<RawLimits>,
    #[serde(default)]
    pub(super) revoked: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawIdentityProvider {
    pub(super) issuer: Option<String>,
    pub(super) jwks_uri: Option<String>,
    pub(super) audience: Option<OneOrMany>,
    pub(super) default_scopes: Option<Vec<String>>,
    pub(super) client_scopes: Option<Vec<String>>,
    #[serde(default)]
    pub(super) revoked: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// The members of a JSON object whose names are data. A name that stands twice is an error: a map would drop one in silence.
#[derive(Debug)]
pub(super) struct Members<V>(pub(super) Vec<(String, V)>);

impl<V> Default for Members<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Members<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

struct MembersVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for MembersVisitor<V> {
    type Value = Members<V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        let mut names = std::collections::HashSet::new();
        while let Some((name, value)) = map.next_entry::<String, V>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("duplicate member {name:?}")));
            }
            members.push((name, value));
        }
        Ok(Members(members))
    }
}
