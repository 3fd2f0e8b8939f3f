//! Programs that a test starts, and their files.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;

use crate::{eventually, repository};

/// A temporary folder for the files and the output of one program. It is kept if the test fails.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Creates a new, empty folder.
    pub fn new() -> io::Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = repository().canonicalize()?.join("target/wasm-test").join(name);
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// The path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The current content of a file. Empty if the file does not exist.
    pub fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.file(name)).unwrap_or_default()).into_owned()
    }

    /// Writes a file atomically: a watcher never sees a part of it.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let whole = self.file(&format!(".{name}.new"));
        std::fs::write(&whole, text)?;
        std::fs::rename(whole, self.file(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("The files of this test were kept in {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A running program. It is killed when the value is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a program of `.tools/bin`. Its output goes to the files `stdout` and `stderr` in `folder`.
    pub fn start(tool: &str, arguments: &[&str], folder: &Folder) -> io::Result<Self> {
        Self::start_with(tool, arguments, &[], folder)
    }

    /// Like [`Self::start`], with additional environment variables. If `.tools/bin` has no such program, the system's
    /// is used.
    pub fn start_with(tool: &str, arguments: &[&str], environment: &[(&str, &str)], folder: &Folder) -> io::Result<Self> {
        let output = |name| File::options().create(true).append(true).open(folder.file(name));
        let own = repository().canonicalize()?.join(".tools/bin").join(tool);
        Command::new(if own.exists() { own } else { tool.into() })
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(repository())
            .stdout(output("stdout")?)
            .stderr(output("stderr")?)
            .spawn()
            .map(Self)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Resident memory in kB. Zero if the system does not report it.
    pub fn memory_kb(&self) -> u64 {
        self.status_kb("VmRSS:")
    }

    /// The peak of resident memory since [`Self::forget_peak_memory`], in kB. Zero if the system does not report it.
    pub fn peak_memory_kb(&self) -> u64 {
        self.status_kb("VmHWM:")
    }

    /// Resets the peak of resident memory to its present size, if the system can do so (proc(5): 5 in `clear_refs`).
    pub fn forget_peak_memory(&self) {
        let _ = std::fs::write(format!("/proc/{}/clear_refs", self.0.id()), "5");
    }

    fn status_kb(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|kb| kb.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or_default()
    }

    /// Whether the program ended without being stopped by the test.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits until the program listens at this port. Panics with the output in `folder` if the program ends before.
    pub async fn until_listening(&mut self, what: &str, port: u16, folder: &Folder) {
        eventually(what, async || {
            assert!(!self.has_ended(), "{what} ended:\n{}\n{}", folder.read("stdout"), folder.read("stderr"));
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program of `.tools/bin` and returns its standard output. Panics with all its output if it fails.
pub async fn run(tool: &str, arguments: &[&str]) -> String {
    try_run(tool, arguments).await.unwrap_or_else(|said| panic!("{tool} {arguments:?}: {said}"))
}

/// Like [`run`], but returns a failure as an error.
///
/// # Errors
/// The exit status and the output of the program, if it fails.
pub async fn try_run(tool: &str, arguments: &[&str]) -> Result<String, String> {
    let folder = Folder::new().expect("a folder");
    let mut process = Process::start(tool, arguments, &folder).expect("the program starts");
    eventually(tool, async || process.has_ended().then_some(())).await;
    let status = process.0.wait().expect("its status");
    match status.success() {
        true => Ok(folder.read("stdout")),
        false => Err(format!("{status}\n{}\n{}", folder.read("stdout"), folder.read("stderr"))),
    }
}

/// A path as an argument of a program.
pub fn argument(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Lower ports may belong to services of the machine.
const LOWEST_PORT: u16 = 10_000;

/// A free port, for programs that cannot choose one themselves. Avoids the ports that Linux gives to outgoing
/// connections, and ports that this process already received here. The port is not reserved: another program may still
/// take it.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicUsize> = LazyLock::new(|| AtomicUsize::new(fastrand::u16(..).into()));
    let of_clients = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_of_clients = of_clients.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(0);
    let others: Vec<u16> = (LOWEST_PORT..first_of_clients).collect();
    let candidates = others.iter().map(|_| others[NEXT.fetch_add(1, Ordering::Relaxed) % others.len()]).chain([0]);
    let listener = candidates.into_iter().find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).expect("a free port");
    listener.local_addr().expect("its address").port()
}
