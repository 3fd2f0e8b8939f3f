//! `apexmcp serve`: the policy over HTTP, in parts or as one document, with a strong ETag, 304, and answers that wait for a
//! change.
//!
//! axum routes the requests. The connections are those of hyper, because `axum::serve` cannot limit the time and the length of
//! a request's head.

mod catalog;
mod counts;
mod gateways;
mod log;
mod published;
mod routes;
mod usage;
mod watcher;

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;

use self::usage::Collector;
use crate::access::Actor;
use crate::api::{self, Api};
use crate::clock::Moment;
use crate::console::{self, Console};
use crate::database::pool::Pool;
use crate::database::{Database, Location};
use crate::failure::{Failure, Reason};
use crate::oidc::Oidc;
use crate::throttle::{Peer, Throttle};
use crate::usage::Usage;
use counts::Counts;
pub(crate) use gateways::{Gateway, Gateways};
pub(crate) use log::log;
use published::Published;
use routes::Service;
use watcher::Watcher;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a request's head. Those of gateways stay below 1 KiB.
const MAX_HEAD_LENGTH: usize = 16 << 10;
/// How long a client may read nothing of an answer. A client that never reads must not hold a connection forever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of connections. Each gateway keeps one. Further connections wait in the queue of the operating system,
/// where they need no memory of this process.
const MAX_CONNECTIONS: usize = 4096;
/// Maximum number of connections of the management API.
const MAX_API_CONNECTIONS: usize = 512;
/// File descriptors for the database, the listener and the runtime.
const OTHER_DESCRIPTORS: usize = 64;
/// Pause after a connection could not be accepted, mostly because no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a stop waits for answers that are being sent.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the server listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// For gateways.
    pub listen: SocketAddr,
    /// For the management API.
    pub console: Option<SocketAddr>,
}

/// The gateways, and the policy that they should have.
#[derive(Clone, Debug)]
pub(crate) struct Connected {
    gateways: Arc<Gateways>,
    policy: watch::Receiver<Arc<Published>>,
}

impl Connected {
    /// The version of the policy that is served.
    pub(crate) fn version(&self) -> i64 {
        self.policy.borrow().state.version
    }

    /// The gateways that ask this server for the policy, those without the present one first.
    ///
    /// # Errors
    /// If the actor is no operator.
    pub(crate) fn list(&self, actor: &Actor) -> Result<Vec<Gateway>, Failure> {
        actor.check_operator()?;
        let present = self.policy.borrow().state.to_string();
        Ok(self.gateways.list(&present, actor.now))
    }
}

/// How the server runs.
#[derive(Debug)]
pub struct Options {
    pub addresses: Addresses,
    /// The token of gateways.
    pub token: String,
    /// The token with which gateways report usage. `None`: usage is not collected.
    pub usage_token: Option<String>,
    /// The gateway's public origin, for the examples of the console.
    pub origin: String,
    pub sign_in: SignIn,
}

/// How people reach the console and sign in.
#[derive(Debug)]
pub struct SignIn {
    /// The URL of the console. `None`: the one of each request.
    pub console_url: Option<String>,
    /// Sign-in with the operator's provider.
    pub oidc: Option<Oidc>,
}

