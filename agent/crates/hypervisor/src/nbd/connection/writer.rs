//! The writer task: requests in the order in which they were queued.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};

use super::super::socket::write_both;
use super::{Outgoing, Shared, WriteHalf};
use crate::error::ConnectionLoss;

/// Writes what comes through `queue` until the connection ends, and gives every payload back.
pub(super) async fn run_writer(
    shared: Arc<Shared>,
    mut socket: WriteHalf,
    mut queue: mpsc::Receiver<Outgoing>,
    mut ended: watch::Receiver<bool>,
) {
    let mut failure = None;
    while failure.is_none() {
        let next = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => break,
            next = queue.recv() => next,
        };
        let Some(Outgoing { head, payload }) = next else { break };
        let bytes = payload.as_ref().map_or(&[][..], |(buffer, _)| buffer.as_ref());
        let result = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => Ok(()),
            result = write_both(&mut socket, &head, bytes) => result,
        };
        if let Some((buffer, give_back)) = payload {
            drop(give_back.send(buffer));
        }
        failure = result.err();
    }
    shared.lose(failure.map_or(ConnectionLoss::Closed, ConnectionLoss::Socket));
    queue.close();
    while let Some(outgoing) = queue.recv().await {
        if let Some((buffer, give_back)) = outgoing.payload {
            drop(give_back.send(buffer));
        }
    }
    // Best effort: the peer sees the end of the stream in any case when the socket closes.
    drop(socket.shutdown().await);
}
