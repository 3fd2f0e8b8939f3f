//! Envoy as the core's [`Host`] and the shell's [`Envoy`](apexmcp_shell::Envoy), for one thread.

use std::cell::{Cell, RefCell};
use std::time::SystemTime;

use apexmcp_core::access_token::AccessTokenClaims;
use apexmcp_core::denial::LocalReply;
use apexmcp_core::exchange::Question;
use apexmcp_core::host::{Host, Shared, Update};
use apexmcp_core::jose::compact::CompactJws;
use apexmcp_core::jose::jwk::RsaPublicKey;
use apexmcp_core::policy::service::SdsSecret;
use apexmcp_core::request::{RequestHead, RequestTrailers};
use apexmcp_core::route::{RouteInvalid, RouteSettings};
use apexmcp_core::serialized_map::SerializedMap;
use apexmcp_core::signing_key::SigningKey;
use apexmcp_core::time::UnixTime;
use apexmcp_shell::{Call, Metric};
use rustc_hash::FxHashMap;

use crate::abi::{Body, Filter, FilterConfig, Map, SecretId};
use crate::counters::ThreadCounters;
use crate::crypto::Keys;
use crate::grpc::Questions;
use crate::shared;

/// The namespace of this filter in a route's `filter_metadata`.
const METADATA_NAMESPACE: &str = "apexmcp";

/// What is known of the time. A callback of a stream reads the clock once.
#[derive(Clone, Copy, Default)]
enum Clock {
    /// No callback of a stream runs.
    #[default]
    Outside,
    Unread,
    Read(UnixTime),
}

/// Envoy, as one thread sees it.
pub(crate) struct Envoy {
    /// The configuration, in the main thread. Workers begin no calls.
    config: Option<FilterConfig>,
    /// The secret that Envoy holds for the configuration.
    secret: Cell<Option<SecretId>>,
    keys: Keys,
    counters: ThreadCounters,
    /// The streams of this thread that Envoy has not destroyed.
    streams: RefCell<FxHashMap<u32, Filter>>,
    current: Cell<Option<(u32, Filter)>>,
    clock: Cell<Clock>,
    pub(crate) questions: RefCell<Questions>,
}

impl Envoy {
    pub(crate) fn new(config: Option<FilterConfig>, counters: ThreadCounters) -> Self {
        Self {
            config,
            secret: Cell::default(),
            keys: Keys::default(),
            counters,
            streams: RefCell::default(),
            current: Cell::default(),
            clock: Cell::default(),
            questions: RefCell::default(),
        }
    }

    /// A stream begins.
    pub(crate) fn add(&self, stream: u32, filter: Filter) {
        self.streams.borrow_mut().insert(stream, filter);
    }

    /// Envoy destroys a stream. Afterwards it is no longer used.
    pub(crate) fn remove(&self, stream: u32) {
        self.streams.borrow_mut().remove(&stream);
        if self.current.get().is_some_and(|(current, _)| current == stream) {
            self.current.set(None);
        }
    }

    /// Runs `callback` with this stream as the current one. Callbacks may be nested.
    pub(crate) fn within<T>(&self, stream: u32, filter: Filter, callback: impl FnOnce() -> T) -> T {
        let (before, clock) = (self.current.replace(Some((stream, filter))), self.clock.replace(Clock::Unread));
        let result = callback();
        // The outer stream may have ended within this callback.
        self.current.set(before.filter(|(outer, _)| self.streams.borrow().contains_key(outer)));
        self.clock.set(clock);
        result
    }

    /// The filter of a stream that Envoy has not destroyed.
    pub(crate) fn filter_of(&self, stream: u32) -> Option<Filter> {
        self.streams.borrow().get(&stream).copied()
    }

    /// The current stream's filter. `None` if the stream has ended.
    pub(crate) fn filter(&self) -> Option<Filter> {
        self.current.get().map(|(_, filter)| filter)
    }

    /// The number of bytes of the request body that are there.
    pub(crate) fn request_body_size(&self) -> usize {
        let Some(filter) = self.filter() else { return 0 };
        let received = filter.body_size(Body::ReceivedRequest);
        if received > 0 && filter.received_is_buffered() {
            received
        } else {
            received.saturating_add(filter.body_size(Body::BufferedRequest))
        }
    }

    fn map(&self, map: Map) -> Option<SerializedMap> {
        self.filter()?.headers(map, |headers| SerializedMap::from_members(headers))
    }
}

impl Host for Envoy {
    fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool {
        self.keys.verify(key, jws)
    }

    fn sign(&self, key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Option<String> {
        self.keys.sign(key, claims)
    }

    fn random(&self) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).ok()?;
        Some(bytes)
    }

    fn shared(&self, name: &str) -> Option<Shared> {
        shared::get(name)
    }

    fn update(&self, name: &str, change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Update {
        shared::update(name, change)
    }
}

impl apexmcp_shell::Envoy for Envoy {
    const SEES_OWN_REPLIES: bool = false;
    const HOLDS_BODIES: Option<bool> = Some(false);