/// Serves the policy of `database` and the management API until SIGTERM or Ctrl-C. Calls `listening` with the addresses, in which
/// port 0 is replaced by the chosen port.
///
/// # Errors
/// If the database cannot be read, or an address cannot be used.
pub fn run(
    location: &Location,
    mut database: Database,
    Options { addresses, token, usage_token, origin, sign_in }: Options,
    listening: impl FnOnce(Addresses),
) -> Result<(), Failure> {
    allow_descriptors();
    let (first, catalog) = Published::read(&mut database)?;
    let catalog = Arc::new(RwLock::new(catalog));
    let first_id = first.database_id.clone();
    let (publisher, policy) = watch::channel(Arc::new(first));
    let counts = Arc::new(Counts::default());
    // These must be dropped after the runtime.
    let [pool, pool_of_reports] = [(); 2].map(|()| Pool::new(location, &first_id));
    let usage = Arc::new(match usage_token {
        Some(_) => Usage::collector(location, Moment::now()),
        None => Usage::reader(location),
    });
    let watcher = Watcher {
        location: location.clone(),
        database: Some(database),
        publisher,
        catalog: Arc::clone(&catalog),
        counts: Arc::clone(&counts),
    };
    // The thread runs until the process ends.
    thread::spawn(move || watcher.run());
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::during(Reason::SystemFailed, "threads cannot be started"))?;
    runtime.block_on(async {
        let (listener, listen) = bind(addresses.listen).await?;
        let console = match addresses.console {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        listening(Addresses { listen, console: console.as_ref().map(|(_, address)| *address) });
        let (stop, stopping) = watch::channel(false);
        let gateways = Arc::new(Gateways::default());
        let connected = Connected { gateways: Arc::clone(&gateways), policy: policy.clone() };
        let collector =
            usage_token.map(|token| Arc::new(Collector::new(token, Arc::clone(&usage), Arc::clone(&pool_of_reports))));
        if let Some(collector) = &collector {
            tokio::spawn(Arc::clone(collector).expire());
        }
        let service = Service { token, policy, catalog, stopping: stopping.clone(), counts, gateways, collector };
        let gateways = serve(listener, routes::router(Arc::new(service)), MAX_CONNECTIONS, stopping.clone());
        let api = async {
            if let Some((listener, _)) = console {
                let throttle = Arc::new(Throttle::default());
                let api =
                    Api::new(Arc::clone(&pool), Arc::clone(&usage), Arc::clone(&throttle), connected.clone(), origin.clone());
                let console = Console::new(Arc::clone(&pool), Arc::clone(&usage), throttle, connected, origin, sign_in);
                let router = console::router(console).merge(api::router(api));
                serve(listener, router, MAX_API_CONNECTIONS, stopping).await;
            }
        };
        tokio::join!(gateways, api, signaled(stop)).2
    })
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let failed = || Failure::during(Reason::ListenFailed, format!("cannot listen on {address}"));
    let listener = TcpListener::bind(address).await.map_err(failed())?;
    let address = listener.local_addr().map_err(failed())?;
    Ok((listener, address))
}

/// Waits for a signal, then stops the server.
async fn signaled(stop: watch::Sender<bool>) -> Result<(), Failure> {
    let signals = |kind| signal(kind).map_err(Failure::during(Reason::SystemFailed, "signals cannot be handled"));
    let waited = async {
        let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        log("stopping");
        Ok(())
    };
    let waited = waited.await;
    stop.send_replace(true);
    waited
}

