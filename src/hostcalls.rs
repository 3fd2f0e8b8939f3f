//! The hostcalls of Envoy, in the form in which this crate uses them. No answer of Envoy can cause a panic here.
//! Only [`direct`] has other hostcalls.

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{BufferType, MapType, MetricType, Status};

use crate::direct;
use apexmcp_core::denial::LocalReply;
use apexmcp_core::request::{RequestHead, RequestTrailers};
use apexmcp_core::serialized_map::SerializedMap;
use apexmcp_core::time::UnixTime;
use apexmcp_shell::Call;

/// The time of Envoy's real-time clock. If Envoy has none, the time is the epoch, at which no token is valid yet.
pub(crate) fn now() -> UnixTime {
    let since_epoch = hostcalls::get_current_time().ok().and_then(|now| now.duration_since(std::time::UNIX_EPOCH).ok());
    UnixTime::default().plus(since_epoch.unwrap_or_default())
}

pub(crate) fn plugin_configuration() -> Vec<u8> {
    hostcalls::get_buffer(BufferType::PluginConfiguration, 0, usize::MAX).ok().flatten().unwrap_or_default()
}

/// Sets the interval at which Envoy calls `on_tick` of the root context.
pub(crate) fn tick_every(period: Duration) -> bool {
    hostcalls::set_tick_period(period).is_ok()
}

/// The head of the current stream's request. See [`RequestHead::new`] for `None`.
pub(crate) fn request_head() -> Option<RequestHead> {
    RequestHead::new(SerializedMap::parse(direct::request_headers())?)
}

/// Removes each occurrence of a request header.
pub(crate) fn remove_request_header(name: &str) -> bool {
    hostcalls::remove_map_value(MapType::HttpRequestHeaders, name).is_ok()
}

/// The trailers of the current stream's request. Envoy gives them only within their callback.
pub(crate) fn request_trailers() -> Option<RequestTrailers> {
    RequestTrailers::new(SerializedMap::parse(direct::request_trailers())?)
}

/// Removes each occurrence of a request trailer. This works only within their callback.
pub(crate) fn remove_request_trailer(name: &str) -> bool {
    hostcalls::remove_map_value(MapType::HttpRequestTrailers, name).is_ok()
}

pub(crate) fn add_request_header(name: &str, value: &str) -> bool {
    hostcalls::add_map_value(MapType::HttpRequestHeaders, name, value).is_ok()
}

/// Sets the filter state `wasm.<name>` of the current stream.
pub(crate) fn set_filter_state(name: &str, value: &str) {
    let _ = direct::set_property(name, value);
}

/// The metadata of the current stream's route below `namespace`, as Envoy serializes a map of strings. Envoy cannot serialize
/// metadata with a null, such as an empty value in YAML. The result is an error then.
pub(crate) fn route_metadata(namespace: &str) -> Result<Option<Vec<u8>>, Status> {
    hostcalls::get_property(vec!["xds", "route_metadata", "filter_metadata", namespace])
}

/// The first `size` bytes of the current stream's request body, as far as they have arrived.
pub(crate) fn request_body(size: usize) -> Vec<u8> {
    hostcalls::get_buffer(BufferType::HttpRequestBody, 0, size).ok().flatten().unwrap_or_default()
}

/// The value of the first response header with this name. Empty if there is none.
pub(crate) fn response_header(name: &str) -> Vec<u8> {
    hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, name).ok().flatten().unwrap_or_default()
}

/// All headers of the current stream's response.
pub(crate) fn response_headers() -> Option<SerializedMap> {
    SerializedMap::parse(direct::response_headers())
}

pub(crate) fn add_response_header(name: &str, value: &str) {
    let _ = hostcalls::add_map_value(MapType::HttpResponseHeaders, name, value);
}

/// Replaces every response header with this name.
pub(crate) fn set_response_header(name: &str, value: &str) {
    let _ = hostcalls::set_map_value(MapType::HttpResponseHeaders, name, Some(value));
}

/// Removes each occurrence of a response header.
pub(crate) fn remove_response_header(name: &str) {
    let _ = hostcalls::remove_map_value(MapType::HttpResponseHeaders, name);
}

/// The chunk of the response body that the current callback is about.
pub(crate) fn response_chunk(size: usize) -> Vec<u8> {
    hostcalls::get_buffer(BufferType::HttpResponseBody, 0, size).ok().flatten().unwrap_or_default()
}

