//! OAuth clients of an organization, and the check of their secrets.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::jose::jwk::JwkSet;
use crate::names::OrgName;
use crate::scope::ScopeSet;

/// A registered client.
#[derive(Debug)]
pub struct OauthClient {
    /// The id. It is unique among all organizations, because the token endpoint finds the organization by it.
    pub id: Box<str>,
    /// The organization of the client.
    pub org: OrgName,
    /// The scopes that its tokens may have.
    pub scopes: ScopeSet,
    /// The SHA-256 of each valid secret. There are two during a rotation.
    pub secrets: Vec<[u8; 32]>,
    /// The keys of its assertions (RFC 7523). `None` if it uses secrets only.
    pub jwks: Option<JwkSet>,
}

/// Whether the digest of `secret` is one of `digests`. The comparison takes the same time for every wrong secret.
pub fn is_secret(digests: &[[u8; 32]], secret: &str) -> bool {
    let digest: [u8; 32] = Sha256::digest(secret).into();
    digests.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&digest)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_live_secret_will_do() {
        let digests = ["old", "new"].map(|secret| Sha256::digest(secret).into());
        assert!(is_secret(&digests, "old") && is_secret(&digests, "new"));
        assert!(!is_secret(&digests, "ol") && !is_secret(&digests, "") && !is_secret(&[], "old"));
    }
}
