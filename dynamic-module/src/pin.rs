//! Keeps the module in memory. Its thread would run into unmapped memory if Envoy unloaded it, as Envoy does without
//! `do_not_close: true`.
#![allow(unsafe_code)]

use std::ffi::c_void;

/// Pins the module until the process ends.
pub(crate) fn pin() {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for, and the result goes to valid memory of the right type.
    let is_found = unsafe { libc::dladdr((pin as fn() as *const ()).cast::<c_void>(), info.as_mut_ptr()) } != 0;
    // SAFETY: `dladdr` wrote it, or all its bytes are zero, which is valid as well.
    let path = unsafe { info.assume_init() }.dli_fname;
    if is_found && !path.is_null() {
        // SAFETY: the path ends with a zero byte. The library is loaded already, so its constructors do not run again.
        unsafe { libc::dlopen(path, libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
    }
}
