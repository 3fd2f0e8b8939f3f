//! Verifies signatures. Only this module creates a [`VerifiedToken`].

use jwt_simple::algorithms::{RS256PublicKey, RSAPublicKeyLike};
use jwt_simple::claims::NoCustomClaims;
use jwt_simple::common::VerificationOptions;
use jwt_simple::prelude::{Duration as CoarseDuration, UnixTimeStamp};
use serde_json::{Map, Value};

use super::compact::CompactJws;
use super::jwk::RsaPublicKey;
use crate::host::Host;

/// A token with a valid signature by one of its issuer's keys. Only [`verify`] creates one.
#[derive(Debug)]
pub struct VerifiedToken<'jws>(&'jws CompactJws<'jws>);

impl VerifiedToken<'_> {
    /// The claims that the issuer signed.
    pub fn claims(&self) -> &Map<String, Value> {
        self.0.claims()
    }
}

/// Verifies the signature of `jws` with each of `keys`. The result is `None` if no key fits.
pub fn verify<'jws, 'key>(
    jws: &'jws CompactJws<'jws>,
    keys: impl IntoIterator<Item = &'key RsaPublicKey>,
    host: &dyn Host,
) -> Option<VerifiedToken<'jws>> {
    keys.into_iter().any(|key| host.verify(key, jws)).then_some(VerifiedToken(jws))
}

/// Verifies in pure Rust, for hosts without a verifier of their own. It is about twenty times slower than Envoy's
/// verifier, and supports moduli of at most 4096 bits.
pub fn verify_in_rust(key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool {
    // The library also checks the times of a token, and would read a clock. The filter has checked them before. So the
    // library checks them at the epoch, where nothing has expired, and accepts times in the future.
    let any_time = VerificationOptions {
        accept_future: true,
        artificial_time: Some(UnixTimeStamp::default()),
        time_tolerance: Some(CoarseDuration::default()),
        ..VerificationOptions::default()
    };
    RS256PublicKey::from_components(key.modulus(), key.exponent())
        .is_ok_and(|key| key.verify_token::<NoCustomClaims>(jws.token(), Some(any_time)).is_ok())
}
