//! Time since a session began: what the sans-IO machines are given as `now`.

use std::time::Duration;

use tokio::time::Instant;

/// A session's clock. Monotonic: steps of the wall clock do not reach a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Duration {
        self.0.elapsed()
    }

    /// Waits until then, or for ever.
    pub(crate) async fn reach(self, at: Option<Duration>) {
        match at {
            Some(at) => tokio::time::sleep_until(self.0 + at).await,
            None => std::future::pending().await,
        }
    }
}

/// CPU time of this process so far, all threads.
#[must_use]
pub fn process_cpu() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}
