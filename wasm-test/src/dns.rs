//! A name server (RFC 1035) that resolves every name to 127.0.0.1, except for names for which a test chose a failure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// How the server answers a query for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The name does not exist (NXDOMAIN).
    NoName,
    /// The name exists and has no address.
    NoAddress,
    /// The server failed (SERVFAIL).
    Broken,
    /// The server refuses the query (REFUSED).
    Refusing,
    /// The answer is not a DNS message.
    Garbage,
    /// The server does not answer.
    Silent,
}

type Failures = Arc<Mutex<HashMap<String, Failure>>>;

#[derive(Debug)]
pub struct NameServer {
    port: u16,
    failures: Failures,
    answering: JoinHandle<()>,
}

impl NameServer {
    /// Starts a name server without failures.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let port = socket.local_addr().expect("its address").port();
        let failures = Failures::default();
        let known = Arc::clone(&failures);
        let answering = tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query).await {
                if let Some(answer) = query.get(..length).and_then(|query| answer(query, &known)) {
                    let _ = socket.send_to(&answer, client).await;
                }
            }
        });
        Self { port, failures, answering }
    }

    /// Its UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Answers queries for this name with this failure from now on.
    pub fn fail(&self, name: &str, failure: Failure) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), failure);
    }

    /// Removes all failures.
    pub fn recover(&self) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

const HEADER_LENGTH: usize = 12;
/// QR (this is a response), RD and RA (recursion was requested and is available).
const FLAGS: u16 = 0x8180;

/// The answer to a query for the address of one name (RFC 1035 §4.1).
fn answer(query: &[u8], failures: &Failures) -> Option<Vec<u8>> {
    let (id, mut rest) = (query.get(..2)?, query.get(HEADER_LENGTH..)?);
    let mut labels = Vec::new();
    while let Some((length, after)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, after) = after.split_at_checked((*length).into())?;
        labels.push(String::from_utf8_lossy(label));
        rest = after;
    }
    // The empty label of the root, the type and the class.
    let question = query.get(HEADER_LENGTH..query.len() - rest.len() + 5)?;
    let failure = failures.lock().unwrap_or_else(PoisonError::into_inner).get(&labels.join(".").to_ascii_lowercase()).copied();
    let code = match failure {
        None | Some(Failure::NoAddress) => 0,
        Some(Failure::Broken) => 2,
        Some(Failure::NoName) => 3,
        Some(Failure::Refusing) => 5,
        Some(Failure::Garbage) => return Some(b"<html>Log in</html>".to_vec()),
        Some(Failure::Silent) => return None,
    };
    // A pointer to the name in the question, type A, class IN, TTL 0, and 4 bytes of address.
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1];
    let records = u16::from(failure.is_none());
    let counts = [1, records, 0, 0].map(u16::to_be_bytes).concat();
    let head = [id, (FLAGS | code).to_be_bytes().as_slice(), counts.as_slice(), question].concat();
    Some([head, record.repeat(records.into())].concat())
}
