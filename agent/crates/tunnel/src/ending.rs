//! How a tunnel ends: once, for the reason that came first, and everybody who waits for it is told.

use tokio::sync::watch;
use wire::FailCode;

use crate::error::{CloseCode, TunnelError, TunnelErrorKind};

/// How a tunnel ends.
#[derive(Clone, Debug)]
pub(crate) struct Closing {
    /// What this side is told.
    pub(crate) error: TunnelError,
    /// What the peer is told.
    pub(crate) code: CloseCode,
    pub(crate) reason: String,
}

impl Closing {
    /// Because of an error; the peer is told the code that belongs to it.
    pub(crate) fn because(error: TunnelError) -> Self {
        let (code, reason) = (error.close_code(), error.chain());
        Self { error, code, reason }
    }

    /// Because the caller wants it.
    pub(crate) fn here(code: CloseCode, reason: &str) -> Self {
        let error =
            TunnelError::new(TunnelErrorKind::Closed(code), format!("this side closed the tunnel: {reason}"));
        Self { error, code, reason: reason.to_owned() }
    }

    /// Because the last end was dropped. Nobody decided to end it: its owner panicked, or its process ends without a
    /// word. The peer may come back.
    pub(crate) fn abandoned(what: &str) -> Self {
        Self::here(CloseCode::Failed(FailCode::Internal), &format!("the {what} was dropped"))
    }
}

/// The end of a tunnel, once there is one.
#[derive(Debug)]
pub(crate) struct Ending(watch::Sender<Option<Closing>>);

impl Ending {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// The first reason counts.
    pub(crate) fn set(&self, closing: Closing) {
        self.0.send_if_modified(|current| {
            let first = current.is_none();
            current.get_or_insert(closing);
            first
        });
    }

    pub(crate) fn get(&self) -> Option<Closing> {
        self.0.borrow().clone()
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits for the end. Cancel-safe.
    pub(crate) async fn wait(&self) -> Closing {
        let mut watch = self.0.subscribe();
        // The sender lives in `self`, so the wait ends with a value.
        let found = watch.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        found.unwrap_or_else(|| unreachable!("the sender of a borrowed ending is alive"))
    }
}
