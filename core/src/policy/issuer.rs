//! The issuer of tokens: a StringOrURI (RFC 7519 §4.1.1, §2). It is compared as text, so it stays as written.

use http::Uri;

use crate::names::is_plain;

/// Whether `issuer` looks like an `https` or `http` URL. Clients can discover only such an issuer.
pub fn is_url(issuer: &str) -> bool {
    let scheme = issuer.split_once(':').map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| ["https", "http"].iter().any(|known| scheme.eq_ignore_ascii_case(known)))
}

/// Checks an issuer. With a colon it must be a URI, without one it may be any text (RFC 7519 §2). A URL has neither query
/// nor fragment (RFC 8414 §2).
///
/// # Errors
/// The reason why the issuer is refused.
pub fn check(issuer: String) -> Result<String, &'static str> {
    let is_good = if is_url(&issuer) {
        let uri: Result<Uri, _> = issuer.parse();
        uri.is_ok_and(|uri| uri.scheme().is_some() && uri.authority().is_some() && uri.query().is_none())
            && !issuer.contains('#')
            // RFC 3986 §2. `Uri` does not check this: it accepts other characters in a path.
            && issuer.bytes().all(|byte| byte.is_ascii_graphic())
    } else if let Some((scheme, rest)) = issuer.split_once(':') {
        is_scheme(scheme) && !rest.is_empty() && rest.bytes().all(is_in_uri)
    } else {
        // A blank at the beginning or the end is a copying mistake.
        !issuer.is_empty() && issuer.trim() == issuer && issuer.chars().all(is_plain)
    };
    let wrong = "must be the issuer letter by letter as in the iss claim of its tokens: a URL without query and fragment, \
                 another URI, or a text without a colon";
    if is_good { Ok(issuer) } else { Err(wrong) }
}

/// The characters of a scheme, RFC 3986 §3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// The characters of a URI, RFC 3986 §2.
fn is_in_uri(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_a_url_another_uri_or_a_text_without_a_colon() {
        for (issuer, is_good, is_url_too) in [
            ("https://idp.example", true, true),
            ("http://127.0.0.1:8080/realms/a", true, true),
            ("HTTPS://idp.example/", true, true),
            ("accounts.example.com", true, false),
            ("agent@project.iam.example.com", true, false),
            ("urn:example:idp", true, false),
            ("spiffe://example.org/gateway", true, false),
            ("did:web:idp.example#key", true, false),
            ("Our identity provider", true, false),
            ("kubernetes/serviceaccount", true, false),
            ("", false, false),
            (" accounts.example.com", false, false),
            ("accounts.example.com\n", false, false),
            ("accounts\u{202e}.example.com", false, false),
            ("https://", false, true),
            ("https:/idp.example", false, true),
            ("https:idp.example", false, true),
            ("https://idp.example?a=b", false, true),
            ("https://idp.example#a", false, true),
            ("https://idp.example/\u{e4}", false, true),
            (":idp", false, false),
            ("1a:idp", false, false),
            ("a b:idp", false, false),
            ("urn:", false, false),
            ("urn:a b", false, false),
            ("urn:a\"b", false, false),
        ] {
            assert_eq!((check(issuer.to_owned()).is_ok(), is_url(issuer)), (is_good, is_url_too), "{issuer:?}");
        }
    }
}
