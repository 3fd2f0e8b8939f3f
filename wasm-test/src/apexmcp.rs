//! The Settings program, `dist/apexmcp`, with its own database.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::process::{Folder, Process, argument};
use crate::settings::TOKEN;
use crate::{eventually, repository};

/// The token of usage reports.
pub const USAGE_TOKEN: &str = "usage-token-of-the-tests";

/// A Settings database, and the server of `apexmcp serve` if it runs.
#[derive(Debug)]
pub struct Apexmcp {
    folder: Folder,
    serving: Option<Process>,
    port: u16,
}

impl Apexmcp {
    /// Creates a database with the empty organization `acme`.
    pub fn new() -> Self {
        let settings = Self { folder: Folder::new().expect("a folder"), serving: None, port: 0 };
        settings.run("init");
        settings.run("org create acme");
        settings
    }

    /// The path of a file in the folder of this database.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.file(name)
    }

    /// Runs a command with `--json` and returns its output. The words of the command are separated by spaces.
    pub fn run(&self, words: &str) -> Value {
        serde_json::from_slice(&self.output_of(&format!("--json {words}")).stdout).expect("JSON")
    }

    /// Runs a command without `--json`. Returns its standard output and its standard error.
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

    /// Creates an API key for `acme`. Returns its id and the key.
    pub fn create_key(&self) -> (String, String) {
        let key = self.run("key create --org acme --name test");
        let text = |name: &str| key[name].as_str().expect("a text").to_owned();
        (text("id"), text("key"))
    }

    /// Starts `apexmcp serve` and returns its port. The port stays the same after a restart.
    pub async fn serve(&mut self) -> u16 {
        self.serve_with(&[], &[]).await[0].parse().expect("a port")
    }

    /// As [`Self::serve`], and collects usage.
    pub async fn serve_with_usage(&mut self) -> u16 {
        self.serve_with(&[], &[("APEXMCP_USAGE_TOKEN", USAGE_TOKEN)]).await[0].parse().expect("a port")
    }

    /// As [`Self::serve`], with the console. Returns the port for gateways, and the origin of the console.
    pub async fn serve_console(&mut self) -> (u16, String) {
        let lines = self.serve_with(&["--console", "127.0.0.1:0"], &[]).await;
        (lines[0].parse().expect("a port"), lines[1].clone())
    }

    /// As [`Self::serve`], with these options and the secret of the console at an identity provider.
    pub async fn serve_with_sign_in(&mut self, options: &[(&str, &str)], secret: &str) {
        let options: Vec<&str> = options.iter().flat_map(|(name, value)| [*name, *value]).collect();
        self.serve_with(&options, &[("APEXMCP_SIGN_IN_SECRET", secret)]).await;
    }

    /// Starts the server. Returns its port, and what it prints of its console.
    async fn serve_with(&mut self, more: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
        std::fs::write(self.file("stdout"), "").expect("a file");
        let (database, listen) = (self.file("settings.db"), format!("127.0.0.1:{}", self.port));
        let arguments = [&["--db", argument(&database), "serve", "--listen", &listen][..], more].concat();
        let environment = [&[("APEXMCP_SETTINGS_TOKEN", TOKEN)], environment].concat();
        let program = program();
        let mut process = Process::start_with(argument(&program), &arguments, &environment, &self.folder).expect("it starts");
        let lines = eventually("Settings listens", async || {
            assert!(!process.has_ended(), "Settings ended: {}", self.folder.read("stderr"));
            let printed = self.folder.read("stdout");
            let rest = printed.strip_suffix('\n')?.strip_prefix("listening on http://127.0.0.1:")?;
            let lines: Vec<String> = rest.split("\nconsole at ").map(str::to_owned).collect();
            (lines.len() == 1 + usize::from(more.contains(&"--console"))).then_some(lines)
        })
        .await;
        self.port = lines[0].parse().expect("a port");
        self.serving = Some(process);
        lines
    }

    /// The output of the server, including its log.
    pub fn output(&self) -> String {
        self.folder.read("stdout") + &self.folder.read("stderr")
    }

    /// Kills the server without a chance to shut down cleanly.
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
