//! A clock for Envoy that a test can shift. A small library is preloaded into Envoy and adds an offset to the
//! real-time clock.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::process::{Folder, argument, run};
use crate::repository;
use crate::token;

#[derive(Debug)]
pub struct Clock {
    folder: Folder,
    offset: File,
}

impl Clock {
    /// Creates a clock with the right time. Needs a C compiler (`cc`).
    pub async fn new() -> Self {
        let folder = Folder::new().expect("a folder");
        let (source, library) = (repository().join("wasm-test/src/clock.c"), folder.file("clock.so"));
        run("cc", &["-shared", "-fPIC", "-O2", "-o", argument(&library), argument(&source), "-ldl"]).await;
        let offset = File::create_new(folder.file("offset")).expect("a file");
        let this = Self { folder, offset };
        this.set(0);
        this
    }

    /// The environment variables that give a program this clock.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let file = |name: &str| argument(&self.folder.file(name)).to_owned();
        [("LD_PRELOAD", file("clock.so")), ("CLOCK_OFFSET", file("offset"))]
    }

    /// Sets the offset of this clock, in seconds.
    pub fn set(&self, seconds: i64) {
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0).expect("the offset is written");
    }

    /// The time that a clock with this offset shows, as a NumericDate.
    pub fn at(seconds: i64) -> i64 {
        token::now() + seconds
    }
}