    fn follow_secret(&self, secret: &SdsSecret) -> Result<(), &'static str> {
        // Only the main thread asks for the policy.
        if let Some(config) = self.config {
            self.secret.set(Some(config.follow_secret(&secret.name, &secret.sds_config)?));
        }
        Ok(())
    }

    fn secret(&self) -> Option<Vec<u8>> {
        self.config?.secret(self.secret.get()?)
    }

    #[allow(clippy::disallowed_methods)] // This is the border: the core gets the time as an argument.
    fn now(&self) -> UnixTime {
        if let Clock::Read(now) = self.clock.get() {
            return now;
        }
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = UnixTime::default().plus(since_epoch.unwrap_or_default());
        if matches!(self.clock.get(), Clock::Unread) {
            self.clock.set(Clock::Read(now));
        }
        now
    }

    fn enter(&self, stream: u32) -> bool {
        let filter = self.filter_of(stream);
        self.current.set(filter.map(|filter| (stream, filter)));
        filter.is_some()
    }

    fn request_head(&self) -> Option<RequestHead> {
        RequestHead::new(self.map(Map::RequestHeaders)?)
    }

    fn remove_request_header(&self, name: &str) -> bool {
        self.filter().is_some_and(|filter| filter.remove_header(Map::RequestHeaders, name))
    }

    fn add_request_header(&self, name: &str, value: &str) -> bool {
        self.filter().is_some_and(|filter| filter.add_header(Map::RequestHeaders, name, value))
    }

    fn request_body(&self, max: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(filter) = self.filter() {
            let has_received = filter.body_size(Body::ReceivedRequest) > 0;
            if !(has_received && filter.received_is_buffered()) {
                filter.read_body(Body::BufferedRequest, max, &mut bytes);
            }
            if has_received {
                filter.read_body(Body::ReceivedRequest, max, &mut bytes);
            }
        }
        bytes
    }

    fn request_trailers(&self) -> Option<RequestTrailers> {
        RequestTrailers::new(self.map(Map::RequestTrailers)?)
    }

    fn remove_request_trailer(&self, name: &str) -> bool {
        self.filter().is_some_and(|filter| filter.remove_header(Map::RequestTrailers, name))
    }

    fn route_settings(&self) -> Result<RouteSettings, RouteInvalid> {
        let members = self.filter().and_then(|filter| filter.route_metadata(METADATA_NAMESPACE)).ok_or(RouteInvalid)?;
        RouteSettings::from_members(members.iter().map(|(name, value)| (name.as_slice(), value.as_slice())))
    }

    fn resume_request(&self) {
        if let Some(filter) = self.filter() {
            filter.continue_decoding();
        }
    }

    fn send_local_reply(&self, reply: &LocalReply) {
        let Some(filter) = self.filter() else { return };
        let headers = reply.headers.iter().map(|(name, value)| (*name, value.as_str()));
        // Envoy would tell a gRPC client of success: it takes the status of gRPC from this module alone.
        let content_type = filter.header(Map::RequestHeaders, "content-type");
        let is_grpc = content_type == b"application/grpc" || content_type.starts_with(b"application/grpc+");
        let grpc_status = is_grpc.then(|| ("grpc-status", grpc_status(reply.status)));
        filter.send_response(reply.status, headers.chain(grpc_status), reply.body.as_bytes(), "");
    }

    fn response_headers(&self) -> Option<SerializedMap> {
        self.map(Map::ResponseHeaders)
    }

    fn response_header(&self, name: &str) -> Vec<u8> {
        self.filter().map(|filter| filter.header(Map::ResponseHeaders, name)).unwrap_or_default()
    }

    fn add_response_header(&self, name: &str, value: &str) {
        self.filter().map(|filter| filter.add_header(Map::ResponseHeaders, name, value));
    }

    fn set_response_header(&self, name: &str, value: &str) {
        self.filter().map(|filter| filter.set_header(Map::ResponseHeaders, name, value));
    }

    fn remove_response_header(&self, name: &str) {
        self.filter().map(|filter| filter.remove_header(Map::ResponseHeaders, name));
    }

    fn response_chunk(&self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(filter) = self.filter() {
            filter.read_body(Body::ReceivedResponse, size, &mut bytes);
        }
        bytes
    }

    fn replace_response_chunk(&self, size: usize, passed: &[u8]) -> bool {
        self.filter().is_some_and(|filter| filter.replace_body(Body::ReceivedResponse, size, passed))
    }

    fn set_filter_state(&self, name: &str, value: &str) {
        if let Some(filter) = self.filter() {
            filter.set_filter_state(name, value);
        }
    }

    fn ask(&self, question: &Question, stream: u32) -> Option<u32> {
        self.questions.borrow_mut().ask(question, stream, self.filter()?)
    }

    fn call(&self, call: Call<'_>) -> Result<u32, String> {
        let config = self.config.ok_or("a worker begins no calls")?;
        let timeout = u64::try_from(call.timeout.as_millis()).unwrap_or(u64::MAX);
        let number = config.call(call.cluster, &call.headers, call.body, timeout)?;
        // Envoy counts the calls of a configuration from one.
        u32::try_from(number).map_err(|_| "too many calls".to_owned())
    }

    fn count(&self, metric: Metric) {
        self.counters.count(metric);
    }

    fn record(&self, metric: Metric, value: u64) {
        self.counters.record(metric, value);
    }
}

/// The gRPC status for an HTTP status, as gRPC's "HTTP to gRPC Status Code Mapping" has it.
fn grpc_status(status: u32) -> &'static str {
    match status {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502..=504 => "14",
        _ => "2",
    }
}
