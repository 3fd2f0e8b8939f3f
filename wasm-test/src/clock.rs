//! A clock for Envoy that jumps when a test says so: a small library, preloaded into it, shifts the real-time clock.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::process::{Folder, argument, run};
use crate::repository;
use crate::token;

/// The clock.
#[derive(Debug)]
pub struct Clock {
    folder: Folder,
    offset: File,
}

impl Clock {
    /// One that is right.
    ///
    /// # Panics
    /// Where the library cannot be built: a C compiler is missing.
    pub async fn new() -> Self {
        let folder = Folder::new().expect("a folder");
        let (source, library) = (repository().join("wasm-test/src/clock.c"), folder.file("clock.so"));
        run("cc", &["-shared", "-fPIC", "-O2", "-o", argument(&library), argument(&source), "-ldl"]).await;
        let offset = File::create_new(folder.file("offset")).expect("a file");
        let this = Self { folder, offset };
        this.set(0);
        this
    }

    /// What makes it the clock of a program that is started with these variables.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let file = |name: &str| argument(&self.folder.file(name)).to_owned();
        [("LD_PRELOAD", file("clock.so")), ("CLOCK_OFFSET", file("offset"))]
    }

    /// From now on it is off by so many seconds.
    ///
    /// # Panics
    /// Where that can't be written.
    pub fn set(&self, seconds: i64) {
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0).expect("the offset is written");
    }

    /// What it shows where it is off by so many seconds.
    pub fn at(seconds: i64) -> i64 {
        token::now() + seconds
    }
}
