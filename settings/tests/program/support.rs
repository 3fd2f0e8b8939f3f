//! Runs the program, each test in its own folder.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

/// The token of gateways for `serve`.
pub const TOKEN: &str = "a-token-of-gateways";

/// The URL of a PostgreSQL server, without a database. `scripts/with-postgres` sets it. Without it, the tests use SQLite.
pub fn postgres() -> Option<String> {
    std::env::var("APEXMCP_TEST_POSTGRES").ok()
}

/// A PostgreSQL server of a test that stops it. It ends with this value.
pub struct OwnPostgres {
    script: Child,
    pub server: String,
    control: String,
    /// The certificate authority of the server, if it offers TLS.
    pub root: String,
}

impl OwnPostgres {
    pub fn start() -> Self {
        Self::started(&[])
    }

    /// A server that offers TLS for the name localhost.
    pub fn with_tls() -> Self {
        Self::started(&[("TLS", "1")])
    }

    fn started(environment: &[(&str, &str)]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/with-postgres");
        let variables = ["", "_CONTROL", "_ROOT"].map(|ending| format!("echo $APEXMCP_TEST_POSTGRES{ending}; "));
        let mut command = Command::new(script);
        command.args(["sh", "-c", &(variables.concat() + "exec cat")]).envs(environment.iter().copied());
        let mut script = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(script.stdout.take().unwrap()).lines().map(Result::unwrap);
        let [server, control, root] = [(); 3].map(|()| lines.next().unwrap());
        Self { script, server, control, root }
    }

    /// `stop`, `start` or `restart`.
    pub fn control(&self, what: &str) {
        let done = Command::new(&self.control).arg(what).stdout(Stdio::null()).status().unwrap();
        assert!(done.success(), "{what}");
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        // The script ends with the command that reads its input.
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

/// Creates an empty database of PostgreSQL, and returns its URL.
pub fn new_database(server: &str) -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut client = postgres::Client::connect(&format!("{server}/postgres"), postgres::NoTls).unwrap();
    client.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
    format!("{server}/{name}")
}

/// A folder, a database, and the program that uses it.
pub struct Settings {
    pub folder: TempDir,
    /// The value of `--db`.
    pub database: String,
}

impl Settings {
    /// Without a database.
    pub fn empty() -> Self {
        match postgres() {
            None => Self::empty_file(),
            Some(server) => Self { folder: tempfile::tempdir().unwrap(), database: new_database(&server) },
        }
    }

    /// Without a database, which will be a file.
    pub fn empty_file() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("test.db").to_str().unwrap().to_owned();
        Self { folder, database }
    }

    /// As [`Self::new`], for a test that opens the file itself.
    pub fn with_file() -> Self {
        Self::initialized(Self::empty_file())
    }

    pub fn initialized(self) -> Self {
        self.json(&["init"]);
        self.json(&["org", "create", "acme"]);
        self
    }

    /// With a database and the org `acme`.
    pub fn new() -> Self {
        Self::initialized(Self::empty())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.file(name), text).unwrap();
        self.file(name).to_str().unwrap().to_owned()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apexmcp"));
        command.args(arguments).current_dir(&self.folder).env_clear().env("APEXMCP_DB", &self.database);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The text that a successful command prints.
    pub fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The document that a successful command prints with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// The line of a command that fails.
    pub fn failure(&self, arguments: &[&str]) -> String {
        self.refusal(arguments).0
    }

    /// The line and the code of a command that fails. Standard error and `--json` have the same line.
    pub fn refusal(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(line.lines().count(), 1, "{line}");
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let line = line.trim_end().strip_prefix("apexmcp: ").unwrap().to_owned();
        assert_eq!(printed["error"], line, "{arguments:?}");
        (line, printed["code"].as_str().unwrap().to_owned())
    }

    pub fn policy(&self) -> Value {
        self.json(&["policy", "export"])
    }

    /// Starts `serve` on a free port.
    pub fn serve(&self) -> Server {
        self.serve_with_log(File::create(self.file("serve.log")).unwrap())
    }

    /// Starts `serve` with the management API, and creates an admin token with these options.
    pub fn api(&self, role: &[&str]) -> Api {
        self.api_with(role, &[])
    }

    /// As [`Self::api`], with these environment variables.
    pub fn api_with(&self, role: &[&str], environment: &[(&str, &str)]) -> Api {
        let log = File::create(self.file("serve.log")).unwrap();
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0", "--console", "127.0.0.1:0"]);
        command.envs(environment.iter().copied());
        let mut process = command.env("APEXMCP_SETTINGS_TOKEN", TOKEN).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let origin = lines.next().unwrap().strip_prefix("listening on ").unwrap().to_owned();
        let base = lines.next().unwrap().strip_prefix("console at ").unwrap().to_owned() + "/api/v1";
        Api { server: Server { process, origin }, base, token: self.admin_token(role) }
    }

