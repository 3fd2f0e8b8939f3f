//! What a module provides: the hostcalls of its ABI. No answer of Envoy may cause a panic.

use std::time::Duration;

use apexmcp_core::denial::LocalReply;
use apexmcp_core::exchange::Question;
use apexmcp_core::host::Host;
use apexmcp_core::policy::service::SdsSecret;
use apexmcp_core::principal::{Attribute, Principal};
use apexmcp_core::request::{RequestHead, RequestTrailers};
use apexmcp_core::route::{RouteInvalid, RouteSettings};
use apexmcp_core::serialized_map::SerializedMap;
use apexmcp_core::time::UnixTime;

use crate::metrics::Metric;

/// Prefix of the names of all filter state. Envoy gives it to those that a wasm module writes.
pub const FILTER_STATE: &str = "wasm.";

/// A call to another service by HTTP.
#[derive(Debug)]
pub struct Call<'c> {
    /// The Envoy cluster of the service.
    pub cluster: &'c str,
    /// All headers, including the pseudo-headers.
    pub headers: Vec<(&'c str, &'c str)>,
    /// Empty: the call has no body.
    pub body: &'c [u8],
    pub timeout: Duration,
}

/// Envoy, as one thread of it sees it. The calls about a request or a response are about the current stream.
pub trait Envoy: Host {
    /// Whether Envoy gives the filter's own replies to its response callbacks.
    const SEES_OWN_REPLIES: bool;

    /// Whether Envoy holds the body of a request while the filter holds its head. `None`: it depends on Envoy's configuration.
    const HOLDS_BODIES: Option<bool>;

    /// Follows a secret of Envoy from now on. Called while Envoy hands over the configuration.
    ///
    /// # Errors
    /// Why that is not possible.
    fn follow_secret(&self, secret: &SdsSecret) -> Result<(), &'static str>;

    /// The value of the followed secret. `None` if Envoy has none yet.
    fn secret(&self) -> Option<Vec<u8>>;

    /// The time of the real-time clock.
    fn now(&self) -> UnixTime;

    /// Makes this stream the current one. False if it no longer exists.
    fn enter(&self, stream: u32) -> bool;

    /// The head of the request. See [`RequestHead::new`] for `None`.
    fn request_head(&self) -> Option<RequestHead>;

    /// Removes each occurrence of a request header. False if Envoy did not do it.
    fn remove_request_header(&self, name: &str) -> bool;

    /// Adds a request header. False if Envoy did not do it.
    fn add_request_header(&self, name: &str, value: &str) -> bool;

    /// The first `max` bytes of the request body, as far as they have arrived.
    fn request_body(&self, max: usize) -> Vec<u8>;

    /// The trailers of the request. Envoy gives them only within their callback.
    fn request_trailers(&self) -> Option<RequestTrailers>;

    /// Removes each occurrence of a request trailer. This works only within their callback.
    fn remove_request_trailer(&self, name: &str) -> bool;

    /// The settings in the metadata of the stream's route.
    ///
    /// # Errors
    /// The metadata has an unknown member or value.
    fn route_settings(&self) -> Result<RouteSettings, RouteInvalid>;

    /// Resumes the paused request.
    fn resume_request(&self);

    /// Answers the request without the upstream.
    fn send_local_reply(&self, reply: &LocalReply);

    /// All headers of the response. Envoy gives them only in the callback for response headers.
    fn response_headers(&self) -> Option<SerializedMap>;

    /// The value of the first response header with this name. Empty if there is none.
    fn response_header(&self, name: &str) -> Vec<u8>;

    /// Adds a response header.
    fn add_response_header(&self, name: &str, value: &str);

    /// Replaces every response header with this name.
    fn set_response_header(&self, name: &str, value: &str);

    /// Removes each occurrence of a response header.
    fn remove_response_header(&self, name: &str);

    /// The chunk of the response body that the current callback is about.
    fn response_chunk(&self, size: usize) -> Vec<u8>;

    /// Replaces the chunk of the response body by `passed`. False if Envoy did not replace it.
    fn replace_response_chunk(&self, size: usize, passed: &[u8]) -> bool;

    /// Sets a filter state. Every name begins with [`FILTER_STATE`].
    fn set_filter_state(&self, name: &str, value: &str);

    /// Writes these attributes as filter state.
    fn identify(&self, principal: &Principal, attributes: &[Attribute]) {
        for attribute in attributes {
            self.set_filter_state(attribute.filter_state(), principal.attribute(*attribute));
        }
    }

    /// Sends a question of this stream to the rate limit service, and returns the number of the call. `None` if Envoy does not
    /// begin it. The stream stays the current one.
    fn ask(&self, question: &Question, stream: u32) -> Option<u32>;

    /// Begins a call to another service, and returns its number.
    ///
    /// # Errors
    /// The word of Envoy for why it does not begin the call.
    fn call(&self, call: Call<'_>) -> Result<u32, String>;

    /// Increments a counter.
    fn count(&self, metric: Metric);

    /// Sets a gauge.
    fn record(&self, metric: Metric, value: u64);
}
