//! Static API keys: `apx_live_sk_` and 32 characters of base62. The policy contains only the SHA-256 of each key.
//!
//! The filter looks keys up by hash, so the duration of a look-up reveals nothing about a key. An attacker cannot compute
//! a key from a hash.

use sha2::{Digest, Sha256};

use crate::reason::Reason;

/// Prefix of every API key.
pub(crate) const PREFIX: &[u8] = b"apx_live_sk_";
const SECRET_LENGTH: usize = 32;

/// The SHA-256 of a whole key, prefix included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// Parses 64 hexadecimal digits. Returns `None` for any other text.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).ok()?;
        Some(Self(digest))
    }

    /// The first four bytes as a number. It spreads the keys of an org evenly over the parts of a remote policy.
    pub fn first_bytes(&self) -> u32 {
        self.0.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }
}

/// Hashes the API key in a header `value`.
///
/// # Errors
/// [`Reason::CredentialMalformed`] if `value` does not have the form of a key. Nothing is hashed in this case.
pub fn digest(value: &[u8]) -> Result<KeyDigest, Reason> {
    match value.strip_prefix(PREFIX) {
        Some(secret) if secret.len() == SECRET_LENGTH && secret.iter().all(u8::is_ascii_alphanumeric) => {
            Ok(KeyDigest(Sha256::digest(value).into()))
        }
        _ => Err(Reason::CredentialMalformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_a_key_is_the_one_that_sha256sum_prints() {
        let key = b"apx_live_sk_0123456789abcdefghijABCDEFGHIJ01";
        let expected = KeyDigest::from_hex("68da3d5e3810933a9dff1f9d7809ad982642279332ed1dced6bf37f389dcc0e9").unwrap();
        assert_eq!(digest(key), Ok(expected));
    }

    #[test]
    fn a_key_of_another_form_is_refused() {
        for bad in [
            "",
            "apx_live_sk_",
            "apx_live_sk_0123456789abcdefghijABCDEFGHIJ0",
            "apx_live_sk_0123456789abcdefghijABCDEFGHIJ012",
            "apx_live_sk_0123456789abcdefghijABCDEFGHIJ0_",
            "apx_test_sk_0123456789abcdefghijABCDEFGHIJ01",
            " apx_live_sk_0123456789abcdefghijABCDEFGHIJ01",
        ] {
            assert_eq!(digest(bad.as_bytes()), Err(Reason::CredentialMalformed), "{bad}");
        }
        assert!(KeyDigest::from_hex(&"a".repeat(63)).is_none());
        assert!(KeyDigest::from_hex(&"g".repeat(64)).is_none());
    }
}
