//! What stands between Envoy and a service, and breaks while they talk: the service itself stays as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Where connections lead.
#[derive(Clone, Debug)]
pub enum Way {
    /// To the service.
    Open,
    /// To somebody who reads and never answers.
    Silent,
    /// To their end.
    Closed,
    /// To somebody who says this, whatever is asked, and closes.
    Answer {
        /// Every byte of it.
        bytes: Vec<u8>,
        /// How long after each byte the next one comes; all at once where it is zero.
        pause: Duration,
    },
}

impl Way {
    /// To somebody who says this at once.
    pub fn answer(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Answer { bytes: bytes.into(), pause: Duration::ZERO }
    }

    /// The same, one byte a second, where this is to somebody who says something.
    pub fn dripping(self) -> Self {
        match self {
            Self::Answer { bytes, .. } => Self::Answer { bytes, pause: Duration::from_secs(1) },
            other => other,
        }
    }
}

/// The front. It ends with this value.
#[derive(Debug)]
pub struct Front {
    port: u16,
    way: watch::Sender<Way>,
    met: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Front {
    /// One of the service at this port, open.
    ///
    /// # Panics
    /// Where it can't listen.
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

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on connections lead there. Those that are there end.
    pub fn lead(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// How many connections brought a request, or had no chance to.
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
            // What is not read would take the answer with it when the connection is closed.
            connection.shutdown().await?;
            connection.read_to_end(&mut Vec::new()).await?;
        }
    }
    Ok(())
}
