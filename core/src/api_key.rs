//! Static API keys: `apx_live_sk_` and 32 characters of base62, known to the policy by their SHA-256 alone.
//!
//! The look-up is by hash, so its time says nothing of the key: who can choose the hash can't choose the key behind it.

use sha2::{Digest, Sha256};

use crate::reason::Reason;

/// Prefix of every API key.
pub(crate) const PREFIX: &[u8] = b"apx_live_sk_";
const SECRET_LENGTH: usize = 32;

/// The SHA-256 of a whole key, prefix included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// A digest written as 64 hexadecimal digits, where `text` is one.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).ok()?;
        Some(Self(digest))
    }

    /// Its first four bytes, by which keys are spread evenly.
    pub fn first_bytes(&self) -> u32 {
        self.0.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }
}

/// The digest of the key that a header's `value` holds.
///
/// # Errors
/// [`Reason::CredentialMalformed`] where it has not the form of a key; nothing is hashed then.
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
    fn a_key_hashes_to_what_sha256sum_prints() {
        let key = b"apx_live_sk_0123456789abcdefghijABCDEFGHIJ01";
        let expected = KeyDigest::from_hex("68da3d5e3810933a9dff1f9d7809ad982642279332ed1dced6bf37f389dcc0e9").unwrap();
        assert_eq!(digest(key), Ok(expected));
    }

    #[test]
    fn the_form_is_exact() {
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
