//! The hostcalls that do not use the SDK, because the SDK allocates for each of them. It copies each name and value of a
//! header map twice, and builds the path of a property in two steps.
//!
//! This file has the only `unsafe` code of the crate.
#![allow(unsafe_code)]

use std::ptr;

use proxy_wasm::types::MapType;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_header_map_pairs(map_type: MapType, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_set_property(path: *const u8, path_size: usize, value: *const u8, value_size: usize) -> u32;
}

/// Sets the property with this name of the current stream. Returns false if the host refuses it.
pub(crate) fn set_property(name: &str, value: &str) -> bool {
    // A path of one part is the part itself: the ABI only separates parts, with a zero byte.
    // SAFETY: the host reads both texts during the call, and they live until it has returned.
    unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) == 0 }
}

/// The headers of the current stream's request, as Envoy serializes them. Empty if Envoy gives none.
pub(crate) fn request_headers() -> Vec<u8> {
    pairs(MapType::HttpRequestHeaders)
}

/// The trailers of the current stream's request. Envoy gives them only within their callback.
pub(crate) fn request_trailers() -> Vec<u8> {
    pairs(MapType::HttpRequestTrailers)
}

/// The headers of the response. Envoy gives them only in the callback for response headers.
pub(crate) fn response_headers() -> Vec<u8> {
    pairs(MapType::HttpResponseHeaders)
}

fn pairs(map: MapType) -> Vec<u8> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: both pointers point to variables of the right types, which live until the call has returned.
    let status = unsafe { proxy_get_header_map_pairs(map, &raw mut data, &raw mut size) };
    if status != 0 || data.is_null() {
        return Vec::new();
    }
    // SAFETY: Envoy got `data` from the SDK's `proxy_on_memory_allocate`, as a boxed slice of exactly `size` bytes. Envoy wrote
    // all of them, and the caller owns them.
    unsafe { Vec::from_raw_parts(data, size, size) }
}
