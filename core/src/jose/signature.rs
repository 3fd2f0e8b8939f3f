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
pub struct VerifiedToken<'token>(CompactJws<'token>);

impl VerifiedToken<'_> {
    /// The claims that the issuer signed.
    pub fn claims(&self) -> &Map<String, Value> {
        self.0.claims()
    }
}

/// Verifies the signature of `jws` with each of `keys`.
///
/// # Errors
/// The unproven token, if no key fits.
#[allow(clippy::result_large_err, reason = "the token is moved, and boxing it would cost an allocation")]
pub fn verify<'token, 'key>(
    jws: CompactJws<'token>,
    keys: impl IntoIterator<Item = &'key RsaPublicKey>,
    host: &dyn Host,
) -> Result<VerifiedToken<'token>, CompactJws<'token>> {
    if keys.into_iter().any(|key| host.verify(key, &jws)) { Ok(VerifiedToken(jws)) } else { Err(jws) }
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
