//! Envoy's side of the ABI, in memory. The tests link it instead of Envoy, so the module runs under AddressSanitizer and Miri.
//!
//! A filter is a [`Filter`] on the heap, and freed when a test ends its stream: a use of it afterwards is a use after free.
//! Envoy's texts are valid only until the map that holds them changes, and so are these.
#![allow(unsafe_code, clippy::arithmetic_side_effects)]

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::abi::{Buffer, Header};

pub(crate) type Text = Vec<u8>;
type Member = (Box<[u8]>, Box<[u8]>);
pub(crate) type HeaderMap = RefCell<Vec<Member>>;

/// One stream of Envoy.
#[derive(Default)]
pub(crate) struct Filter {
    /// Headers, trailers and the headers of the response, by `envoy_dynamic_module_type_http_header_type`.
    pub(crate) maps: [HeaderMap; 3],
    /// Chunks of the bodies, by `envoy_dynamic_module_type_http_body_type`.
    pub(crate) bodies: [RefCell<Vec<Box<[u8]>>>; 3],
    pub(crate) received_is_buffered: Cell<bool>,
    pub(crate) route_metadata: RefCell<Vec<(Text, Text)>>,
    /// The statuses that the module sent.
    pub(crate) replies: RefCell<Vec<u32>>,
    pub(crate) continued: Cell<usize>,
    /// The requests to clusters that are open.
    pub(crate) requests: RefCell<Vec<u64>>,
    next_request: Cell<u64>,
}

/// Envoy's side of a filter configuration.
#[derive(Default)]
pub(crate) struct FilterConfig {
    /// The calls that are open.
    pub(crate) calls: RefCell<Vec<u64>>,
    next_call: Cell<u64>,
    metrics: Cell<usize>,
}

fn filter<'f>(pointer: *mut c_void) -> &'f Filter {
    // SAFETY: the tests pass filters that they have not ended.
    unsafe { &*pointer.cast::<Filter>() }
}

fn config<'c>(pointer: *mut c_void) -> &'c FilterConfig {
    // SAFETY: the tests pass configurations that they have not destroyed.
    unsafe { &*pointer.cast::<FilterConfig>() }
}

fn bytes<'b>(buffer: Buffer) -> &'b [u8] {
    // SAFETY: the module keeps its texts during the call.
    unsafe { buffer.bytes() }
}

