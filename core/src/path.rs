//! Decides which paths are MCP endpoints, and of which organization.
//!
//! There are two separate checks. [`McpPath::resource`] is strict: a path is an endpoint only in its plain form.
//! [`McpPath::may_be_read_as_mcp`] is generous: it asks whether any server on the way could read the path as an endpoint.
//! A path that passes only the generous check is never let through without authentication.

use crate::names::{ConnectorId, OrgName};
use crate::scope::Scope;

/// How many times a path is percent-decoded. Servers behind proxies decode as often. Each time doubles the work.
const MAX_DECODINGS: usize = 3;

/// Maximum length of an inspected path in bytes. A longer path counts as one that could be read as an MCP path. Apache
/// and nginx do not accept such a path either. Inspecting the longest path that Envoy accepts would cost a worker three
/// milliseconds.
const MAX_LENGTH: usize = 8 * 1024;

/// The protected resource (RFC 8707, RFC 9728) that a request addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub org: OrgName,
    /// The connector that the path or the route names. `None` for the endpoint of all connectors.
    pub connector: Option<ConnectorId>,
}

impl Resource {
    /// The scope that a credential must cover to use this resource.
    pub fn needed_scope(&self) -> Scope {
        self.connector.clone().map_or(Scope::AllConnectors, Scope::Connector)
    }
}

/// The template of `gateway.mcp_path`, such as `/mcp/{org}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct McpPath {
    before: Vec<Box<str>>,
    after: Vec<Box<str>>,
}

impl McpPath {
    /// Parses a template: segments of plain characters, exactly one of which is `{org}`.
    ///
    /// # Errors
    /// The text says what is wrong with the template.
    pub fn parse(template: &str) -> Result<Self, &'static str> {
        let segments = template.strip_prefix('/').ok_or("must begin with /")?;
        let (mut before, mut after, mut seen) = (Vec::new(), Vec::new(), false);
        for segment in segments.split('/') {
            if segment == "{org}" {
                if std::mem::replace(&mut seen, true) {
                    return Err("must contain {org} once");
                }
            } else if OrgName::parse(segment).is_none() {
                return Err("must consist of segments of A-Z a-z 0-9 . _ ~ - and of {org}");
            } else if seen {
                after.push(segment.into());
            } else {
                before.push(segment.into());
            }
        }
        if seen { Ok(Self { before, after }) } else { Err("must contain the segment {org}") }
    }

    /// Returns the resource at `path` if `path` is exactly `<mcp_path>` or `<mcp_path>/<connector>`.
    pub fn resource(&self, path: &[u8]) -> Option<Resource> {
        let path = std::str::from_utf8(path).ok()?;
        let mut segments = path.strip_prefix('/')?.split('/');
        self.before.iter().try_for_each(|literal| (segments.next()? == &**literal).then_some(()))?;
        let org = OrgName::parse(segments.next()?)?;
        self.after.iter().try_for_each(|literal| (segments.next()? == &**literal).then_some(()))?;
        let connector = match segments.next() {
            None => None,
            Some(segment) => Some(ConnectorId::parse(segment)?),
        };
        segments.next().is_none().then_some(Resource { org, connector })
    }

    /// Whether a router or server could read `path` as a path below this template. Servers may decode, fold case, merge
    /// slashes, drop parameters and resolve dot segments, in any order.
    pub fn may_be_read_as_mcp(&self, path: &[u8]) -> bool {
        path.len() > MAX_LENGTH || self.may_be_read_after(MAX_DECODINGS, path)
    }

    /// Like [`Self::may_be_read_as_mcp`], with at most `decodings` more decodings. A server may resolve dot segments
    /// before it decodes or afterwards, and the next server may do so again.
    fn may_be_read_after(&self, decodings: usize, path: &[u8]) -> bool {
        let segments: Vec<&[u8]> = path
            .split(|byte| matches!(byte, b'/' | b'\\'))
            .map(without_parameters)
            .filter(|segment| !segment.is_empty() && *segment != b".")
            .collect();
        let mut resolved: Vec<&[u8]> = Vec::new();
        for segment in &segments {
            if *segment == b".." {
                resolved.pop();
            } else {
                resolved.push(segment);
            }
        }
        let decoded_is_read = |path: &[u8]| {
            let plain = decoded_once(path);
            // Nobody needs a path that is still encoded after the last decoding, so it counts as an attempt to hide an
            // MCP path.
            let left = decodings.checked_sub(1);
            plain.len() != path.len() && left.is_none_or(|left| self.may_be_read_after(left, &plain))
        };
        self.is_below(&segments) || self.is_below(&resolved) || decoded_is_read(path) || decoded_is_read(&resolved.join(&b'/'))
    }

    fn is_below(&self, segments: &[&[u8]]) -> bool {
        // If the template begins with {org}, every first segment matches, and the literals after it decide.
        let (org, literals) = if self.before.is_empty() { (1, &self.after) } else { (0, &self.before) };
        let mut segments = segments.iter().skip(org);
        literals.iter().all(|literal| segments.next().is_some_and(|segment| segment.eq_ignore_ascii_case(literal.as_bytes())))
    }

    /// The path of `resource` in its plain form.
    pub fn path_of(&self, resource: &Resource) -> String {
        let mut path = String::new();
        let before = self.before.iter().map(|segment| &**segment);
        let after = self.after.iter().map(|segment| &**segment);
        let connector = resource.connector.as_ref().map(ConnectorId::as_str);
        for segment in before.chain([resource.org.as_str()]).chain(after).chain(connector) {
            path.push('/');
            path.push_str(segment);
        }
        path
    }
}

