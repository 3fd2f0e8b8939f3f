//! Fuzz targets: what must hold for every input that outsiders can send. There is one function for each parser that
//! they reach.
//!
//! A function takes any bytes and panics if an invariant does not hold. libFuzzer runs the functions for hours (`make
//! fuzz`). `tests/smoke.rs` runs them for seconds, on the seeds in `corpus/` and on mutants of them. The functions
//! check the invariants only with the [`reader`]s of this crate, which are lax where the product is strict.

pub mod reader;
pub mod targets;
pub mod token;
pub mod world;

#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// The program of one target, for libFuzzer. `cargo fuzz` sets `cfg(fuzzing)`.
#[cfg(fuzzing)]
#[macro_export]
macro_rules! engine {
    ($target:ident) => {
        // Runs once before the timeout of an input applies: the first call generates keys, which may take seconds.
        $crate::libfuzzer_sys::fuzz_target!(init: { $crate::targets::$target::check(&[]); }, |data: &[u8]| {
            $crate::targets::$target::check(data);
        });
    };
}

/// The program of one target, if `cargo fuzz` does not build it. It does nothing.
#[cfg(not(fuzzing))]
#[macro_export]
macro_rules! engine {
    ($target:ident) => {
        fn main() {}
    };
}
