//! The policy document over HTTP: a strong ETag, 304, and answers that wait for a change.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use apexmcp_auth::policy::remote::MAX_DOCUMENT_LENGTH;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, http};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::database::{self, Database};
use crate::document;
use crate::failure::Failure;
use crate::secret::sha256;

/// How often the database is asked whether somebody changed it: a microsecond each time.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for a change: whoever is between must not take the connection for dead.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stop waits for answers that are under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The document of one version.
#[derive(Debug)]
struct Published {
    version: i64,
    etag: HeaderValue,
    body: Bytes,
}

/// What all connections share.
#[derive(Debug)]
struct Service {
    token: String,
    policy: watch::Receiver<Arc<Published>>,
    stopping: watch::Receiver<bool>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    unchanged: AtomicU64,
    unauthorized: AtomicU64,
    waiting: AtomicU64,
    failures: AtomicU64,
    /// Reads of the database that failed since the last that did not.
    failing: AtomicU64,
}

/// Serves the policy of `database` at `address` until SIGTERM or Ctrl-C. `listening` is told where, port 0 being any.
///
/// # Errors
/// Where the database or the address cannot be used.
pub fn run(
    path: &Path,
    mut database: Database,
    address: SocketAddr,
    token: String,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), Failure> {
    let first = publish(&mut database)?;
    let (publisher, policy) = watch::channel(Arc::new(first));
    let counts = Arc::new(Counts::default());
    let watcher = Watcher { path: path.to_owned(), database, publisher, counts: Arc::clone(&counts) };
    // It sleeps between looks, and ends with the process.
    thread::spawn(move || watcher.run());
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::during("no threads"))?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.map_err(Failure::during(format_args!("cannot listen on {address}")))?;
        listening(listener.local_addr().map_err(Failure::during(address))?);
        serve(listener, token, policy, counts).await
    })
}

fn publish(database: &mut Database) -> Result<Published, Failure> {
    let (version, document) = database.read(|connection| Ok((database::version(connection)?, document::render(connection)?)))?;
    if document.len() > MAX_DOCUMENT_LENGTH {
        let length = document.len();
        return Err(Failure::new(format!("the policy has {length} bytes, and gateways take at most {MAX_DOCUMENT_LENGTH}")));
    }
    let etag = format!("\"{}\"", sha256(&document));
    let etag = HeaderValue::from_str(&etag).map_err(Failure::during("the ETag"))?;
    Ok(Published { version, etag, body: document.into() })
}

/// What was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// The file's device and number.
    file: (u64, u64),
    /// Of the connection to it.
    data_version: i64,
}

struct Watcher {
    path: PathBuf,
    database: Database,
    publisher: watch::Sender<Arc<Published>>,
    counts: Arc<Counts>,
}

impl Watcher {
    #[expect(clippy::disallowed_methods, reason = "a thread of its own that has nothing else to do")]
    fn run(mut self) {
        let mut seen = None;
        loop {
            match self.look(seen) {
                Ok(now) => {
                    seen = Some(now);
                    self.counts.failing.store(0, Ordering::Relaxed);
                }
                Err(failure) => {
                    seen = None;
                    self.counts.failures.fetch_add(1, Ordering::Relaxed);
                    if self.counts.failing.fetch_add(1, Ordering::Relaxed) == 0 {
                        log(format_args!("{}: {failure}; the last policy is served on", self.path.display()));
                    }
                }
            }
            thread::sleep(LOOK);
        }
    }

    /// Publishes what changed since `seen`, and returns what was seen now.
    fn look(&mut self, seen: Option<Seen>) -> Result<Seen, Failure> {
        let file = std::fs::metadata(&self.path).map(|file| (file.dev(), file.ino()));
        let file = file.map_err(Failure::during("the database is gone"))?;
        if seen.is_none_or(|seen| seen.file != file) {
            // A copy may have been put into its place.
            self.database = Database::open(&self.path)?;
        }
        // Asked first: what is committed while the document is made is seen the next time.
        let now = Seen { file, data_version: self.database.data_version()? };
        if seen != Some(now) {
            let published = publish(&mut self.database)?;
            if published.etag != self.publisher.borrow().etag {
                log(format_args!("policy version {}, {} bytes", published.version, published.body.len()));
                self.publisher.send_replace(Arc::new(published));
            }
        }
        Ok(now)
    }
}

