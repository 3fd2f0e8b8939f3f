//! A Settings service that a test controls. It serves one document with an ETag, and supports long polling.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response};
use serde_json::Value;
use tokio::sync::watch;

use crate::server::{Answer, Server};

/// The token that a request must carry.
pub const TOKEN: &str = "a-token-of-settings";

#[derive(Debug)]
pub struct Settings {
    server: Server,
    documents: watch::Sender<Option<Bytes>>,
}

impl Settings {
    /// Starts a service without a document. It does not answer until it has one.
    pub async fn start() -> Self {
        Self::start_at(0).await
    }

    /// Like [`Self::start`], at a fixed port.
    pub async fn start_at(port: u16) -> Self {
        let (documents, watched) = watch::channel(None);
        let server = Server::start_at(port, move |request| answer(request, watched.clone())).await;
        Self { server, documents }
    }

    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The number of requests that arrived until now.
    pub fn requests(&self) -> usize {
        self.server.requests()
    }

    /// Serves this document from now on.
    pub fn publish(&self, document: &Value) {
        self.publish_text(document.to_string());
    }

    /// Serves this text from now on, whether or not it is a valid document.
    pub fn publish_text(&self, text: impl Into<Bytes>) {
        self.documents.send_replace(Some(text.into()));
    }
}

async fn answer(request: Request<Bytes>, mut watched: watch::Receiver<Option<Bytes>>) -> Answer {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if header("authorization") != Some(&format!("Bearer {TOKEN}")) {
        return Response::builder().status(401).body(Full::default()).ok();
    }
    let known = header("if-none-match").map(str::to_owned);
    let wait = request.uri().query().and_then(|query| query.strip_prefix("wait=")?.strip_suffix('s')?.parse().ok());
    // A hash of the content: after a restart, a different document must not get the ETag of an earlier one.
    let etag = |document: &Bytes| format!("\"{}\"", hex::encode(hmac_sha256::Hash::hash(document)));
    let is_news = |document: &Option<Bytes>| document.as_ref().is_some_and(|document| Some(etag(document)) != known);
    let patience = Duration::from_secs(if known.is_some() { wait.unwrap_or(0) } else { 3_600 });
    match tokio::time::timeout(patience, watched.wait_for(is_news)).await {
        Ok(news) => {
            let document = news.ok()?.clone()?;
            Response::builder().header("etag", etag(&document)).body(Full::from(document)).ok()
        }
        Err(_) => Response::builder().status(304).body(Full::default()).ok(),
    }
}
