//! OAuth clients of an org, and the ways in which they prove themselves.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::jose::jwk::JwkSet;
use crate::names::OrgName;
use crate::scope::ScopeSet;

/// A registered client.
#[derive(Debug)]
pub struct OauthClient {
    /// Its id, unique among all orgs: the token endpoint knows no org before it.
    pub id: Box<str>,
    /// The org to which it belongs.
    pub org: OrgName,
    /// What it may be granted.
    pub scopes: ScopeSet,
    /// SHA-256 of its live secrets; two while it rotates.
    pub secrets: Vec<[u8; 32]>,
    /// The keys of its assertions (RFC 7523), where it uses these.
    pub jwks: Option<JwkSet>,
}

/// Whether `secret` is one of `digests`. The time it takes is the same for each wrong secret.
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