async fn serve(
    listener: TcpListener,
    token: String,
    policy: watch::Receiver<Arc<Published>>,
    counts: Arc<Counts>,
) -> Result<(), Failure> {
    let (stop, stopping) = watch::channel(false);
    let service = Arc::new(Service { token, policy, stopping, counts });
    let connections = GracefulShutdown::new();
    let signals = |kind| signal(kind).map_err(Failure::during("signals"));
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: others end meanwhile.
                    log(format_args!("a connection was not accepted: {error}"));
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let service = Arc::clone(&service);
        let answer = service_fn(move |request| {
            let service = Arc::clone(&service);
            async move { Ok::<_, Infallible>(service.answer(&request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), answer);
        let connection = connections.watch(connection);
        // A client that hangs up is its own business.
        tokio::spawn(async move { connection.await.ok() });
    }
    drop(listener);
    log("stopping");
    stop.send_replace(true);
    tokio::time::timeout(STOP_TIMEOUT, connections.shutdown()).await.ok();
    Ok(())
}

impl Service {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return with(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"), ALLOW, HeaderValue::from_static("GET"));
        }
        match request.uri().path() {
            "/v1/policy" => self.policy(request).await,
            "/healthz" if self.counts.failing.load(Ordering::Relaxed) == 0 => plain(StatusCode::OK, "ok\n"),
            "/healthz" => plain(StatusCode::SERVICE_UNAVAILABLE, "the database cannot be read\n"),
            "/metrics" => plain(StatusCode::OK, self.metrics()),
            _ => plain(StatusCode::NOT_FOUND, "there are /v1/policy, /healthz and /metrics\n"),
        }
    }

    async fn policy(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.is_authorized(request.headers()) {
            self.counts.unauthorized.fetch_add(1, Ordering::Relaxed);
            let refusal = plain(StatusCode::UNAUTHORIZED, "the bearer token of APEXMCP_SETTINGS_TOKEN is needed\n");
            return with(refusal, WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let wait = match wait(request.uri()) {
            Ok(wait) => wait,
            Err(wrong) => return plain(StatusCode::BAD_REQUEST, wrong),
        };
        let known: Vec<&[u8]> = request
            .headers()
            .get_all(IF_NONE_MATCH)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        let is_known = |published: &Published| known.iter().any(|etag| *etag == published.etag.as_bytes() || *etag == b"*");
        let (mut policy, mut stopping) = (self.policy.clone(), self.stopping.clone());
        let mut published = Arc::clone(&policy.borrow());
        if is_known(&published) && !wait.is_zero() {
            self.counts.waiting.fetch_add(1, Ordering::Relaxed);
            // Dropped also where the client hangs up.
            let _waiting = Waiting(&self.counts);
            tokio::select! {
                changed = policy.wait_for(|now| !is_known(now)) => if let Ok(now) = changed { published = Arc::clone(&now); },
                _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        let mut response = if is_known(&published) {
            self.counts.unchanged.fetch_add(1, Ordering::Relaxed);
            let mut unchanged = Response::new(Full::default());
            *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
            unchanged
        } else {
            self.counts.sent.fetch_add(1, Ordering::Relaxed);
            let whole = Response::new(Full::new(published.body.clone()));
            with(whole, CONTENT_TYPE, HeaderValue::from_static("application/json"))
        };
        response.headers_mut().insert(ETAG, published.etag.clone());
        // Private keys are in it: nobody between may keep it.
        with(response, CACHE_CONTROL, HeaderValue::from_static("no-store"))
    }

    /// RFC 6750 §2.1.
    fn is_authorized(&self, headers: &http::HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let Some((scheme, token)) = value.as_bytes().split_at_checked(7) else { return false };
        scheme.eq_ignore_ascii_case(b"bearer ") && token.ct_eq(self.token.as_bytes()).into()
    }

    fn metrics(&self) -> String {
        let published = self.policy.borrow().clone();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut text = String::new();
        for (name, kind, help, value) in [
            ("policy_version", "gauge", "Version of the policy that is served.", u64::try_from(published.version).unwrap_or(0)),
            ("policy_bytes", "gauge", "Length of its document.", u64::try_from(published.body.len()).unwrap_or(u64::MAX)),
            ("waiting_requests", "gauge", "Requests that wait for a change.", count(&self.counts.waiting)),
            ("database_failures_total", "counter", "Reads of the database that failed.", count(&self.counts.failures)),
            ("policy_sent_total", "counter", "Documents sent.", count(&self.counts.sent)),
            ("policy_not_modified_total", "counter", "Answers that nothing has changed.", count(&self.counts.unchanged)),
            ("unauthorized_total", "counter", "Requests without the right token.", count(&self.counts.unauthorized)),
        ] {
            let name = format!("apexmcp_settings_{name}");
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}

struct Waiting<'a>(&'a Counts);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long the client would wait for a change: `?wait=30s`.
fn wait(uri: &http::Uri) -> Result<Duration, &'static str> {
    match uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("wait=")) {
        None => Ok(Duration::ZERO),
        Some(text) => {
            humantime::parse_duration(text).map(|wait| wait.min(MAX_WAIT)).map_err(|_| "wait must be a duration such as 30s\n")
        }
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    with(response, CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))
}

fn with(mut response: Response<Full<Bytes>>, name: http::HeaderName, value: HeaderValue) -> Response<Full<Bytes>> {
    response.headers_mut().insert(name, value);
    response
}

/// To standard error, where services log.
#[expect(clippy::print_stderr, reason = "the log of a service")]
fn log(line: impl std::fmt::Display) {
    eprintln!("apexmcp serve: {line}");
}
