//! The answers of the server: the policy, its health and its metrics.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use apexmcp_core::policy::page;
use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::header::{
    ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use super::counts::{Counts, Waiting, add};
use super::gateways::Gateways;
use super::log::log;
use super::published::{Published, Shared};
use super::usage::{self, Collector};
use crate::clock::Moment;
use crate::failure::Failure;
use crate::throttle::Peer;

/// Maximum wait for a change. A proxy on the way must not take the connection for dead.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// What all requests share.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) token: String,
    pub(super) policy: watch::Receiver<Arc<Published>>,
    pub(super) catalog: Shared,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) counts: Arc<Counts>,
    pub(super) gateways: Arc<Gateways>,
    /// `None`: usage is not collected.
    pub(super) collector: Option<Arc<Collector>>,
}

pub(super) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/policy", any(policy))
        .route(usage::PATH, any(report))
        .route("/healthz", any(health))
        .route("/metrics", any(metrics))
        .fallback(unknown)
        .layer(middleware::from_fn(only_get))
        .with_state(service)
}

/// Refuses all methods but GET, on every path but one. The routers of axum would also answer HEAD.
async fn only_get(request: Request, next: Next) -> Response {
    match *request.method() {
        Method::GET => next.run(request).await,
        _ if request.uri().path() == usage::PATH => next.run(request).await,
        _ => (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET")], "only GET\n").into_response(),
    }
}

async fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "the paths are /v1/policy, /healthz and /metrics\n").into_response()
}

/// A report of usage.
async fn report(State(service): State<Arc<Service>>, request: Request) -> Response {
    match &service.collector {
        None => (StatusCode::NOT_FOUND, "usage is not collected: start apexmcp serve with APEXMCP_USAGE_TOKEN\n").into_response(),
        Some(collector) => collector.take(request, &service.counts).await,
    }
}

async fn health(State(service): State<Arc<Service>>) -> Response {
    match service.counts.failing.load(Ordering::Relaxed) {
        0 => "ok\n".into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the database cannot be read\n").into_response(),
    }
}

async fn policy(
    State(service): State<Arc<Service>>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    if !is_authorized(&headers, &service.token) {
        add(&service.counts.unauthorized);
        let text = "the request needs the bearer token of APEXMCP_SETTINGS_TOKEN\n";
        return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], text).into_response();
    }
    let wait = match wait(&uri) {
        Ok(wait) => wait,
        Err(wrong) => return (StatusCode::BAD_REQUEST, wrong).into_response(),
    };
    let known: Vec<&[u8]> = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .collect();
    // RFC 9110 §13.1.2: the comparison is weak, because a cache on the way may have marked the tag as weak.
    let is_this = |etag: &[u8], published: &Published| etag.strip_prefix(b"W/").unwrap_or(etag) == published.etag.as_bytes();
    let is_known = |published: &Published| known.iter().any(|etag| is_this(etag, published) || *etag == b"*");
    let (mut policy, mut stopping) = (service.policy.clone(), service.stopping.clone());
    let mut published = Arc::clone(&policy.borrow());
    let named = known.first().and_then(|etag| std::str::from_utf8(etag).ok()).map(state_in);
    let said = headers.get(page::GATEWAY_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let _visit = takes_pages(&headers).then(|| {
        let present = published.state.to_string();
        service.gateways.visit(said, peer, named.unwrap_or_default(), &present, Moment::now())
    });
    if is_known(&published) && !wait.is_zero() {
        let _waiting = Waiting::of(&service.counts);
        tokio::select! {
            changed = policy.wait_for(|now| !is_known(now)) => if let Ok(now) = changed { published = Arc::clone(&now); },
            _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    let mut response = if is_known(&published) {
        add(&service.counts.unchanged);
        StatusCode::NOT_MODIFIED.into_response()
    } else if takes_pages(&headers) {
        match page(&service, named) {
            Ok(response) => response,
            Err(failure) => return failed(&failure),
        }
    } else {
        // It may be long.
        let made = tokio::task::spawn_blocking({
            let (published, catalog) = (Arc::clone(&published), Arc::clone(&service.catalog));
            move || published.document(&catalog)
        });
        match made.await {
            Ok(Ok(Some(document))) => {
                add(&service.counts.sent);
                ([(CONTENT_TYPE, "application/json")], Body::from(document)).into_response()
            }
            // The policy has just changed, so the next request gets the new one.
            Ok(Ok(None)) | Err(_) => {
                return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], "try again\n").into_response();
            }
            Ok(Err(failure)) => return failed(&failure),
        }
    };
    response.headers_mut().insert(ETAG, published.etag.clone());
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    // The policy contains private keys, so no cache on the way may keep it.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The next page for a gateway that named this state.
fn page(service: &Service, named: Option<&str>) -> Result<Response, Failure> {
    let page = service.catalog.read().unwrap_or_else(PoisonError::into_inner).page(named)?;
    Ok(match page {
        Some(page) => {
            add(&service.counts.sent);
            ([(CONTENT_TYPE, page::CONTENT_TYPE)], page).into_response()
        }
        None => {
            add(&service.counts.unchanged);
            StatusCode::NOT_MODIFIED.into_response()
        }
    })
}

fn failed(failure: &Failure) -> Response {
    log(failure);
    (StatusCode::INTERNAL_SERVER_ERROR, "the policy cannot be sent: see the log of apexmcp serve\n").into_response()
}

/// Whether the client asks for pages. Other clients get the whole document.
fn takes_pages(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    accepted.into_iter().any(|range| range.split(';').next().is_some_and(|kind| kind.trim() == page::CONTENT_TYPE))
}

/// The state in an entity tag.
fn state_in(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"')
}

/// RFC 6750 §2.1. A repeated header is ambiguous, and refused.
pub(super) fn is_authorized(headers: &HeaderMap, expected: &str) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, token)) = value.as_bytes().split_at_checked(7) else { return false };
    scheme.eq_ignore_ascii_case(b"bearer ") && token.ct_eq(expected.as_bytes()).into()
}

