//! The head of a request as the filter received it.

use crate::reason::Reason;
use crate::serialized_map::{Members, SerializedMap, Values};

/// The headers of a request in Envoy's order. Names are in lower case, values are bytes, and repeated headers are separate.
#[derive(Debug)]
pub struct RequestHead {
    headers: SerializedMap,
    present: NameFilter,
    /// Whether a name is forged with [`RESERVED_PREFIX`]. Few requests have one, so few are searched again.
    has_forged: bool,
}

/// A set of header names that may contain more names than were inserted, never fewer.
///
/// The filter asks each request for about fifteen headers, and most requests have few of them. A search through all
/// headers for each one was a tenth of the filter's own work.
#[derive(Clone, Copy, Debug, Default)]
struct NameFilter(u64);

impl NameFilter {
    fn insert(&mut self, name: &[u8]) {
        self.0 |= Self::bit(name);
    }

    fn may_contain(self, name: &str) -> bool {
        self.0 & Self::bit(name.as_bytes()) != 0
    }

    /// One of 64 bits, by the length, the middle and the last byte of the name. With these factors, no two headers that the
    /// filter asks for share a bit, and few share one with the usual headers of proxies and clients.
    fn bit(name: &[u8]) -> u64 {
        let at = |index: usize| name.get(index).map_or(0, |byte| u32::from(*byte));
        let length = u32::try_from(name.len()).unwrap_or_default();
        let hash = at(name.len() / 2).wrapping_mul(5).wrapping_add(at(name.len().wrapping_sub(1)).wrapping_mul(3));
        1_u64.rotate_left(hash.wrapping_add(length))
    }
}

impl RequestHead {
    /// A head with these headers, including the pseudo-headers. Returns `None` if a name is not ASCII, because Envoy could
    /// not remove such a header. Names are ASCII (RFC 9110 §5.1).
    pub fn new(headers: SerializedMap) -> Option<Self> {
        let (mut present, mut has_forged) = (NameFilter::default(), false);
        let is_forged = is_forged(RESERVED_PREFIX);
        for (name, _) in headers.iter() {
            if !name.is_ascii() {
                return None;
            }
            present.insert(name);
            has_forged |= is_forged(name);
        }
        Some(Self { headers, present, has_forged })
    }

    /// Length of the serialized headers in bytes. Envoy keeps about as much.
    pub fn length(&self) -> usize {
        self.headers.length()
    }

    /// `:path` without query and fragment. Empty if there is no path (CONNECT).
    pub fn path(&self) -> &[u8] {
        let path = self.value(":path");
        let end = path.iter().position(|byte| matches!(byte, b'?' | b'#'));
        end.and_then(|end| path.get(..end)).unwrap_or(path)
    }

    /// The query of `:path`. Empty if there is none.
    pub fn query(&self) -> &[u8] {
        let path = self.value(":path");
        let before_fragment = path.split(|byte| *byte == b'#').next().unwrap_or_default();
        before_fragment.splitn(2, |byte| *byte == b'?').nth(1).unwrap_or_default()
    }

    /// The value of `:method`.
    pub fn method(&self) -> &[u8] {
        self.value(":method")
    }

    /// The declared length of the body (RFC 9110 §8.6). `None` if the head does not declare one.
    pub fn content_length(&self) -> Option<usize> {
        std::str::from_utf8(self.values("content-length").next()?).ok()?.parse().ok()
    }

