//! The C ABI of Envoy's dynamic modules: the functions of Envoy that this module calls, with safe wrappers.
//!
//! The signatures are those of `source/extensions/dynamic_modules/abi/abi.h` of Envoy 1.38 to 1.40. A function that 1.38 lacks
//! is looked up when the module starts: Rust links with BIND_NOW, so one missing function would refuse the whole module.
//!
//! This file and `hooks.rs` have the only `unsafe` code of the crate. The wrappers rely on one promise of their callers: a
//! [`Filter`] or a [`FilterConfig`] is used only until Envoy has destroyed it, and only in the thread that the ABI allows.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::mem::transmute;
use std::ptr;
use std::sync::OnceLock;

/// The version of the ABI of the running Envoy. The functions that this module calls are the same in all of them, and Envoy
/// warns of another version than its own.
pub(crate) fn version() -> &'static CStr {
    let since_1_40 = find(c"envoy_dynamic_module_callback_log_v2");
    if since_1_40.is_null() { c"v0.1.0" } else { c"v0.2.0" }
}

/// A function of the running Envoy. Null if this Envoy has none of this name.
fn find(name: &CStr) -> *mut c_void {
    // SAFETY: the name ends with a zero byte.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// Bytes of Envoy or of the module.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    pointer: *const c_char,
    length: usize,
}

impl Buffer {
    pub(crate) const NULL: Self = Self { pointer: ptr::null(), length: 0 };

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { pointer: bytes.as_ptr().cast(), length: bytes.len() }
    }

    #[cfg(test)]
    pub(crate) fn is_null(self) -> bool {
        self.pointer.is_null()
    }

    /// The bytes.
    ///
    /// # Safety
    /// The buffer is one that Envoy gave, and Envoy does not change it while the result is used.
    pub(crate) unsafe fn bytes<'b>(self) -> &'b [u8] {
        if self.pointer.is_null() {
            return &[];
        }
        // SAFETY: the pointer is not null, and the caller promises the rest.
        unsafe { std::slice::from_raw_parts(self.pointer.cast(), self.length) }
    }
}

/// A header of Envoy or of the module.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) name: Buffer,
    pub(crate) value: Buffer,
}

impl Header {
    const NULL: Self = Self { name: Buffer::NULL, value: Buffer::NULL };

    fn of((name, value): (&str, &str)) -> Self {
        Self { name: Buffer::of(name.as_bytes()), value: Buffer::of(value.as_bytes()) }
    }
}

/// The names and values of headers of Envoy.
#[derive(Clone)]
pub(crate) struct Headers<'h>(std::slice::Iter<'h, Header>);

impl<'h> Headers<'h> {
    /// # Safety
    /// The headers are those that Envoy gave, and Envoy does not change them while the iterator is used.
    pub(crate) unsafe fn of(headers: &'h [Header]) -> Self {
        Self(headers.iter())
    }

    pub(crate) fn none() -> Self {
        Self([].iter())
    }
}

