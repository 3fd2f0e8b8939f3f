//! Secrets and ids, from the operating system's randomness.

use std::iter;

use sha2::{Digest, Sha256};

use crate::failure::{Failure, Reason};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `prefix` and `length` random characters of base62.
///
/// # Errors
/// Where the operating system has no randomness.
pub fn base62(prefix: &str, length: usize) -> Result<String, Failure> {
    let mut text = prefix.to_owned();
    while text.len() < prefix.len().saturating_add(length) {
        // Of 256 values of a byte, 248 are four times the alphabet; the others would favour its beginning.
        let [byte] = random::<1>()?;
        text.extend((byte < 248).then(|| BASE62.get(usize::from(byte % 62))).flatten().map(|letter| char::from(*letter)));
    }
    Ok(text)
}

/// `N` random bytes in hexadecimal digits.
///
/// # Errors
/// Where the operating system has no randomness.
pub fn hexadecimal<const N: usize>() -> Result<String, Failure> {
    random::<N>().map(hex::encode)
}

/// The first of the ids that `make` makes that `is_taken` does not know.
///
/// # Errors
/// Where one of them fails, or the ids run out.
pub fn unused(
    make: impl Fn() -> Result<String, Failure>,
    is_taken: impl Fn(&str) -> Result<bool, Failure>,
) -> Result<String, Failure> {
    for id in iter::repeat_with(make).take(100) {
        let id = id?;
        if !is_taken(&id)? {
            return Ok(id);
        }
    }
    Err(Failure::new(Reason::SystemFailed, "no unused id was found: try again"))
}

/// What is kept of a secret. It has more than 140 random bits, so a slow hash would add nothing.
pub fn sha256(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(Failure::during(Reason::SystemFailed, "the operating system returned no random numbers"))?;
    Ok(bytes)
}
