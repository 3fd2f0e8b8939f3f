//! The policy document over HTTP: a strong ETag, 304, and answers that wait for a change.

use std::convert::Infallible;
use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, http};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;

use crate::database::{self, Database};
use crate::document;
use crate::failure::{Failure, Reason};
use crate::secret::sha256;

/// How often the database is asked whether somebody changed it: a microsecond each time.
const LOOK: Duration = Duration::from_millis(50);

/// How long after a failure, which may have taken all that a look can cost.
const LOOK_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Longest wait for a change: whoever is between must not take the connection for dead.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer heads are refused: those of gateways stay below 1 KiB.
const MAX_HEAD_LENGTH: usize = 16 << 10;
/// How long a client may read nothing of what is sent: whoever never reads must not hold a connection for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections at a time; each gateway keeps one. Others wait until one ends, in the operating system's queue, at the
/// price of no memory here.
const MAX_CONNECTIONS: usize = 4096;
/// Descriptors for all else: the database, the listener, what the runtime has.
const OTHER_DESCRIPTORS: usize = 64;
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
    allow_descriptors();
    let first = publish(&mut database)?;
    let (publisher, policy) = watch::channel(Arc::new(first));
    let counts = Arc::new(Counts::default());
    let watcher = Watcher { path: path.to_owned(), database: Some(database), publisher, counts: Arc::clone(&counts) };
    // It sleeps between looks, and ends with the process.
    thread::spawn(move || watcher.run());
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::during(Reason::SystemFailed, "threads cannot be started"))?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address)
            .await
            .map_err(Failure::during(Reason::ListenFailed, format_args!("cannot listen on {address}")))?;
        listening(listener.local_addr().map_err(Failure::during(Reason::ListenFailed, address))?);
        let (stop, stopping) = watch::channel(false);
        let service = Service { token, policy, stopping, counts };
        serve(listener, service, stop).await
    })
}

/// A descriptor for each connection, as far as the operator's limit goes. The usual soft limit, 1,024, is for programs that
/// use `select`.
fn allow_descriptors() {
    let wanted = (MAX_CONNECTIONS + OTHER_DESCRIPTORS) as rlim_t;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if hard < wanted {
        log(format_args!("a hard limit of {hard} open files is too low for {MAX_CONNECTIONS} connections: set it to {wanted}"));
    }
    if soft < wanted
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)
    {
        log(format_args!("the limit of {soft} open files could not be raised: {error}"));
    }
}

fn publish(database: &mut Database) -> Result<Published, Failure> {
    let (version, document) = database.read(|connection| Ok((document::version(connection)?, document::render(connection)?)))?;
    let etag = format!("\"{}\"", sha256(&document));
    let etag = HeaderValue::from_str(&etag).map_err(Failure::during(Reason::SystemFailed, "the ETag"))?;
    Ok(Published { version, etag, body: document.into() })
}

/// A file's device and number; none where it is not there.
type Identity = Option<(u64, u64)>;

/// What was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    file: Identity,
    /// Of `-wal` and `-shm`, which stay as long as the connection knows of them.
    beside: [Identity; 2],
    /// Of the connection to them.
    data_version: i64,
}

fn identity(path: &Path) -> Identity {
    fs::metadata(path).map(|file| (file.dev(), file.ino())).ok()
}

struct Watcher {
    path: PathBuf,
    /// None while it cannot be opened.
    database: Option<Database>,
    publisher: watch::Sender<Arc<Published>>,
    counts: Arc<Counts>,
}

impl Watcher {
    #[expect(clippy::disallowed_methods, reason = "a thread of its own that has nothing else to do")]
    fn run(mut self) {
        let mut seen = None;
        loop {
            let pause = match self.look(seen) {
                Ok(now) => {
                    seen = Some(now);
                    self.counts.failing.store(0, Ordering::Relaxed);
                    LOOK
                }
                Err(failure) => {
                    seen = None;
                    self.counts.failures.fetch_add(1, Ordering::Relaxed);
                    if self.counts.failing.fetch_add(1, Ordering::Relaxed) == 0 {
                        log(format_args!("{}: {failure}; the last policy is served on", self.path.display()));
                    }
                    LOOK_AFTER_FAILURE
                }
            };
            thread::sleep(pause);
        }
    }

    /// Publishes what changed since `seen`, and returns what was seen now.
    fn look(&mut self, seen: Option<Seen>) -> Result<Seen, Failure> {
        let file = identity(&self.path);
        // A copy may have been put into its place, or what is beside it deleted and made anew: who stays connected to what
        // was there sees no change any more. The old connection ends before the new one begins.
        let is_same = seen.is_some_and(|seen| (seen.file, seen.beside) == (file, self.beside()));
        let mut database = match self.database.take() {
            Some(database) if is_same => database,
            left => {
                if let Some(left) = left {
                    left.leave();
                }
                Database::open(&self.path)?
            }
        };
        // Asked first: what is committed while the document is made is seen the next time.
        let now = Seen { file, beside: self.beside(), data_version: database.data_version()? };
        if seen != Some(now) {
            let published = publish(&mut database)?;
            if published.etag != self.publisher.borrow().etag {
                let (version, length) = (published.version, published.body.len());
                self.publisher.send_replace(Arc::new(published));
                log(format_args!("policy version {version}, {length} bytes"));
            }
        }
        if let Some(exposure) = database::exposure(&self.path).filter(|_| !is_same) {
            log(exposure);
        }
        self.database = Some(database);
        Ok(now)
    }

