//! Comparison of URLs by RFC 3986 §6.2.2 and §6.2.3: different spellings of a URL name the same resource.
//!
//! Use it for URLs that clients and identity providers write. An issuer is compared letter by letter (RFC 8414 §3.3).

use std::borrow::Cow;

/// The normal form of a URL, which is the same for all its spellings. `None` if `text` is not an `http` or `https` URL, or
/// has user information or a fragment, which no resource has (RFC 8707 §2).
pub fn normalized(text: &str) -> Option<String> {
    let is_plain = |byte: u8| {
        byte.is_ascii_graphic() && !matches!(byte, b'#' | b'\\' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
    };
    if !text.bytes().all(is_plain) {
        return None;
    }
    let (scheme, rest) = text.split_once("://")?;
    let (scheme, its_port) = match scheme {
        scheme if scheme.eq_ignore_ascii_case("https") => ("https", 443),
        scheme if scheme.eq_ignore_ascii_case("http") => ("http", 80),
        _ => return None,
    };
    let (authority, rest) = rest.split_at_checked(rest.find(['/', '?']).unwrap_or(rest.len()))?;
    // An IPv6 address contains colons, RFC 3986 §3.2.2.
    let after_address = authority.rfind(']').map_or(0, |end| end.saturating_add(1));
    let colon = authority.get(after_address..)?.find(':').map(|at| at.saturating_add(after_address));
    let (host, port) = authority.split_at_checked(colon.unwrap_or(authority.len()))?;
    let port = match port.strip_prefix(':') {
        None | Some("") => None,
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => Some(digits.parse::<u16>().ok()?),
        Some(_) => return None,
    };
    let host = with_plain_escapes(host)?.to_ascii_lowercase();
    if host.is_empty() || host.contains(['@', '%']) {
        return None;
    }
    let (path, query) = rest.split_at_checked(rest.find('?').unwrap_or(rest.len()))?;
    let path = without_dots(&with_plain_escapes(path)?);
    let query = with_plain_escapes(query)?;
    let port = port.filter(|port| *port != its_port).map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{scheme}://{host}{port}{path}{query}"))
}

/// Whether both texts are spellings of the same URL. Texts that are not URLs must be equal.
pub fn is_same(one: &str, other: &str) -> bool {
    one == other || normalized(one).is_some_and(|one| normalized(other) == Some(one))
}

/// Normalizes escapes (RFC 3986 §6.2.2.1 and §6.2.2.2): an escaped unreserved character becomes that character, and
/// hexadecimal digits become upper case. `None` if an escape is malformed.
fn with_plain_escapes(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut parts = text.split('%');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        let mut byte = [0];
        hex::decode_to_slice(digits, &mut byte).ok()?;
        match char::from(byte.first().copied()?) {
            character if character.is_ascii_alphanumeric() || "-._~".contains(character) => plain.push(character),
            _ => {
                plain.push('%');
                plain.push_str(&digits.to_ascii_uppercase());
            }
        }
        plain.push_str(rest);
    }
    Some(Cow::Owned(plain))
}

/// Removes the dot segments of a path (RFC 3986 §5.2.4). An empty path becomes `/` (§6.2.3).
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_dot = matches!(segment, "." | "..");
        if segment == ".." {
            kept.pop();
        }
        if !is_dot {
            kept.push(segment);
        } else if segments.peek().is_none() {
            kept.push(""); // Keeps the slash before a last dot segment.
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_spellings_of_a_url_have_the_same_normal_form() {
        let url = "https://gw.example/mcp/acme";
        for same in [
            "HTTPS://gw.example/mcp/acme",
            "https://GW.Example/mcp/acme",
            "https://gw.example:443/mcp/acme",
            "https://gw.example:/mcp/acme",
            "https://gw.example:0443/mcp/acme",
            "https://gw.example/mcp/%61cme",
            "https://%67w.example/mcp/acme",
            "https://gw.example/mcp/./acme",
            "https://gw.example/x/../mcp/acme",
            "https://gw.example/../mcp/acme",
            "https://gw.example/%2e/mcp/x/%2E%2e/acme",
        ] {
            assert_eq!(normalized(same).as_deref(), Some(url), "{same}");
            assert!(is_same(same, url), "{same}");
        }
        for (text, expected) in [
            ("https://gw.example", "https://gw.example/"),
            ("http://gw.example:80", "http://gw.example/"),
            ("http://gw.example:443/", "http://gw.example:443/"),
            ("https://[2001:DB8::1]:443/a/..", "https://[2001:db8::1]/"),
            ("https://[::1]:8443", "https://[::1]:8443/"),
            ("https://gw.example?a=%2f%7e", "https://gw.example/?a=%2F~"),
            ("https://gw.example/A%c3%a4/b/.", "https://gw.example/A%C3%A4/b/"),
            ("https://gw.example//mcp//", "https://gw.example//mcp//"),
        ] {
            assert_eq!(normalized(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn different_urls_stay_different() {
        let url = "https://gw.example/mcp/acme";
        for other in [
            "http://gw.example/mcp/acme",
            "https://gw.example:80/mcp/acme",
            "https://gw.example:8443/mcp/acme",
            "https://gw.example/mcp/Acme",
            "https://gw.example/MCP/acme",
            "https://gw.example/mcp/acme/",
            "https://gw.example//mcp/acme",
            "https://gw.example/mcp%2Facme",
            "https://gw.example/mcp/acme?",
            "https://gw.example./mcp/acme",
            "https://gw.example/mcp/acme/%2e%2e",
        ] {
            assert!(normalized(other).is_some() && !is_same(other, url), "{other}");
        }
        for none in [
            "",
            "gw.example/mcp/acme",
            "//gw.example/mcp/acme",
            "https:gw.example",
            "https://",
            "https:///mcp/acme",
            "https://:443/mcp/acme",
            "https://user@gw.example/mcp/acme",
            "https://evil%40gw.example/mcp/acme",
            "https://gw.example@evil/mcp/acme",
            "https://gw.example:x/mcp/acme",
            "https://gw.example:65536/mcp/acme",
            "https://gw.example:+443/mcp/acme",
            "https://gw.example/mcp/acme#",
            "https://gw.example\\mcp\\acme",
            "https://gw.example/mcp/%zz",
            "https://gw.example/mcp/%4",
            "https://gw.example/mcp/acme ",
            "https://gw.ex\u{e4}mple/mcp/acme",
            "ftp://gw.example/mcp/acme",
            "urn:acme",
        ] {
            assert_eq!(normalized(none), None, "{none}");
        }
        assert!(is_same("apexmcp", "apexmcp") && !is_same("apexmcp", "APEXMCP"), "texts that are not URLs must be equal");
    }

    proptest! {
        #[test]
        fn the_normal_form_of_a_normal_form_is_the_same(text in "(?i:https?)://[a-zA-Z0-9.%:\\[\\]@-]{0,9}(/|%2e|%2F|\\.|[a-z?~]){0,12}") {
            if let Some(once) = normalized(&text) {
                prop_assert_eq!(normalized(&once), Some(once));
            }
        }

        #[test]
        fn never_panics(text: String) {
            let _ = (normalized(&text), normalized(&format!("https://{text}")));
        }
    }
}
