//! The program of Settings, `dist/apexmcp`, with a database of its own.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::process::{Folder, Process, argument};
use crate::settings::TOKEN;
use crate::{eventually, repository};

/// The program, and what it keeps.
#[derive(Debug)]
pub struct Apexmcp {
    folder: Folder,
    serving: Option<Process>,
    port: u16,
}

impl Apexmcp {
    /// With the org `acme`, and nothing in it.
    ///
    /// # Panics
    /// Where it fails.
    pub fn new() -> Self {
        let settings = Self { folder: Folder::new().expect("a folder"), serving: None, port: 0 };
        settings.run("init");
        settings.run("org create acme");
        settings
    }

    /// A file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.file(name)
    }

    /// Runs a command of these words, and returns what it answers.
    ///
    /// # Panics
    /// Where it fails.
    pub fn run(&self, words: &str) -> Value {
        serde_json::from_slice(&self.output_of(&format!("--json {words}")).stdout).expect("JSON")
    }

    /// The same as people do: returns what it prints on standard output, and on standard error.
    ///
    /// # Panics
    /// Where it fails.
    pub fn print(&self, words: &str) -> [String; 2] {
        let output = self.output_of(words);
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned())
    }

    fn output_of(&self, words: &str) -> Output {
        let mut command = Command::new(program());
        command.current_dir(repository()).arg("--db").arg(self.file("settings.db")).args(words.split(' '));
        let output = command.output().expect("dist/apexmcp, made by `make build`");
        assert!(output.status.success(), "{words}: {output:?}");
        output
    }

    /// Makes an API key for `acme`, and returns its id and the key itself.
    ///
    /// # Panics
    /// Where it fails.
    pub fn create_key(&self) -> (String, String) {
        let key = self.run("key create --org acme --name test");
        let text = |name: &str| key[name].as_str().expect("a text").to_owned();
        (text("id"), text("key"))
    }

    /// Serves the policy from now on, always at the same port, which is returned.
    ///
    /// # Panics
    /// Where it does not.
    pub async fn serve(&mut self) -> u16 {
        std::fs::write(self.file("stdout"), "").expect("a file");
        let (database, listen) = (self.file("settings.db"), format!("127.0.0.1:{}", self.port));
        let arguments = ["--db", argument(&database), "serve", "--listen", &listen];
        let environment = [("APEXMCP_SETTINGS_TOKEN", TOKEN)];
        let program = program();
        let mut process = Process::start_with(argument(&program), &arguments, &environment, &self.folder).expect("it starts");
        self.port = eventually("Settings listens", async || {
            assert!(!process.has_ended(), "Settings ended: {}", self.folder.read("stderr"));
            let printed = self.folder.read("stdout");
            printed.trim_end_matches('\n').strip_prefix("listening on http://127.0.0.1:")?.parse().ok()
        })
        .await;
        self.serving = Some(process);
        self.port
    }

    /// What the server printed, its log too.
    pub fn output(&self) -> String {
        self.folder.read("stdout") + &self.folder.read("stderr")
    }

    /// Kills what serves, without a chance to say so.
    pub fn kill(&mut self) {
        self.serving = None;
    }
}

impl Default for Apexmcp {
    fn default() -> Self {
        Self::new()
    }
}

fn program() -> PathBuf {
    repository().join("dist/apexmcp").canonicalize().expect("dist/apexmcp, made by `make build`")
}