/// How long the client wants to wait for a change: `?wait=30s`.
fn wait(uri: &Uri) -> Result<Duration, &'static str> {
    match uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("wait=")) {
        None => Ok(Duration::ZERO),
        Some(text) => {
            humantime::parse_duration(text).map(|wait| wait.min(MAX_WAIT)).map_err(|_| "wait must be a duration such as 30s\n")
        }
    }
}

async fn metrics(State(service): State<Arc<Service>>) -> String {
    let (published, counts) = (service.policy.borrow().clone(), &service.counts);
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let gateways = service.gateways.list(&published.state.to_string(), Moment::now());
    let connected = gateways.iter().filter(|gateway| gateway.is_connected);
    let behind = connected.clone().filter(|gateway| !gateway.is_current).count();
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, kind, help, value) in [
        ("policy_version", "gauge", "Version of the policy that is served.", u64::try_from(published.state.version).unwrap_or(0)),
        ("policy_bytes", "gauge", "Length of its parts.", number(published.length)),
        ("gateways", "gauge", "Gateways that are connected.", number(connected.count())),
        ("gateways_behind", "gauge", "Connected gateways without the present policy.", number(behind)),
        ("waiting_requests", "gauge", "Requests that wait for a change.", count(&counts.waiting)),
        ("database_failures_total", "counter", "Failed reads of the database.", count(&counts.failures)),
        ("policy_sent_total", "counter", "Documents and pages sent.", count(&counts.sent)),
        ("policy_not_modified_total", "counter", "Answers 304.", count(&counts.unchanged)),
        ("unauthorized_total", "counter", "Requests without the right token.", count(&counts.unauthorized)),
        ("usage_reports_total", "counter", "Reports of usage that were counted.", count(&counts.reports)),
    ] {
        let name = format!("apexmcp_settings_{name}");
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    let name = "apexmcp_settings_usage_requests_total";
    let _ = writeln!(text, "# HELP {name} Requests in the reports that were counted.\n# TYPE {name} counter");
    for (result, value) in [("allowed", count(&counts.allowed)), ("refused", count(&counts.refused))] {
        let _ = writeln!(text, "{name}{{result=\"{result}\"}} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_at_most_300_seconds() {
        for (query, wait_for) in [("", 0), ("?wait=300s", 300), ("?wait=301s", 300), ("?wait=299s", 299)] {
            assert_eq!(wait(&format!("/v1/policy{query}").parse().unwrap()), Ok(Duration::from_secs(wait_for)), "{query}");
        }
    }
}
