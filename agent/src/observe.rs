//! What operators see: logs and traces ([`logs`]), metrics ([`names`], [`prometheus`]).
//!
//! Libraries only use the facades `tracing` and `metrics`; this module decides where that goes. Every session's work
//! runs in a span with the fields `session` and `generation` (see [`SESSION_FIELD`]), which appear in every log line
//! and as attributes of every exported span.

pub mod logs;
pub mod names;
pub mod prometheus;

pub use logs::{Telemetry, init};

/// Span field with the session's id in hexadecimal digits.
pub const SESSION_FIELD: &str = "session";
/// Span field with the generation as a number.
pub const GENERATION_FIELD: &str = "generation";

/// What can fail when observation is set up or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// The filter in the environment cannot be parsed.
    #[error(
        "{} = {value:?} is no log filter; write a level such as \"info\", or a list such as \"novaferry_engine=debug,info\"",
        crate::env::LOG
    )]
    Filter {
        /// What was in the environment.
        value: String,
        /// Why not.
        source: tracing_subscriber::filter::ParseError,
    },
    /// There is a subscriber or recorder already.
    #[error("{what} is set up twice; this is a bug: report it")]
    Twice {
        /// Which one.
        what: &'static str,
    },
    /// The endpoint's address cannot be bound.
    #[error("cannot listen on {address} for metrics; choose another [metrics] listen, or \"off\"")]
    Bind {
        /// The address.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A histogram has no buckets.
    #[error("the metrics recorder cannot be made; this is a bug: report it")]
    Recorder {
        /// Why not.
        source: metrics_exporter_prometheus::BuildError,
    },
    /// The exporter of traces cannot be made.
    #[error("traces cannot be exported to {endpoint}; correct [otlp] endpoint or remove the section")]
    Otlp {
        /// The collector's address.
        endpoint: String,
        /// Why not.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Traces could not be delivered at the end.
    #[error("the last traces were not delivered; check that the collector of [otlp] endpoint runs")]
    Flush {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
