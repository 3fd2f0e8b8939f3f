//! A name server (RFC 1035) that knows every name, and fails at those that a test names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// How it fails at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It says that there is no such name (NXDOMAIN).
    NoName,
    /// It says that the name has no address.
    NoAddress,
    /// It says that it can't tell (SERVFAIL).
    Broken,
    /// It refuses to tell (REFUSED).
    Refusing,
    /// It says something that is no message.
    Garbage,
    /// It says nothing.
    Silent,
}

type Failures = Arc<Mutex<HashMap<String, Failure>>>;

/// The name server. It ends with this value.
#[derive(Debug)]
pub struct NameServer {
    port: u16,
    failures: Failures,
    answering: JoinHandle<()>,
}

impl NameServer {
    /// Starts one by which every name is 127.0.0.1.
    ///
    /// # Panics
    /// Where it can't listen.
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

    /// Where it is asked, by UDP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on it fails at this name.
    pub fn fail(&self, name: &str, failure: Failure) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), failure);
    }

    /// From now on it fails at none.
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
/// It is an answer, and recursion was done.
const FLAGS: u16 = 0x8180;

/// The answer to a question for one name's address (RFC 1035 §4.1).
fn answer(query: &[u8], failures: &Failures) -> Option<Vec<u8>> {
    let (id, mut rest) = (query.get(..2)?, query.get(HEADER_LENGTH..)?);
    let mut labels = Vec::new();
    while let Some((length, after)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, after) = after.split_at_checked((*length).into())?;
        labels.push(String::from_utf8_lossy(label));
        rest = after;
    }
    // The root's empty label, the type, the class.
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
    // The name of the question, an address of the Internet, to be kept for no time, 4 bytes.
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1];
    let records = u16::from(failure.is_none());
    let counts = [1, records, 0, 0].map(u16::to_be_bytes).concat();
    let head = [id, (FLAGS | code).to_be_bytes().as_slice(), counts.as_slice(), question].concat();
    Some([head, record.repeat(records.into())].concat())
}
