//! Web origins: the pages that may call the gateway, and the headers that let them read its answers (CORS).
//!
//! A browser puts the origin of a page into the header `Origin` of each request that the page sends elsewhere (RFC 6454 §7).
//! A page cannot change it. MCP (Transports, "Security Warning") requires servers to check it: otherwise a page of an attacker
//! could call a server that only the visitor of the page can reach (DNS rebinding). In the other direction, a browser lets a
//! page of another origin read an answer only if the answer's headers allow it (Fetch standard, "CORS protocol").

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use crate::denial::LocalReply;
use crate::request::RequestHead;
use crate::serialized_map::SerializedMap;

const ALLOW_ORIGIN: &str = "access-control-allow-origin";
const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";
const EXPOSE_HEADERS: &str = "access-control-expose-headers";
const VARY: &str = "vary";

/// The headers of an answer that an allowed page may read, in addition to the safe ones (Fetch standard, "CORS-safelisted
/// response-header name").
const EXPOSED: [&str; 6] =
    ["WWW-Authenticate", "Mcp-Session-Id", "Mcp-Protocol-Version", "Retry-After", "RateLimit", "RateLimit-Policy"];

/// The headers that a page may send. The asterisk covers all others, such as `Mcp-Param-…`, but never `Authorization`. The
/// other names are for browsers and proxies that do not know the asterisk.
const REQUEST_HEADERS: &str = "Authorization, X-API-Key, Content-Type, Accept, Mcp-Session-Id, Mcp-Protocol-Version, \
                               Mcp-Method, Mcp-Name, Last-Event-ID, *";

/// The methods of MCP's Streamable HTTP transport and of the filter's endpoints.
const METHODS: &str = "GET, POST, DELETE, OPTIONS";

/// Time for which a browser may cache a preflight, in seconds: two hours, the maximum of Chromium. The filter checks every
/// request, so it refuses an origin at once after its removal from the configuration.
const MAX_AGE: &str = "7200";

/// Maximum length of an origin in bytes. A DNS name has at most 253 bytes.
const MAX_LENGTH: usize = 512;

/// `gateway.allowed_origins`, and the gateway's own origin.
#[derive(Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// `"*"`: pages of every origin, `null` included.
    Any,
    /// Pages of these origins, each in the form of [`serialize`].
    Listed(BTreeSet<String>),
}

/// The source of a request, according to its header `Origin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'h> {
    /// The request has no `Origin`, so no page of another origin sent it.
    NoPage,
    /// A page that may call. The text is the value of `Access-Control-Allow-Origin` for it.
    Allowed(&'h str),
    /// A page of another origin, or something that is not one origin.
    Foreign,
}

impl AllowedOrigins {
    /// Allows the origins of `entries` and the gateway's own. Calls `tell` for each invalid entry, with its index and the
    /// problem.
    pub fn new(own: &str, entries: &[String], mut tell: impl FnMut(usize, &str)) -> Self {
        let mut is_any = false;
        let mut listed = BTreeSet::from([serialize(own).unwrap_or_else(|| own.to_owned())]);
        for (index, entry) in entries.iter().enumerate() {
            match serialize(entry.strip_suffix('/').unwrap_or(entry)) {
                _ if entry == "*" => is_any = true,
                Some(origin) => drop(listed.insert(origin)),
                None if entry == "null" => tell(
                    index,
                    "must not be null: a browser sends null for local files and sandboxed frames, which anybody can create. \
                     List the origin of the page",
                ),
                None if entry.contains('*') => {
                    tell(index, "must not be a pattern. List each origin, or write \"*\" alone to allow all of them");
                }
                None => tell(index, "must be scheme://host[:port], such as https://app.example.com, or \"*\""),
            }
        }
        if is_any { Self::Any } else { Self::Listed(listed) }
    }

