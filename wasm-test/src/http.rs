//! An HTTP client that gives a test control over every byte of the request headers.

use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Identifies a request in the access log. The client gives each request a different value.
pub const CASE_HEADER: &str = "x-case";

#[derive(Clone, Debug)]
pub struct Request {
    method: &'static str,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Request {
    /// A GET request without a body.
    pub fn get(path: &str) -> Self {
        Self { method: "GET", path: path.to_owned(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// A request of any method without a body.
    pub fn of(method: &'static str, path: &str) -> Self {
        Self { method, ..Self::get(path) }
    }

    /// A POST request with an empty body.
    pub fn post(path: &str) -> Self {
        Self { method: "POST", ..Self::get(path) }
    }

    /// A CORS preflight: a browser asks whether a page of `origin` may send a POST.
    pub fn preflight(path: &str, origin: &str) -> Self {
        let options = Self { method: "OPTIONS", ..Self::get(path) };
        let headers = "authorization,content-type,mcp-protocol-version,x-api-key";
        let asked = options.header("access-control-request-method", "POST").header("access-control-request-headers", headers);
        asked.header("origin", origin)
    }

    /// A POST request that lists tools, as in the product's documentation.
    pub fn tools_list(path: &str) -> Self {
        Self::post(path)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}"#)
    }

    /// The path and the query.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Adds a header. Other headers of the same name stay.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name: HeaderName = name.parse().expect("a header's name");
        self.headers.append(name, HeaderValue::from_bytes(value.as_ref()).expect("a header's value"));
        self
    }

    pub fn api_key(self, key: &str) -> Self {
        self.header("x-api-key", key)
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The [`CASE_HEADER`] of the request.
    pub case: String,
}

impl Reply {
    /// The only header of this name. Panics if the header is repeated or is not ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().expect("visible ASCII"));
        assert!(values.next().is_none(), "{name} is repeated: {:?}", self.headers);
        value
    }

    /// The body as JSON. Null if the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A client of one server. It keeps its connections open, and belongs to the Tokio runtime of its test.
#[derive(Clone, Debug)]
pub struct Client {
    authority: String,
    client: legacy::Client<HttpConnector, Full<Bytes>>,
}

impl Client {
    /// A client of the server at `host:port`.
    pub fn new(authority: impl Into<String>) -> Self {
        Self { authority: authority.into(), client: legacy::Client::builder(TokioExecutor::new()).build_http() }
    }

    /// The `host:port` of the server.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends a request and returns the reply with its whole body.
    pub async fn send(&self, request: &Request) -> Reply {
        self.try_send(request).await.unwrap_or_else(|| panic!("no reply to {request:?}"))
    }

    /// Like [`Self::send`]. `None` if the connection failed.
    pub async fn try_send(&self, request: &Request) -> Option<Reply> {
        static CASES: AtomicUsize = AtomicUsize::new(0);
        let case = CASES.fetch_add(1, Ordering::Relaxed).to_string();
        let mut head = hyper::Request::builder()
            .method(request.method)
            .uri(format!("http://{}{}", self.authority, request.path))
            .body(Full::new(request.body.clone()))
            .unwrap_or_else(|error| panic!("{error}: {request:?}"));
        *head.headers_mut() = request.headers.clone();
        head.headers_mut().insert(CASE_HEADER, HeaderValue::from_str(&case).expect("digits"));
        let (head, body) = self.client.request(head).await.ok()?.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        Some(Reply { status: head.status.as_u16(), headers: head.headers, body, case })
    }

    /// Sends `bytes` unchanged on a new connection, and returns all bytes until the server closes it. The request must
    /// contain `connection: close`.
    pub async fn send_bytes(&self, bytes: &[u8]) -> String {
        self.send_halves(bytes, &[], async || {}).await
    }

    /// Like [`Self::send_bytes`], in two parts. Waits for `between` before the second part.
    pub async fn send_halves(&self, first: &[u8], second: &[u8], between: impl AsyncFnOnce()) -> String {
        let mut connection = TcpStream::connect(&self.authority).await.expect("a connection");
        connection.write_all(first).await.expect("the first half is sent");
        between().await;
        connection.write_all(second).await.expect("the second half is sent");
        let mut reply = Vec::new();
        connection.read_to_end(&mut reply).await.expect("a reply");
        String::from_utf8_lossy(&reply).into_owned()
    }
}
