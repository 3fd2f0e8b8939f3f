//! Tokens that an input describes. A fuzzer changes their texts, but it cannot sign them, so the target does that.

use apexmcp_core::jose::jwk::RsaPublicKey;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use apexmcp_core::testing::hash_signature as signature;

/// A token before it is signed.
#[derive(Default)]
pub struct Token {
    /// The letter of the key that signs. With an unknown letter, no key signs.
    pub signer: u8,
    pub header: String,
    pub claims: String,
}

impl Token {
    /// Reads a signer, a header and claims, one line each. Returns the rest of the input, too.
    pub fn read(data: &[u8]) -> (Self, &[u8]) {
        let mut lines = data.splitn(4, |byte| *byte == b'\n');
        let mut line = || lines.next().unwrap_or_default();
        let (signer, header, claims, rest) = (line(), line(), line(), line());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (Self { signer: signer.first().copied().unwrap_or(b'-'), header: text(header), claims: text(claims) }, rest)
    }

    /// The token as a compact JWS, signed with this key. Without a key, the signature is 32 zero bytes.
    pub fn written(&self, key: Option<&RsaPublicKey>) -> String {
        let input = [&self.header, &self.claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
        let signed = key.map_or([0; 32], |key| signature(key, &input));
        format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signed))
    }
}
