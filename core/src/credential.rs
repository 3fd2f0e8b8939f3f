//! Finds the credential of a request. A request must have exactly one.

use crate::api_key::{self, KeyDigest};
use crate::denial::Denial;
use crate::reason::Reason;
use crate::request::{CredentialHeader, RequestHead};

/// Maximum length of a bearer token in bytes. Real access tokens with many group claims stay below 8 KiB.
pub const MAX_TOKEN_LENGTH: usize = 16 * 1024;

/// The one credential of a request. It is not verified yet.
#[derive(Debug)]
pub enum Credential<'head> {
    /// The hash of the key in `X-API-Key`. The key itself is not passed on.
    ApiKey(KeyDigest),
    /// The value of `Authorization: Bearer`, RFC 6750 §2.1. [`check_token`] tells whether it can be a token. A token in
    /// [`crate::token_cache`] has been checked before.
    Bearer(&'head str),
}

impl<'head> Credential<'head> {
    /// Finds the credential in `head`.
    ///
    /// # Errors
    /// [`Reason::CredentialMissing`], [`Reason::CredentialMalformed`], or [`Reason::CredentialRepeated`] if there are two
    /// credentials. RFC 6750 §2: a request must not use more than one method.
    pub fn from_head(head: &'head RequestHead) -> Result<Self, Denial> {
        let mut found = None;
        for (name, value) in head.credential_headers() {
            if found.replace((name, value)).is_some() {
                return Err(Reason::CredentialRepeated.into());
            }
        }
        match found {
            None => Err(Reason::CredentialMissing.into()),
            Some((CredentialHeader::ApiKey, value)) => Ok(api_key::digest(value).map(Self::ApiKey)?),
            Some((CredentialHeader::Authorization, value)) => match bearer(value) {
                Ok(token) => Ok(Self::Bearer(token)),
                Err(_) if holds_api_key(value) => Err(Denial::MisplacedApiKey),
                Err(reason) => Err(reason.into()),
            },
        }
    }
}

/// The text after the scheme `Bearer`, RFC 6750 §2.1: the scheme in any letter case (RFC 9110 §11.1), then `1*SP`. Other
/// white space is not a separator (RFC 9110 §11.4). It stays in the text, and [`check_token`] then refuses it.
fn bearer(value: &[u8]) -> Result<&str, Reason> {
    let (scheme, rest) = value.split_at_checked(b"Bearer ".len()).ok_or(Reason::CredentialMalformed)?;
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Err(Reason::CredentialMalformed);
    }
    std::str::from_utf8(rest).map(|rest| rest.trim_start_matches(' ')).map_err(|_| Reason::CredentialMalformed)
}

/// The prefix of an API key in base64. Clients such as `curl -u` send a key as the user name of HTTP Basic.
const API_KEY_IN_BASIC: &[u8] = b"YXB4X2xpdmVfc2tf";

/// Whether a value of `Authorization` is an API key, with or without a scheme before it.
fn holds_api_key(value: &[u8]) -> bool {
    let credential = value.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    credential.starts_with(api_key::PREFIX) || credential.starts_with(API_KEY_IN_BASIC)
}

/// The bytes of a token68 (RFC 9110 §11.2). A table, because tokens are long and most of them are refused.
const TOKEN68: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128_u8 {
        let is_in = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=');
        #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "the compiler evaluates this")]
        {
            table[byte as usize] = is_in;
            byte += 1;
        }
    }
    table
};

