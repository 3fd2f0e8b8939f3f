//! A connector: an MCP server behind the gateway.

use crate::process::{Folder, Process, free_port};

#[derive(Debug)]
pub struct Connector {
    port: u16,
    _process: Process,
    _folder: Folder,
}

impl Connector {
    /// Starts the Python program `script` of the repository and waits until it listens.
    pub async fn start(script: &str) -> Self {
        let folder = Folder::new().expect("a folder");
        let port = free_port();
        let mut process = Process::start("python", &[script, "--port", &port.to_string()], &folder).expect("Python starts");
        process.until_listening(script, port, &folder).await;
        Self { port, _process: process, _folder: folder }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of its MCP endpoint.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }
}
