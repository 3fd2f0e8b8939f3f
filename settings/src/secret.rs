//! Secrets and ids, from random numbers of the operating system.

use std::iter;

use sha2::{Digest, Sha256};

use crate::failure::{Failure, Reason};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `prefix` and `length` random characters of base62.
///
/// # Errors
/// If the operating system returns no random numbers.
pub fn base62(prefix: &str, length: usize) -> Result<String, Failure> {
    let mut text = prefix.to_owned();
    while text.len() < prefix.len().saturating_add(length) {
        // 248 is four times the length of the alphabet. The values above would make its first letters more likely.
        let [byte] = random::<1>()?;
        text.extend((byte < 248).then(|| BASE62.get(usize::from(byte % 62))).flatten().map(|letter| char::from(*letter)));
    }
    Ok(text)
}

/// `N` random bytes in hexadecimal digits.
///
/// # Errors
/// If the operating system returns no random numbers.
pub fn hexadecimal<const N: usize>() -> Result<String, Failure> {
    random::<N>().map(hex::encode)
}

/// Makes ids until one is not taken.
///
/// # Errors
/// If `make` or `is_taken` fails, or 100 ids are taken.
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

/// The hash of a secret. A secret has more than 140 random bits, so a slow hash would not make it safer.
pub fn sha256(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

/// `N` random bytes.
///
/// # Errors
/// If the operating system returns no random numbers.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(Failure::during(Reason::SystemFailed, "the operating system returned no random numbers"))?;
    Ok(bytes)
}
