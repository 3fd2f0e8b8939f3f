//! Strict parsing of the compact serialization of a JWS (RFC 7515 §7.1).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::jwk::{KeyHint, thumbprint};
use crate::json;
use crate::reason::Reason;

/// Maximum length of `kid` and `typ` in bytes. A token with a longer value is refused.
pub(crate) const MAX_HEADER_VALUE_LENGTH: usize = 256;

/// A token that has the right form. Its content is unproven until its signature is verified.
#[derive(Debug)]
pub struct CompactJws<'token> {
    token: &'token str,
    signing_input: &'token str,
    signature: Vec<u8>,
    header: JoseHeader,
    claims: Map<String, Value>,
}

/// The header members that are used. RFC 7515 §4.1 allows ignoring the others.
#[derive(Debug)]
struct JoseHeader {
    kid: Option<String>,
    typ: Option<String>,
    /// `x5t`. Read only if there is no `kid`.
    x5t: Option<Box<str>>,
    /// `x5t#S256`. Read only if there is no `kid`.
    x5t_s256: Option<Box<str>>,
}

impl<'token> CompactJws<'token> {
    /// Parses `token`: three parts in canonical base64url, a JOSE header with RS256, and claims that are a JSON object.
    ///
    /// # Errors
    /// [`Reason::TokenMalformed`] and [`Reason::AlgorithmNotAllowed`].
    pub fn parse(token: &'token str) -> Result<Self, Reason> {
        let (signing_input, signature) = token.rsplit_once('.').ok_or(Reason::TokenMalformed)?;
        let (header, claims) = signing_input.split_once('.').ok_or(Reason::TokenMalformed)?;
        let header = check_header(object(header)?)?;
        let claims = object(claims)?;
        let signature = decode(signature)?;
        Ok(Self { token, signing_input, signature, header, claims })
    }

    pub fn token(&self) -> &'token str {
        self.token
    }

    /// The part of the token that is signed, RFC 7515 §5.2 step 8.
    pub fn signing_input(&self) -> &'token str {
        self.signing_input
    }

    /// The signature, decoded from base64url.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    pub fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// What the header says about the key that signed the token.
    pub fn key_hint(&self) -> KeyHint<'_> {
        let JoseHeader { kid, x5t, x5t_s256, .. } = &self.header;
        KeyHint { kid: kid.as_deref(), x5t: x5t.as_deref(), x5t_s256: x5t_s256.as_deref() }
    }

    /// Checks `typ`, the media type of the token (RFC 8725 §3.11). It must be one of `accepted`, with or without
    /// `application/`, in any letter case (RFC 7515 §4.1.9). A token with another type, such as `logout+jwt`, is not an
    /// access token.
    ///
    /// # Errors
    /// [`Reason::TokenMalformed`].
    pub fn check_type(&self, accepted: &[Type]) -> Result<(), Reason> {
        let typ = self.header.typ.as_deref().map(|typ| strip_prefix_ignore_case(typ, "application/").unwrap_or(typ));
        let is = |accepted: &Type| match accepted {
            Type::Untyped => typ.is_none_or(|typ| typ.eq_ignore_ascii_case("jose")),
            Type::Named(name) => typ.is_some_and(|typ| typ.eq_ignore_ascii_case(name)),
        };
        if accepted.iter().any(is) { Ok(()) } else { Err(Reason::TokenMalformed) }
    }

    /// The claims and the `kid` of a token that is refused.
    pub(crate) fn into_unproven(self) -> (Map<String, Value>, Option<String>) {
        (self.claims, self.header.kid)
    }

    /// The claims. They are unproven until the signature is verified.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

/// An accepted `typ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// No type, or `JOSE`, which only means a compact JWS (RFC 7515 §4.1.9). JWT-SVID §2.3 allows `JOSE`.
    Untyped,
    /// This media type, without `application/`.
    Named(&'static str),
}

