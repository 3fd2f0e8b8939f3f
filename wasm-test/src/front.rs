//! A TCP proxy between Envoy and a service. It breaks the connections, while the service itself stays healthy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the proxy does with a connection.
#[derive(Clone, Debug)]
pub enum Way {
    /// Forwards it to the service.
    Open,
    /// Reads and never answers.
    Silent,
    /// Closes it immediately.
    Closed,
    /// Sends a fixed answer to any request and closes the connection.
    Answer {
        /// The whole answer, including the HTTP head.
        bytes: Vec<u8>,
        /// The pause after each byte. Zero sends all bytes together.
        pause: Duration,
    },
}

impl Way {
    /// Sends this answer without pauses.
    pub fn answer(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Answer { bytes: bytes.into(), pause: Duration::ZERO }
    }

    /// Sends an answer at one byte a second. Other variants stay unchanged.
    pub fn dripping(self) -> Self {
        match self {
            Self::Answer { bytes, .. } => Self::Answer { bytes, pause: Duration::from_secs(1) },
            other => other,
        }
    }
}

#[derive(Debug)]
pub struct Front {
    port: u16,
    way: watch::Sender<Way>,
    met: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Front {
    /// Starts a proxy that forwards to the service at this port.
    pub async fn of(service: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let (way, watched) = watch::channel(Way::Open);
        let met = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&met);
        let accepting = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (mut watched, counted) = (watched.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let way = watched.borrow_and_update().clone();
                    tokio::select! {
                        _ = lead(connection, way, service, &counted) => {}
                        _ = watched.changed() => {}
                    }
                });
            }
        });
        Self { port, way, met, accepting }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Treats connections in this way from now on. Open connections end.
    pub fn lead(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// The number of connections that sent a request, or that were closed before they could send one.
    pub fn met(&self) -> usize {
        self.met.load(Ordering::Relaxed)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn lead(mut connection: TcpStream, way: Way, service: u16, met: &AtomicUsize) -> std::io::Result<()> {
    if !matches!(way, Way::Closed) {
        connection.peek(&mut [0]).await?;
    }
    met.fetch_add(1, Ordering::Relaxed);
    match way {
        Way::Open => {
            let mut service = TcpStream::connect(("127.0.0.1", service)).await?;
            copy_bidirectional(&mut connection, &mut service).await?;
        }
        Way::Silent => {
            connection.read_to_end(&mut Vec::new()).await?;
        }
        Way::Closed => {}
        Way::Answer { bytes, pause } => {
            let size = if pause.is_zero() { bytes.len().max(1) } else { 1 };
            for part in bytes.chunks(size) {
                connection.write_all(part).await?;
                tokio::time::sleep(pause).await;
            }
            // Unread bytes would make the kernel reset the connection, and the client would lose the answer.
            connection.shutdown().await?;
            connection.read_to_end(&mut Vec::new()).await?;
        }
    }
    Ok(())
}
