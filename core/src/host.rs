//! What the core asks of whoever runs it, answered at once: cryptography, randomness, and one shared memory.

use crate::access_token::AccessTokenClaims;
use crate::jose::compact::CompactJws;
use crate::jose::jwk::RsaPublicKey;
use crate::signing_key::SigningKey;

/// The host. What it cannot do is answered as no.
pub trait Host {
    /// Whether the signature of `jws` is one of `key`: RSASSA-PKCS1-v1_5 with SHA-256, RFC 7518 §3.3.
    fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool;

    /// `claims` as an access token signed with `key`.
    fn sign(&self, key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Option<String>;

    /// Bytes that nobody can foresee.
    fn random(&self) -> Option<[u8; 16]>;

    /// A value that all threads share; `None` where there is none yet.
    fn shared(&self, name: &str) -> Option<Shared>;

    /// Changes a value that all threads share, empty where there is none yet, to what `change` makes of it; where that is
    /// nothing, it stays. `change` is called again where another thread was faster.
    fn update(&self, name: &str, change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Update;
}

/// A value that all threads share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// It.
    pub bytes: Vec<u8>,
    /// Another number after each change.
    pub revision: u32,
}

/// What became of a shared value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// It is changed.
    Changed,
    /// It was to stay.
    Unchanged,
    /// Other threads were faster, again and again.
    Contended,
}
