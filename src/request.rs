//! The head of a request as the filter received it.

use crate::denial::Reason;

/// A request's headers in Envoy's order: names in lower case, values as bytes, repeated ones each for itself.
#[derive(Debug)]
pub struct RequestHead {
    headers: Vec<(String, Vec<u8>)>,
}

impl RequestHead {
    /// A head of these headers, pseudo-headers among them.
    pub fn new(headers: Vec<(String, Vec<u8>)>) -> Self {
        Self { headers }
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

    /// Whether the body is of this media type, whatever its parameters.
    pub fn has_media_type(&self, wanted: &str) -> bool {
        let essence = self.value("content-type").split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes())
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
    pub fn values<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(name, _)| name == wanted).map(|(_, value)| value.as_slice())
    }

    /// The first header of this name, or nothing.
    fn value(&self, wanted: &str) -> &[u8] {
        self.headers.iter().find(|(name, _)| name == wanted).map_or(&[], |(_, value)| value)
    }

    /// The headers that carry a credential, each occurrence for itself.
    pub fn credential_headers(&self) -> impl Iterator<Item = (CredentialHeader, &[u8])> {
        self.headers.iter().filter_map(|(name, value)| {
            [CredentialHeader::ApiKey, CredentialHeader::Authorization]
                .into_iter()
                .find(|header| header.name() == name)
                .map(|header| (header, value.as_slice()))
        })
    }

    /// The names of headers that a server could take for one below `prefix`. `_` counts as `-`: CGI and WSGI servers
    /// see no difference between the two.
    pub fn names_below(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
        self.headers.iter().map(|(name, _)| name.as_str()).filter(move |name| {
            name.len() >= prefix.len() && name.bytes().zip(prefix.bytes()).all(|(one, other)| fold(one) == fold(other))
        })
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

    fn head(headers: &[(&str, &str)]) -> RequestHead {
        RequestHead::new(headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    #[test]
    fn the_path_ends_at_its_query() {
        assert_eq!(head(&[(":path", "/mcp/a?b=/c#d")]).path(), b"/mcp/a");
        assert_eq!(head(&[(":path", "/mcp/a#d?e")]).path(), b"/mcp/a");
        assert_eq!(head(&[]).path(), b"");
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
}