    /// Whether the body has this media type, with any parameters.
    pub fn has_media_type(&self, wanted: &str) -> bool {
        let essence = self.value("content-type").split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes())
    }

    /// Whether the head declares a body in JSON and names no encoding other than UTF-8. JSON has no other encoding
    /// (RFC 8259 §8.1), but a server may follow the head.
    pub fn is_json(&self) -> bool {
        let mut values = self.values("content-type");
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let mut parameters = value.split(|byte| *byte == b';').skip(1).map(<[u8]>::trim_ascii);
        self.has_media_type("application/json") && parameters.all(names_no_other_charset)
    }

    /// The value of `authorization`. `None` if there is none.
    ///
    /// # Errors
    /// [`Reason::CredentialRepeated`] if the header is repeated.
    pub fn authorization(&self) -> Result<Option<&[u8]>, Reason> {
        let mut values = self.values(CredentialHeader::Authorization.name());
        let first = values.next();
        if values.next().is_some() { Err(Reason::CredentialRepeated) } else { Ok(first) }
    }

    /// The values of all headers with this name.
    pub fn values<'h, 'n>(&'h self, name: &'n str) -> Values<'h, 'n> {
        if self.present.may_contain(name) { self.headers.values(name.as_bytes()) } else { SerializedMap::no_values() }
    }

    /// The value of the first header with this name. Empty if there is none.
    fn value(&self, wanted: &str) -> &[u8] {
        self.values(wanted).next().unwrap_or_default()
    }

    /// All headers that carry a credential. A repeated header is returned as often as it occurs.
    pub fn credential_headers(&self) -> impl Iterator<Item = (CredentialHeader, &[u8])> {
        let [api_key, authorization] =
            CredentialHeader::ALL.map(|header| self.values(header.name()).map(move |value| (header, value)));
        api_key.chain(authorization)
    }

    /// The names of headers that a server could read as an identity header with `prefix` or [`RESERVED_PREFIX`], or as a
    /// credential that this filter did not check. The filter removes them from every request that it forwards.
    ///
    /// It does not refuse the request: the contract removes every incoming `x-apexmcp-*` header. With a refusal, a proxy in
    /// front that adds such a header would stop all requests.
    pub fn forged(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let is_searched = self.has_forged || prefix != RESERVED_PREFIX;
        let members = if is_searched { self.headers.iter() } else { Members::default() };
        names(members, is_forged(prefix))
    }

    /// Whether the connection header names other headers. A proxy behind the gateway removes each named header
    /// (RFC 9110 §7.6.1), so a client could remove identity headers. Envoy forwards the header only with an upgrade.
    pub fn nominates_headers(&self) -> bool {
        let is_of_connection = |option: &[u8]| {
            option.is_empty() || ["upgrade", "keep-alive", "close"].iter().any(|own| option.eq_ignore_ascii_case(own.as_bytes()))
        };
        let mut options = self.values(CONNECTION).flat_map(|value| value.split(|byte| *byte == b','));
        !options.all(|option| is_of_connection(option.trim_ascii()))
    }
}

/// The prefix of the contract. The filter always removes such headers, also where `forward.header_prefix` is another one: a
/// connector that reads the documented names must not get them from a client.
pub const RESERVED_PREFIX: &str = "x-apexmcp-";

/// The header that describes the connection (RFC 9110 §7.6.1).
pub const CONNECTION: &str = "connection";

/// The names of `members` for which `is_wanted` is true. All names are ASCII: see [`RequestHead::new`].
fn names<'m>(members: Members<'m>, is_wanted: impl Fn(&[u8]) -> bool) -> impl Iterator<Item = &'m str> {
    let wanted = members.map(|(name, _)| name).filter(move |name| is_wanted(name));
    wanted.filter_map(|name| std::str::from_utf8(name).ok())
}

fn names_no_other_charset(parameter: &[u8]) -> bool {
    let mut halves = parameter.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
    let is_charset = halves.next().is_some_and(|name| name.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"charset")));
    let value = halves.next().unwrap_or_default();
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    !is_charset || value.eq_ignore_ascii_case(b"utf-8") || value.eq_ignore_ascii_case(b"utf8")
}

/// Whether a server could read `name` as a name that begins with `prefix`.
///
/// CGI, FastCGI and WSGI pass headers as variables (`HTTP_X_API_KEY`), and several spellings become one variable. Servers
/// replace different bytes by `_`: nginx and uWSGI replace `-`, and PHP also `.`. lighttpd, and Apache before 2.4, replace
/// every byte that is not a letter or a digit. So all of these bytes count as equal here. No server that we know drops or
/// doubles a byte, so the lengths agree.
fn folds_below(prefix: &str, name: &[u8]) -> bool {
    let fold = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'_' };
    name.len() >= prefix.len() && name.iter().zip(prefix.as_bytes()).all(|(one, other)| fold(*one) == fold(*other))
}

