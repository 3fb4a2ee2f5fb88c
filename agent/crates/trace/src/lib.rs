//! Traces: export over OTLP (feature `otlp`), and W3C trace contexts, which go from the command line to the coordinator
//! and on to both hosts of a migration.
//!
//! A context is text from outside: what is none is passed over, and starts a trace of its own.

#[cfg(feature = "otlp")]
mod otlp;

#[cfg(feature = "otlp")]
pub use otlp::{TraceError, Traces};
use tracing::Span;

/// Environment variable with the collector's address, as other programs have it: `http://HOST:4318`.
pub const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Name of the HTTP header with a context.
pub const HEADER: &str = "traceparent";
/// Environment variable with a context from whoever started this program.
pub const PARENT: &str = "TRACEPARENT";

/// Length of a context of version 00.
const LENGTH: usize = 55;

/// Whether a text is a context: `00-TRACE-SPAN-FLAGS` in small hexadecimal digits, neither id all zeros.
#[must_use]
pub fn is_context(text: &str) -> bool {
    let small_hex = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |part: &str, digits: usize| small_hex(part, digits) && part.bytes().any(|byte| byte != b'0');
    let parts: Vec<_> = text.splitn(5, '-').collect();
    text.len() == LENGTH
        && matches!(parts[..], ["00", trace, span, flags] if id(trace, 32) && id(span, 16) && small_hex(flags, 2))
}

/// Makes a span that has not been entered a part of somebody else's trace. Without an exporter, or with what is no
/// context, nothing happens.
pub fn follow(span: &Span, parent: Option<&str>) {
    let Some(parent) = parent.filter(|parent| is_context(parent)) else { return };
    #[cfg(feature = "otlp")]
    otlp::follow(span, parent);
    #[cfg(not(feature = "otlp"))]
    let _unused = (span, parent);
}

/// The context of a span, for whoever goes on with it elsewhere. None when spans are not exported.
#[must_use]
pub fn context(span: &Span) -> Option<String> {
    #[cfg(feature = "otlp")]
    return otlp::context(span);
    #[cfg(not(feature = "otlp"))]
    {
        let _unused = span;
        None
    }
}

/// Begins a part of a trace: the span follows `parent`, and what comes back is what the next program is to follow: the
/// span, or `parent` itself when spans are not exported here.
#[must_use]
pub fn hand_on(span: &Span, parent: Option<&str>) -> Option<String> {
    follow(span, parent);
    context(span).or_else(|| parent.filter(|parent| is_context(parent)).map(ToOwned::to_owned))
}

#[cfg(test)]
mod tests;
