//! Project Wycheproof's signatures (RSASSA-PKCS1-v1_5 with SHA-256; 2048, 3072 and 4096 bits) at both verifiers: the
//! one in pure Rust, for hosts without a verifier, and Envoy's own, through the whole filter. Both must agree with
//! Wycheproof.
//!
//! The vectors sign short messages with keys whose private half is unknown, but both verifiers accept only tokens. So
//! the test transfers each vector to the issuer's key. It opens the vector's signature with the vector's public key.
//! It replaces the hash of the message by the hash of the token's signing input. It signs the result unchanged,
//! including wrong padding and garbage. A signature that is longer, shorter or greater than its modulus becomes a
//! signature of the issuer's key with the same property.

use apexmcp_core::jose::compact::CompactJws;
use apexmcp_core::jose::jwk::RsaPublicKey;
use apexmcp_core::jose::signature::verify_in_rust;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use rsa::{BigUint, RsaPrivateKey};
use serde_json::json;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::issuer::Issuer;
use wasm_test::token::Key;
use wasm_test::upstream;
use wycheproof::TestResult;
use wycheproof::rsa_pkcs1_verify::{TestFlag, TestName, TestSet};

/// A vector: its signature, its message, and its public key.
struct Vector<'v> {
    signature: &'v [u8],
    message: &'v [u8],
    modulus: BigUint,
    exponent: BigUint,
}

impl Vector<'_> {
    /// The signature of `key` for `input` that has the properties of this vector.
    fn carried_over(&self, key: &RsaPrivateKey, input: &[u8]) -> Vec<u8> {
        let number = BigUint::from_bytes_be(self.signature);
        let (times, rest) = (&number / &self.modulus, &number % &self.modulus);
        let mut encoded = left_padded(&rest.modpow(&self.exponent, &self.modulus), self.modulus.to_bytes_be().len());
        let hash = hmac_sha256::Hash::hash(self.message);
        if let Some(at) = encoded.windows(hash.len()).position(|window| window == hash) {
            encoded.splice(at..at + hash.len(), hmac_sha256::Hash::hash(input));
        }
        let signed = (BigUint::from_bytes_be(&encoded) % key.n()).modpow(key.d(), key.n());
        left_padded(&(signed + times * key.n()), self.signature.len())
    }
}

/// The number in `length` bytes, or in more if it needs more.
fn left_padded(number: &BigUint, length: usize) -> Vec<u8> {
    let bytes = number.to_bytes_be();
    [vec![0; length.saturating_sub(bytes.len())], bytes].concat()
}

#[tokio::test]
async fn both_verifiers_agree_with_wycheproof() {
    let sets = [
        (Key::first("2048"), TestName::Rsa2048Sha256),
        (Key::of_bits(3072, "3072"), TestName::Rsa3072Sha256),
        (Key::of_bits(4096, "4096"), TestName::Rsa4096Sha256),
    ];
    let upstream = upstream::start().await;
    let issuer = Issuer::start(&sets.each_ref().map(|(key, _)| key)).await;
    let gateway = Setup::new(plugin(&json!({"acme": {"identity_providers": [issuer.record()]}}))).start(&upstream).await;
    for (key, set) in sets {
        check_set(&gateway, &issuer, &key, &TestSet::load(set).expect("the vectors")).await;
    }
}

async fn check_set(gateway: &Gateway, issuer: &Issuer, key: &Key, set: &TestSet) {
    let jwk = key.jwk();
    let number = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(jwk[name].as_str().expect("a number")).expect("base64url");
    let public = RsaPublicKey::from_components(&number("n"), &number("e")).expect("a key");
    let (mut good, mut bad) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            let vector = Vector {
                signature: &test.sig,
                message: &test.msg,
                modulus: BigUint::from_bytes_be(&group.key.n),
                exponent: BigUint::from_bytes_be(&group.key.e),
            };
            let what = format!("{} bits, {}: {} {:?}", key.kid, test.tc_id, test.comment, test.flags);
            let claims = issuer.claims_with(&json!({"vector": test.tc_id}));
            let token = key.token_signed_by(&claims, |key, input| vector.carried_over(key, input));
            let by_rust = verify_in_rust(&public, &CompactJws::parse(&token).expect("a token"));
            let by_host = gateway.send(&Request::tools_list("/mcp/acme").bearer(&token)).await.status == 200;
            let expected = match test.result {
                TestResult::Valid => true,
                TestResult::Invalid => false,
                // The identifier of the hash has no NULL parameters. RFC 8017 §9.2 has one encoding, and §8.2.2
                // compares with it. Its note 1 allows others, but each of them would be a second spelling of a token.
                TestResult::Acceptable => {
                    assert!(test.flags.contains(&TestFlag::MissingNull), "{what}");
                    false
                }
            };
            assert_eq!((by_rust, by_host), (expected, expected), "{what}");
            *if expected { &mut good } else { &mut bad } += 1;
        }
    }
    println!("{} bits: {good} good and {bad} bad signatures", key.kid);
    assert!(good > 0 && bad > 100, "{} bits: {good} good, {bad} bad", key.kid);
}