    /// Creates an admin token with these options.
    pub fn admin_token(&self, role: &[&str]) -> String {
        let made = self.json(&[&["admin-token", "create", "--name", "test", "--role"][..], role].concat());
        made["token"].as_str().unwrap().to_owned()
    }

    /// As [`Self::serve`], with this standard error.
    pub fn serve_with_log(&self, log: File) -> Server {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0"]);
        let mut process = command.env("APEXMCP_SETTINGS_TOKEN", TOKEN).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let origin = line.trim_end().strip_prefix("listening on ").unwrap().to_owned();
        Server { process, origin }
    }
}

/// A running `apexmcp serve`.
pub struct Server {
    pub process: Child,
    origin: String,
}

/// An answer of the server.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub etag: String,
    pub body: String,
}

/// A client of the management API.
pub struct Api {
    pub server: Server,
    /// `http://127.0.0.1:<port>/api/v1`
    pub base: String,
    pub token: String,
}

/// An answer of the management API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
    pub json: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|header| header.0 == name).map_or("", |header| &header.1)
    }

    /// The code in the type of a problem.
    pub fn problem(&self) -> &str {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(self.json["status"], self.status, "{self:?}");
        self.json["type"].as_str().unwrap().strip_prefix("urn:apexmcp:problem:").unwrap()
    }
}

impl Api {
    /// Sends a request with the token, these headers and this body. Null: no body.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let authorization = format!("Bearer {}", self.token);
        let mut all = vec![("authorization", authorization.as_str())];
        let text = if body.is_null() { String::new() } else { body.to_string() };
        if !text.is_empty() {
            all.push(("content-type", "application/json"));
        }
        self.send(method, path, &[&all[..], headers].concat(), text.as_bytes())
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], &Value::Null)
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[], body)
    }

    /// Sends a request with exactly these headers.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send_to(&self.base, method, path, headers, body)
    }

    /// As [`Self::send`], to another place of the server.
    pub fn send_to(&self, base: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{base}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let config =
            ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).allow_non_standard_methods(true).build();
        let mut response = config.new_agent().run(request.body(body).unwrap()).unwrap();
        let texts = response.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let headers = texts.collect();
        let text = response.body_mut().read_to_string().unwrap();
        let json = serde_json::from_str(&text).unwrap_or_default();
        Answer { status: response.status().as_u16(), headers, text, json }
    }
}

impl Server {
    pub fn address(&self) -> SocketAddr {
        self.origin.strip_prefix("http://").unwrap().parse().unwrap()
    }

    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = ureq::get(format!("{}{path}", self.origin)).config().http_status_as_error(false).build();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.call().unwrap();
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        let etag = header("etag");
        Reply { status: response.status().as_u16(), etag, body: response.body_mut().read_to_string().unwrap() }
    }

    /// Requests the policy as a gateway that has the policy with this ETag.
    pub fn policy(&self, etag: &str, wait: &str) -> Reply {
        let authorization = format!("Bearer {TOKEN}");
        self.get(&format!("/v1/policy?wait={wait}"), &[("authorization", &authorization), ("if-none-match", etag)])
    }

    /// A connection on which a gateway that has the policy with this ETag waits for a change.
    pub fn waiting(&self, etag: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        let head = format!("host: x\r\nauthorization: Bearer {TOKEN}\r\nif-none-match: {etag}");
        stream.write_all(format!("GET /v1/policy?wait=300s HTTP/1.1\r\n{head}\r\n\r\n").as_bytes()).unwrap();
        stream
    }

    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics", &[]).body;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("apexmcp_settings_{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }

    /// Sends SIGTERM, as a supervisor does.
    pub fn terminate(&self) {
        let id = i32::try_from(self.process.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a web server that runs as long as the test. Each page is a path with its status and its body.
pub fn website(pages: Vec<(&'static str, u16, String)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let base = origin.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &pages, &base);
        }
    });
    origin
}

fn answer(mut stream: TcpStream, pages: &[(&str, u16, String)], origin: &str) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|length| length == 1) {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let accept = head.lines().find_map(|line| line.strip_prefix("accept: ")).unwrap_or("*/*");
    // A path such as `/only/application/json` offers this media type alone.
    let offered = path.strip_prefix("/only/").unwrap_or_default();
    if !offered.is_empty() && !accept.contains(offered) && !accept.contains("*/*") {
        let _ = write!(stream, "HTTP/1.1 406 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    }
    let (status, body) = pages.iter().find(|page| page.0 == path).map_or((404, String::new()), |page| (page.1, page.2.clone()));
    let body = body.replace("ORIGIN", origin);
    let _ = write!(
        stream,
        "HTTP/1.1 {status} x\r\nlocation: {origin}/elsewhere\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
}
