//! The one place where a token becomes a proven one.

use jwt_simple::algorithms::{RS256PublicKey, RSAPublicKeyLike};
use jwt_simple::claims::NoCustomClaims;
use jwt_simple::common::VerificationOptions;
use jwt_simple::prelude::{Duration as CoarseDuration, UnixTimeStamp};
use serde_json::{Map, Value};

use super::compact::CompactJws;
use super::jwk::RsaPublicKey;
use crate::host::Host;

/// A token whose signature was found good under one of its issuer's keys. Only [`verify`] makes one.
#[derive(Debug)]
pub struct VerifiedToken<'token>(CompactJws<'token>);

impl VerifiedToken<'_> {
    /// The claims, as their issuer signed them.
    pub fn claims(&self) -> &Map<String, Value> {
        self.0.claims()
    }
}

/// `jws` as a proven token, where its signature fits one of `keys`.
pub fn verify<'token, 'key>(
    jws: CompactJws<'token>,
    keys: impl IntoIterator<Item = &'key RsaPublicKey>,
    host: &dyn Host,
) -> Option<VerifiedToken<'token>> {
    keys.into_iter().any(|key| host.verify(key, &jws)).then_some(VerifiedToken(jws))
}

/// Verifies in pure Rust, for hosts that can't: about twenty times slower than Envoy's own, and for moduli of up to
/// 4096 bits alone.
pub fn verify_in_rust(key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool {
    // The library verifies whole tokens and would read a clock. The times were judged before, so it judges them at
    // the epoch, where nothing has expired, and may take the rest for the future.
    let any_time = VerificationOptions {
        accept_future: true,
        artificial_time: Some(UnixTimeStamp::default()),
        time_tolerance: Some(CoarseDuration::default()),
        ..VerificationOptions::default()
    };
    RS256PublicKey::from_components(key.modulus(), key.exponent())
        .is_ok_and(|key| key.verify_token::<NoCustomClaims>(jws.token(), Some(any_time)).is_ok())
}
