//! A connector: an MCP server behind the gateway.

use crate::process::{Folder, Process, free_port};

/// A connector.
#[derive(Debug)]
pub struct Connector {
    port: u16,
    _process: Process,
    _folder: Folder,
}

impl Connector {
    /// Starts the program `script` of the repository, and awaits that it listens.
    ///
    /// # Panics
    /// Where it does not.
    pub async fn start(script: &str) -> Self {
        let folder = Folder::new().expect("a folder");
        let port = free_port();
        let mut process = Process::start("python", &[script, "--port", &port.to_string()], &folder).expect("Python starts");
        process.until_listening(script, port, &folder).await;
        Self { port, _process: process, _folder: folder }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }
}