/// Replaces the chunk of the response body by `passed`. False if Envoy did not replace it.
pub(crate) fn replace_response_chunk(size: usize, passed: &[u8]) -> bool {
    hostcalls::set_buffer(BufferType::HttpResponseBody, 0, size, passed).is_ok()
}

/// Answers the current stream's request without the upstream.
pub(crate) fn send_local_reply(reply: &LocalReply) {
    let headers = reply.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let _ = hostcalls::send_http_response(reply.status, headers, Some(reply.body.as_bytes()));
}

/// Resumes the paused request of the current stream.
pub(crate) fn resume_request() {
    let _ = hostcalls::resume_http_request();
}

/// Makes the context with this id the current one. False if it no longer exists.
pub(crate) fn enter(context_id: u32) -> bool {
    hostcalls::set_effective_context(context_id).is_ok()
}

/// Maximum number of attempts to change a shared value. Each failed attempt means that another thread changed it.
pub(crate) const CAS_ATTEMPTS: usize = 64;

/// The number of a version of a shared value. A write with this number succeeds only if the value did not change since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cas(u32);

/// A value that all threads of this Envoy share.
pub(crate) fn shared_data(key: &str) -> (Option<Vec<u8>>, Cas) {
    match hostcalls::get_shared_data(key) {
        Ok((value, Some(cas))) => (value, Cas(cas)),
        // Envoy never gives out this number, so a write with it succeeds only if there is no value. Zero would always succeed.
        _ => (None, Cas(u32::MAX)),
    }
}

impl Cas {
    /// The number. It differs after each change of the value.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// Writes a shared value. False if another thread wrote it since it was read.
pub(crate) fn set_shared_data(key: &str, value: &[u8], cas: Cas) -> bool {
    hostcalls::set_shared_data(key, Some(value), Some(cas.0)).is_ok()
}

/// Begins an HTTP call without a body. Returns the number of the call.
///
/// This needs the root context, because Envoy drops the call of a stream when the stream ends.
pub(crate) fn call_http(call: Call<'_>) -> Result<u32, Status> {
    hostcalls::dispatch_http_call(
        call.cluster,
        call.headers,
        Some(call.body).filter(|body| !body.is_empty()),
        Vec::new(),
        call.timeout,
    )
}

/// Begins a gRPC call to `upstream`, a serialized `GrpcService`. Returns the number of the call, or `None` if Envoy does not begin it.
pub(crate) fn call_grpc(upstream: &str, service: &str, method: &str, message: &[u8], timeout: Duration) -> Option<u32> {
    hostcalls::dispatch_grpc_call(upstream, service, method, Vec::new(), Some(message), timeout).ok()
}

/// The message in the answer to a gRPC call.
pub(crate) fn grpc_response(size: usize) -> Vec<u8> {
    hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size).ok().flatten().unwrap_or_default()
}

/// The status of the answer to an HTTP call. `None` if the connection failed: there are no headers then to ask for.
pub(crate) fn response_status(num_headers: usize) -> Option<u16> {
    if num_headers == 0 {
        return None;
    }
    let status = hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, ":status").ok().flatten()?;
    std::str::from_utf8(&status).ok()?.parse().ok()
}

/// A header of the answer to an HTTP call.
pub(crate) fn call_header(name: &str) -> Option<String> {
    let value = hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, name).ok().flatten()?;
    String::from_utf8(value).ok()
}

/// The body of the answer to an HTTP call.
pub(crate) fn response_body(size: usize) -> Vec<u8> {
    hostcalls::get_buffer(BufferType::HttpCallResponseBody, 0, size).ok().flatten().unwrap_or_default()
}

/// Calls a foreign function of Envoy. The result is `Err(NotFound)` if this Envoy does not have it.
pub(crate) fn call(function: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
    hostcalls::call_foreign_function(function, Some(arguments)).map(Option::unwrap_or_default)
}

/// The number of the counter or gauge with this name. Envoy creates the metric if it does not exist.
pub(crate) fn metric(kind: MetricType, name: &str) -> Option<u32> {
    hostcalls::define_metric(kind, name).ok()
}

pub(crate) fn increment(metric: u32) {
    let _ = hostcalls::increment_metric(metric, 1);
}

pub(crate) fn record(metric: u32, value: u64) {
    let _ = hostcalls::record_metric(metric, value);
}