/// Raises the soft limit of open files, so that each connection can have one. The usual soft limit of 1,024 is for programs
/// that use `select`.
fn allow_descriptors() {
    let wanted = (MAX_CONNECTIONS + MAX_API_CONNECTIONS + OTHER_DESCRIPTORS) as rlim_t;
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

/// Serves at most `max` connections at the same time, until the server stops.
async fn serve(listener: TcpListener, router: Router, max: usize, mut stopping: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(max));
    let connections = GracefulShutdown::new();
    let accept = async || {
        let place = Arc::clone(&places).acquire_owned().await;
        listener.accept().await.map(|(stream, address)| (stream, Peer(address.ip()), place))
    };
    let mut is_failing = false;
    loop {
        let (stream, peer, place) = tokio::select! {
            accepted = accept() => match accepted {
                Ok(accepted) => {
                    is_failing = false;
                    accepted
                }
                Err(error) => {
                    // One line for a row of failures.
                    if !std::mem::replace(&mut is_failing, true) {
                        log(format_args!("connections cannot be accepted: {error}"));
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            _ = stopping.wait_for(|is_stopping| *is_stopping) => break,
        };
        let connection = connections.watch(connection(stream, peer, router.clone()));
        tokio::spawn(async move {
            // An error only says that the client disconnected or exceeded a limit.
            connection.await.ok();
            drop(place);
        });
    }
    drop(listener);
    tokio::time::timeout(STOP_TIMEOUT, connections.shutdown()).await.ok();
}

/// One connection, with limits for everything that a client can do to it.
fn connection<S>(stream: S, peer: Peer, router: Router) -> impl GracefulConnection<Error = hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let answer = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let answer = router.call(request);
        async move { answer.await.map(without_length_of_nothing) }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_LENGTH)
        .serve_connection(TokioIo::new(Box::pin(stream)), answer)
}

/// axum writes `content-length: 0` into a 304. RFC 9110 §8.6 allows only the length of the document that is not sent.
fn without_length_of_nothing(mut response: Response) -> Response {
    if response.status() == StatusCode::NOT_MODIFIED {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::serve::published::Published;

    const TOKEN: &str = "a-token-of-gateways";

    /// A router with a policy of this length, and the senders that could change and stop it.
    fn router(length: usize) -> (Router, watch::Sender<Arc<Published>>, watch::Sender<bool>) {
        let published = Published::with_document("\"1\"", vec![b' '; length].into());
        let (publisher, policy) = watch::channel(Arc::new(published));
        let (stop, stopping) = watch::channel(false);
        let service = Service {
            token: TOKEN.to_owned(),
            policy,
            catalog: Arc::default(),
            stopping,
            counts: Arc::default(),
            gateways: Arc::default(),
            collector: None,
        };
        (routes::router(Arc::new(service)), publisher, stop)
    }

    fn request(path: &str, padding: usize) -> String {
        let padding = "x".repeat(padding);
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nx-padding: {padding}\r\n\r\n")
    }

    /// The client side of a connection that is served, and how long it lasts.
    fn served(length: usize) -> (DuplexStream, tokio::task::JoinHandle<Duration>) {
        let (client, server) = duplex(4096);
        let began = Instant::now();
        let connection = connection(server, Peer([127, 0, 0, 1].into()), router(length).0);
        let ended = async move {
            connection.await.ok();
            began.elapsed()
        };
        (client, tokio::spawn(ended))
    }

    // The clock is paused. It jumps to the next timer whenever all tasks wait.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_reads_or_never_completes_its_head_is_disconnected() {
        let (mut client, ended) = served(1 << 20);
        client.write_all(request("/v1/policy", 0).as_bytes()).await.unwrap();
        assert_eq!(ended.await.unwrap(), Duration::from_secs(30));
        drop(client);
        let (mut client, ended) = served(1);
        client.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        assert_eq!(ended.await.unwrap(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_the_whole_document() {
        let (mut client, ended) = served(1 << 16);
        client.write_all(request("/v1/policy", 0).as_bytes()).await.unwrap();
        let mut read = 0;
        while read < 1 << 16 {
            tokio::time::sleep(Duration::from_secs(29)).await;
            read += client.read(&mut [0; 4096]).await.unwrap();
        }
        drop(client);
        // Ten times the write timeout, which applies to each write alone.
        assert!(ended.await.unwrap() > Duration::from_secs(300));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_over_16_kib_is_refused() {
        let around = request("/healthz", 0).len();
        for (length, status) in [(16_384, "200"), (16_385, "431")] {
            let (mut client, _ended) = served(1);
            let head = request("/healthz", length - around);
            assert_eq!(head.len(), length);
            // The server may close the connection before the last byte.
            client.write_all(head.as_bytes()).await.ok();
            let mut line = [0; 12];
            client.read_exact(&mut line).await.unwrap();
            assert_eq!(std::str::from_utf8(&line).unwrap(), format!("HTTP/1.1 {status}"), "{length}");
        }
    }

    /// RFC 9110 §8.6: the Content-Length of a 304 could only be that of the whole document.
    #[tokio::test(start_paused = true)]
    async fn a_304_has_no_content_length() {
        let (mut client, _ended) = served(1);
        let request = request("/v1/policy", 0).replace("x-padding: ", "if-none-match: \"1\"\r\nconnection: close\r\nx-padding: ");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 304 ") && answer.contains("etag: \"1\"\r\n"), "{answer}");
        assert!(!answer.contains("content-length") && !answer.contains("content-type"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_get_is_allowed() {
        for (method, path) in [("HEAD", "/healthz"), ("POST", "/v1/policy"), ("OPTIONS", "/nothing"), ("PUT", "/v1/usage/x")] {
            let (mut client, _ended) = served(1);
            let request = request(path, 0).replacen("GET", method, 1).replace("x-padding: ", "connection: close\r\nx-padding: ");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET\r\n"), "{answer}");
            assert_eq!(answer.ends_with("only GET\n"), method != "HEAD", "{answer}");
        }
    }
}
