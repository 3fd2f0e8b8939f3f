//! The one hostcall that is made without the SDK, which would copy each name and value twice: a tenth of all that
//! the filter adds to a request. The file has the crate's only `unsafe`.
#![allow(unsafe_code)]

use std::ptr;

use proxy_wasm::types::MapType;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_header_map_pairs(map_type: MapType, data: *mut *mut u8, size: *mut usize) -> u32;
}

/// The headers of the current stream's request as the host serializes them; nothing where it has none to give.
pub(crate) fn request_headers() -> Vec<u8> {
    pairs(MapType::HttpRequestHeaders)
}

/// The same of its trailers, within their callback.
pub(crate) fn request_trailers() -> Vec<u8> {
    pairs(MapType::HttpRequestTrailers)
}

/// The headers of the response, in the callback for response headers.
pub(crate) fn response_headers() -> Vec<u8> {
    pairs(MapType::HttpResponseHeaders)
}

fn pairs(map: MapType) -> Vec<u8> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: both pointers are to places of the right types, which live until the call has returned.
    let status = unsafe { proxy_get_header_map_pairs(map, &raw mut data, &raw mut size) };
    if status != 0 || data.is_null() {
        return Vec::new();
    }
    // SAFETY: the host got `data` for `size` bytes from the SDK's `proxy_on_memory_allocate`, a boxed slice of just that
    // length, wrote all of them, and leaves them to the caller.
    unsafe { Vec::from_raw_parts(data, size, size) }
}
