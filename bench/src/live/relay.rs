//! Unix sockets that pass bytes on and count them: how many bytes QEMU sends is nowhere else to be seen, for its own
//! counters leave out the devices and the disks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// Bytes passed on at once: what a Unix socket holds.
const BLOCK: usize = 256 << 10;

/// A socket that passes on; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    bytes: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens at `from` and connects every client to `to`.
    pub(super) fn start(from: &Path, to: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(from).with_context(|| format!("listen at {}", from.display()))?;
        let bytes = Arc::<AtomicU64>::default();
        let count = Arc::clone(&bytes);
        let task = tokio::spawn(async move {
            // With the set, what it passes on ends, too.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (to, count) = (to.clone(), Arc::clone(&count));
                // A connection that breaks ends on both sides: those who speak over it say what that means.
                connections.spawn(async move { pass(client, &to, &count).await.ok() });
            }
        });
        Ok(Self { bytes, task })
    }

    /// Bytes passed on so far, both directions.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: UnixStream, to: &Path, count: &AtomicU64) -> io::Result<()> {
    let server = UnixStream::connect(to).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(one_way(from_client, to_server, count), one_way(from_server, to_client, count))?;
    Ok(())
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &AtomicU64,
) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        let read = from.read(&mut block).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&block[..read]).await?;
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_in_both_directions_and_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let server = UnixListener::bind(&to).unwrap();
        let relay = Relay::start(&from, to).unwrap();
        for round in 1..=2 {
            let mut client = UnixStream::connect(&from).await.unwrap();
            let (mut accepted, _) = server.accept().await.unwrap();
            client.write_all(&[7; 1000]).await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            accepted.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, [7; 1000], "the end came through, too");
            accepted.write_all(b"answer").await.unwrap();
            drop(accepted);
            got.clear();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"answer");
            assert_eq!(relay.bytes(), round * 1006);
        }
    }
}