fn is_named(name: &[u8]) -> impl Fn(&Member) -> bool {
    move |(own, _)| own.eq_ignore_ascii_case(name)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_log(_level: u32, message: Buffer) {
    assert!(std::str::from_utf8(bytes(message)).is_ok());
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_log_enabled(_level: u32) -> bool {
    true
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_get_header(
    of: *mut c_void,
    map: u32,
    name: Buffer,
    value: *mut Buffer,
    index: usize,
    count: *mut usize,
) -> bool {
    assert!(count.is_null());
    let map = filter(of).maps[map as usize].borrow();
    let found = map.iter().filter(|header| is_named(bytes(name))(header)).nth(index);
    // SAFETY: the module passes a place for the result.
    unsafe { value.write(found.map_or(Buffer::NULL, |(_, value)| Buffer::of(value))) };
    found.is_some()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_get_headers_size(of: *mut c_void, map: u32) -> usize {
    filter(of).maps[map as usize].borrow().len()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_get_headers(of: *mut c_void, map: u32, headers: *mut Header) -> bool {
    for (index, (name, value)) in filter(of).maps[map as usize].borrow().iter().enumerate() {
        // SAFETY: the module has asked for the number of headers.
        unsafe { headers.add(index).write(Header { name: Buffer::of(name), value: Buffer::of(value) }) };
    }
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_add_header(of: *mut c_void, map: u32, name: Buffer, value: Buffer) -> bool {
    filter(of).maps[map as usize].borrow_mut().push((bytes(name).into(), bytes(value).into()));
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_set_header(of: *mut c_void, map: u32, name: Buffer, value: Buffer) -> bool {
    let mut map = filter(of).maps[map as usize].borrow_mut();
    map.retain(|header| !is_named(bytes(name))(header));
    if !value.is_null() {
        map.push((bytes(name).into(), bytes(value).into()));
    }
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_get_body_size(of: *mut c_void, body: u32) -> usize {
    filter(of).bodies[body as usize].borrow().iter().map(|chunk| chunk.len()).sum()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_get_body_chunks_size(of: *mut c_void, body: u32) -> usize {
    filter(of).bodies[body as usize].borrow().len()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_get_body_chunks(of: *mut c_void, body: u32, chunks: *mut Buffer) -> bool {
    for (index, chunk) in filter(of).bodies[body as usize].borrow().iter().enumerate() {
        // SAFETY: the module has asked for the number of chunks.
        unsafe { chunks.add(index).write(Buffer::of(chunk)) };
    }
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_append_body(of: *mut c_void, body: u32, appended: Buffer) -> bool {
    filter(of).bodies[body as usize].borrow_mut().push(bytes(appended).into());
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_drain_body(of: *mut c_void, body: u32, size: usize) -> bool {
    let mut chunks = filter(of).bodies[body as usize].borrow_mut();
    let rest = chunks.concat().split_off(size);
    *chunks = vec![rest.into()];
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_received_buffered_request_body(of: *mut c_void) -> bool {
    filter(of).received_is_buffered.get()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_send_response(
    of: *mut c_void,
    status: u32,
    headers: *const Header,
    count: usize,
    body: Buffer,
    _details: Buffer,
) {
    // SAFETY: the module keeps its headers during the call.
    let headers = unsafe { std::slice::from_raw_parts(headers, count) };
    assert!(headers.iter().all(|header| !bytes(header.name).is_empty()));
    assert!(std::str::from_utf8(bytes(body)).is_ok());
    filter(of).replies.borrow_mut().push(status);
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_continue_decoding(of: *mut c_void) {
    filter(of).continued.set(filter(of).continued.get() + 1);
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_set_filter_state_bytes(of: *mut c_void, name: Buffer, value: Buffer) -> bool {
    let _ = filter(of);
    assert!(bytes(name).starts_with(b"wasm.apexmcp_") && std::str::from_utf8(bytes(value)).is_ok());
    true
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_get_metadata_keys_count(
    of: *mut c_void,
    _source: u32,
    _namespace: Buffer,
) -> usize {
    filter(of).route_metadata.borrow().len()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_get_metadata_keys(
    of: *mut c_void,
    _source: u32,
    _namespace: Buffer,
    keys: *mut Buffer,
) -> bool {
    for (index, (key, _)) in filter(of).route_metadata.borrow().iter().enumerate() {
        // SAFETY: the module has asked for the number of keys.
        unsafe { keys.add(index).write(Buffer::of(key)) };
    }
    true
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_get_metadata_string(
    of: *mut c_void,
    _source: u32,
    _namespace: Buffer,
    key: Buffer,
    value: *mut Buffer,
) -> bool {
    let members = filter(of).route_metadata.borrow();
    let found = members.iter().find(|(own, _)| own == bytes(key));
    if let Some((_, text)) = found {
        // SAFETY: the module passes a place for the result.
        unsafe { value.write(Buffer::of(text)) };
    }
    found.is_some()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_filter_start_http_stream(
    of: *mut c_void,
    id: *mut u64,
    _cluster: Buffer,
    _headers: *const Header,
    _count: usize,
    _body: Buffer,
    end_of_stream: bool,
    timeout_milliseconds: u64,
) -> u32 {
    assert!(end_of_stream && timeout_milliseconds > 0);
    let filter = filter(of);
    filter.next_request.set(filter.next_request.get() + 1);
    filter.requests.borrow_mut().push(filter.next_request.get());
    // SAFETY: the module passes a place for the result.
    unsafe { id.write(filter.next_request.get()) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_reset_http_stream(of: *mut c_void, id: u64) {
    filter(of).requests.borrow_mut().retain(|open| *open != id);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_filter_config_http_callout(
    of: *mut c_void,
    id: *mut u64,
    _cluster: Buffer,
    _headers: *const Header,
    _count: usize,
    _body: Buffer,
    _timeout_milliseconds: u64,
) -> u32 {
    let config = config(of);
    config.next_call.set(config.next_call.get() + 1);
    config.calls.borrow_mut().push(config.next_call.get());
    // SAFETY: the module passes a place for the result.
    unsafe { id.write(config.next_call.get()) };
    0
}

/// A scheduler is a counter of events on the heap.
fn scheduler() -> *mut c_void {
    Box::into_raw(Box::<AtomicUsize>::default()).cast()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_scheduler_new(of: *mut c_void) -> *mut c_void {
    let _ = filter(of);
    scheduler()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_filter_scheduler_commit(scheduler: *mut c_void, _event: u64) {
    // SAFETY: the module has not deleted it.
    unsafe { &*scheduler.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_filter_scheduler_delete(scheduler: *mut c_void) {
    // SAFETY: the module deletes it once.
    drop(unsafe { Box::from_raw(scheduler.cast::<AtomicUsize>()) });
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_config_scheduler_new(of: *mut c_void) -> *mut c_void {
    let _ = config(of);
    scheduler()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_filter_config_scheduler_commit(scheduler: *mut c_void, event: u64) {
    // SAFETY: the module has not deleted it.
    unsafe { envoy_dynamic_module_callback_http_filter_scheduler_commit(scheduler, event) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_filter_config_scheduler_delete(scheduler: *mut c_void) {
    // SAFETY: the module deletes it once.
    unsafe { envoy_dynamic_module_callback_http_filter_scheduler_delete(scheduler) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_filter_config_define_counter(
    of: *mut c_void,
    _name: Buffer,
    _labels: *const Buffer,
    _count: usize,
    id: *mut usize,
) -> u32 {
    let config = config(of);
    config.metrics.set(config.metrics.get() + 1);
    // SAFETY: the module passes a place for the result.
    unsafe { id.write(config.metrics.get()) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn envoy_dynamic_module_callback_http_filter_config_define_gauge(
    of: *mut c_void,
    name: Buffer,
    labels: *const Buffer,
    count: usize,
    id: *mut usize,
) -> u32 {
    // SAFETY: the module passes what the other function wants.
    unsafe { envoy_dynamic_module_callback_http_filter_config_define_counter(of, name, labels, count, id) }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_increment_counter(
    of: *mut c_void,
    id: usize,
    _labels: *const Buffer,
    _count: usize,
    _value: u64,
) -> u32 {
    let _ = filter(of);
    assert!(id > 0);
    0
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_http_filter_set_gauge(
    of: *mut c_void,
    id: usize,
    labels: *const Buffer,
    count: usize,
    value: u64,
) -> u32 {
    envoy_dynamic_module_callback_http_filter_increment_counter(of, id, labels, count, value)
}
