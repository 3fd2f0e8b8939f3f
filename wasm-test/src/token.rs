//! Keys and tokens. A test chooses header and claims, so a token may be valid or broken in any way.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rsa::pkcs1v15::SigningKey;
use rsa::rand_core::OsRng;
use rsa::sha2::{Sha256, Sha512};
use rsa::signature::{RandomizedSigner, SignatureEncoding, Signer};
use rsa::traits::PublicKeyParts;
use rsa::{RsaPrivateKey, pkcs8::EncodePublicKey, pss};
use serde_json::{Value, json};

/// The current time as a NumericDate (RFC 7519 §2).
#[allow(clippy::disallowed_methods, reason = "the tests create tokens for the clock that Envoy uses")]
pub fn now() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since_epoch.as_secs().try_into().unwrap_or(i64::MAX)
}

/// Encodes text or bytes as base64url without padding.
pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A signature algorithm.
#[derive(Clone, Copy, Debug)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256, the only accepted algorithm.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// HMAC with SHA-256 and the public key's PEM as the secret: the known algorithm confusion attack.
    Hs256,
}

/// An RSA key pair with a key id.
#[derive(Clone, Debug)]
pub struct Key {
    pub kid: String,
    key: RsaPrivateKey,
}

impl Key {
    /// The first key of this process, with this `kid`. It is generated once, because generating a key is slow.
    pub fn first(kid: &str) -> Self {
        static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
        Self::made_once(&KEY, 2048, kid)
    }

    /// The second key, different from the first.
    pub fn second(kid: &str) -> Self {
        static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
        Self::made_once(&KEY, 2048, kid)
    }

    /// The third key, different from the others.
    pub fn third(kid: &str) -> Self {
        static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
        Self::made_once(&KEY, 2048, kid)
    }

    /// Generates a new key of this size.
    pub fn of_bits(bits: usize, kid: &str) -> Self {
        Self { kid: kid.to_owned(), key: RsaPrivateKey::new(&mut OsRng, bits).expect("a key") }
    }

    /// A key of 1024 bits, which the gateway must not accept.
    pub fn short(kid: &str) -> Self {
        static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
        Self::made_once(&KEY, 1024, kid)
    }

    fn made_once(key: &OnceLock<RsaPrivateKey>, bits: usize, kid: &str) -> Self {
        let key = key.get_or_init(|| Self::of_bits(bits, kid).key);
        Self { kid: kid.to_owned(), key: key.clone() }
    }

    /// The public key as a member of a JWK set.
    pub fn jwk(&self) -> Value {
        let number = |number: &rsa::BigUint| base64url(number.to_bytes_be());
        json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid,
            "n": number(self.key.n()), "e": number(self.key.e()),
        })
    }

    /// The public key as PEM.
    pub fn public_pem(&self) -> String {
        self.key.to_public_key().to_public_key_pem(Default::default()).expect("PEM")
    }

    /// The JOSE header of a valid token of this key.
    pub fn header(&self) -> Value {
        json!({"alg": "RS256", "typ": "JWT", "kid": self.kid})
    }

    /// A valid token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&self.header(), claims)
    }

    /// A token with this header.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.sign(Algorithm::Rs256, header.to_string(), claims.to_string())
    }

    /// A token with any text as header and claims.
    pub fn sign(&self, algorithm: Algorithm, header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
        let input = format!("{}.{}", base64url(header), base64url(claims));
        let signature = self.signature(algorithm, input.as_bytes());
        format!("{input}.{}", base64url(signature))
    }

    fn signature(&self, algorithm: Algorithm, input: &[u8]) -> Vec<u8> {
        match algorithm {
            Algorithm::Rs256 => SigningKey::<Sha256>::new(self.key.clone()).sign(input).to_vec(),
            Algorithm::Rs512 => SigningKey::<Sha512>::new(self.key.clone()).sign(input).to_vec(),
            Algorithm::Ps256 => pss::SigningKey::<Sha256>::new(self.key.clone()).sign_with_rng(&mut OsRng, input).to_vec(),
            Algorithm::Hs256 => hmac_sha256::HMAC::mac(input, self.public_pem()).to_vec(),
        }
    }

    /// A token with a valid header, these claims, and the signature that `sign` returns.
    pub fn token_signed_by(&self, claims: &Value, sign: impl FnOnce(&RsaPrivateKey, &[u8]) -> Vec<u8>) -> String {
        let input = format!("{}.{}", base64url(self.header().to_string()), base64url(claims.to_string()));
        format!("{input}.{}", base64url(sign(&self.key, input.as_bytes())))
    }

    /// A token that is valid for a public key with this modulus and the exponent 1. Nobody needs a private key for it:
    /// the signature is the padded hash itself (EMSA-PKCS1-v1_5, RFC 8017 §9.2).
    pub fn forge_for_exponent_1(&self, claims: &Value) -> String {
        const DIGEST_INFO: &str = "3031300d060960864801650304020105000420";
        let input = format!("{}.{}", base64url(self.header().to_string()), base64url(claims.to_string()));
        let mut ending = hex::decode(DIGEST_INFO).expect("hexadecimal");
        ending.extend(hmac_sha256::Hash::hash(input.as_bytes()));
        let padding = self.key.size() - ending.len() - 3;
        let padded = [vec![0, 1], vec![0xff; padding], vec![0], ending].concat();
        format!("{input}.{}", base64url(padded))
    }
}
