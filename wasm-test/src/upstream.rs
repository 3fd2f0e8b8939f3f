//! The server behind the gateway, in place of the connectors. Its answer describes the request that arrived.

use std::collections::BTreeMap;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, Response};
use serde_json::{Value, json};

use crate::http::Reply;
use crate::server::{Answer, Server, Trailers};

/// Marks the answers of the upstream, so that they differ from Envoy's own answers.
const MARK: &str = "x-upstream";

pub async fn start() -> Server {
    Server::start(async |request| answer(&request)).await
}

fn answer(request: &Request<Bytes>) -> Answer {
    let texts = |map: &HeaderMap| -> Vec<(String, String)> {
        map.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
    };
    let arrived = json!({
        "path": request.uri().to_string(),
        "headers": texts(request.headers()),
        "trailers": request.extensions().get().map(|Trailers(trailers)| texts(trailers)),
        "body": String::from_utf8_lossy(request.body()),
    });
    Response::builder().header(MARK, "1").body(Full::from(arrived.to_string())).ok()
}

/// A request as it arrived at the upstream.
#[derive(Debug)]
pub struct Arrived {
    /// The path and the query.
    pub path: String,
    /// The headers in their order, with names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Arrived {
    /// The request that `reply` describes. `None` if no request arrived.
    pub fn of(reply: &Reply) -> Option<Self> {
        reply.header(MARK)?;
        let Value::Object(mut arrived) = reply.json() else { return None };
        let mut take = |name: &str| arrived.remove(name).unwrap_or_default();
        let text = |value: Value| value.as_str().map(str::to_owned);
        Some(Self {
            path: text(take("path"))?,
            headers: serde_json::from_value(take("headers")).ok()?,
            body: text(take("body"))?,
        })
    }

    /// Whether a header of this name arrived.
    pub fn has(&self, wanted: &str) -> bool {
        self.headers.iter().any(|(name, _)| name == wanted)
    }

    /// The headers that a server could read as beginning with `prefix`, without the prefix. A server may treat `_` as
    /// `-`.
    pub fn headers_below(&self, prefix: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for (name, value) in &self.headers {
            if let Some(rest) = name.replace('_', "-").strip_prefix(prefix) {
                assert!(found.insert(rest.to_owned(), value.clone()).is_none(), "{name} is repeated: {:?}", self.headers);
            }
        }
        found
    }
}