impl<'h> Iterator for Headers<'h> {
    type Item = (&'h [u8], &'h [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.next()?;
        // SAFETY: whoever made the iterator promised it.
        Some(unsafe { (header.name.bytes(), header.value.bytes()) })
    }
}

/// `envoy_dynamic_module_type_http_header_type`
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum Map {
    RequestHeaders = 0,
    RequestTrailers = 1,
    ResponseHeaders = 2,
}

/// `envoy_dynamic_module_type_http_body_type`
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum Body {
    /// The part of the request body that the current callback is about.
    ReceivedRequest = 0,
    /// The part of the request body that Envoy holds.
    BufferedRequest = 1,
    /// The part of the response body that the current callback is about.
    ReceivedResponse = 2,
}

/// `envoy_dynamic_module_type_log_level`
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum LogLevel {
    Trace = 0,
    Debug = 1,
    Info = 2,
    Warn = 3,
    Error = 4,
}

/// `envoy_dynamic_module_type_metadata_source_Route`
const ROUTE: u32 = 1;
/// `envoy_dynamic_module_type_metrics_result_Success`, and that of calls.
const SUCCESS: u32 = 0;

/// What a function for metrics takes: the stream or the configuration, the metric, its labels and a number.
type MetricFunction = unsafe extern "C" fn(*mut c_void, usize, *const Buffer, usize, u64) -> u32;

unsafe extern "C" {
    fn envoy_dynamic_module_callback_log(level: u32, message: Buffer);
    fn envoy_dynamic_module_callback_log_enabled(level: u32) -> bool;

    fn envoy_dynamic_module_callback_http_get_header(
        filter: *mut c_void,
        map: u32,
        name: Buffer,
        value: *mut Buffer,
        index: usize,
        count: *mut usize,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_get_headers_size(filter: *mut c_void, map: u32) -> usize;
    fn envoy_dynamic_module_callback_http_get_headers(filter: *mut c_void, map: u32, headers: *mut Header) -> bool;
    fn envoy_dynamic_module_callback_http_add_header(filter: *mut c_void, map: u32, name: Buffer, value: Buffer) -> bool;
    fn envoy_dynamic_module_callback_http_set_header(filter: *mut c_void, map: u32, name: Buffer, value: Buffer) -> bool;

    fn envoy_dynamic_module_callback_http_get_body_size(filter: *mut c_void, body: u32) -> usize;
    fn envoy_dynamic_module_callback_http_get_body_chunks_size(filter: *mut c_void, body: u32) -> usize;
    fn envoy_dynamic_module_callback_http_get_body_chunks(filter: *mut c_void, body: u32, chunks: *mut Buffer) -> bool;
    fn envoy_dynamic_module_callback_http_append_body(filter: *mut c_void, body: u32, bytes: Buffer) -> bool;
    fn envoy_dynamic_module_callback_http_drain_body(filter: *mut c_void, body: u32, size: usize) -> bool;
    fn envoy_dynamic_module_callback_http_received_buffered_request_body(filter: *mut c_void) -> bool;

    fn envoy_dynamic_module_callback_http_send_response(
        filter: *mut c_void,
        status: u32,
        headers: *const Header,
        count: usize,
        body: Buffer,
        details: Buffer,
    );
    fn envoy_dynamic_module_callback_http_filter_continue_decoding(filter: *mut c_void);

    fn envoy_dynamic_module_callback_http_set_filter_state_bytes(filter: *mut c_void, name: Buffer, value: Buffer) -> bool;
    fn envoy_dynamic_module_callback_http_get_metadata_keys_count(filter: *mut c_void, source: u32, namespace: Buffer) -> usize;
    fn envoy_dynamic_module_callback_http_get_metadata_keys(
        filter: *mut c_void,
        source: u32,
        namespace: Buffer,
        keys: *mut Buffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_get_metadata_string(
        filter: *mut c_void,
        source: u32,
        namespace: Buffer,
        key: Buffer,
        value: *mut Buffer,
    ) -> bool;

    fn envoy_dynamic_module_callback_http_filter_start_http_stream(
        filter: *mut c_void,
        id: *mut u64,
        cluster: Buffer,
        headers: *const Header,
        count: usize,
        body: Buffer,
        end_of_stream: bool,
        timeout_milliseconds: u64,
    ) -> u32;
    fn envoy_dynamic_module_callback_http_filter_reset_http_stream(filter: *mut c_void, id: u64);
    fn envoy_dynamic_module_callback_http_filter_config_http_callout(
        config: *mut c_void,
        id: *mut u64,
        cluster: Buffer,
        headers: *const Header,
        count: usize,
        body: Buffer,
        timeout_milliseconds: u64,
    ) -> u32;

    fn envoy_dynamic_module_callback_http_filter_scheduler_new(filter: *mut c_void) -> *mut c_void;
    fn envoy_dynamic_module_callback_http_filter_scheduler_commit(scheduler: *mut c_void, event: u64);
    fn envoy_dynamic_module_callback_http_filter_scheduler_delete(scheduler: *mut c_void);
    fn envoy_dynamic_module_callback_http_filter_config_scheduler_new(config: *mut c_void) -> *mut c_void;
    fn envoy_dynamic_module_callback_http_filter_config_scheduler_commit(scheduler: *mut c_void, event: u64);
    fn envoy_dynamic_module_callback_http_filter_config_scheduler_delete(scheduler: *mut c_void);

    fn envoy_dynamic_module_callback_http_filter_config_define_counter(
        config: *mut c_void,
        name: Buffer,
        labels: *const Buffer,
        count: usize,
        id: *mut usize,
    ) -> u32;
    fn envoy_dynamic_module_callback_http_filter_config_define_gauge(
        config: *mut c_void,
        name: Buffer,
        labels: *const Buffer,
        count: usize,
        id: *mut usize,
    ) -> u32;
    fn envoy_dynamic_module_callback_http_filter_increment_counter(
        filter: *mut c_void,
        id: usize,
        labels: *const Buffer,
        count: usize,
        value: u64,
    ) -> u32;
    fn envoy_dynamic_module_callback_http_filter_set_gauge(
        filter: *mut c_void,
        id: usize,
        labels: *const Buffer,
        count: usize,
        value: u64,
    ) -> u32;
}

/// Follows a secret: the configuration, the name and the `ConfigSource`. Returns zero on failure.
type SubscribeFunction = unsafe extern "C" fn(*mut c_void, Buffer, Buffer) -> usize;
/// Reads a secret: the configuration, the number of the secret and the result.
type SecretFunction = unsafe extern "C" fn(*mut c_void, usize, *mut Buffer) -> bool;

/// The functions that Envoy has since 1.39 (metrics) and 1.40 (secrets).
struct Newer {
    increment_counter: Option<MetricFunction>,
    set_gauge: Option<MetricFunction>,
    subscribe: Option<SubscribeFunction>,
    secret: Option<SecretFunction>,
}

fn newer() -> &'static Newer {
    static NEWER: OnceLock<Newer> = OnceLock::new();
    NEWER.get_or_init(|| {
        let [increment_counter, set_gauge, subscribe, secret] = [
            c"envoy_dynamic_module_callback_http_filter_config_increment_counter",
            c"envoy_dynamic_module_callback_http_filter_config_set_gauge",
            c"envoy_dynamic_module_callback_http_filter_config_generic_secret_subscribe",
            c"envoy_dynamic_module_callback_http_filter_config_get_generic_secret",
        ]
        .map(find);
        // SAFETY: Envoy's functions of these names have these signatures. A null pointer becomes `None`.
        unsafe {
            Newer {
                increment_counter: transmute::<*mut c_void, Option<MetricFunction>>(increment_counter),
                set_gauge: transmute::<*mut c_void, Option<MetricFunction>>(set_gauge),
                subscribe: transmute::<*mut c_void, Option<SubscribeFunction>>(subscribe),
                secret: transmute::<*mut c_void, Option<SecretFunction>>(secret),
            }
        }
    })
}

/// Whether Envoy would write a line of this level to its log.
pub(crate) fn logs(level: LogLevel) -> bool {
    // SAFETY: every thread may call this.
    unsafe { envoy_dynamic_module_callback_log_enabled(level as u32) }
}

/// Writes a line to Envoy's log.
pub(crate) fn log(level: LogLevel, line: &str) {
    // SAFETY: every thread may call this, and Envoy copies the line.
    unsafe { envoy_dynamic_module_callback_log(level as u32, Buffer::of(line.as_bytes())) }
}

/// Envoy's side of one stream's filter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filter(pub(crate) *mut c_void);

// SAFETY (of this whole implementation): the pointer is that of a filter that Envoy has not destroyed, in its thread. Envoy
// copies what it gets before a function returns. Texts of Envoy are copied before anything else is called.
impl Filter {
    /// Calls `read` with all headers of a map. `read` must not change the map.
    pub(crate) fn headers<T>(self, map: Map, read: impl FnOnce(Headers<'_>) -> T) -> T {
        let map = map as u32;
        let count = unsafe { envoy_dynamic_module_callback_http_get_headers_size(self.0, map) };
        // Requests have about fifteen headers. The array on the stack saves an allocation.
        let mut few = [Header::NULL; 32];
        let mut many = Vec::new();
        let headers = match few.get_mut(..count) {
            Some(few) => few,
            None => {
                many.resize(count, Header::NULL);
                many.as_mut_slice()
            }
        };
        let is_read = unsafe { envoy_dynamic_module_callback_http_get_headers(self.0, map, headers.as_mut_ptr()) };
        read(Headers(if is_read { headers.iter() } else { [].iter() }))
    }

    /// The number of headers in a map.
    pub(crate) fn header_count(self, map: Map) -> usize {
        unsafe { envoy_dynamic_module_callback_http_get_headers_size(self.0, map as u32) }
    }

    /// The value of the first header with this name. Empty if there is none.
    pub(crate) fn header(self, map: Map, name: &str) -> Vec<u8> {
        let mut value = Buffer::NULL;
        let name = Buffer::of(name.as_bytes());
        let is_there = unsafe {
            envoy_dynamic_module_callback_http_get_header(self.0, map as u32, name, &raw mut value, 0, ptr::null_mut())
        };
        if is_there { unsafe { value.bytes() }.to_vec() } else { Vec::new() }
    }

    /// Adds a header. Envoy up to 1.40 cannot add an empty value: then there is no header.
    pub(crate) fn add_header(self, map: Map, name: &str, value: &str) -> bool {
        let (name, buffer) = (Buffer::of(name.as_bytes()), Buffer::of(value.as_bytes()));
        value.is_empty() || unsafe { envoy_dynamic_module_callback_http_add_header(self.0, map as u32, name, buffer) }
    }

    /// Replaces all headers with this name.
    pub(crate) fn set_header(self, map: Map, name: &str, value: &str) -> bool {
        let (name, value) = (Buffer::of(name.as_bytes()), Buffer::of(value.as_bytes()));
        unsafe { envoy_dynamic_module_callback_http_set_header(self.0, map as u32, name, value) }
    }

    /// Removes all headers with this name.
    pub(crate) fn remove_header(self, map: Map, name: &str) -> bool {
        let name = Buffer::of(name.as_bytes());
        unsafe { envoy_dynamic_module_callback_http_set_header(self.0, map as u32, name, Buffer::NULL) }
    }

    /// Length of a body in bytes.
    pub(crate) fn body_size(self, body: Body) -> usize {
        unsafe { envoy_dynamic_module_callback_http_get_body_size(self.0, body as u32) }
    }

    /// Whether the part of the request body that the current callback is about is also what Envoy holds.
    pub(crate) fn received_is_buffered(self) -> bool {
        unsafe { envoy_dynamic_module_callback_http_received_buffered_request_body(self.0) }
    }

    /// Appends the bytes of a body to `bytes`, until there are `max`.
    pub(crate) fn read_body(self, body: Body, max: usize, bytes: &mut Vec<u8>) {
        let body = body as u32;
        let count = unsafe { envoy_dynamic_module_callback_http_get_body_chunks_size(self.0, body) };
        let mut chunks = vec![Buffer::NULL; count];
        if count == 0 || !unsafe { envoy_dynamic_module_callback_http_get_body_chunks(self.0, body, chunks.as_mut_ptr()) } {
            return;
        }
        for chunk in chunks {
            let chunk = unsafe { chunk.bytes() };
            let room = max.saturating_sub(bytes.len());
            bytes.extend_from_slice(chunk.get(..room).unwrap_or(chunk));
        }
    }

    /// Replaces a body of `size` bytes.
    pub(crate) fn replace_body(self, body: Body, size: usize, bytes: &[u8]) -> bool {
        let body = body as u32;
        let is_drained = size == 0 || unsafe { envoy_dynamic_module_callback_http_drain_body(self.0, body, size) };
        let append = || unsafe { envoy_dynamic_module_callback_http_append_body(self.0, body, Buffer::of(bytes)) };
        is_drained && (bytes.is_empty() || append())
    }

    /// Answers the request. The stream may end within this call.
    pub(crate) fn send_response<'h>(
        self,
        status: u32,
        headers: impl Iterator<Item = (&'h str, &'h str)>,
        body: &[u8],
        details: &str,
    ) {
        let headers: Vec<Header> = headers.map(Header::of).collect();
        let (body, details) = (Buffer::of(body), Buffer::of(details.as_bytes()));
        unsafe {
            envoy_dynamic_module_callback_http_send_response(self.0, status, headers.as_ptr(), headers.len(), body, details);
        }
    }

    /// Lets the request go on. The stream may end within this call.
    pub(crate) fn continue_decoding(self) {
        unsafe { envoy_dynamic_module_callback_http_filter_continue_decoding(self.0) }
    }

    /// Sets a filter state. Access logs show it as text.
    pub(crate) fn set_filter_state(self, name: &str, value: &str) {
        let (name, value) = (Buffer::of(name.as_bytes()), Buffer::of(value.as_bytes()));
        unsafe { envoy_dynamic_module_callback_http_set_filter_state_bytes(self.0, name, value) };
    }

    /// The members of the route's metadata below `namespace`. `None` if a value is not a text.
    pub(crate) fn route_metadata(self, namespace: &str) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let namespace = Buffer::of(namespace.as_bytes());
        let count = unsafe { envoy_dynamic_module_callback_http_get_metadata_keys_count(self.0, ROUTE, namespace) };
        let mut keys = vec![Buffer::NULL; count];
        if count == 0
            || !unsafe { envoy_dynamic_module_callback_http_get_metadata_keys(self.0, ROUTE, namespace, keys.as_mut_ptr()) }
        {
            return Some(Vec::new());
        }
        let member = |key: Buffer| {
            let mut value = Buffer::NULL;
            let is_text =
                unsafe { envoy_dynamic_module_callback_http_get_metadata_string(self.0, ROUTE, namespace, key, &raw mut value) };
            is_text.then(|| unsafe { (key.bytes().to_vec(), value.bytes().to_vec()) })
        };
        keys.into_iter().map(member).collect()
    }

    /// Begins a request to a cluster, with a whole body, and returns its number. `None` if Envoy does not begin it.
    pub(crate) fn start_http_stream(
        self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout_milliseconds: u64,
    ) -> Option<u64> {
        let headers: Vec<Header> = headers.iter().copied().map(Header::of).collect();
        let mut id = 0;
        let result = unsafe {
            envoy_dynamic_module_callback_http_filter_start_http_stream(
                self.0,
                &raw mut id,
                Buffer::of(cluster.as_bytes()),
                headers.as_ptr(),
                headers.len(),
                Buffer::of(body),
                true,
                timeout_milliseconds,
            )
        };
        (result == SUCCESS).then_some(id)
    }

    /// Ends a request of [`Self::start_http_stream`].
    pub(crate) fn reset_http_stream(self, id: u64) {
        unsafe { envoy_dynamic_module_callback_http_filter_reset_http_stream(self.0, id) }
    }

    /// A handle that wakes the stream from any thread. `None` if Envoy has none.
    pub(crate) fn scheduler(self) -> Option<StreamScheduler> {
        let scheduler = unsafe { envoy_dynamic_module_callback_http_filter_scheduler_new(self.0) };
        (!scheduler.is_null()).then_some(StreamScheduler(scheduler))
    }

    /// Adds to a counter, or sets a gauge.
    pub(crate) fn tell(self, metric: DefinedMetric, labels: &[&str], value: u64) {
        let function: MetricFunction = if metric.is_gauge {
            envoy_dynamic_module_callback_http_filter_set_gauge
        } else {
            envoy_dynamic_module_callback_http_filter_increment_counter
        };
        tell(function, self.0, metric, labels, value);
    }
}

fn tell(function: MetricFunction, to: *mut c_void, metric: DefinedMetric, labels: &[&str], value: u64) {
    let labels: Vec<Buffer> = labels.iter().map(|label| Buffer::of(label.as_bytes())).collect();
    // SAFETY: see the implementations of `Filter` and `FilterConfig`.
    unsafe { function(to, metric.id, labels.as_ptr(), labels.len(), value) };
}

/// Wakes a stream. If the stream has ended, nothing happens.
pub(crate) struct StreamScheduler(*mut c_void);

// SAFETY: the ABI lets every thread commit and delete.
unsafe impl Send for StreamScheduler {}

impl StreamScheduler {
    pub(crate) fn commit(&self) {
        // SAFETY: the handle lives as long as this value.
        unsafe { envoy_dynamic_module_callback_http_filter_scheduler_commit(self.0, 0) }
    }
}

impl Drop for StreamScheduler {
    fn drop(&mut self) {
        // SAFETY: the handle is deleted once.
        unsafe { envoy_dynamic_module_callback_http_filter_scheduler_delete(self.0) }
    }
}

/// The number of a counter or a gauge.
#[derive(Clone, Copy)]
pub(crate) struct DefinedMetric {
    id: usize,
    is_gauge: bool,
}

/// The number of a secret that Envoy follows for a configuration.
#[derive(Clone, Copy)]
pub(crate) struct SecretId(usize);

/// Envoy's side of a filter configuration.
#[derive(Clone, Copy)]
pub(crate) struct FilterConfig(pub(crate) *mut c_void);

// SAFETY (of this whole implementation): the pointer is that of a configuration that Envoy has not destroyed, and the thread
// is the main thread.
impl FilterConfig {
    /// Defines a metric. This works only until Envoy has the configuration.
    pub(crate) fn define(self, name: &str, labels: &[&str], is_gauge: bool) -> Option<DefinedMetric> {
        let labels: Vec<Buffer> = labels.iter().map(|label| Buffer::of(label.as_bytes())).collect();
        let define = if is_gauge {
            envoy_dynamic_module_callback_http_filter_config_define_gauge
        } else {
            envoy_dynamic_module_callback_http_filter_config_define_counter
        };
        let mut id = 0;
        let result = unsafe { define(self.0, Buffer::of(name.as_bytes()), labels.as_ptr(), labels.len(), &raw mut id) };
        (result == SUCCESS).then_some(DefinedMetric { id, is_gauge })
    }

