//! What stands behind the gateway in place of the connectors: it answers with what arrived.

use std::collections::BTreeMap;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, Response};
use serde_json::{Value, json};

use crate::http::Reply;
use crate::server::{Answer, Server, Trailers};

/// Tells its answers from Envoy's own.
const MARK: &str = "x-upstream";

/// Starts one.
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

/// A request as it arrived.
#[derive(Debug)]
pub struct Arrived {
    /// Its path and query.
    pub path: String,
    /// Its headers, in lower case, in their order.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

impl Arrived {
    /// What arrived, as `reply` tells; `None` where nothing did.
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

    /// The headers whose names could be read as beginning with `prefix`, without it.
    ///
    /// # Panics
    /// Where one is repeated.
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
