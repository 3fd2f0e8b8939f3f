//! The head of a request as the filter received it.

use crate::denial::Reason;
use crate::serialized_map::SerializedMap;

/// A request's headers in Envoy's order: names in lower case, values as bytes, repeated ones each for itself.
#[derive(Debug)]
pub struct RequestHead(SerializedMap);

impl RequestHead {
    /// A head of these headers, pseudo-headers among them; `None` where it has a name that is none (RFC 9110 §5.1), for
    /// that one could not be removed.
    pub fn new(headers: SerializedMap) -> Option<Self> {
        let are_names = headers.iter().all(|(name, _)| name.is_ascii());
        are_names.then_some(Self(headers))
    }

    /// How many bytes the headers have, their lengths included: about what Envoy keeps of them.
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// `:path` without query and fragment; empty where there is none (CONNECT).
    pub fn path(&self) -> &[u8] {
        self.value(":path").split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default()
    }

    /// The query of `:path`; empty where there is none.
    pub fn query(&self) -> &[u8] {
        let path = self.value(":path");
        let before_fragment = path.split(|byte| *byte == b'#').next().unwrap_or_default();
        before_fragment.splitn(2, |byte| *byte == b'?').nth(1).unwrap_or_default()
    }

    /// `:method`.
    pub fn method(&self) -> &[u8] {
        self.value(":method")
    }

    /// How long the body will be, RFC 9110 §8.6; `None` where it isn't said in advance.
    pub fn content_length(&self) -> Option<usize> {
        std::str::from_utf8(self.values("content-length").next()?).ok()?.parse().ok()
    }

    /// Whether the body is of this media type, whatever its parameters.
    pub fn has_media_type(&self, wanted: &str) -> bool {
        let essence = self.value("content-type").split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes())
    }

    /// Whether the body is said to be JSON, and in no other encoding than UTF-8: there is no other (RFC 8259 §8.1), but a
    /// server may follow what is said.
    pub fn is_json(&self) -> bool {
        let mut values = self.values("content-type");
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let mut parameters = value.split(|byte| *byte == b';').skip(1).map(<[u8]>::trim_ascii);
        self.has_media_type("application/json") && parameters.all(names_no_other_charset)
    }

    /// The header `authorization`.
    ///
    /// # Errors
    /// [`Reason::CredentialRepeated`] where it is repeated.
    pub fn authorization(&self) -> Result<Option<&[u8]>, Reason> {
        let mut values = self.credential_headers().filter(|(header, _)| *header == CredentialHeader::Authorization);
        let first = values.next().map(|(_, value)| value);
        if values.next().is_some() { Err(Reason::CredentialRepeated) } else { Ok(first) }
    }

    /// The headers of this name, each occurrence for itself.
    pub fn values<'h>(&'h self, wanted: &str) -> impl Iterator<Item = &'h [u8]> {
        self.0.iter().filter(move |(name, _)| *name == wanted.as_bytes()).map(|(_, value)| value)
    }

    /// The first header of this name, or nothing.
    fn value(&self, wanted: &str) -> &[u8] {
        self.values(wanted).next().unwrap_or_default()
    }

    /// The headers that carry a credential, each occurrence for itself.
    pub fn credential_headers(&self) -> impl Iterator<Item = (CredentialHeader, &[u8])> {
        self.0.iter().filter_map(|(name, value)| {
            [CredentialHeader::ApiKey, CredentialHeader::Authorization]
                .into_iter()
                .find(|header| header.name().as_bytes() == name)
                .map(|header| (header, value))
        })
    }

    /// The names of headers that a server could take for one below `prefix`.
    pub fn names_below(&self, prefix: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|(name, _)| std::str::from_utf8(name).ok()).filter(move |name| is_below(prefix, name))
    }
}

fn names_no_other_charset(parameter: &[u8]) -> bool {
    let mut halves = parameter.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
    let is_charset = halves.next().is_some_and(|name| name.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"charset")));
    let value = halves.next().unwrap_or_default();
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    !is_charset || value.eq_ignore_ascii_case(b"utf-8") || value.eq_ignore_ascii_case(b"utf8")
}

/// Whether a server could take the header `name` for one below `prefix`. `_` counts as `-`: CGI and WSGI servers see no
/// difference between the two.
fn is_below(prefix: &str, name: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() >= prefix.len() && name.bytes().zip(prefix.bytes()).all(|(one, other)| fold(one) == fold(other))
}

