//! The credential of a request. There is exactly one, and it is the value of its header.

use apexmcp_core::credential::{self, Credential};

use crate::reader;

/// `data` is a request head: lines `name: value`.
pub fn check(data: &[u8]) -> bool {
    let (headers, _) = reader::head_and_body(data);
    let Some(head) = reader::request_head(&headers) else { return false };
    let Ok(credential) = Credential::from_head(&head) else { return false };
    let carriers: Vec<_> = headers.iter().filter(|(name, _)| name == "x-api-key" || name == "authorization").collect();
    let [(name, value)] = carriers.as_slice() else { panic!("not exactly one credential: {carriers:?}") };
    match credential {
        Credential::ApiKey(digest) => {
            assert_eq!(name, "x-api-key");
            assert!(value.len() == 44 && value.starts_with(b"apx_live_sk_") && value.is_ascii(), "{value:?}");
            assert_eq!(apexmcp_core::api_key::digest(value), Ok(digest));
        }
        Credential::Bearer(token) => {
            assert_eq!(name, "authorization");
            let value = std::str::from_utf8(value).expect("a token is text");
            if credential::check_token(token).is_err() {
                return false;
            }
            // Splitting at any white space and splitting only at spaces both find this token and nothing else.
            let words: Vec<&str> = value.split_whitespace().collect();
            assert!(matches!(words[..], [scheme, only] if scheme.eq_ignore_ascii_case("bearer") && only == token), "{value:?}");
            let spaces = value.get("bearer".len()..value.len() - token.len()).unwrap_or_default();
            assert!(!spaces.is_empty() && spaces.bytes().all(|byte| byte == b' '), "{value:?}");
            assert!(token.len() <= 16 * 1024 && !token.contains(','));
        }
    }
    true
}