    /// The source of the request with this `head`.
    pub fn source<'h>(&self, head: &'h RequestHead) -> Source<'h> {
        let mut values = head.values("origin");
        let Some(value) = values.next() else { return Source::NoPage };
        let text = std::str::from_utf8(value).unwrap_or_default();
        match self {
            Self::Any => Source::Allowed("*"),
            // RFC 6454 §7.3: a user agent sends one such header. If there are two, the connector could read the other one.
            Self::Listed(_) if values.next().is_some() => Source::Foreign,
            // A browser sends the listed form. Other clients may send another form of the same origin.
            Self::Listed(listed) if listed.contains(text) => Source::Allowed(text),
            Self::Listed(listed) => {
                let is_listed = serialize(text).is_some_and(|origin| listed.contains(&origin));
                if is_listed { Source::Allowed(text) } else { Source::Foreign }
            }
        }
    }
}

/// Serializes an origin (RFC 6454 §6.2): scheme and host in lower case, without the default port of the scheme. Returns
/// `None` if `text` is not an origin with a host. Any scheme is possible, such as that of a browser extension.
fn serialize(text: &str) -> Option<String> {
    let (scheme, authority) = text.split_once("://").filter(|_| text.len() <= MAX_LENGTH)?;
    let is_scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(is_scheme_byte) {
        return None;
    }
    let scheme = scheme.to_ascii_lowercase();
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (format!("[{}]", address.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
            (Some(host.to_ascii_lowercase()).filter(|host| !host.is_empty() && host.bytes().all(is_host_byte))?, port)
        }
    };
    let default_port = match scheme.as_str() {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        // Only digits are allowed, but `parse` would accept a plus sign.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse::<u16>().ok()?),
        _ => return None,
    };
    let port = port.filter(|port| Some(*port) != default_port).map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{scheme}://{host}{port}"))
}

/// Whether the request is a preflight: a browser asks whether a page may send a request (Fetch standard, "CORS-preflight
/// request").
pub fn is_preflight(head: &RequestHead) -> bool {
    let has = |name: &str| head.values(name).next().is_some();
    head.method() == b"OPTIONS" && has("origin") && has("access-control-request-method")
}

/// The answer to the preflight of a page that may call. [`Sharing`] adds the headers that every answer has.
pub fn preflight() -> LocalReply {
    let headers = [
        ("access-control-allow-methods", METHODS),
        ("access-control-allow-headers", REQUEST_HEADERS),
        ("access-control-max-age", MAX_AGE),
    ];
    LocalReply { status: 204, headers: headers.map(|(name, value)| (name, value.to_owned())).into(), body: String::new() }
}

/// The pages that may read the answer to a request of a browser.
#[derive(Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All pages, for any configuration: the answer is a public document.
    Public,
    /// The pages that the configuration allows. The text is the value of `Access-Control-Allow-Origin`: `*`, or the origin of
    /// the request.
    Pages(Box<str>),
}

