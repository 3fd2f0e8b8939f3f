//! The only file with hostcalls, but for [`direct`]: Envoy's as this crate uses them, without a way to panic on what they answer.

use std::time::Duration;

use prost::Message;
use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType, MetricType, Status};

use crate::direct;
use apexmcp_core::config::{RemoteSettings, Secret};
use apexmcp_core::denial::LocalReply;
use apexmcp_core::jwks::{self, JwksUri};
use apexmcp_core::request::{RequestHead, RequestTrailers};
use apexmcp_core::serialized_map::SerializedMap;
use apexmcp_core::time::UnixTime;

/// Envoy's clock; the epoch where it has none, at which every token is yet to become valid.
pub(crate) fn now() -> UnixTime {
    let since_epoch = hostcalls::get_current_time().ok().and_then(|now| now.duration_since(std::time::UNIX_EPOCH).ok());
    UnixTime::default().plus(since_epoch.unwrap_or_default())
}

/// The plugin's configuration.
pub(crate) fn plugin_configuration() -> Vec<u8> {
    hostcalls::get_buffer(BufferType::PluginConfiguration, 0, usize::MAX).ok().flatten().unwrap_or_default()
}

/// Has the root context's tick called in this interval.
pub(crate) fn tick_every(period: Duration) -> bool {
    hostcalls::set_tick_period(period).is_ok()
}

/// The head of the current stream's request.
pub(crate) fn request_head() -> Option<RequestHead> {
    RequestHead::new(SerializedMap::parse(direct::request_headers())?)
}

/// Removes each occurrence of a request header.
pub(crate) fn remove_request_header(name: &str) -> bool {
    hostcalls::remove_map_value(MapType::HttpRequestHeaders, name).is_ok()
}

/// The trailers of the current stream's request, within their callback.
pub(crate) fn request_trailers() -> Option<RequestTrailers> {
    RequestTrailers::new(SerializedMap::parse(direct::request_trailers())?)
}

/// Removes each occurrence of a request trailer, within their callback.
pub(crate) fn remove_request_trailer(name: &str) -> bool {
    hostcalls::remove_map_value(MapType::HttpRequestTrailers, name).is_ok()
}

/// Adds a request header.
pub(crate) fn add_request_header(name: &str, value: &str) -> bool {
    hostcalls::add_map_value(MapType::HttpRequestHeaders, name, value).is_ok()
}

/// Sets the filter state `wasm.<name>` of the current stream.
pub(crate) fn set_filter_state(name: &str, value: &str) {
    let _ = direct::set_property(name, value);
}

/// The metadata of the current stream's route below `namespace`, as Envoy serializes a map of strings; an error where it
/// cannot: a null is in it, such as YAML's empty value.
pub(crate) fn route_metadata(namespace: &str) -> Result<Option<Vec<u8>>, Status> {
    hostcalls::get_property(vec!["xds", "route_metadata", "filter_metadata", namespace])
}

/// The first `size` bytes of the current stream's request body, as far as it has come.
pub(crate) fn request_body(size: usize) -> Vec<u8> {
    hostcalls::get_buffer(BufferType::HttpRequestBody, 0, size).ok().flatten().unwrap_or_default()
}

/// The current stream's first response header of this name; empty where there is none.
pub(crate) fn response_header(name: &str) -> Vec<u8> {
    hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, name).ok().flatten().unwrap_or_default()
}

/// All headers of the current stream's response.
pub(crate) fn response_headers() -> Option<SerializedMap> {
    SerializedMap::parse(direct::response_headers())
}

/// Adds a response header.
pub(crate) fn add_response_header(name: &str, value: &str) {
    let _ = hostcalls::add_map_value(MapType::HttpResponseHeaders, name, value);
}

/// Sets a response header in the place of those of its name.
pub(crate) fn set_response_header(name: &str, value: &str) {
    let _ = hostcalls::set_map_value(MapType::HttpResponseHeaders, name, Some(value));
}

/// Removes each occurrence of a response header.
pub(crate) fn remove_response_header(name: &str) {
    let _ = hostcalls::remove_map_value(MapType::HttpResponseHeaders, name);
}

/// The chunk of the current stream's response body that came.
pub(crate) fn response_chunk(size: usize) -> Vec<u8> {
    hostcalls::get_buffer(BufferType::HttpResponseBody, 0, size).ok().flatten().unwrap_or_default()
}

/// Lets `passed` go on in the place of the chunk that came; false where the host did not put it there.
pub(crate) fn replace_response_chunk(size: usize, passed: &[u8]) -> bool {
    hostcalls::set_buffer(BufferType::HttpResponseBody, 0, size, passed).is_ok()
}

/// Answers the current stream's request.
pub(crate) fn send_local_reply(reply: &LocalReply) -> bool {
    let headers = reply.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    hostcalls::send_http_response(reply.status, headers, Some(reply.body.as_bytes())).is_ok()
}

/// Lets the current stream's paused request go on.
pub(crate) fn resume_request() {
    let _ = hostcalls::resume_http_request();
}

/// Makes the stream of this id the current one. It may be gone.
pub(crate) fn enter(context_id: u32) -> bool {
    hostcalls::set_effective_context(context_id).is_ok()
}

/// How often a shared value that others write at the same moment is written anew. Each time, another one got on.
pub(crate) const CAS_ATTEMPTS: usize = 64;

/// The number under which a value in shared data was read. To write under it succeeds only where nobody wrote since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cas(u32);

