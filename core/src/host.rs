//! The services that the core needs from its shell: cryptography, randomness and shared data. Each call returns at once.

use crate::access_token::AccessTokenClaims;
use crate::jose::compact::CompactJws;
use crate::jose::jwk::RsaPublicKey;
use crate::signing_key::SigningKey;

/// The host. A call that it cannot do returns `false` or `None`.
pub trait Host {
    /// Whether `key` made the signature of `jws`: RSASSA-PKCS1-v1_5 with SHA-256, RFC 7518 §3.3.
    fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool;

    /// Signs `claims` with `key`, and returns the access token.
    fn sign(&self, key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Option<String>;

    /// Bytes that nobody can predict.
    fn random(&self) -> Option<[u8; 16]>;

    /// A value in shared data. `None` if no thread has written it.
    fn shared(&self, name: &str) -> Option<Shared>;

    /// Changes a value in shared data by compare-and-swap. `change` gets the present bytes (empty if there is no value) and
    /// returns the new ones, or `None` to change nothing. If another thread was faster, `change` is called again.
    fn update(&self, name: &str, change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Update;
}

/// A value in shared data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The value.
    pub bytes: Vec<u8>,
    /// A number that each change replaces by another one.
    pub revision: u32,
}

/// The result of [`Host::update`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// The value is changed.
    Changed,
    /// `change` returned `None`.
    Unchanged,
    /// Other threads were faster in every attempt, so the value is not changed.
    Contended,
}
