//! Envoy as the core's [`Host`]. RSA runs in Envoy's BoringSSL through foreign functions. If Envoy lacks a function, the
//! module computes the result itself.

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use proxy_wasm::types::Status;

use crate::hostcalls::{self, CAS_ATTEMPTS};
use apexmcp_core::access_token::{self, AccessTokenClaims};
use apexmcp_core::host::{Host, Shared, Update};
use apexmcp_core::jose::compact::CompactJws;
use apexmcp_core::jose::jwk::RsaPublicKey;
use apexmcp_core::jose::signature::verify_in_rust;
use apexmcp_core::signing_key::SigningKey;

const VERIFY: &str = "verify_signature";
const SIGN: &str = "sign";
const HASH_FUNCTION: &str = "sha256";

/// `envoy.source.extensions.common.wasm.VerifySignatureArguments`, serialized without copies, because each new token needs one.
fn verify_arguments(key: &RsaPublicKey, jws: &CompactJws<'_>) -> Vec<u8> {
    let fields = [(1, HASH_FUNCTION.as_bytes()), (2, key.spki()), (3, jws.signature()), (4, jws.signing_input().as_bytes())];
    // A tag has one byte. A length has at most three bytes, because a token has at most 16 KiB.
    let mut message = Vec::with_capacity(fields.iter().map(|(_, value)| value.len().saturating_add(4)).sum());
    for (tag, value) in fields {
        encode_key(tag, WireType::LengthDelimited, &mut message);
        encode_varint(value.len().try_into().unwrap_or(u64::MAX), &mut message);
        message.extend_from_slice(value);
    }
    message
}

/// `envoy.source.extensions.common.wasm.VerifySignatureResult`
#[derive(Message)]
struct VerifyResult {
    #[prost(bool, tag = "1")]
    result: bool,
}

/// `envoy.source.extensions.common.wasm.SignArguments`
#[derive(Message)]
struct SignArguments {
    #[prost(string, tag = "1")]
    hash_function: String,
    #[prost(bytes, tag = "3")]
    text: Vec<u8>,
    #[prost(string, tag = "4")]
    private_key_pem: String,
}

/// `envoy.source.extensions.common.wasm.SignResult`
#[derive(Message)]
struct SignResult {
    #[prost(bool, tag = "1")]
    result: bool,
    #[prost(bytes, tag = "2")]
    signature: Vec<u8>,
}

/// The foreign functions that this Envoy has. The module asks once, when it starts.
#[derive(Clone, Copy)]
pub(crate) struct Envoy {
    verifies: bool,
    signs: bool,
}

impl Default for Envoy {
    fn default() -> Self {
        let has = |function| !matches!(hostcalls::call(function, &[]), Err(Status::NotFound));
        Self { verifies: has(VERIFY), signs: has(SIGN) }
    }
}

impl Envoy {
    /// A log line that says where signatures are verified and made.
    pub(crate) fn describe(self) -> String {
        let by = |host| if host { "Envoy" } else { "the module itself, slowly: this Envoy can't" };
        format!("signatures are verified by {} and made by {}", by(self.verifies), by(self.signs))
    }
}

impl Host for Envoy {
    fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool {
        if !self.verifies {
            return verify_in_rust(key, jws);
        }
        let answer = hostcalls::call(VERIFY, &verify_arguments(key, jws));
        answer.is_ok_and(|bytes| VerifyResult::decode(bytes.as_slice()).is_ok_and(|answer| answer.result))
    }

    fn sign(&self, key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Option<String> {
        if !self.signs {
            return key.sign_in_rust(claims);
        }
        let signing_input = claims.signing_input(key.kid())?;
        let arguments = SignArguments {
            hash_function: HASH_FUNCTION.to_owned(),
            text: signing_input.as_bytes().to_vec(),
            private_key_pem: key.pem().to_owned(),
        };
        let answer = hostcalls::call(SIGN, &arguments.encode_to_vec()).ok()?;
        let answer = SignResult::decode(answer.as_slice()).ok().filter(|answer| answer.result)?;
        Some(access_token::assemble(&signing_input, &answer.signature))
    }

    fn random(&self) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).ok()?;
        Some(bytes)
    }

    fn shared(&self, name: &str) -> Option<Shared> {
        let (value, cas) = hostcalls::shared_data(name);
        value.map(|bytes| Shared { bytes, revision: cas.number() })
    }

    fn update(&self, name: &str, change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Update {
        for _ in 0..CAS_ATTEMPTS {
            let (value, cas) = hostcalls::shared_data(name);
            match change(value.as_deref().unwrap_or_default()) {
                None => return Update::Unchanged,
                Some(changed) if hostcalls::set_shared_data(name, &changed, cas) => return Update::Changed,
                Some(_) => {}
            }
        }
        Update::Contended
    }
}
