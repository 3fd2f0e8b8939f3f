//! As many gateways as `serve` accepts connections, and one more.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::support::Settings;

const PLACES: usize = 4_096;
/// File descriptors of the other tests in this process.
const OTHERS: usize = 512;

/// A client without an answer after this time is considered not served.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sets the limit of open files for this process and for servers that it starts later.
fn allow_descriptors(count: usize) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let allowed = setrlimit(Resource::RLIMIT_NOFILE, count as rlim_t, hard);
    allowed.unwrap_or_else(|error| panic!("{count} open files, of {hard} at most: {error}"));
}

/// Sends a request on a connection that stays open.
fn ask(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
}

/// Sends a request, and returns the whole answer.
fn asked(stream: &mut TcpStream, path: &str) -> String {
    ask(stream, path);
    answer(stream)
}

/// The next answer on a connection.
fn answer(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    while !is_whole(&answer) {
        let mut bytes = [0; 4096];
        let length = stream.read(&mut bytes).unwrap();
        assert_ne!(length, 0, "disconnected after {answer:?}");
        answer.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    answer
}

fn is_whole(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.unwrap().parse() == Ok(body.len())
}

#[test]
fn connections_beyond_the_limit_wait_until_one_ends() {
    let settings = Settings::new();
    // The usual soft limit, which is too low. The server raises it.
    allow_descriptors(1_024);
    let server = settings.serve();
    allow_descriptors(PLACES + OTHERS);
    let etag = server.policy("", "0s").etag;
    let mut first = TcpStream::connect(server.address()).unwrap();
    let began = Instant::now();
    let mut gateways = Vec::new();
    while gateways.len() < PLACES - 1 {
        // Not more at a time than fit into the queue of the operating system. A client that finds it full retries a second later.
        let more = 100.min(PLACES - 1 - gateways.len());
        gateways.extend((0..more).map(|_| server.waiting(&etag)));
        let all_wait = format!("\napexmcp_settings_waiting_requests {}\n", gateways.len());
        while !asked(&mut first, "/metrics").contains(&all_wait) {
            assert!(began.elapsed() < PATIENCE, "not all of {} connections are served", gateways.len());
            thread::yield_now();
        }
    }

    let mut next = TcpStream::connect(server.address()).unwrap();
    ask(&mut next, "/healthz");
    next.set_nonblocking(true).unwrap();
    // A served request would be answered within this number of answers on another connection.
    for _ in 0..100 {
        assert!(asked(&mut first, "/healthz").ends_with("ok\n"));
        let answered = next.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(answered, Err(ErrorKind::WouldBlock), "one connection too many is served");
    }
    gateways.pop();
    next.set_nonblocking(false).unwrap();
    assert!(answer(&mut next).ends_with("ok\n"), "it gets the place of the connection that ended");

    settings.json(&["org", "create", "other"]);
    for gateway in &mut gateways {
        let policy = answer(gateway);
        assert!(policy.starts_with("HTTP/1.1 200 ") && policy.contains(r#""other""#), "{policy}");
    }
}
