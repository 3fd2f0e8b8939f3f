//! RSA by AWS-LC, with keys that are parsed once in each thread.

use std::cell::RefCell;
use std::num::NonZeroUsize;

use apexmcp_core::access_token::{self, AccessTokenClaims};
use apexmcp_core::jose::compact::CompactJws;
use apexmcp_core::jose::jwk::RsaPublicKey;
use apexmcp_core::signing_key::SigningKey;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256};
use lru::LruCache;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

/// Maximum number of parsed public keys in a thread. A parsed key takes about 2 KiB. A key that was evicted is parsed again,
/// which takes 4 µs.
const MAX_PUBLIC_KEYS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Maximum number of parsed signing keys in a thread. Only the first key of the policy signs.
const MAX_SIGNING_KEYS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// The parsed keys of one thread.
pub(crate) struct Keys {
    public: RefCell<LruCache<Vec<u8>, ParsedPublicKey>>,
    signing: RefCell<LruCache<String, KeyPair>>,
}

impl Default for Keys {
    fn default() -> Self {
        Self { public: RefCell::new(LruCache::new(MAX_PUBLIC_KEYS)), signing: RefCell::new(LruCache::new(MAX_SIGNING_KEYS)) }
    }
}

impl Keys {
    /// See [`apexmcp_core::host::Host::verify`].
    pub(crate) fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool {
        let mut keys = self.public.borrow_mut();
        let parse = || ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.spki());
        let parsed = keys.try_get_or_insert_ref(key.spki(), parse);
        parsed.is_ok_and(|key| key.verify_sig(jws.signing_input().as_bytes(), jws.signature()).is_ok())
    }

    /// See [`apexmcp_core::host::Host::sign`].
    pub(crate) fn sign(&self, key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Option<String> {
        let mut keys = self.signing.borrow_mut();
        let parse = || {
            let der = PrivatePkcs8KeyDer::from_pem_slice(key.pem().as_bytes()).ok()?;
            KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()
        };
        let pair = keys.try_get_or_insert_ref(key.pem(), || parse().ok_or(())).ok()?;
        let signing_input = claims.signing_input(key.kid())?;
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signing_input.as_bytes(), &mut signature).ok()?;
        Some(access_token::assemble(&signing_input, &signature))
    }
}