/// The trailers of a request, which come when it was decided already. A server may merge them into the headers.
#[derive(Debug)]
pub struct RequestTrailers(SerializedMap);

impl RequestTrailers {
    /// These trailers; `None` where they have a name that is none, as [`RequestHead::new`].
    pub fn new(trailers: SerializedMap) -> Option<Self> {
        RequestHead::new(trailers).map(|RequestHead(trailers)| Self(trailers))
    }

    /// The names that must not go on: what could be taken for an identity, or for a credential, which no trailer may be
    /// (RFC 9110 §6.5.1), and which this filter did not judge.
    pub fn forged(&self, identity_prefix: &str) -> impl Iterator<Item = &str> {
        let carriers = [CredentialHeader::ApiKey.name(), CredentialHeader::Authorization.name()];
        let is_credential =
            move |name: &str| carriers.iter().any(|carrier| carrier.len() == name.len() && is_below(carrier, name));
        let names = self.0.iter().filter_map(|(name, _)| std::str::from_utf8(name).ok());
        names.filter(move |name| is_below(identity_prefix, name) || is_credential(name))
    }
}

/// A header that carries a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialHeader {
    /// `x-api-key`
    ApiKey,
    /// `authorization`
    Authorization,
}

impl CredentialHeader {
    /// The header's name as Envoy spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ApiKey => "x-api-key",
            Self::Authorization => "authorization",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::head;

    #[test]
    fn the_path_ends_at_its_query() {
        assert_eq!(head(&[(":path", "/mcp/a?b=/c#d")]).path(), b"/mcp/a");
        assert_eq!(head(&[(":path", "/mcp/a#d?e")]).path(), b"/mcp/a");
        assert_eq!(head::<&str, &str>(&[]).path(), b"");
    }

    #[test]
    fn json_is_in_utf_8() {
        for (content_type, expected) in [
            ("application/json", true),
            ("Application/JSON ; Charset = \"UTF-8\"", true),
            ("application/json;charset=utf8;x=y", true),
            ("application/json; charset=utf-7", false),
            ("application/json; charset=utf-8; charset=utf-16", false),
            ("application/json; x=\"a;charset=utf-7\"", false),
            ("application/json; charset*=utf-8''utf-7", false),
            ("application/json; charset", false),
            ("application/json, text/plain", false),
            ("text/plain", false),
        ] {
            assert_eq!(head(&[("content-type", content_type)]).is_json(), expected, "{content_type}");
        }
        let json = ("content-type", "application/json");
        assert!(!head(&[json, json]).is_json() && !head::<&str, &str>(&[]).is_json());
    }

    #[test]
    fn spoofed_names_are_found_in_each_spelling() {
        let head = head(&[
            ("x-apexmcp-org", "a"),
            ("x_apexmcp_org", "b"),
            ("x-apexmcp_scope", "c"),
            ("x-apex", "d"),
            ("x-apexmcp", "e"),
        ]);
        assert_eq!(head.names_below("x-apexmcp-").collect::<Vec<_>>(), ["x-apexmcp-org", "x_apexmcp_org", "x-apexmcp_scope"]);
    }

    #[test]
    fn a_name_that_could_not_be_removed_is_none() {
        let map = |name: &str| SerializedMap::of(&[(name, "a")]).unwrap();
        assert!(RequestHead::new(map("x-apexmcp-org")).is_some());
        assert!(RequestHead::new(map("x-apexmcp-\u{e4}")).is_none());
    }

    #[test]
    fn no_trailer_is_an_identity_or_a_credential() {
        let names =
            ["x-apexmcp-org", "X_Apexmcp-scope", "authorization", "x_api_key", "x-checksum", "x-apexmcp", "authorization-info"];
        let map = |names: &[&str]| SerializedMap::of(&names.iter().map(|name| (*name, "a")).collect::<Vec<_>>()).unwrap();
        let trailers = RequestTrailers::new(map(&names)).unwrap();
        assert_eq!(trailers.forged("x-apexmcp-").collect::<Vec<_>>(), names[..4]);
        assert!(RequestTrailers::new(map(&["x-apexmcp-\u{e4}"])).is_none());
    }
}
