//! What must hold of every input that outsiders can send, one function for each parser that they reach.
//!
//! A function takes any bytes and panics where an invariant breaks. Two run it: libFuzzer for hours (`make fuzz`), and
//! `tests/smoke.rs` for seconds, over the seeds in `corpus/` and mutants of them. The invariants are checked with
//! [`reader`]s of this package alone, which are lax where the product is strict.

pub mod reader;
pub mod targets;
pub mod token;
pub mod world;

#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// The program of one target: libFuzzer's where `cargo fuzz` builds it, else an empty one.
#[cfg(fuzzing)]
#[macro_export]
macro_rules! engine {
    ($target:ident) => {
        // Once before the clock of an input runs: the first one makes keys, which may take seconds.
        $crate::libfuzzer_sys::fuzz_target!(init: { $crate::targets::$target::check(&[]); }, |data: &[u8]| {
            $crate::targets::$target::check(data);
        });
    };
}

/// The program of one target: libFuzzer's where `cargo fuzz` builds it, else an empty one.
#[cfg(not(fuzzing))]
#[macro_export]
macro_rules! engine {
    ($target:ident) => {
        fn main() {}
    };
}
