//! The answer to a fetch of a key set.

use crate::callout;
use crate::jose::jwk::{JwkSet, JwkSetError, MAX_DOCUMENT_LENGTH};

/// Reads the keys from an answer whose body has `length` bytes. `status` is `None` if the connection failed. The body is read
/// only if the keys can be in it.
///
/// # Errors
/// A text for the log that says why the answer is no key set.
pub fn read_answer(status: Option<u16>, length: usize, body: impl FnOnce() -> Vec<u8>) -> Result<JwkSet, String> {
    match status {
        None => Err("the connection failed".to_owned()),
        // The filter does not follow redirects: only the policy names the location of keys.
        Some(status) if status != 200 => Err(callout::unexpected(status)),
        Some(_) if length > MAX_DOCUMENT_LENGTH => Err(JwkSetError::TooLong.to_string()),
        Some(_) => JwkSet::parse(&body()).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn only_a_short_answer_with_status_200_is_read() {
        let document = testing::jwk_set(&["a"]).to_document().into_bytes();
        let keys = read_answer(Some(200), document.len(), || document).expect("keys");
        assert_eq!(keys.len(), 1);
        for (status, length, problem) in [
            (None, 0, "the connection failed"),
            (Some(301), 10, "the answer was 301"),
            (Some(503), 10, "no host of the cluster answered (or 503)"),
            (Some(204), 0, "the answer was 204"),
            (Some(200), MAX_DOCUMENT_LENGTH + 1, JwkSetError::TooLong.to_string().as_str()),
        ] {
            assert_eq!(read_answer(status, length, || panic!("the body is not read")), Err(problem.to_owned()));
        }
        assert!(read_answer(Some(200), 9, || b"<!DOCTYPE".to_vec()).is_err());
    }
}