/// A value shared by all threads of this Envoy.
pub(crate) fn shared_data(key: &str) -> (Option<Vec<u8>>, Cas) {
    match hostcalls::get_shared_data(key) {
        Ok((value, Some(cas))) => (value, Cas(cas)),
        // Zero would write whatever is there; a number never given out writes where nothing is.
        _ => (None, Cas(u32::MAX)),
    }
}

impl Cas {
    /// The number itself: another one after each change of the value.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// Writes a shared value; false where another thread did since it was read.
pub(crate) fn set_shared_data(key: &str, value: &[u8], cas: Cas) -> bool {
    hostcalls::set_shared_data(key, Some(value), Some(cas.0)).is_ok()
}

/// Begins to fetch a document and returns the number under which the answer comes. Only in the root context: elsewhere
/// the answer is lost with the stream.
pub(crate) fn get(cluster: &str, uri: &JwksUri, timeout: Duration) -> Result<u32, Status> {
    let headers = [(":scheme", uri.scheme()), (":authority", uri.authority()), (":path", uri.path())];
    call_http(cluster, headers.into(), jwks::ACCEPT, timeout)
}

/// Begins to ask the Settings service for another policy than that of `etag`. Only in the root context.
pub(crate) fn get_policy(settings: &RemoteSettings, etag: Option<&str>) -> Result<u32, Status> {
    let bearer = settings.token.as_ref().map(|Secret(token)| format!("Bearer {token}"));
    let is_waiting = etag.is_some() && !settings.long_poll.is_zero();
    let wait = format!("{}wait={}s", if settings.path.contains('?') { '&' } else { '?' }, settings.long_poll.as_secs());
    let path = format!("{}{}", settings.path, if is_waiting { wait.as_str() } else { "" });
    let mut headers = vec![(":scheme", "http"), (":authority", settings.authority.as_str()), (":path", path.as_str())];
    headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
    headers.extend(etag.map(|etag| ("if-none-match", etag)));
    let patience = if is_waiting { settings.long_poll } else { Duration::ZERO };
    call_http(&settings.cluster, headers, "application/json, */*;q=0.1", settings.timeout.saturating_add(patience))
}

fn call_http<'h>(cluster: &str, mut headers: Vec<(&'h str, &'h str)>, accept: &'h str, timeout: Duration) -> Result<u32, Status> {
    let agent = concat!("apexmcp-auth/", env!("CARGO_PKG_VERSION"));
    // RFC 9110 §12.5.3: without Accept-Encoding, a server may compress, which nothing here reads.
    headers.extend([(":method", "GET"), ("accept", accept), ("accept-encoding", "identity"), ("user-agent", agent)]);
    hostcalls::dispatch_http_call(cluster, headers, None, Vec::new(), timeout)
}

/// `envoy.config.core.v3.GrpcService`, as far as it names a cluster. A plain name would be taken for one too, and could
/// end Envoy where it happens to be a message.
#[derive(Clone, PartialEq, Message)]
struct GrpcService {
    #[prost(message, optional, tag = "1")]
    envoy_grpc: Option<EnvoyGrpc>,
}

#[derive(Clone, PartialEq, Message)]
struct EnvoyGrpc {
    #[prost(string, tag = "1")]
    cluster_name: String,
}

/// Begins a gRPC call and returns the number under which the answer comes; `None` where Envoy does not begin it.
pub(crate) fn call_grpc(cluster: &str, service: &str, method: &str, message: &[u8], timeout: Duration) -> Option<u32> {
    let upstream = GrpcService { envoy_grpc: Some(EnvoyGrpc { cluster_name: cluster.to_owned() }) }.encode_to_vec();
    let upstream = String::from_utf8(upstream).ok()?;
    hostcalls::dispatch_grpc_call(&upstream, service, method, Vec::new(), Some(message), timeout).ok()
}

/// The message that a gRPC call answered.
pub(crate) fn grpc_response(size: usize) -> Vec<u8> {
    hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size).ok().flatten().unwrap_or_default()
}

/// The status of the answer that came; `None` where the connection broke. Its headers must not be asked for then.
pub(crate) fn response_status(num_headers: usize) -> Option<u16> {
    if num_headers == 0 {
        return None;
    }
    let status = hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, ":status").ok().flatten()?;
    std::str::from_utf8(&status).ok()?.parse().ok()
}

/// The ETag of the answer that came.
pub(crate) fn response_etag() -> Option<String> {
    let etag = hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, "etag").ok().flatten()?;
    String::from_utf8(etag).ok()
}

/// The body of the answer that came.
pub(crate) fn response_body(size: usize) -> Vec<u8> {
    hostcalls::get_buffer(BufferType::HttpCallResponseBody, 0, size).ok().flatten().unwrap_or_default()
}

/// What a foreign function answers: `Err(NotFound)` where the host lacks it.
pub(crate) fn call(function: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
    hostcalls::call_foreign_function(function, Some(arguments)).map(Option::unwrap_or_default)
}

/// A counter or gauge of this name, made where it does not exist.
pub(crate) fn metric(kind: MetricType, name: &str) -> Option<u32> {
    hostcalls::define_metric(kind, name).ok()
}

/// Adds one to a counter.
pub(crate) fn increment(metric: u32) {
    let _ = hostcalls::increment_metric(metric, 1);
}

/// Sets a gauge.
pub(crate) fn record(metric: u32, value: u64) {
    let _ = hostcalls::record_metric(metric, value);
}