/// Checks that `text` is one token68 (RFC 9110 §11.2) of at most [`MAX_TOKEN_LENGTH`].
///
/// # Errors
/// [`Reason::CredentialMalformed`], or [`Reason::CredentialRepeated`] if `text` is more than one value.
pub fn check_token(text: &str) -> Result<(), Denial> {
    let is_token68 = |byte: u8| TOKEN68.get(usize::from(byte)).copied().unwrap_or_default();
    let is_good = !text.is_empty() && text.len() <= MAX_TOKEN_LENGTH && text.bytes().all(is_token68);
    // HTTP joins a repeated header with commas (RFC 9110 §5.3), and Envoy does so with this one.
    if !is_good && text.contains(',') {
        return Err(Reason::CredentialRepeated.into());
    }
    // A JWT begins with "e", the first character of a JSON object in base64url. So it cannot be an API key.
    if !(is_good && text.starts_with('e')) && holds_api_key(text.as_bytes()) {
        return Err(Denial::MisplacedApiKey);
    }
    if is_good { Ok(()) } else { Err(Reason::CredentialMalformed.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "apx_live_sk_0123456789abcdefghijABCDEFGHIJ01";

    fn judge(headers: &[(&str, &[u8])]) -> Result<String, Denial> {
        match Credential::from_head(&crate::testing::head(headers))? {
            Credential::ApiKey(_) => Ok("key".to_owned()),
            Credential::Bearer(token) => check_token(token).map(|()| token.to_owned()),
        }
    }

    fn read(headers: &[(&str, &[u8])]) -> Result<String, Reason> {
        judge(headers).map_err(|denial| denial.reason())
    }

    #[test]
    fn an_api_key_in_authorization_gets_a_hint_to_its_header() {
        let in_basic = "Basic YXB4X2xpdmVfc2tfMDEyMzQ1Njc4OWFiY2RlZmdoaWpBQkNERUZHSElKMDE6";
        let [bearer, spaces, bare, other] = ["Bearer ", "bearer   ", "", "ApiKey "].map(|scheme| format!("{scheme}{KEY}"));
        let short = "Bearer apx_live_sk_short";
        for (value, is_told) in [
            (bearer.as_str(), true),
            (&spaces, true),
            (&bare, true),
            (&other, true),
            (in_basic, true),
            (short, true),
            ("Bearer apx_secret_0123456789abcdefghijABCD", false),
            ("Basic YTpi", false),
            ("Bearer", false),
            ("Bearer apx live_sk_", false),
        ] {
            match judge(&[("authorization", value.as_bytes())]) {
                Err(denial) => {
                    assert_eq!(denial.reason(), Reason::CredentialMalformed, "{value}");
                    assert_eq!(denial.reply(None).body.contains("X-API-Key"), is_told, "{value}");
                }
                Ok(_) => assert!(!is_told, "{value}"),
            }
        }
        assert_eq!(read(&[("authorization", bearer.as_bytes()), ("x-api-key", KEY.as_bytes())]), Err(Reason::CredentialRepeated));
    }

    #[test]
    fn a_request_has_exactly_one_well_formed_credential() {
        let longest = "x".repeat(16_384);
        let (long, too_long) = (format!("Bearer  {longest}"), format!("Bearer {longest}x"));
        for (headers, expected) in [
            (vec![], Err(Reason::CredentialMissing)),
            (vec![("x-api-key", KEY.as_bytes())], Ok("key")),
            (vec![("authorization", b"Bearer a.b.c".as_slice())], Ok("a.b.c")),
            (vec![("authorization", b"bEARER   a.b.c")], Ok("a.b.c")),
            (vec![("authorization", b"Bearer\ta.b.c")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Bearer \ta.b.c")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Bearer \x0ba.b.c")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Bearer \xc2\xa0a.b.c")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Bearer a.b.c\t")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b" Bearer a.b.c")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Bearer")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Bearer ")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Bearer   ")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Basic YTpi")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Bearer a b")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", b"Bearer a,Bearer b")], Err(Reason::CredentialRepeated)),
            (vec![("authorization", b"Bearer \xff\xfe")], Err(Reason::CredentialMalformed)),
            (vec![("authorization", long.as_bytes())], Ok(&longest)),
            (vec![("authorization", too_long.as_bytes())], Err(Reason::CredentialMalformed)),
            (vec![("x-api-key", b"")], Err(Reason::CredentialMalformed)),
            (vec![("x-api-key", b"\xff")], Err(Reason::CredentialMalformed)),
            (vec![("x-api-key", KEY.as_bytes()), ("x-api-key", KEY.as_bytes())], Err(Reason::CredentialRepeated)),
            (vec![("x-api-key", KEY.as_bytes()), ("authorization", b"Bearer a")], Err(Reason::CredentialRepeated)),
            (vec![("x-api-key", b""), ("authorization", b"")], Err(Reason::CredentialRepeated)),
            (vec![("authorization", b"Bearer a"), ("authorization", b"Bearer a")], Err(Reason::CredentialRepeated)),
        ] {
            assert_eq!(read(&headers), expected.map(str::to_owned), "{headers:?}");
        }
    }
}