    /// Whether metrics can be told without a stream. Envoy 1.38 cannot.
    pub(crate) fn tells_metrics() -> bool {
        newer().increment_counter.is_some() && newer().set_gauge.is_some()
    }

    /// Adds to a counter, or sets a gauge, if [`Self::tells_metrics`].
    pub(crate) fn tell(self, metric: DefinedMetric, labels: &[&str], value: u64) {
        let Newer { increment_counter, set_gauge, .. } = newer();
        if let Some(function) = if metric.is_gauge { set_gauge } else { increment_counter } {
            tell(*function, self.0, metric, labels, value);
        }
    }

    /// Lets Envoy follow a generic secret. This works only until Envoy has the configuration. `sds_config` is the JSON of a
    /// `ConfigSource`, or empty for a secret of the bootstrap.
    ///
    /// # Errors
    /// Why Envoy does not follow it.
    pub(crate) fn follow_secret(self, name: &str, sds_config: &str) -> Result<SecretId, &'static str> {
        let subscribe = newer().subscribe.ok_or("needs Envoy 1.40 or newer: use token_env")?;
        let (name, sds_config) = (Buffer::of(name.as_bytes()), Buffer::of(sds_config.as_bytes()));
        match unsafe { subscribe(self.0, name, sds_config) } {
            0 => Err("Envoy knows no such secret, or refuses sds_config: see the lines before"),
            id => Ok(SecretId(id)),
        }
    }