/// Whether a server could read a name as the name of an identity header with `prefix` or [`RESERVED_PREFIX`].
fn is_identity(prefix: &str) -> impl Fn(&[u8]) -> bool {
    // This runs for each header of each request. Most gateways use the reserved prefix.
    let other = (prefix != RESERVED_PREFIX).then_some(prefix);
    move |name| folds_below(RESERVED_PREFIX, name) || other.is_some_and(|prefix| folds_below(prefix, name))
}

/// Whether a server could read a name in a head as one that this filter did not check. A header with the exact name of a
/// credential was checked, and `forward.strip_credentials` applies to it.
fn is_forged(prefix: &str) -> impl Fn(&[u8]) -> bool {
    let is_identity = is_identity(prefix);
    move |name| is_identity(name) || (is_credential(name) && !is_credential_name(name))
}

/// Whether a server could read `name` as the name of a header that carries a credential.
fn is_credential(name: &[u8]) -> bool {
    CredentialHeader::ALL.iter().any(|header| header.name().len() == name.len() && folds_below(header.name(), name))
}

fn is_credential_name(name: &[u8]) -> bool {
    CredentialHeader::ALL.iter().any(|header| header.name().as_bytes() == name)
}

/// The trailers of a request. They arrive after the decision, and a server may merge them into the headers.
#[derive(Debug)]
pub struct RequestTrailers(SerializedMap);

impl RequestTrailers {
    /// These trailers. `None` if a name is not ASCII, as in [`RequestHead::new`].
    pub fn new(trailers: SerializedMap) -> Option<Self> {
        RequestHead::new(trailers).map(|RequestHead { headers, .. }| Self(headers))
    }