fn decoded_once(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        let escape = (first == b'%').then(|| tail.split_first_chunk::<2>()).flatten();
        match escape.and_then(|(digits, after)| Some((u8_of_hex(digits)?, after))) {
            Some((byte, after)) => {
                plain.push(byte);
                rest = after;
            }
            None => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

fn u8_of_hex(digits: &[u8; 2]) -> Option<u8> {
    let mut byte = [0];
    hex::decode_to_slice(digits, &mut byte).ok()?;
    byte.first().copied()
}

/// The segment without its `;parameters`. Some servers drop them before they compare paths.
fn without_parameters(segment: &[u8]) -> &[u8] {
    segment.split(|byte| *byte == b';').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mcp() -> McpPath {
        McpPath::parse("/mcp/{org}").unwrap()
    }

    #[test]
    fn templates_have_one_org_segment_anywhere() {
        for bad in ["", "mcp/{org}", "/mcp", "/mcp/{org}/", "/{org}/{org}", "/mcp/{tenant}/{org}", "//{org}", "/a%20/{org}"] {
            assert!(McpPath::parse(bad).is_err(), "{bad}");
        }
        let turned = McpPath::parse("/{org}/v1/mcp").unwrap();
        let resource = turned.resource(b"/acme/v1/mcp/github").unwrap();
        assert_eq!((resource.org.as_str(), turned.path_of(&resource).as_str()), ("acme", "/acme/v1/mcp/github"));
        assert_eq!(turned.resource(b"/acme/v1"), None);
        for (path, readable) in [("/healthz", false), ("/acme/v2/mcp", false), ("/a/V1/mcp", true), ("/a/%76%31/./mcp;b/c", true)]
        {
            assert_eq!(turned.may_be_read_as_mcp(path.as_bytes()), readable, "{path}");
        }
    }

    #[test]
    fn only_the_plain_form_is_a_resource() {
        let acme = |connector: Option<&str>| Resource {
            org: OrgName::parse("acme").unwrap(),
            connector: connector.map(|id| ConnectorId::parse(id).unwrap()),
        };
        assert_eq!(mcp().resource(b"/mcp/acme"), Some(acme(None)));
        assert_eq!(mcp().resource(b"/mcp/acme/github"), Some(acme(Some("github"))));
        for (path, readable) in [
            ("/mcp/acme/", true),
            ("/mcp/acme/github/", true),
            ("/mcp/acme/github/x", true),
            ("/mcp", true),
            ("/mcp/", true),
            ("//mcp/acme", true),
            ("/mcp//acme", true),
            ("/MCP/acme", true),
            ("/%6dcp/acme", true),
            ("/%256dcp/acme", true),
            ("/mcp%2facme", true),
            ("/mcp\\acme", true),
            ("/./mcp/acme", true),
            ("/public/../mcp/acme", true),
            ("/public/%2e%2e/mcp/acme", true),
            ("/public/..;/mcp/acme", true),
            ("/mcp;v=1/acme", true),
            // A server that drops parameters, or resolves dots, before it decodes reads `/mcp/acme` and
            // `/mcp/%2e%2e/public`.
            ("/.;%2fx/mcp/acme", true),
            ("/x/../mcp/%2e%2e/public", true),
            ("/%2e;%252fx/mcp/acme", true),
            ("/mcp/../public", true),
            ("/mcp/acme%00", true),
            ("/mcp/acme\u{e4}", true),
            ("/%2525256dcp/acme", true),
            ("/%252525256dcp/acme", true),
            ("/%25252525public", true),
            ("/%252525public", false),
            ("/%2525public", false),
            ("", false),
            ("/", false),
            ("/public", false),
            ("/public/mcp/acme", false),
            ("/mcpx/acme", false),
            ("/%zz", false),
            ("*", false),
        ] {
            assert_eq!(mcp().resource(path.as_bytes()), None, "{path}");
            assert_eq!(mcp().may_be_read_as_mcp(path.as_bytes()), readable, "{path}");
        }
    }

    #[test]
    fn a_path_over_the_limit_counts_as_an_mcp_path() {
        for (length, readable) in [(MAX_LENGTH, false), (MAX_LENGTH + 1, true)] {
            assert_eq!(mcp().may_be_read_as_mcp(format!("/{}", "a".repeat(length - 1)).as_bytes()), readable, "{length}");
        }
    }

    proptest! {
        #[test]
        fn every_resource_may_be_read_as_mcp_and_prints_its_path(org in "[a-z0-9._~-]{1,9}", connector in proptest::option::of("[a-z0-9._~-]{1,9}")) {
            let path = connector.iter().fold(format!("/mcp/{org}"), |path, id| format!("{path}/{id}"));
            if let Some(resource) = mcp().resource(path.as_bytes()) {
                prop_assert_eq!(mcp().path_of(&resource), path.clone());
                prop_assert!(mcp().may_be_read_as_mcp(path.as_bytes()));
            }
        }

        #[test]
        fn never_panics(path: Vec<u8>) {
            let _ = (mcp().resource(&path), mcp().may_be_read_as_mcp(&path));
        }
    }
}
