//! Headers that a client names in `Connection` and in similar headers. A proxy behind the gateway removes every header that
//! `Connection` names (RFC 9110 §7.6.1), so a client could remove the identity headers that the filter adds.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Request, Response};
use serde_json::json;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::policy::{api_key, api_key_record};
use wasm_test::server::Server;

const IDENTITY: [&str; 5] = ["x-apexmcp-method", "x-apexmcp-org", "x-apexmcp-principal", "x-apexmcp-scope", "x-apexmcp-subject"];

/// Reports the received headers in a response header, because Envoy drops the body of an answer that refuses an upgrade.
const ARRIVED: &str = "x-arrived";

async fn upstream() -> Server {
    Server::start(async |request: Request<Bytes>| {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers: Vec<(&str, String)> = request.headers().iter().map(|(name, value)| (name.as_str(), text(value))).collect();
        Response::builder().header(ARRIVED, json!(headers).to_string()).body(Full::default()).ok()
    })
    .await
}

async fn gateway(mode: &str, upstream: &Server) -> Gateway {
    let mut config = plugin(&json!({"acme": {"api_keys": [api_key_record("key_all")]}}));
    config["mode"] = json!(mode);
    Setup::new(config).websockets().passing_trailers().start(upstream).await
}

/// The headers that arrive behind the gateway when a good request has these lines too.
async fn arrive(gateway: &Gateway, lines: &[&str]) -> Vec<(String, String)> {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET /mcp/acme HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\n{lines}\r\n", api_key("key_all"));
    let reply = gateway.client().send_bytes(request.as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{lines}: {reply}");
    let arrived = reply.split("\r\n").find_map(|line| line.strip_prefix(ARRIVED)?.strip_prefix(": "));
    serde_json::from_str(arrived.unwrap_or_else(|| panic!("{lines}: {reply}"))).expect("headers")
}

/// The headers that a proxy forwards if it follows RFC 9110 §7.6.1, sorted by name.
fn behind_a_proxy(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    let connection: Vec<&str> =
        headers.iter().filter(|(name, _)| name == "connection").map(|(_, value)| value.as_str()).collect();
    let is_named =
        |name: &str| connection.iter().flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(name));
    let mut left: Vec<(&str, &str)> =
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).filter(|(name, _)| !is_named(name)).collect();
    left.sort_unstable();
    left
}

fn named<'h>(headers: &'h [(String, String)], wanted: &str) -> Vec<&'h str> {
    headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
}

#[tokio::test]
async fn a_client_cannot_make_a_proxy_remove_identity_headers() {
    const UPGRADE: &str = "Upgrade: websocket";
    let upstream = upstream().await;
    for (mode, cases) in [("enforce", usize::MAX), ("shadow", 1)] {
        let gateway = gateway(mode, &upstream).await;
        for lines in [
            &["Connection: upgrade, x-apexmcp-org", UPGRADE][..],
            &["Connection: X-Apexmcp-Org,X-APEXMCP-PRINCIPAL,Upgrade", UPGRADE],
            &["Connection: x-apexmcp-org", "Connection: upgrade", UPGRADE],
            &["Connection: upgrade", "connection: keep-alive, x-apexmcp-scope", UPGRADE],
            &["Connection: upgrade, x_apexmcp_org, x.apexmcp.org, x-api-key, authorization, host", UPGRADE],
            &["Connection: upgrade,\t x-apexmcp-org \t", UPGRADE],
            &["Connection: upgrade, x-apexmcp-org", UPGRADE, "x-apexmcp-org: victim"],
        ]
        .into_iter()
        .take(cases)
        {
            let headers = arrive(&gateway, lines).await;
            assert_eq!(named(&headers, "connection"), ["upgrade"], "{mode}: {lines:?}");
            assert_eq!(named(&headers, "upgrade"), ["websocket"], "{mode}: {lines:?}");
            let left = behind_a_proxy(&headers);
            let identity: Vec<&str> = left.iter().map(|(name, _)| *name).filter(|name| name.contains("apexmcp")).collect();
            assert_eq!(identity, IDENTITY, "{mode}: {lines:?}: {headers:?}");
            assert!(left.contains(&("x-apexmcp-org", "acme")), "{mode}: {lines:?}: {headers:?}");
        }
        // An upgrade that names no other header is forwarded unchanged.
        for value in ["Upgrade", "keep-alive, Upgrade"] {
            let headers = arrive(&gateway, &[&format!("Connection: {value}"), UPGRADE]).await;
            assert_eq!(named(&headers, "connection"), [value], "{mode}");
        }
    }
}

/// Envoy removes these headers itself, or they name nothing that a proxy removes.
#[tokio::test]
async fn headers_similar_to_connection_remove_no_identity_headers() {
    let upstream = upstream().await;
    let gateway = gateway("enforce", &upstream).await;
    for lines in [
        &["Connection: close, x-apexmcp-org"][..],
        &["Connection: x-apexmcp-org", "Connection: close"],
        &["Connection: close", "TE: x-apexmcp-org, trailers"],
        &["Connection: close, te", "TE: x-apexmcp-org"],
        &["Connection: close", "Keep-Alive: x-apexmcp-org"],
        &["Connection: close", "Proxy-Connection: x-apexmcp-org"],
        &["Connection: close", "Trailer: x-apexmcp-org"],
        &["Connection: close", "Upgrade: x-apexmcp-org"],
        &[
            "Connection: close, upgrade, http2-settings, x-apexmcp-org",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
        ],
    ] {
        let headers = arrive(&gateway, lines).await;
        let left = behind_a_proxy(&headers);
        assert!(left.contains(&("x-apexmcp-org", "acme")), "{lines:?}: {headers:?}");
        for name in ["connection", "proxy-connection", "keep-alive"] {
            let values = named(&headers, name);
            assert!(values.iter().all(|value| !value.contains("apexmcp")), "{lines:?}: {headers:?}");
        }
    }
}
