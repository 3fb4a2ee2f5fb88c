//! The rate limit of a session: a token bucket that may go into debt.

use std::time::{Duration, Instant};

/// Grants bytes at a rate. A grant is never refused: it may leave the bucket in debt, and the caller waits as long
/// as it is told before it sends. So a piece larger than the burst passes, in its turn.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    rate: u64,
    burst: f64,
    tokens: f64,
    last: Instant,
}

/// What may be sent at once after a pause, in time: long enough that a timer's coarseness costs no rate.
const BURST: Duration = Duration::from_millis(50);

impl TokenBucket {
    /// A bucket of `rate` bytes a second (at least 1), full at `now`.
    pub(crate) fn new(rate: u64, now: Instant) -> Self {
        let rate = rate.max(1);
        let burst = Self::float(rate) * BURST.as_secs_f64();
        Self { rate, burst, tokens: burst, last: now }
    }

    /// Goes on at another rate. A debt is paid at the new one.
    pub(crate) fn set_rate(&mut self, rate: u64, now: Instant) {
        self.take(0, now);
        let fresh = Self::new(rate, self.last);
        *self = Self { tokens: self.tokens.min(fresh.burst), ..fresh };
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate above 2^53 bytes a second needs no exact limit")]
    fn float(value: u64) -> f64 {
        value as f64
    }

    /// Takes `bytes` and says how long to wait before they may be sent.
    pub(crate) fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.last);
        self.last = self.last.max(now);
        let rate = Self::float(self.rate);
        self.tokens = (self.tokens + elapsed.as_secs_f64() * rate).min(self.burst) - Self::float(bytes);
        // A debt of more than a century is an absurd rate, not a reason to panic.
        Duration::try_from_secs_f64((-self.tokens / rate).max(0.0)).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1_000_000, start);
        assert_eq!(bucket.take(50_000, start), Duration::ZERO);
        assert_eq!(bucket.take(100_000, start), Duration::from_millis(100));
        // Half of the debt is paid after 50 ms; another 100 kB come on top.
        assert_eq!(bucket.take(100_000, start + Duration::from_millis(50)), Duration::from_millis(150));
    }

    #[test]
    fn a_debt_is_paid_at_the_new_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1_000_000, start);
        assert_eq!(bucket.take(150_000, start), Duration::from_millis(100));
        bucket.set_rate(100_000, start);
        assert_eq!(bucket.take(0, start), Duration::from_secs(1));
        bucket.set_rate(10_000_000, start + Duration::from_millis(500));
        assert_eq!(bucket.take(0, start + Duration::from_millis(500)), Duration::from_millis(5));
        // A larger burst is not there at once.
        let mut bucket = TokenBucket::new(1000, start);
        bucket.set_rate(1_000_000, start);
        assert_eq!(bucket.take(1050, start), Duration::from_millis(1));
    }

    #[test]
    fn a_pause_fills_no_more_than_the_burst() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1_000_000, start);
        bucket.take(50_000, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.take(50_000, later), Duration::ZERO);
        assert_eq!(bucket.take(10_000, later), Duration::from_millis(10));
    }

    #[test]
    fn the_average_over_many_grants_is_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10 << 20, start);
        let mut now = start;
        for _ in 0..1000 {
            now += bucket.take(1 << 20, now);
        }
        let seconds = (now - start).as_secs_f64();
        assert!((99.0..101.0).contains(&seconds), "1000 MiB at 10 MiB/s took {seconds} s of model time");
    }

    #[test]
    fn a_clock_that_goes_back_and_a_rate_of_zero_do_no_harm() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut bucket = TokenBucket::new(0, start);
        assert!(bucket.take(u64::MAX, start - Duration::from_secs(5)) > Duration::from_secs(1));
    }
}
