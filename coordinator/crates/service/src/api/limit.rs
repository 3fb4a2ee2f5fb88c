//! How much one caller may ask: a bucket for each token, and one for each address that shows none that is good.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::problem::Problem;

/// How often buckets that are full again are forgotten, in requests. One is full after [`BURST`] seconds, so those of a
/// flood from many addresses do not stay.
const SWEEP: u64 = 1024;
/// So many seconds' worth of requests may come at once.
const BURST: u32 = 2;

/// Requests a second; none is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Of one token.
    pub caller: Option<NonZeroU32>,
    /// Of one address (of IPv6: one /64) without a good token.
    pub address: Option<NonZeroU32>,
}

impl Default for Limits {
    fn default() -> Self {
        // A page that follows ten migrations asks 30 times a second; a person, less than once.
        Self { caller: NonZeroU32::new(200), address: NonZeroU32::new(20) }
    }
}

type Limiter<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock, StateInformationMiddleware>;

/// The buckets of one kind of caller.
#[derive(Debug)]
struct Buckets<K: Hash + Eq + Clone> {
    name: &'static str,
    rate: u32,
    limiter: Limiter<K>,
    checks: AtomicU64,
}

/// All buckets.
#[derive(Debug)]
pub(super) struct Gauge {
    callers: Option<Buckets<String>>,
    addresses: Option<Buckets<IpAddr>>,
}

/// A request that is let through, or that is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Verdict {
    policy: String,
    state: String,
    /// How long to wait, seconds, if it is too much.
    wait: Option<u64>,
}

fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new(name: &'static str, rate: NonZeroU32) -> Self {
        let burst = rate.saturating_mul(NonZeroU32::new(BURST).unwrap_or(NonZeroU32::MIN));
        let limiter = RateLimiter::hashmap(Quota::per_second(rate).allow_burst(burst));
        Self { name, rate: rate.get(), limiter: limiter.with_middleware(), checks: AtomicU64::new(0) }
    }

    fn check(&self, key: &K) -> Verdict {
        if self.checks.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1 {
            self.limiter.retain_recent();
        }
        let (left, wait) = match self.limiter.check_key(key) {
            Ok(state) => (state.remaining_burst_capacity(), None),
            Err(not) => (0, Some(seconds(not.wait_time_from(DefaultClock::default().now())).max(1))),
        };
        // The names of draft-ietf-httpapi-ratelimit-headers.
        let Self { name, rate, .. } = self;
        let policy = format!("\"{name}\";q={};w={BURST}", rate.saturating_mul(BURST));
        Verdict { policy, state: format!("\"{name}\";r={left};t={}", wait.unwrap_or(1)), wait }
    }
}

impl Gauge {
    pub(super) fn new(limits: Limits) -> Self {
        let Limits { caller, address } = limits;
        Self {
            callers: caller.map(|rate| Buckets::new("token", rate)),
            addresses: address.map(|rate| Buckets::new("address", rate)),
        }
    }

    pub(super) fn caller(&self, actor: &str) -> Option<Verdict> {
        self.callers.as_ref().map(|buckets| buckets.check(&actor.to_owned()))
    }

    pub(super) fn address(&self, address: IpAddr) -> Option<Verdict> {
        let address = match address.to_canonical() {
            // Whoever has one address of a /64 has all of it.
            IpAddr::V6(whole) => IpAddr::V6(Ipv6Addr::from_bits(whole.to_bits() >> 64 << 64)),
            four => four,
        };
        self.addresses.as_ref().map(|buckets| buckets.check(&address))
    }
}

impl Verdict {
    /// The answer, if it is too much.
    pub(super) fn refusal(&self) -> Option<Response> {
        let wait = self.wait?;
        let why = format!("too many requests; wait {wait} s, and ask for more with one: `limit` of lists");
        let mut response =
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", why).into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait));
        self.tell(response.headers_mut());
        Some(response)
    }

    /// Says what is left.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        for (name, value) in [("ratelimit-policy", &self.policy), ("ratelimit", &self.state)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_bucket_of_its_own() {
        let gauge = Gauge::new(Limits { caller: NonZeroU32::new(1), address: NonZeroU32::new(1) });
        let refused = |verdict: Option<Verdict>| verdict.unwrap().wait.is_some();
        assert!(!refused(gauge.caller("token:a")) && !refused(gauge.caller("token:a")));
        assert!(refused(gauge.caller("token:a")));
        assert!(!refused(gauge.caller("token:b")));
        let address = |text: &str| gauge.address(text.parse().unwrap());
        assert!(!refused(address("2001:db8::1")) && !refused(address("2001:db8::2")));
        assert!(refused(address("2001:db8::3")), "one /64");
        assert!(!refused(address("2001:db8:0:1::3")) && !refused(address("192.0.2.1")));
        assert!(!refused(address("::ffff:192.0.2.1")));
        assert!(refused(address("192.0.2.1")), "the same, whichever socket it came by");
        let none = Gauge::new(Limits { caller: None, address: None });
        assert!(none.caller("token:a").is_none());
    }

    #[test]
    fn buckets_that_are_full_again_are_forgotten() {
        let buckets = Buckets::<u64>::new("token", NonZeroU32::new(1_000_000).unwrap());
        (0..100 * SWEEP).for_each(|key| drop(buckets.check(&key)));
        assert!(buckets.limiter.len() < 90 * usize::try_from(SWEEP).unwrap());
    }
}
