//! Traces of this program, to the collector that the environment names.

use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::failure::Failure;

/// How long the end waits for the last traces.
const FLUSH: Duration = Duration::from_secs(3);

/// The collector, if one is named.
fn exporter(service: &'static str) -> Result<Option<trace::Traces>, Failure> {
    let Some(endpoint) = std::env::var(trace::ENDPOINT).ok().filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let instance = rustix::system::uname().nodename().to_string_lossy().into_owned();
    trace::Traces::new(&endpoint, service, &instance).map(Some).map_err(|error| {
        Failure::new("traces", error.to_string(), format!("correct or unset {}", trace::ENDPOINT)).usage()
    })
}

/// Logs of the service on stderr, and traces, while `work` runs.
pub(crate) fn service<T>(filter: EnvFilter, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let traces = exporter("novaferry-coordinator")?;
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_filter(filter);
    tracing_subscriber::registry().with(lines).with(traces.as_ref().map(trace::Traces::layer)).init();
    let done = work();
    flush(traces);
    done
}

/// One command as one span; it says nothing on stderr.
pub(crate) fn command<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let Some(traces) = exporter("novaferry")? else { return work() };
    tracing_subscriber::registry().with(traces.layer()).init();
    let span = tracing::info_span!("command");
    trace::follow(&span, parent().as_deref());
    let done = span.in_scope(work);
    drop(span);
    flush(Some(traces));
    done
}

/// What a request is to follow: this program's span, or whoever started it.
pub(crate) fn context() -> Option<String> {
    trace::context(&tracing::Span::current()).or_else(parent)
}

fn parent() -> Option<String> {
    std::env::var(trace::PARENT).ok().filter(|context| trace::is_context(context))
}

/// Traces that are lost change nothing of what was done.
fn flush(traces: Option<trace::Traces>) {
    if let Some(Err(error)) = traces.map(|traces| traces.shutdown(FLUSH)) {
        tracing::warn!(error = &error as &dyn std::error::Error, "traces are lost");
    }
}
