//! A host whose signatures are hashes: a fuzzer makes thousands of tokens in a second, and RSA would make five hundred.
//! Whoever knows a public key can sign here, so an input says by its `signer` who did, and the targets judge by that.

use std::cell::RefCell;
use std::collections::HashMap;

use apexmcp_auth::host::{Host, Shared, Update};
use apexmcp_auth::jose::compact::CompactJws;
use apexmcp_auth::jose::jwk::RsaPublicKey;
use apexmcp_auth::oauth::access_token::{self, AccessTokenClaims};
use apexmcp_auth::oauth::signing_key::SigningKey;
use sha2::{Digest, Sha256};

/// The "signature" of `input` by `key`.
pub fn signature(key: &RsaPublicKey, input: &str) -> [u8; 32] {
    Sha256::new().chain_update(key.modulus()).chain_update(input).finalize().into()
}

/// The host.
#[derive(Debug, Default)]
pub struct FuzzHost {
    shared: RefCell<HashMap<String, Shared>>,
}

impl Host for FuzzHost {
    fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool {
        jws.signature() == signature(key, jws.signing_input())
    }

    fn sign(&self, key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Option<String> {
        let input = claims.signing_input(key.kid())?;
        Some(access_token::assemble(&input, &signature(key.jwk().key(), &input)))
    }

    fn random(&self) -> Option<[u8; 16]> {
        Some([7; 16])
    }

    fn shared(&self, name: &str) -> Option<Shared> {
        self.shared.borrow().get(name).cloned()
    }

    fn update(&self, name: &str, change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Update {
        let mut shared = self.shared.borrow_mut();
        let before = shared.get(name);
        let revision = before.map_or(1, |before| before.revision + 1);
        match change(before.map_or(&[], |before| &before.bytes)) {
            None => Update::Unchanged,
            Some(bytes) => {
                shared.insert(name.to_owned(), Shared { bytes, revision });
                Update::Changed
            }
        }
    }
}
