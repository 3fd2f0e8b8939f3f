//! Helpers for the tests of several modules and crates (feature `testing`): an in-memory [`Host`], keys and tokens.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)] // Only tests run this code, and a panic fails the test.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rsa::RsaPrivateKey;
use rsa::signature::{SignatureEncoding, Signer};
use rsa::traits::PublicKeyParts;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::access_token::{self, AccessTokenClaims};
use crate::host::{Host, Shared, Update};
use crate::jose::compact::CompactJws;
use crate::jose::jwk::{JwkSet, RsaPublicKey};
use crate::jose::signature;
use crate::request::RequestHead;
use crate::serialized_map::SerializedMap;
use crate::signing_key::SigningKey;

/// A request head with these headers.
pub fn head<N: AsRef<[u8]>, V: AsRef<[u8]>>(headers: &[(N, V)]) -> RequestHead {
    RequestHead::new(SerializedMap::of(headers).unwrap()).unwrap()
}

/// The private key of an issuer. Each run of the tests generates a new one.
pub fn issuer_key() -> &'static RsaPrivateKey {
    static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
    KEY.get_or_init(|| RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap())
}

/// A key set that publishes [`issuer_key`] once for each of these `kid`s.
pub fn jwk_set(kids: &[&str]) -> JwkSet {
    let number = |number: &rsa::BigUint| BASE64_URL_SAFE_NO_PAD.encode(number.to_bytes_be());
    let (n, e) = (number(issuer_key().n()), number(issuer_key().e()));
    let keys: Vec<Value> = kids.iter().map(|kid| json!({"kty": "RSA", "n": n, "e": e, "kid": kid})).collect();
    JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

/// A token with exactly this header and these claims, signed with [`issuer_key`].
pub fn sign(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let input = format!("{}.{}", part(header), part(claims));
    let signature = rsa::pkcs1v15::SigningKey::<rsa::sha2::Sha256>::new(issuer_key().clone()).sign(input.as_bytes());
    format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

/// The signature scheme of a [`MemoryHost`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signatures {
    /// RSA in pure Rust.
    #[default]
    Rsa,
    /// [`hash_signature`]. Anyone with the public key can sign, but a fuzzer can create thousands of tokens a second.
    Hash,
}

/// The signature of `input` with the scheme [`Signatures::Hash`].
pub fn hash_signature(key: &RsaPublicKey, input: &str) -> [u8; 32] {
    Sha256::new().chain_update(key.modulus()).chain_update(input).finalize().into()
}

/// A host with shared memory for one process. It counts verifications and reads, because an attacker can cause both.
#[derive(Debug, Default)]
pub struct MemoryHost {
    /// Number of signatures that were verified.
    pub verifications: Cell<usize>,
    signatures: Signatures,
    shared: RefCell<HashMap<String, Shared>>,
    reads: RefCell<HashMap<String, usize>>,
    is_contended: bool,
}

impl MemoryHost {
    /// A host with this signature scheme.
    pub fn with(signatures: Signatures) -> Self {
        Self { signatures, ..Self::default() }
    }

    /// A host on which another thread wins each race for a shared value.
    pub fn contended() -> Self {
        Self { is_contended: true, ..Self::default() }
    }

    /// Number of reads of the shared value with this name.
    pub fn reads(&self, name: &str) -> usize {
        self.reads.borrow().get(name).copied().unwrap_or(0)
    }
}

impl Host for MemoryHost {
    fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool {
        self.verifications.set(self.verifications.get() + 1);
        match self.signatures {
            Signatures::Rsa => signature::verify_in_rust(key, jws),
            Signatures::Hash => jws.signature() == hash_signature(key, jws.signing_input()),
        }
    }

    fn sign(&self, key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Option<String> {
        match self.signatures {
            Signatures::Rsa => key.sign_in_rust(claims),
            Signatures::Hash => {
                let input = claims.signing_input(key.kid())?;
                Some(access_token::assemble(&input, &hash_signature(key.jwk().key(), &input)))
            }
        }
    }

    fn random(&self) -> Option<[u8; 16]> {
        Some(rand())
    }

    fn shared(&self, name: &str) -> Option<Shared> {
        *self.reads.borrow_mut().entry(name.to_owned()).or_default() += 1;
        self.shared.borrow().get(name).cloned()
    }

    fn update(&self, name: &str, change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Update {
        let mut shared = self.shared.borrow_mut();
        let before = shared.get(name);
        let revision = before.map_or(1, |before| before.revision + 1);
        match change(before.map_or(&[], |before| &before.bytes)) {
            None => Update::Unchanged,
            Some(_) if self.is_contended => Update::Contended,
            Some(bytes) => {
                shared.insert(name.to_owned(), Shared { bytes, revision });
                Update::Changed
            }
        }
    }
}

fn rand() -> [u8; 16] {
    use rsa::rand_core::RngCore;
    let mut bytes = [0; 16];
    rsa::rand_core::OsRng.fill_bytes(&mut bytes);
    bytes
}

/// A signing key of the gateway, as PKCS#8 PEM.
pub fn signing_key_pem() -> &'static str {
    static PEM: OnceLock<String> = OnceLock::new();
    PEM.get_or_init(new_pem)
}

/// A second signing key of the gateway, as PKCS#8 PEM.
pub fn other_signing_key_pem() -> &'static str {
    static PEM: OnceLock<String> = OnceLock::new();
    PEM.get_or_init(new_pem)
}

fn new_pem() -> String {
    let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
    rsa::pkcs8::EncodePrivateKey::to_pkcs8_pem(&key, rsa::pkcs8::LineEnding::LF).unwrap().to_string()
}
