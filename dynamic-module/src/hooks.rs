//! The functions that Envoy calls. Each one catches a panic: it must not reach Envoy, and it refuses the request.
//!
//! A pointer of this module that Envoy passes is an `Rc<OwnStream>` or an `Arc<Config>`, which lives until Envoy destroys it.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use apexmcp_core::exchange;
use apexmcp_shell::{Action, Answer, Envoy as _, Metric};

use crate::abi::{self, Body, Buffer, Filter, FilterConfig, Header, Headers, Map};
use crate::config::Config;
use crate::worker::{OwnStream, Worker};
use crate::{logger, main_thread, pin};

/// `Continue` of all callbacks.
const CONTINUE: u32 = 0;
/// `StopIteration` of headers and trailers, and `StopIterationAndBuffer` of a body.
const STOP: u32 = 1;
/// `envoy_dynamic_module_type_http_callout_result_Success`
const SUCCESS: u32 = 0;

fn status(action: Action) -> u32 {
    match action {
        Action::Continue => CONTINUE,
        Action::Pause => STOP,
    }
}

/// Runs a callback of Envoy. The result is `None` if it panicked.
fn guarded<T>(callback: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(callback)).inspect_err(|_| log::error!("the module has a fault in a callback of Envoy")).ok()
}

/// Runs a callback of a stream. If it panics, the request is refused. If the response has begun, Envoy then ends the stream.
///
/// # Safety
/// `module` is a stream of this module that Envoy has not destroyed, or null.
unsafe fn of_stream(filter: *mut c_void, module: *const c_void, callback: impl FnOnce(&OwnStream) -> u32) -> u32 {
    if module.is_null() {
        // The creation of the stream panicked, and the callback for its head has refused the request.
        return STOP;
    }
    // SAFETY: the caller promises it. The stream may be destroyed within the callback, so this function has its own share.
    let stream = unsafe {
        let stream: *const OwnStream = module.cast();
        Rc::increment_strong_count(stream);
        Rc::from_raw(stream)
    };
    let (worker, filter) = (&stream.worker, Filter(filter));
    let result = guarded(|| worker.within(stream.id, filter, || callback(&stream)));
    result.unwrap_or_else(|| guarded(|| refuse(worker, stream.id, filter)).map_or(STOP, |()| STOP))
}

fn refuse(worker: &Worker, stream: u32, filter: Filter) {
    worker.envoy().count(Metric::Panics);
    worker.within(stream, filter, || worker.envoy().send_local_reply(&exchange::not_edited()));
}

/// # Safety
/// `module` is a configuration of this module that Envoy has not destroyed.
unsafe fn config(module: *const c_void) -> ManuallyDrop<Arc<Config>> {
    // SAFETY: the caller promises it, and the share of Envoy is not dropped.
    ManuallyDrop::new(unsafe { Arc::from_raw(module.cast()) })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    guarded(|| {
        pin::pin();
        logger::start();
    });
    abi::version().as_ptr()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    envoy_config: *mut c_void,
    _name: Buffer,
    text: Buffer,
) -> *const c_void {
    // SAFETY: Envoy keeps the text during this call.
    let config = guarded(|| main_thread::begin(unsafe { text.bytes() }, FilterConfig(envoy_config))).flatten();
    config.map_or(std::ptr::null(), |config| Arc::into_raw(config).cast())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(module: *const c_void) {
    // SAFETY: Envoy destroys a configuration once.
    let config: Arc<Config> = unsafe { Arc::from_raw(module.cast()) };
    guarded(|| main_thread::end(&config));
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_scheduled(
    _: *mut c_void,
    module: *const c_void,
    _event: u64,
) {
    // SAFETY: Envoy has not destroyed the configuration.
    let config = unsafe { config(module) };
    guarded(|| main_thread::tick(&config));
}

/// The answer to a call of the configuration.
struct CallAnswer<'a> {
    headers: Headers<'a>,
    chunks: &'a [Buffer],
}

impl CallAnswer<'_> {
    fn value(&self, wanted: &str) -> Option<&str> {
        let (_, value) = self.headers.clone().find(|(name, _)| *name == wanted.as_bytes())?;
        std::str::from_utf8(value).ok()
    }
}