fn strip_prefix_ignore_case<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Decodes strict base64url: no padding and no left-over bits (RFC 7515 §2, RFC 4648 §3.5), so that a token has only one
/// spelling. If a token has more than three parts, one of them contains a dot, which is not base64url.
fn decode(part: &str) -> Result<Vec<u8>, Reason> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Reason::TokenMalformed)
}

fn object(part: &str) -> Result<Map<String, Value>, Reason> {
    json::parse_object(&decode(part)?).map_err(|_| Reason::TokenMalformed)
}

/// Checks the JOSE header and returns the members that are used.
fn check_header(mut header: Map<String, Value>) -> Result<JoseHeader, Reason> {
    if header.get("alg").and_then(Value::as_str) != Some("RS256") {
        return Err(Reason::AlgorithmNotAllowed);
    }
    // The filter supports no critical extension (RFC 7515 §4.1.11), such as `b64` (RFC 7797). It ignores `jwk`, `jku`,
    // `x5u` and `x5c` and does not refuse them, because UAA puts `jku` into each token. A key that a token contains or
    // names proves nothing (RFC 8725 §3.10), so the filter never fetches or uses it.
    if ["crit", "b64"].into_iter().any(|name| header.contains_key(name)) {
        return Err(Reason::TokenMalformed);
    }
    let mut text = |name| match header.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) if text.len() <= MAX_HEADER_VALUE_LENGTH => Ok(Some(text)),
        Some(_) => Err(Reason::TokenMalformed),
    };
    let (kid, typ) = (text("kid")?, text("typ")?);
    let hint = |name| header.get(name).filter(|_| kid.is_none()).and_then(thumbprint);
    let (x5t, x5t_s256) = (hint("x5t"), hint("x5t#S256"));
    Ok(JoseHeader { kid, typ, x5t, x5t_s256 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(header: &str, claims: &str) -> String {
        format!("{}.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    fn refusal(token: &str) -> Option<Reason> {
        CompactJws::parse(token).err()
    }

    #[test]
    fn only_headers_with_rs256_and_without_extensions_are_accepted() {
        for (header, expected) in [
            (r#"{"alg":"RS256"}"#, None),
            (r#"{"alg":"RS256","kid":"k","typ":"JWT","x5t":"ignored"}"#, None),
            (r#"{"alg":"RS256","typ":"at+JWT"}"#, None),
            (r#"{"alg":"none"}"#, Some(Reason::AlgorithmNotAllowed)),
            (r#"{"alg":"None"}"#, Some(Reason::AlgorithmNotAllowed)),
            (r#"{"alg":"HS256"}"#, Some(Reason::AlgorithmNotAllowed)),
            (r#"{"alg":"RS512"}"#, Some(Reason::AlgorithmNotAllowed)),
            (r#"{"alg":"PS256"}"#, Some(Reason::AlgorithmNotAllowed)),
            (r#"{"alg":["RS256"]}"#, Some(Reason::AlgorithmNotAllowed)),
            (r#"{"alg":"rs256"}"#, Some(Reason::AlgorithmNotAllowed)),
            (r#"{}"#, Some(Reason::AlgorithmNotAllowed)),
            (r#"{"alg":"RS256","alg":"none"}"#, Some(Reason::TokenMalformed)),
            (r#"{"alg":"RS256","jwk":{}}"#, None),
            (r#"{"alg":"RS256","jku":"https://evil"}"#, None),
            (r#"{"alg":"RS256","x5u":"https://evil"}"#, None),
            (r#"{"alg":"RS256","x5c":[]}"#, None),
            (r#"{"alg":"RS256","x5t":7,"x5t#S256":null}"#, None),
            (r#"{"alg":"RS256","crit":[]}"#, Some(Reason::TokenMalformed)),
            (r#"{"alg":"RS256","b64":true}"#, Some(Reason::TokenMalformed)),
            (r#"{"alg":"RS256","typ":7}"#, Some(Reason::TokenMalformed)),
            (r#"{"alg":"RS256","kid":7}"#, Some(Reason::TokenMalformed)),
            ("[]", Some(Reason::TokenMalformed)),
        ] {
            assert_eq!(refusal(&token(header, "{}")), expected, "{header}");
        }
        for (name, length, expected) in [
            ("kid", 256, None),
            ("kid", 257, Some(Reason::TokenMalformed)),
            ("typ", 256, None),
            ("typ", 257, Some(Reason::TokenMalformed)),
        ] {
            let header = format!(r#"{{"alg":"RS256","{name}":"{}"}}"#, "k".repeat(length));
            assert_eq!(refusal(&token(&header, "{}")), expected, "{name} {length}");
        }
    }

    #[test]
    fn only_canonical_tokens_are_accepted() {
        let good = token(r#"{"alg":"RS256"}"#, "{}");
        let (input, _) = good.rsplit_once('.').unwrap();
        assert_eq!(refusal(&good), None);
        for bad in [
            "",
            ".",
            "..",
            "a",
            "a.b",
            input,
            &format!("{good}.c2ln"),
            &format!("{good}="),
            // The same bytes with other left-over bits: "c2lnMQ" and "c2lnMR".
            &format!("{input}.c2lnMR"),
            &format!("{input}.c2l+"),
            &token(r#"{"alg":"RS256"}"#, "[]"),
            &token(r#"{"alg":"RS256"}"#, r#"{"a":1,"a":1}"#),
        ] {
            assert_eq!(refusal(bad), Some(Reason::TokenMalformed), "{bad}");
        }
        assert_eq!(refusal(&format!("{input}.c2lnMQ")), None);
    }

    #[test]
    fn thumbprints_are_read_only_without_a_kid() {
        for (header, expected) in [
            (r#"{"alg":"RS256","x5t":"abc"}"#, (Some("abc"), None)),
            (r#"{"alg":"RS256","x5t#S256":"a-_9="}"#, (None, Some("a-_9"))),
            (r#"{"alg":"RS256","x5t":"abc","kid":"k"}"#, (None, None)),
            (r#"{"alg":"RS256","x5t":["abc"],"x5t#S256":"two words"}"#, (None, None)),
        ] {
            let token = token(header, "{}");
            let jws = CompactJws::parse(&token).unwrap();
            assert_eq!((jws.key_hint().x5t, jws.key_hint().x5t_s256), expected, "{header}");
        }
    }

    #[test]
    fn only_accepted_types_pass() {
        let accepted = [Type::Untyped, Type::Named("at+jwt")];
        for (header, expected) in [
            (r#"{"alg":"RS256"}"#, Ok(())),
            (r#"{"alg":"RS256","typ":"at+JWT"}"#, Ok(())),
            (r#"{"alg":"RS256","typ":"Application/at+jwt"}"#, Ok(())),
            (r#"{"alg":"RS256","typ":"JWT"}"#, Err(Reason::TokenMalformed)),
            (r#"{"alg":"RS256","typ":"logout+jwt"}"#, Err(Reason::TokenMalformed)),
            (r#"{"alg":"RS256","typ":""}"#, Err(Reason::TokenMalformed)),
            (r#"{"alg":"RS256","typ":"APPLICATION/AT+JWT"}"#, Ok(())),
            (r#"{"alg":"RS256","typ":"JOSE"}"#, Ok(())),
            (r#"{"alg":"RS256","typ":"application/jose"}"#, Ok(())),
            (r#"{"alg":"RS256","typ":"text/at+jwt"}"#, Err(Reason::TokenMalformed)),
            (r#"{"alg":"RS256","typ":"JOSE+JSON"}"#, Err(Reason::TokenMalformed)),
        ] {
            let token = token(header, "{}");
            assert_eq!(CompactJws::parse(&token).unwrap().check_type(&accepted), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String, parts in "[A-Za-z0-9_.=-]{0,200}") {
            let _ = (CompactJws::parse(&text), CompactJws::parse(&parts));
        }
    }
}
