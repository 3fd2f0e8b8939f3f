//! The keys that sign the tokens of the gateway.

use std::fmt;

use jwt_simple::algorithms::{RS256KeyPair, RSAKeyPairLike};
use jwt_simple::claims::Claims;
use jwt_simple::common::HeaderOptions;
use jwt_simple::prelude::{Duration as CoarseDuration, UnixTimeStamp};
use serde::Serialize;

use crate::access_token::{AccessTokenClaims, TYPE};
use crate::jose::jwk::{Jwk, RsaPublicKey};

/// An RSA key pair of 2048 to 4096 bits. Its `Debug` shows only the public key.
pub struct SigningKey {
    jwk: Jwk,
    pem: Box<str>,
    pair: RS256KeyPair,
}

impl SigningKey {
    /// Reads a private key in PKCS#8 PEM.
    ///
    /// # Errors
    /// The reason why the key is refused. The text contains nothing of the key.
    pub fn from_pem(kid: &str, pem: &str) -> Result<Self, &'static str> {
        let pem = pem.trim();
        if !pem.starts_with("-----BEGIN PRIVATE KEY-----") {
            return Err("must be a private key in PKCS#8 PEM, which begins with -----BEGIN PRIVATE KEY-----");
        }
        let pair = RS256KeyPair::from_pem(pem).map_err(|_| "must be an RSA private key of 2048 to 4096 bits")?.with_key_id(kid);
        let public = pair.public_key().to_components();
        let key = RsaPublicKey::from_components(&public.n, &public.e).ok_or("must be an RSA key of 2048 bits or more")?;
        Ok(Self { jwk: Jwk::new(kid, key), pem: pem.into(), pair })
    }

    /// The `kid` in the header of tokens.
    pub fn kid(&self) -> &str {
        self.jwk.kid().unwrap_or_default()
    }

    /// The public key.
    pub fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// The private key in PKCS#8 PEM, for a host that signs.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs in pure Rust, for hosts that cannot sign.
    pub fn sign_in_rust(&self, claims: &AccessTokenClaims<'_>) -> Option<String> {
        #[derive(Serialize)]
        struct OwnClaims<'c> {
            client_id: &'c str,
            scope: &'c str,
        }
        let own = OwnClaims { client_id: claims.client_id, scope: claims.scope };
        let mut all = Claims::with_custom_claims(own, CoarseDuration::default())
            .with_issuer(claims.iss)
            .with_subject(claims.sub)
            .with_jwt_id(claims.jti);
        all = match claims.aud {
            [only] => all.with_audience(only),
            several => all.with_audiences(several.iter().cloned().collect()),
        };
        all.issued_at = Some(UnixTimeStamp::from_secs(claims.iat));
        all.expires_at = Some(UnixTimeStamp::from_secs(claims.exp));
        all.invalid_before = None;
        let header = HeaderOptions { signature_type: Some(TYPE.to_owned()), ..HeaderOptions::default() };
        self.pair.sign_with_options(all, &header).ok()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SigningKey").field("jwk", &self.jwk).finish_non_exhaustive()
    }
}
