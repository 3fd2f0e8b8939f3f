//! A small HTTP/1.1 server inside the test process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// An answer. `None` closes the connection without an answer.
pub type Answer = Option<Response<Full<Bytes>>>;

/// The trailers of a request. The server adds them to the request's extensions.
#[derive(Clone, Debug)]
pub struct Trailers(pub HeaderMap);

/// The server. It accepts no connections after the value is dropped. Open connections end with the Tokio runtime of
/// the test.
#[derive(Debug)]
pub struct Server {
    authority: String,
    requests: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Starts a server with this handler.
    pub async fn start<H, F>(handler: H) -> Self
    where
        H: Fn(Request<Bytes>) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::start_at(0, handler).await
    }

    /// Like [`Self::start`], at a fixed port.
    pub async fn start_at<H, F>(port: u16, handler: H) -> Self
    where
        H: Fn(Request<Bytes>) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let authority = listener.local_addr().expect("its address").to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let (counted, handler) = (Arc::clone(&requests), Arc::new(handler));
        let accepting = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (counted, handler) = (Arc::clone(&counted), Arc::clone(&handler));
                let service = service_fn(move |request: Request<Incoming>| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let handler = Arc::clone(&handler);
                    async move {
                        let (mut head, body) = request.into_parts();
                        let body = body.collect().await.map_err(|_| Broken)?;
                        head.extensions.insert(Trailers(body.trailers().cloned().unwrap_or_default()));
                        let body = body.to_bytes();
                        handler(Request::from_parts(head, body)).await.ok_or(Broken)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
            }
        });
        Self { authority, requests, accepting }
    }

    /// Starts a server that sends `answer` unchanged after the head of each request, without waiting for the body.
    pub async fn answering_heads(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let authority = listener.local_addr().expect("its address").to_string();
        let accepting = tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(connection.read_u8().await?);
                    }
                    connection.write_all(answer.as_bytes()).await?;
                    // Keeps the connection open until Envoy closes it.
                    connection.read_to_end(&mut head).await
                });
            }
        });
        Self { authority, requests: Arc::default(), accepting }
    }

    /// The `host:port` of the server.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub fn port(&self) -> u16 {
        self.authority.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    /// The number of requests that arrived until now.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Makes hyper close the connection without an answer.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the connection is closed without an answer")
    }
}

impl std::error::Error for Broken {}
