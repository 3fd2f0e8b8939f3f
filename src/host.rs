//! What the core asks of whoever runs it, answered at once: cryptography, randomness, and one shared memory.

use crate::jose::compact::CompactJws;
use crate::jose::jwk::RsaPublicKey;
use crate::oauth::access_token::AccessTokenClaims;
use crate::oauth::replay::Use;
use crate::oauth::signing_key::SigningKey;

/// The host. What it cannot do is answered as no.
pub trait Host {
    /// Whether the signature of `jws` is one of `key`: RSASSA-PKCS1-v1_5 with SHA-256, RFC 7518 §3.3.
    fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool;

    /// `claims` as an access token signed with `key`.
    fn sign(&self, key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Option<String>;

    /// Bytes that nobody can foresee.
    fn random(&self) -> Option<[u8; 16]>;

    /// Whether this is the first use of something that may be used once, in all threads.
    fn is_first_use(&self, usage: &Use) -> bool;
}
