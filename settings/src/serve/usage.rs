//! Takes reports of usage from gateways, and deletes old usage.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::counts::{Counts, add, add_requests};
use super::log::log;
use super::routes::is_authorized;
use crate::clock::Moment;
use crate::database::pool::{Pool, in_thread};
use crate::failure::Failure;
use crate::usage::{self, Batch, Usage};

/// Where gateways report usage.
pub(super) const PATH: &str = "/v1/usage";
/// Maximum length of a report, in bytes.
const MAX_REPORT_LENGTH: usize = 1 << 20;
/// Maximum number of reports that are read or counted at the same time. Each may need some MiB.
const MAX_REPORTS: usize = 8;
/// How long a report waits until another one has ended.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a gateway may take to send a report. Its place is not free for others in this time.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two deletions of old usage.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Takes reports.
#[derive(Debug)]
pub(super) struct Collector {
    /// The token with which gateways report usage. It allows nothing else.
    token: String,
    usage: Arc<Usage>,
    /// Connections to the records. The management API has others, so that reports cannot delay a revocation.
    pool: Arc<Pool>,
    places: Arc<Semaphore>,
}

impl Collector {
    pub(super) fn new(token: String, usage: Arc<Usage>, pool: Arc<Pool>) -> Self {
        Self { token, usage, pool, places: Arc::new(Semaphore::new(MAX_REPORTS)) }
    }

    /// Takes a report, and answers with the sums of the month.
    pub(super) async fn take(&self, request: Request, counts: &Counts) -> Response {
        if *request.method() != Method::POST {
            return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "POST")], "only POST\n").into_response();
        }
        let headers = request.headers();
        if !is_authorized(headers, &self.token) {
            add(&counts.unauthorized);
            let text = "the request needs the bearer token of APEXMCP_USAGE_TOKEN\n";
            return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], text).into_response();
        }
        if !is_json(headers) {
            return (StatusCode::BAD_REQUEST, "the report must have the Content-Type application/json\n").into_response();
        }
        if declared_length(headers).is_some_and(|length| length > MAX_REPORT_LENGTH) {
            return too_long();
        }
        let place = timeout(PLACE_TIMEOUT, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else { return busy() };
        let Ok(body) = timeout(REPORT_TIMEOUT, to_bytes(request.into_body(), MAX_REPORT_LENGTH)).await else {
            return (StatusCode::REQUEST_TIMEOUT, "the report was not received in time\n").into_response();
        };
        let Ok(body) = body else { return too_long() };
        let usage = Arc::clone(&self.usage);
        let counted = self.pool.run(move |database, _| {
            Ok(match Batch::parse(&body) {
                Ok(batch) => {
                    let known = database.read(|settings| usage::known(settings, &batch))?;
                    Ok(usage::count(&usage, &batch, &known, Moment::now())?)
                }
                Err(wrong) => Err(wrong),
            })
        });
        match counted.await {
            Ok(Ok(totals)) => {
                if let Some([allowed, refused]) = totals.counted {
                    add(&counts.reports);
                    add_requests(&counts.allowed, allowed);
                    add_requests(&counts.refused, refused);
                }
                Json(totals).into_response()
            }
            Ok(Err(wrong)) => (StatusCode::BAD_REQUEST, format!("the report is wrong: {wrong}\n")).into_response(),
            Err(failure) => {
                log(failure.within("a report of usage was not counted"));
                busy()
            }
        }
    }

    /// Deletes old usage, now and once an hour.
    pub(super) async fn expire(self: Arc<Self>) {
        loop {
            if let Err(failure) = self.expire_once().await {
                log(failure.within("old usage was not deleted"));
            }
            tokio::time::sleep(EXPIRY_INTERVAL).await;
        }
    }

    async fn expire_once(&self) -> Result<(), Failure> {
        let place = Arc::new(Semaphore::new(1));
        let usage = Arc::clone(&self.usage);
        let old = in_thread(&place, move || {
            usage::delete_old(&usage, Moment::now())?;
            usage.read(usage::orgs)
        });
        let names = old.await?.unwrap_or_default();
        let gone = self.pool.run(move |database, _| database.read(|sql| usage::unknown_orgs(sql, names))).await?;
        let usage = Arc::clone(&self.usage);
        let delete = move || gone.iter().try_for_each(|org| usage::delete_org(&usage, Moment::now(), org));
        in_thread(&place, delete).await
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).and_then(|value| value.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_long() -> Response {
    (StatusCode::PAYLOAD_TOO_LARGE, format!("a report must have at most {MAX_REPORT_LENGTH} bytes\n")).into_response()
}

fn busy() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "5")], "send the report again later\n").into_response()
}
