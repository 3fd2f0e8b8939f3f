//! `forward.header_prefix`. The filter removes every incoming header that begins with it, so it must match no header that
//! HTTP, MCP or Envoy needs. Without `x-forwarded-proto`, for example, Envoy finds no route, and every request gets 404.

/// Headers of requests that HTTP, MCP or Envoy needs. Names without `-` are left out: a prefix ends with `-`.
const NEEDED: [&str; 18] = [
    "x-forwarded-proto",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-client-cert",
    "x-request-id",
    "x-api-key",
    "x-client-trace-id",
    "x-cloud-trace-context",
    "x-amzn-trace-id",
    "cache-control",
    "http2-settings",
    "keep-alive",
    "last-event-id",
    "max-forwards",
    "transfer-encoding",
    "upgrade-insecure-requests",
    "user-agent",
];

/// Prefixes below which HTTP, MCP or Envoy has many headers, now or in a later version.
const RESERVED: [&str; 11] =
    ["x-envoy-", "x-b3-", "x-ot-span-", "accept-", "access-control-", "content-", "grpc-", "if-", "mcp-", "proxy-", "sec-"];

/// Checks a prefix.
///
/// # Errors
/// The reason why it is refused.
pub(super) fn check(prefix: &str) -> Result<(), String> {
    let is_name_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if prefix.len() < 2 || !prefix.ends_with('-') || !prefix.bytes().all(is_name_part) {
        return Err("must be of a-z 0-9 - and end with -, such as x-apexmcp-".to_owned());
    }
    let needed = NEEDED.into_iter().find(|name| name.starts_with(prefix));
    let reserved = || RESERVED.into_iter().find(|other| other.starts_with(prefix) || prefix.starts_with(other));
    match needed.or_else(reserved) {
        None => Ok(()),
        Some(name) => Err(format!(
            "the filter removes each incoming header that begins with {prefix:?}, but HTTP, MCP or Envoy needs {name}{}: choose \
             a prefix of your own, such as x-apexmcp-",
            if name.ends_with('-') { "*" } else { "" }
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_matches_no_header_that_http_mcp_or_envoy_needs() {
        for (prefix, needed) in [
            ("x-", "x-forwarded-proto"),
            ("x-forwarded-", "x-forwarded-proto"),
            ("x-forwarded-client-", "x-forwarded-client-cert"),
            ("x-request-", "x-request-id"),
            ("x-api-", "x-api-key"),
            ("x-envoy-", "x-envoy-*"),
            ("x-envoy-upstream-", "x-envoy-*"),
            ("x-ot-", "x-ot-span-*"),
            ("content-", "content-*"),
            ("access-", "access-control-*"),
            ("mcp-", "mcp-*"),
            ("mcp-param-", "mcp-*"),
            ("user-", "user-agent"),
            ("transfer-", "transfer-encoding"),
        ] {
            let problem = check(prefix).expect_err(prefix);
            assert!(problem.contains(&format!("Envoy needs {needed}: ")), "{prefix}: {problem}");
        }
        for prefix in ["x-apexmcp-", "x-apexmcp-id-", "x-apex-", "x-tenant-", "my-own-id-", "contents-", "x-envoys-", "x--", "--"]
        {
            assert_eq!(check(prefix), Ok(()), "{prefix}");
        }
        for prefix in ["", "-", "x", "x_", "X-", "x.y-", "x-apexmcp", "x-\u{e4}-"] {
            assert!(check(prefix).expect_err(prefix).starts_with("must be"), "{prefix}");
        }
    }
}
