//! As many gateways as `serve` has places for, and one more.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::support::Settings;

const PLACES: usize = 4_096;
/// What else the tests of this process have open.
const OTHERS: usize = 512;

/// Who is not served by then never is.
const PATIENCE: Duration = Duration::from_secs(60);

/// This process, and a server that it starts then, may have so many descriptors.
fn allow_descriptors(count: usize) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let allowed = setrlimit(Resource::RLIMIT_NOFILE, count as rlim_t, hard);
    allowed.unwrap_or_else(|error| panic!("{count} open files, of {hard} at most: {error}"));
}

/// Asks on a connection, which stays.
fn ask(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
}

/// Asks, and returns the whole answer.
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
        assert_ne!(length, 0, "hung up on after {answer:?}");
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
fn so_many_gateways_are_served_and_the_next_one_waits_for_a_place() {
    let settings = Settings::new();
    // As many are usual, and too few: the server takes more for itself.
    allow_descriptors(1_024);
    let server = settings.serve();
    allow_descriptors(PLACES + OTHERS);
    let etag = server.policy("", "0s").etag;
    let mut first = TcpStream::connect(server.address()).unwrap();
    let began = Instant::now();
    let mut gateways = Vec::new();
    while gateways.len() < PLACES - 1 {
        // No more at once than the operating system lets wait: who finds its queue full tries again a second later.
        let more = 100.min(PLACES - 1 - gateways.len());
        gateways.extend((0..more).map(|_| server.waiting(&etag)));
        let all_wait = format!("\napexmcp_settings_waiting_requests {}\n", gateways.len());
        while !asked(&mut first, "/metrics").contains(&all_wait) {
            assert!(began.elapsed() < PATIENCE, "not all of {} are served", gateways.len());
            thread::yield_now();
        }
    }

    let mut next = TcpStream::connect(server.address()).unwrap();
    ask(&mut next, "/healthz");
    next.set_nonblocking(true).unwrap();
    // Were it served, it would be answered within as many answers to another one.
    for _ in 0..100 {
        assert!(asked(&mut first, "/healthz").ends_with("ok\n"));
        let answered = next.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(answered, Err(ErrorKind::WouldBlock), "one more is served");
    }
    gateways.pop();
    next.set_nonblocking(false).unwrap();
    assert!(answer(&mut next).ends_with("ok\n"), "the place that was left is its own");

    settings.json(&["org", "create", "other"]);
    for gateway in &mut gateways {
        let policy = answer(gateway);
        assert!(policy.starts_with("HTTP/1.1 200 ") && policy.contains(r#""other""#), "{policy}");
    }
}
