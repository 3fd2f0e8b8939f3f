//! Tokens that an input describes: a fuzzer changes their texts, and knows no way to sign them itself.

use apexmcp_core::jose::jwk::RsaPublicKey;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use apexmcp_core::testing::hash_signature as signature;

/// A token, and who signed it.
#[derive(Default)]
pub struct Token {
    /// The letter of a key, or any other for nobody.
    pub signer: u8,
    /// The text of the header.
    pub header: String,
    /// The text of the claims.
    pub claims: String,
}

impl Token {
    /// Reads a signer, a header and claims, each a line, and gives what follows them.
    pub fn read(data: &[u8]) -> (Self, &[u8]) {
        let mut lines = data.splitn(4, |byte| *byte == b'\n');
        let mut line = || lines.next().unwrap_or_default();
        let (signer, header, claims, rest) = (line(), line(), line(), line());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (Self { signer: signer.first().copied().unwrap_or(b'-'), header: text(header), claims: text(claims) }, rest)
    }

    /// It as a JWS, with the signature of the signer's key; without one, where nobody signed it.
    pub fn written(&self, key: Option<&RsaPublicKey>) -> String {
        let input = [&self.header, &self.claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
        let signed = key.map_or([0; 32], |key| signature(key, &input));
        format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signed))
    }
}
