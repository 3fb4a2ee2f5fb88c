//! Connections that the destination opened, until the migration takes one of them: for destinations that this host
//! cannot dial.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tunnel::{ChannelTunnel, CloseCode, Incoming, Watcher};
use wire::FailCode;

/// Where calls wait. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    waiting: Option<Incoming>,
    /// The last that was taken.
    taken: Option<Watcher>,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The destination dialled. It has one connection at a time: what it opened before is over, whether or not that was
    /// noticed here.
    pub fn put(&self, call: Incoming) {
        let mut known = self.lock();
        if let Some(earlier) = known.waiting.replace(call) {
            earlier.refuse(FailCode::Busy, "this destination has dialled again");
        }
        if let Some(earlier) = known.taken.take() {
            earlier.close(CloseCode::Done, "this destination has dialled again");
        }
        drop(known);
        self.0.news.notify_one();
    }

    /// The next call whose caller has not hung up. Cancel-safe.
    pub(super) async fn take(&self) -> ChannelTunnel {
        loop {
            {
                let mut known = self.lock();
                if let Some(call) = known.waiting.take().filter(|call| !call.is_gone()) {
                    match call.accept_call() {
                        Ok(tunnel) => {
                            known.taken = Some(tunnel.watcher());
                            return tunnel;
                        }
                        Err(error) => tracing::debug!(error = %error.chain(), "a call cannot be taken"),
                    }
                }
            }
            self.0.news.notified().await;
        }
    }
}