    /// The value of a secret. `None` if Envoy has none yet.
    pub(crate) fn secret(self, SecretId(id): SecretId) -> Option<Vec<u8>> {
        let mut value = Buffer::NULL;
        let is_there = unsafe { newer().secret?(self.0, id, &raw mut value) };
        is_there.then(|| unsafe { value.bytes() }.to_vec()).filter(|value| !value.is_empty())
    }

    /// Begins a request, and returns its number. An empty body is none.
    ///
    /// # Errors
    /// Envoy's word for why it does not begin it.
    pub(crate) fn call(
        self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout_milliseconds: u64,
    ) -> Result<u64, &'static str> {
        let headers: Vec<Header> = headers.iter().copied().map(Header::of).collect();
        let mut id = 0;
        let result = unsafe {
            envoy_dynamic_module_callback_http_filter_config_http_callout(
                self.0,
                &raw mut id,
                Buffer::of(cluster.as_bytes()),
                headers.as_ptr(),
                headers.len(),
                if body.is_empty() { Buffer::NULL } else { Buffer::of(body) },
                timeout_milliseconds,
            )
        };
        match result {
            SUCCESS => Ok(id),
            1 => Err("MissingRequiredHeaders"),
            2 => Err("ClusterNotFound"),
            3 => Err("DuplicateCalloutId"),
            _ => Err("CannotCreateRequest"),
        }
    }

    /// A handle that calls the configuration in the main thread.
    pub(crate) fn scheduler(self) -> ConfigScheduler {
        ConfigScheduler(unsafe { envoy_dynamic_module_callback_http_filter_config_scheduler_new(self.0) })
    }
}

/// Calls a configuration in the main thread. If Envoy has destroyed it, nothing happens.
pub(crate) struct ConfigScheduler(*mut c_void);

// SAFETY: the ABI lets every thread commit and delete.
unsafe impl Send for ConfigScheduler {}

impl ConfigScheduler {
    pub(crate) fn commit(&self) {
        // SAFETY: the handle lives as long as this value.
        unsafe { envoy_dynamic_module_callback_http_filter_config_scheduler_commit(self.0, 0) }
    }
}

impl Drop for ConfigScheduler {
    fn drop(&mut self) {
        // SAFETY: the handle is deleted once.
        unsafe { envoy_dynamic_module_callback_http_filter_config_scheduler_delete(self.0) }
    }
}