    /// The names of trailers that must be removed: a server could read them as an identity, or as a credential that this
    /// filter did not check. A trailer must never be a credential (RFC 9110 §6.5.1).
    pub fn forged(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let is_identity = is_identity(prefix);
        names(self.0.iter(), move |name| is_identity(name) || is_credential(name))
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
    const ALL: [Self; 2] = [Self::ApiKey, Self::Authorization];

    /// The name of the header in Envoy's spelling.
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
    fn each_header_is_found_whatever_else_is_there() {
        let names =
            [":path", "content-type", "origin", "connection", "mcp-method", "mcp-name", "x-api-key", "authorization", "a", ""];
        for (index, name) in names.iter().enumerate() {
            let others: Vec<_> = names.iter().filter(|other| *other != name).map(|other| (*other, "other")).collect();
            assert_eq!(head(&others).values(name).count(), 0, "{name}");
            let mut all = others;
            all.insert(index, (name, "value"));
            all.push((name, "again"));
            assert_eq!(head(&all).values(name).collect::<Vec<_>>(), [b"value", b"again"], "{name}");
        }
    }

    #[test]
    fn a_body_in_another_encoding_than_utf_8_is_not_json() {
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

    /// Every byte that may stand in a header's name and is no letter or digit (RFC 9110 §5.6.2).
    const SEPARATORS: &[u8] = b"!#$%&'*+-.^_`|~";

    #[test]
    fn forged_names_are_found_in_each_spelling() {
        let spelled = |name: &str, separator: u8| name.replace('-', char::from(separator).encode_utf8(&mut [0; 4]));
        for separator in SEPARATORS {
            let one = String::from_utf8(vec![*separator]).unwrap();
            let names = [
                spelled("x-apexmcp-org", *separator),
                format!("x-apexmcp{one}principal"),
                format!("x{one}apexmcp-scope"),
                format!("x-apexmcp{one}"),
                format!("x-apexmcp{one}{one}org"),
            ];
            let headers: Vec<_> = names.iter().map(|name| (name.as_str(), "forged")).collect();
            assert_eq!(head(&headers).forged("x-apexmcp-").collect::<Vec<_>>(), names);
            let own = spelled("my-own-id-", *separator);
            assert_eq!(head(&[("my-own-id-org", "a")]).forged(&own).count(), 1, "{own}");
        }
        // These names become variables that differ from those of identity headers.
        for name in
            ["x-apex", "x-apexmcp", "xapexmcp-org", "x--apexmcp-org", "-x-apexmcp-org", "x-apexmcpa-org", "http-x-apexmcp-org"]
        {
            assert_eq!(head(&[(name, "a")]).forged("x-apexmcp-").count(), 0, "{name}");
        }
    }

    #[test]
    fn headers_with_the_reserved_prefix_are_forged_whatever_the_configured_one_is() {
        let forged = ["x-apexmcp-org", "x_apexmcp_scope", "x.apexmcp-assertion"];
        for prefix in ["x-apexmcp-", "my-own-id-", "x-", "x-apexmcp-id-", "x-apex-"] {
            let headers = [&forged[..], &["y-apexmcp-org", "x2-apexmcp"]].concat();
            let headers: Vec<_> = headers.into_iter().map(|name| (name, "a")).collect();
            assert_eq!(head(&headers).forged(prefix).collect::<Vec<_>>(), forged, "{prefix}");
            let trailers = RequestTrailers::new(SerializedMap::of(&headers).unwrap()).unwrap();
            assert_eq!(trailers.forged(prefix).collect::<Vec<_>>(), forged, "{prefix}");
        }
    }

    #[test]
    fn look_alikes_of_credentials_are_forged_and_credentials_are_not() {
        for separator in SEPARATORS.iter().filter(|separator| **separator != b'-') {
            let one = char::from(*separator);
            let names = [format!("x{one}api{one}key"), format!("x-api{one}key"), format!("x{one}api-key")];
            for name in &names {
                assert_eq!(head(&[(name, "a")]).forged("x-apexmcp-").collect::<Vec<_>>(), [name]);
            }
        }
        for name in ["x-api-key", "authorization", "proxy-authorization", "x-api-key-", "x-api-keys", "x-api--key", "xapi-key"] {
            assert_eq!(head(&[(name, "a")]).forged("x-apexmcp-").count(), 0, "{name}");
        }
    }

    #[test]
    fn a_connection_header_that_names_other_headers_is_found() {
        for (value, expected) in [
            ("upgrade", false),
            ("Upgrade, Keep-Alive", false),
            ("close", false),
            (" ,upgrade,, ", false),
            ("", false),
            ("upgrade, x-apexmcp-org", true),
            ("X-Apexmcp-Org,upgrade", true),
            ("upgrade,\tmcp-name", true),
            ("upgrade; x-apexmcp-org", true),
            ("upgrade x-apexmcp-org", true),
        ] {
            assert_eq!(head(&[("connection", value)]).nominates_headers(), expected, "{value:?}");
        }
        assert!(head(&[("connection", "upgrade"), ("connection", "x-apexmcp-org")]).nominates_headers());
        assert!(!head(&[("x-connection", "x-apexmcp-org")]).nominates_headers());
    }

    #[test]
    fn a_head_with_a_name_that_envoy_cannot_remove_is_refused() {
        let map = |name: &str| SerializedMap::of(&[(name, "a")]).unwrap();
        assert!(RequestHead::new(map("x-apexmcp-org")).is_some());
        assert!(RequestHead::new(map("x-apexmcp-\u{e4}")).is_none());
    }

    #[test]
    fn trailers_that_a_server_could_read_as_identity_or_credential_are_forged() {
        let forged =
            ["x-apexmcp-org", "X_Apexmcp-scope", "x.apexmcp.org", "x'apexmcp~scope", "authorization", "x-api-key", "x!api_key"];
        let names = [&forged[..], &["x-checksum", "x-apexmcp", "authorization-info"]].concat();
        let map = |names: &[&str]| SerializedMap::of(&names.iter().map(|name| (*name, "a")).collect::<Vec<_>>()).unwrap();
        let trailers = RequestTrailers::new(map(&names)).unwrap();
        assert_eq!(trailers.forged("x-apexmcp-").collect::<Vec<_>>(), forged);
        assert!(RequestTrailers::new(map(&["x-apexmcp-\u{e4}"])).is_none());
    }
}