impl Sharing {
    /// The headers of `answer` that change: each name with its new value, or `None` if the header is removed.
    ///
    /// An upstream that supports CORS may have set them already. A browser ignores two values of
    /// `Access-Control-Allow-Origin`.
    pub fn changes(&self, answer: &SerializedMap) -> Vec<(&'static str, Option<String>)> {
        let (origin, varies) = match self {
            Self::Public => ("*", false),
            Self::Pages(origin) => (&**origin, true),
        };
        let values = |wanted: &'static str| {
            let named = answer.iter().filter(move |(name, _)| *name == wanted.as_bytes());
            named.filter_map(|(_, value)| std::str::from_utf8(value).ok())
        };
        let with = |name: &'static str, wanted: &[&str]| {
            let mut members: Vec<&str> = values(name).flat_map(|value| value.split(',')).map(str::trim).collect();
            members.retain(|member| !member.is_empty());
            for wanted in wanted {
                if !members.iter().any(|member| member.eq_ignore_ascii_case(wanted)) {
                    members.push(wanted);
                }
            }
            members.join(", ")
        };
        let mut changes = vec![(ALLOW_ORIGIN, Some(origin.to_owned())), (EXPOSE_HEADERS, Some(with(EXPOSE_HEADERS, &EXPOSED)))];
        if varies {
            changes.push((VARY, Some(with(VARY, &["Origin"]))));
        }
        // The upstream allowed cookies only for the origin that it named.
        if values(ALLOW_CREDENTIALS).next().is_some() && !values(ALLOW_ORIGIN).eq([origin]) {
            changes.push((ALLOW_CREDENTIALS, None));
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::head;

    fn allowed(entries: &[&str]) -> AllowedOrigins {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        AllowedOrigins::new("https://gw.example", &entries, |index, problem| panic!("{index}: {problem}"))
    }

    fn problems(entries: &[&str]) -> Vec<(usize, String)> {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        let mut problems = Vec::new();
        AllowedOrigins::new("https://gw.example", &entries, |index, problem| problems.push((index, problem.to_owned())));
        problems
    }

    #[test]
    fn origins_are_compared_as_rfc_6454_serializes_them() {
        let table = [
            ("https://app.example", Some("https://app.example")),
            ("HTTPS://App.Example:443", Some("https://app.example")),
            ("http://app.example:80", Some("http://app.example")),
            ("http://app.example:0080", Some("http://app.example")),
            ("http://app.example:443", Some("http://app.example:443")),
            ("https://app.example:8443", Some("https://app.example:8443")),
            ("https://app.example.", Some("https://app.example.")),
            ("http://127.0.0.1:6274", Some("http://127.0.0.1:6274")),
            ("http://[::1]:6274", Some("http://[::1]:6274")),
            ("http://[0:0:0:0:0:0:0:1]:80", Some("http://[::1]")),
            ("https://[2001:DB8::A]", Some("https://[2001:db8::a]")),
            ("chrome-extension://abcdefghijklmnop", Some("chrome-extension://abcdefghijklmnop")),
            ("vscode-webview://0a_b~c", Some("vscode-webview://0a_b~c")),
            ("tauri://localhost", Some("tauri://localhost")),
            ("", None),
            ("null", None),
            ("*", None),
            ("app.example", None),
            ("//app.example", None),
            ("https:app.example", None),
            ("https://", None),
            ("https://:443", None),
            ("https://app.example/", None),
            ("https://app.example/path", None),
            ("https://app.example?q", None),
            ("https://app.example#f", None),
            ("https://user@app.example", None),
            ("https://app.example:", None),
            ("https://app.example:+443", None),
            ("https://app.example:65536", None),
            ("https://app.example:44:3", None),
            ("https://[::1", None),
            ("https://[::1]x", None),
            ("https://[::1%25eth0]", None),
            ("https://[app.example]", None),
            ("https://*.app.example", None),
            ("https://app.example https://other.example", None),
            ("https://app.example,https://other.example", None),
            (" https://app.example", None),
            ("https://\u{e4}pp.example", None),
            ("1https://app.example", None),
        ];
        for (text, expected) in table {
            assert_eq!(serialize(text).as_deref(), expected, "{text:?}");
        }
        assert_eq!(serialize(&format!("https://{}", "a".repeat(MAX_LENGTH))), None);
    }

    #[test]
    fn only_listed_origins_and_the_gateway_itself_are_allowed() {
        let origins = allowed(&["https://app.example/", "http://[::1]:6274", "chrome-extension://abc"]);
        for text in [
            "https://app.example",
            "https://APP.example:443",
            "http://[0::1]:6274",
            "chrome-extension://abc",
            "https://gw.example",
            "HTTPS://gw.example:443",
        ] {
            assert_eq!(origins.source(&head(&[("origin", text)])), Source::Allowed(text));
        }
        for text in [
            "http://app.example",
            "https://app.example:444",
            "https://app.example.evil.example",
            "https://evil-app.example",
            "https://sub.app.example",
            "https://app.example/",
            "https://app.example, https://app.example",
            "null",
            "NULL",
            "*",
            "",
        ] {
            assert_eq!(origins.source(&head(&[("origin", text)])), Source::Foreign, "{text:?}");
        }
        assert_eq!(origins.source(&head(&[("origin", b"https://app.example\xff")])), Source::Foreign);
        let listed = ("origin", "https://app.example");
        assert_eq!(origins.source(&head(&[listed, listed])), Source::Foreign);
        assert_eq!(origins.source(&head(&[listed, ("origin", "https://evil.example")])), Source::Foreign);
        assert_eq!(origins.source(&head(&[("x-origin", "https://evil.example")])), Source::NoPage);
    }

    #[test]
    fn an_empty_list_allows_the_gateway_alone_and_an_asterisk_allows_all() {
        let own = head(&[("origin", "https://gw.example")]);
        assert_eq!(allowed(&[]).source(&own), Source::Allowed("https://gw.example"));
        assert_eq!(allowed(&[]).source(&head(&[("origin", "https://app.example")])), Source::Foreign);
        for text in ["https://evil.example", "null", "https://gw.example"] {
            assert_eq!(allowed(&["*"]).source(&head(&[("origin", text)])), Source::Allowed("*"));
            assert_eq!(allowed(&["https://app.example", "*"]).source(&head(&[("origin", text)])), Source::Allowed("*"));
        }
    }

    #[test]
    fn invalid_entries_are_reported() {
        let found = problems(&["https://app.example", "null", "https://*.example", "app.example", "https://a/b", ""]);
        let expected = [(1, "null"), (2, "pattern"), (3, "scheme://host"), (4, "scheme://host"), (5, "scheme://host")];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((index, problem), (expected_index, word)) in found.iter().zip(expected) {
            assert!(*index == expected_index && problem.contains(word), "{index}: {problem}");
        }
    }

    #[test]
    fn only_preflights_are_recognized_as_such() {
        let origin = ("origin", "https://app.example");
        let asked = ("access-control-request-method", "POST");
        let options = (":method", "OPTIONS");
        assert!(is_preflight(&head(&[options, origin, asked])));
        for headers in [&[options, origin][..], &[options, asked], &[(":method", "POST"), origin, asked], &[]] {
            assert!(!is_preflight(&head(headers)), "{headers:?}");
        }
    }

    fn changed(sharing: &Sharing, answer: &[(&str, &str)]) -> Vec<(&'static str, Option<String>)> {
        sharing.changes(&SerializedMap::of(answer).unwrap())
    }

    #[test]
    fn an_answer_gets_the_cors_headers_for_its_page() {
        let exposed = Some(EXPOSED.join(", "));
        let origin = "https://app.example";
        assert_eq!(
            changed(&Sharing::Pages(origin.into()), &[(":status", "401")]),
            [
                ("access-control-allow-origin", Some(origin.to_owned())),
                ("access-control-expose-headers", exposed.clone()),
                ("vary", Some("Origin".to_owned())),
            ]
        );
        assert_eq!(
            changed(&Sharing::Public, &[("access-control-allow-origin", "*")]),
            [("access-control-allow-origin", Some("*".to_owned())), ("access-control-expose-headers", exposed)]
        );
    }

    #[test]
    fn headers_that_the_upstream_set_are_not_doubled() {
        let pages = Sharing::Pages("https://app.example".into());
        let one = |answer: &[(&str, &str)], wanted: &str| {
            let changes = changed(&pages, answer);
            let mut found = changes.into_iter().filter(|(name, _)| *name == wanted).map(|(_, value)| value);
            let first = found.next();
            assert_eq!(found.next(), None);
            first
        };
        let some = |text: &str| Some(Some(text.to_owned()));
        for own in ["*", "null", "https://other.example", "https://app.example"] {
            assert_eq!(one(&[(ALLOW_ORIGIN, own)], ALLOW_ORIGIN), some("https://app.example"));
        }
        assert_eq!(one(&[("vary", "accept-encoding"), ("vary", "X-A , ORIGIN")], VARY), some("accept-encoding, X-A, ORIGIN"));
        assert_eq!(one(&[("vary", "accept-encoding")], VARY), some("accept-encoding, Origin"));
        let expected = "x-own, mcp-session-id, WWW-Authenticate, Mcp-Protocol-Version, Retry-After, RateLimit, RateLimit-Policy";
        assert_eq!(one(&[(EXPOSE_HEADERS, "x-own,mcp-session-id")], EXPOSE_HEADERS), some(expected));
        // Cookies stay allowed only for the origin for which the upstream allowed them.
        let credentials = (ALLOW_CREDENTIALS, "true");
        assert_eq!(one(&[credentials, (ALLOW_ORIGIN, "https://app.example")], ALLOW_CREDENTIALS), None);
        for other in
            [&[credentials][..], &[credentials, (ALLOW_ORIGIN, "*")], &[credentials, (ALLOW_ORIGIN, "https://o.example")]]
        {
            assert_eq!(one(other, ALLOW_CREDENTIALS), Some(None));
        }
    }
}
