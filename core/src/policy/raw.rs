//! The schema of the policy document. Gateways read it with these types, and Settings writes it with them.
//!
//! docs/reference/policy-document.md documents each member, and a test compares the two. Every member that can be left out is
//! optional here, so that the check ([`super::Policy`]) can name all problems of a document at once. The order of the fields is
//! the order in which they are written.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::limits::document::Limits;

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RawPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default)]
    pub signing_keys: Vec<RawSigningKey>,
    #[serde(default)]
    pub orgs: Members<RawOrg>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RawOrg {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub api_keys: Vec<RawApiKey>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub oauth_clients: Vec<RawOauthClient>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identity_providers: Vec<RawIdentityProvider>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    #[serde(default, skip_serializing_if = "RawRevokedTokens::is_empty")]
    pub revoked_tokens: RawRevokedTokens,
}

/// Either `private_key_env` or `private_key_pem` is present.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RawSigningKey {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key_pem: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RawApiKey {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connectors: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub revoked: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RawOauthClient {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_sha256: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub revoked: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RawIdentityProvider {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<OneOrMany>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_scopes: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_scopes: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub revoked: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RawRevokedTokens {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jti: Vec<String>,
    #[serde(default, skip_serializing_if = "Members::is_empty")]
    pub issued_before: Members<String>,
}

impl RawRevokedTokens {
    fn is_empty(&self) -> bool {
        self.jti.is_empty() && self.issued_before.is_empty()
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    /// The values as a list.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// The members of a JSON object whose names are data. A repeated name is an error. A map would drop one of the two silently.
#[derive(Debug)]
pub struct Members<V>(pub Vec<(String, V)>);

impl<V> Members<V> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<V> From<BTreeMap<String, V>> for Members<V> {
    fn from(members: BTreeMap<String, V>) -> Self {
        Self(members.into_iter().collect())
    }
}

impl<V: Serialize> Serialize for Members<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

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
        let mut names = HashSet::new();
        while let Some((name, value)) = map.next_entry::<String, V>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("duplicate member {name:?}")));
            }
            members.push((name, value));
        }
        Ok(Members(members))
    }
}
