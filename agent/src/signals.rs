//! What signals mean: the first SIGTERM or SIGINT asks to stop, the second to stop at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Listens from now on. `stop` is cancelled by the first SIGTERM or SIGINT, `cancel` by the second.
///
/// # Errors
/// When the kernel refuses.
pub fn stop_on_signals(stop: CancellationToken, cancel: CancellationToken) -> Result<(), Failure> {
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for token in [stop, cancel] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(())
}

/// A stream of one signal.
///
/// # Errors
/// When the kernel refuses.
pub fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| {
        Failure::new(
            "signals",
            format!("cannot listen for signals: {error}"),
            "check the limits of this process",
        )
    })
}