    fn beside(&self) -> [Identity; 2] {
        ["-wal", "-shm"].map(|ending| {
            let mut path = self.path.clone().into_os_string();
            path.push(ending);
            identity(Path::new(&path))
        })
    }
}

async fn serve(listener: TcpListener, service: Service, stop: watch::Sender<bool>) -> Result<(), Failure> {
    let service = Arc::new(service);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = GracefulShutdown::new();
    let signals = |kind| signal(kind).map_err(Failure::during(Reason::SystemFailed, "signals cannot be handled"));
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let accept = async || {
        let place = Arc::clone(&places).acquire_owned().await;
        listener.accept().await.map(|(stream, _)| (stream, place))
    };
    let mut refuses = false;
    loop {
        let (stream, place) = tokio::select! {
            accepted = accept() => match accepted {
                Ok(accepted) => {
                    refuses = false;
                    accepted
                }
                Err(error) => {
                    // Out of descriptors, mostly: others end meanwhile.
                    if !std::mem::replace(&mut refuses, true) {
                        log(format_args!("connections are not accepted: {error}"));
                    }
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let connection = connections.watch(connection(stream, Arc::clone(&service)));
        tokio::spawn(async move {
            // A client that hangs up is its own business.
            connection.await.ok();
            drop(place);
        });
    }
    drop(listener);
    log("stopping");
    stop.send_replace(true);
    tokio::time::timeout(STOP_TIMEOUT, connections.shutdown()).await.ok();
    Ok(())
}

/// One connection, bounded in all that a client can do to it.
fn connection<S>(stream: S, service: Arc<Service>) -> impl GracefulConnection<Error = hyper::Error>
where
    S: AsyncRead + AsyncWrite + 'static,
{
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(&request).await) }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_LENGTH)
        .serve_connection(TokioIo::new(Box::pin(stream)), answer)
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
        // RFC 9110 §13.1.2: the comparison is weak, for a cache between that marks what it changed.
        let is_this = |etag: &[u8], published: &Published| etag.strip_prefix(b"W/").unwrap_or(etag) == published.etag.as_bytes();
        let is_known = |published: &Published| known.iter().any(|etag| is_this(etag, published) || *etag == b"*");
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

/// To standard error, where services log. Whoever cannot write there serves on.
fn log(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "apexmcp serve: {line}");
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    const TOKEN: &str = "a-token-of-gateways";

    /// A service with a policy of this length, and those who could change and stop it.
    fn service(length: usize) -> (Service, watch::Sender<Arc<Published>>, watch::Sender<bool>) {
        let published = Published { version: 1, etag: HeaderValue::from_static("\"1\""), body: vec![b' '; length].into() };
        let (publisher, policy) = watch::channel(Arc::new(published));
        let (stop, stopping) = watch::channel(false);
        (Service { token: TOKEN.to_owned(), policy, stopping, counts: Arc::default() }, publisher, stop)
    }

    fn request(path: &str, padding: usize) -> String {
        let padding = "x".repeat(padding);
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nx-padding: {padding}\r\n\r\n")
    }

    /// A connection that is served, and when it ended.
    fn served(length: usize) -> (DuplexStream, tokio::task::JoinHandle<Duration>) {
        let (client, server) = duplex(4096);
        let began = Instant::now();
        let connection = connection(server, Arc::new(service(length).0));
        let ended = async move {
            connection.await.ok();
            began.elapsed()
        };
        (client, tokio::spawn(ended))
    }

    #[test]
    fn waits_are_cut() {
        for (query, wait_for) in [("", 0), ("?wait=300s", 300), ("?wait=301s", 300), ("?wait=299s", 299)] {
            assert_eq!(wait(&format!("/v1/policy{query}").parse().unwrap()), Ok(Duration::from_secs(wait_for)), "{query}");
        }
    }

    // The clock stands still, and goes on where all wait for it.
    #[tokio::test(start_paused = true)]
    async fn who_never_reads_or_never_sends_a_head_is_hung_up_on() {
        let (mut client, ended) = served(1 << 20);
        client.write_all(request("/v1/policy", 0).as_bytes()).await.unwrap();
        assert_eq!(ended.await.unwrap(), Duration::from_secs(30));
        drop(client);
        let (mut client, ended) = served(1);
        client.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        assert_eq!(ended.await.unwrap(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_gets_all() {
        let (mut client, ended) = served(1 << 16);
        client.write_all(request("/v1/policy", 0).as_bytes()).await.unwrap();
        let mut read = 0;
        while read < 1 << 16 {
            tokio::time::sleep(Duration::from_secs(29)).await;
            read += client.read(&mut [0; 4096]).await.unwrap();
        }
        drop(client);
        // Ten times as long as it may read nothing.
        assert!(ended.await.unwrap() > Duration::from_secs(300));
    }

    #[tokio::test(start_paused = true)]
    async fn longer_heads_are_refused() {
        let around = request("/healthz", 0).len();
        for (length, status) in [(16_384, "200"), (16_385, "431")] {
            let (mut client, _ended) = served(1);
            let head = request("/healthz", length - around);
            assert_eq!(head.len(), length);
            // The last byte may come too late to be taken.
            client.write_all(head.as_bytes()).await.ok();
            let mut line = [0; 12];
            client.read_exact(&mut line).await.unwrap();
            assert_eq!(std::str::from_utf8(&line).unwrap(), format!("HTTP/1.1 {status}"), "{length}");
        }
    }
}
