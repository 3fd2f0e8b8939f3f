//! Paths. The path of an org is printed as it was read, and every path that some server might treat as one is
//! detected.

use apexmcp_core::path::McpPath;

use crate::reader;

/// `data` is a path.
pub fn check(data: &[u8]) -> bool {
    let template = McpPath::parse("/mcp/{org}").expect("a template");
    let is_readable = template.may_be_read_as_mcp(data);
    let resource = template.resource(data);
    if let Some(resource) = &resource {
        assert_eq!(template.path_of(resource).as_bytes(), data);
        assert!(is_readable);
    }
    // A chain of four servers. Each of them resolves dot segments before it decodes, or does not.
    for habits in 0..1 << 4 {
        let mut seen = data.to_vec();
        for server in 0..4 {
            let is_read = [segments(&seen, false), segments(&seen, true)]
                .iter()
                .any(|path| path.first().is_some_and(|first| first == b"mcp"));
            assert!(is_readable || !is_read, "server {server} of {habits:b} treats this as an MCP path: {}", seen.escape_ascii());
            if habits >> server & 1 == 1 {
                seen = segments(&seen, true).join(&b'/');
            }
            seen = reader::percent_decoded(&seen);
        }
    }
    resource.is_some()
}

/// The segments of a path, as read by a server that ignores case, merges slashes and drops parameters.
fn segments(path: &[u8], resolves_dots: bool) -> Vec<Vec<u8>> {
    let path = path.to_ascii_lowercase();
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
        match segment.split(|byte| *byte == b';').next().unwrap_or_default() {
            b"" | b"." => {}
            b".." if resolves_dots => drop(kept.pop()),
            plain => kept.push(plain.to_vec()),
        }
    }
    kept
}