impl Answer for CallAnswer<'_> {
    fn status(&self) -> Option<u16> {
        self.value(":status")?.parse().ok()
    }

    fn size(&self) -> usize {
        // SAFETY: Envoy keeps the chunks during its call.
        self.chunks.iter().map(|chunk| unsafe { chunk.bytes() }.len()).sum()
    }

    fn body(&self) -> Vec<u8> {
        // SAFETY: as above.
        self.chunks.iter().flat_map(|chunk| unsafe { chunk.bytes() }).copied().collect()
    }

    fn header(&self, name: &str) -> Option<String> {
        self.value(name).map(str::to_owned)
    }
}

/// The elements of an array of Envoy.
///
/// # Safety
/// `first` is null, or the first of `count` elements that Envoy keeps while the result is used.
unsafe fn array<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: the caller promises it.
    unsafe { std::slice::from_raw_parts(first, count) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_http_callout_done(
    _: *mut c_void,
    module: *const c_void,
    call: u64,
    result: u32,
    headers: *const Header,
    header_count: usize,
    chunks: *const Buffer,
    chunk_count: usize,
) {
    guarded(|| {
        // SAFETY: Envoy has not destroyed the configuration, and keeps the arrays during this call.
        let (config, headers, chunks) =
            unsafe { (config(module), Headers::of(array(headers, header_count)), array(chunks, chunk_count)) };
        let headers = if result == SUCCESS { headers } else { Headers::none() };
        main_thread::answered(&config, call, &CallAnswer { headers, chunks });
    });
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_new(
    module: *const c_void,
    filter: *mut c_void,
) -> *const c_void {
    // SAFETY: Envoy has not destroyed the configuration.
    let config = unsafe { config(module) };
    let stream = guarded(|| OwnStream::begin(&config, Filter(filter)));
    // Without a stream, Envoy answers 500. Up to 1.39, it goes on with a null pointer.
    stream.map_or(std::ptr::null(), |stream| Rc::into_raw(Rc::new(stream)).cast())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_destroy(module: *const c_void) {
    // SAFETY: Envoy destroys a stream once.
    let stream: Rc<OwnStream> = match module.is_null() {
        true => return,
        false => unsafe { Rc::from_raw(module.cast()) },
    };
    guarded(|| {
        stream.end();
        drop(stream);
    });
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    filter: *mut c_void,
    module: *const c_void,
    end_of_stream: bool,
) -> u32 {
    if module.is_null() {
        let reply = exchange::not_edited();
        let headers = reply.headers.iter().map(|(name, value)| (*name, value.as_str()));
        Filter(filter).send_response(reply.status, headers, reply.body.as_bytes(), "");
    }
    // SAFETY: Envoy has not destroyed the stream.
    unsafe {
        of_stream(filter, module, |own| {
            own.worker.catch_up();
            status(own.stream.request_headers(end_of_stream))
        })
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_body(
    filter: *mut c_void,
    module: *const c_void,
    end_of_stream: bool,
) -> u32 {
    // SAFETY: Envoy has not destroyed the stream.
    unsafe {
        of_stream(filter, module, |own| status(own.stream.request_body(|| own.worker.envoy().request_body_size(), end_of_stream)))
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_trailers(
    filter: *mut c_void,
    module: *const c_void,
) -> u32 {
    let count = Filter(filter).header_count(Map::RequestTrailers);
    // SAFETY: Envoy has not destroyed the stream.
    unsafe { of_stream(filter, module, |own| status(own.stream.request_trailers(count))) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_response_headers(
    filter: *mut c_void,
    module: *const c_void,
    _end_of_stream: bool,
) -> u32 {
    // SAFETY: Envoy has not destroyed the stream.
    unsafe {
        of_stream(filter, module, |own| {
            own.stream.response_headers();
            CONTINUE
        })
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_response_body(
    filter: *mut c_void,
    module: *const c_void,
    end_of_stream: bool,
) -> u32 {
    let size = || Filter(filter).body_size(Body::ReceivedResponse);
    // SAFETY: Envoy has not destroyed the stream.
    unsafe { of_stream(filter, module, |own| status(own.stream.response_body(size, end_of_stream))) }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn envoy_dynamic_module_on_http_filter_response_trailers(_: *mut c_void, _: *const c_void) -> u32 {
    CONTINUE
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_stream_complete(filter: *mut c_void, module: *const c_void) {
    if FilterConfig::tells_metrics() {
        return;
    }
    // SAFETY: Envoy has not destroyed the stream.
    unsafe {
        of_stream(filter, module, |own| {
            own.worker.tell_metrics();
            CONTINUE
        });
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_scheduled(
    filter: *mut c_void,
    module: *const c_void,
    _event: u64,
) {
    // SAFETY: Envoy has not destroyed the stream.
    unsafe {
        of_stream(filter, module, |own| {
            own.worker.tick();
            CONTINUE
        });
    }
}

/// This module makes no calls from a stream. They belong to the configuration.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn envoy_dynamic_module_on_http_filter_http_callout_done(
    _: *mut c_void,
    _: *const c_void,
    _call: u64,
    _result: u32,
    _headers: *const Header,
    _header_count: usize,
    _chunks: *const Buffer,
    _chunk_count: usize,
) {
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_headers(
    filter: *mut c_void,
    module: *const c_void,
    request: u64,
    headers: *const Header,
    count: usize,
    _end_of_stream: bool,
) {
    // SAFETY: Envoy has not destroyed the stream, and keeps the headers during this call.
    unsafe { answer_headers(filter, module, request, headers, count) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_trailers(
    filter: *mut c_void,
    module: *const c_void,
    request: u64,
    trailers: *const Header,
    count: usize,
) {
    // SAFETY: Envoy has not destroyed the stream, and keeps the trailers during this call.
    unsafe { answer_headers(filter, module, request, trailers, count) }
}

/// # Safety
/// As for [`of_stream`] and [`array`].
unsafe fn answer_headers(filter: *mut c_void, module: *const c_void, request: u64, headers: *const Header, count: usize) {
    // SAFETY: the caller promises it.
    unsafe {
        of_stream(filter, module, |own| {
            own.worker.envoy().questions.borrow_mut().headers(own.id, request, Headers::of(array(headers, count)));
            CONTINUE
        });
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_data(
    filter: *mut c_void,
    module: *const c_void,
    request: u64,
    chunks: *const Buffer,
    count: usize,
    _end_of_stream: bool,
) {
    // SAFETY: Envoy has not destroyed the stream, and keeps the chunks during this call.
    unsafe {
        of_stream(filter, module, |own| {
            let chunks = array(chunks, count).iter().map(|chunk| chunk.bytes());
            let is_short = own.worker.envoy().questions.borrow_mut().data(own.id, request, chunks);
            if !is_short {
                Filter(filter).reset_http_stream(request);
            }
            CONTINUE
        });
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_complete(
    filter: *mut c_void,
    module: *const c_void,
    request: u64,
) {
    // SAFETY: Envoy has not destroyed the stream.
    unsafe {
        of_stream(filter, module, |own| {
            let ended = own.worker.envoy().questions.borrow_mut().complete(own.id, request);
            ended.iter().for_each(|ended| own.worker.answered(ended));
            CONTINUE
        });
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn envoy_dynamic_module_on_http_filter_http_stream_reset(
    filter: *mut c_void,
    module: *const c_void,
    request: u64,
    _reason: u32,
) {
    // SAFETY: Envoy has not destroyed the stream.
    unsafe {
        of_stream(filter, module, |own| {
            let ended = own.worker.envoy().questions.borrow_mut().reset(own.id, request);
            ended.iter().for_each(|ended| own.worker.answered(ended));
            CONTINUE
        });
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(
    _: *mut c_void,
    _: *const c_void,
) {
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(
    _: *mut c_void,
    _: *const c_void,
) {
}
