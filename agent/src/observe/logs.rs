//! Logs to stderr and, when configured, traces to a collector.

use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::ObserveError;
use crate::config::{Log, LogFormat, Otlp};
use crate::env;

/// How long the end of the process waits for the last traces: long enough for a collector nearby, and far below what
/// systemd grants a stopping service.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What must be ended in order: keep it until the process ends, then call [`Telemetry::shutdown`].
#[derive(Debug)]
#[must_use = "traces that are buffered at the end are lost unless shutdown is called"]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    traces: Option<trace::Traces>,
}

impl Telemetry {
    /// Delivers buffered traces, waiting at most [`FLUSH_TIMEOUT`]. Blocks: call it after the runtime has ended.
    ///
    /// # Errors
    /// [`ObserveError::Flush`] when the collector did not take them.
    pub fn shutdown(self) -> Result<(), ObserveError> {
        #[cfg(feature = "otlp")]
        if let Some(traces) = self.traces {
            traces
                .shutdown(FLUSH_TIMEOUT)
                .map_err(|error| ObserveError::Flush { source: Box::new(error) })?;
        }
        Ok(())
    }
}

/// Sets up logs on stderr, and traces, for the whole process. `host` names this agent in traces.
///
/// # Errors
/// [`ObserveError`]: a bad filter in the environment, a bad endpoint, or a second call.
pub fn init(log: &Log, otlp: Option<&Otlp>, host: &str) -> Result<Telemetry, ObserveError> {
    let (subscriber, telemetry) = subscriber(log, env::log_filter(), otlp, host, std::io::stderr)?;
    install(subscriber)?;
    Ok(telemetry)
}

/// Makes a subscriber that of the whole process.
///
/// # Errors
/// [`ObserveError::Twice`] at the second call.
pub fn install(subscriber: impl Subscriber + Send + Sync + 'static) -> Result<(), ObserveError> {
    subscriber.try_init().map_err(|_second| ObserveError::Twice { what: "logging" })
}

/// quinn's socket layer warns of every datagram that the kernel refuses, such as while the peer restarts. What follows
/// from it, a lost or refused connection, is said by us; so only a filter that names that layer lets it speak.
fn with_quiet_socket(filter: &str) -> String {
    const LAYER: &str = "quinn_udp";
    if filter.contains(LAYER) { filter.to_owned() } else { format!("{filter},{LAYER}=error") }
}

/// What [`init`] installs, for tests to use in their own scope. `filter` wins over the level in `log`.
///
/// # Errors
/// As [`init`].
pub fn subscriber<W>(
    log: &Log,
    filter: Option<String>,
    otlp: Option<&Otlp>,
    host: &str,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync + 'static, Telemetry), ObserveError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let value = filter.unwrap_or_else(|| log.level.clone());
    let filter = EnvFilter::try_new(with_quiet_socket(&value))
        .map_err(|source| ObserveError::Filter { value, source })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Text => Box::new(lines.with_ansi(false).with_filter(filter)),
        // The list of spans carries session and generation into every line.
        LogFormat::Json => {
            Box::new(lines.json().with_current_span(false).with_span_list(true).with_filter(filter))
        }
    };
    #[cfg(feature = "otlp")]
    {
        let export = |otlp: &Otlp| {
            trace::Traces::new(&otlp.endpoint, "novaferry-agent", host).map_err(|error| ObserveError::Otlp {
                endpoint: otlp.endpoint.clone(),
                source: Some(Box::new(error)),
            })
        };
        let traces = otlp.map(export).transpose()?;
        let layer = traces.as_ref().map(trace::Traces::layer);
        Ok((Registry::default().with(lines).with(layer), Telemetry { traces }))
    }
    #[cfg(not(feature = "otlp"))]
    {
        let _unused = host;
        if let Some(otlp) = otlp {
            return Err(ObserveError::Otlp {
                endpoint: otlp.endpoint.clone(),
                source: Some("this agent was built without the feature `otlp`".into()),
            });
        }
        Ok((Registry::default().with(lines), Telemetry {}))
    }
}
