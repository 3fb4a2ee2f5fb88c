//! Traces over OTLP: HTTP with protobuf bodies.
//!
//! The SDK exports from a thread of its own, outside any async runtime; so the client is a blocking one.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

/// One attempt to deliver a batch. A collector that is slower loses batches; transfers never wait for it.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer of a collector that is read: an answer is a few bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// Which spans are exported: ours at debug and above; the network crates' would drown them and feed on themselves.
const FILTER: &str =
    "debug,hyper=off,ureq=off,ureq_proto=off,rustls=off,quinn=off,quinn_proto=off,opentelemetry=off";

/// What fails with an exporter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The address of the collector is none.
    #[error("traces cannot be exported to {endpoint}")]
    Endpoint {
        /// The address.
        endpoint: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was buffered at the end is lost.
    #[error("the last traces were not delivered")]
    Flush {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The exporter and its buffer.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// An exporter to `endpoint`, `http://HOST:PORT`, for a program of this name; `instance` tells it from its like.
    ///
    /// # Errors
    /// [`TraceError::Endpoint`].
    pub fn new(endpoint: &str, service: &'static str, instance: &str) -> Result<Self, TraceError> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| TraceError::Endpoint {
                endpoint: endpoint.to_owned(),
                source: Box::new(error),
            })?;
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", service),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance.to_owned()),
            ])
            .build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let tracer = provider.tracer("novaferry");
        Ok(Self { provider, tracer })
    }

    /// The part of a subscriber that feeds the exporter.
    #[must_use]
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        tracing_opentelemetry::layer().with_tracer(self.tracer.clone()).with_filter(EnvFilter::new(FILTER))
    }

    /// Delivers what is buffered. Blocks: call it after the runtime has ended.
    ///
    /// # Errors
    /// [`TraceError::Flush`] when the collector did not take it in time.
    pub fn shutdown(self, timeout: Duration) -> Result<(), TraceError> {
        self.provider
            .shutdown_with_timeout(timeout)
            .map_err(|error| TraceError::Flush { source: Box::new(error) })
    }
}

/// `parent` was looked at: it is a context.
pub(super) fn follow(span: &Span, parent: &str) {
    let mut parts = parent.split('-').skip(1);
    let mut next = || parts.next().unwrap_or_default();
    let (Ok(trace), Ok(id)) = (TraceId::from_hex(next()), SpanId::from_hex(next())) else { return };
    let flags = u8::from_str_radix(next(), 16).map_or(TraceFlags::NOT_SAMPLED, TraceFlags::new);
    let remote = SpanContext::new(trace, id, flags, true, TraceState::NONE);
    // A span that began already keeps its own trace: worth a word, and nothing else.
    if let Err(error) = span.set_parent(Context::new().with_remote_span_context(remote)) {
        tracing::debug!(%error, "a span cannot follow its parent");
    }
}

pub(super) fn context(span: &Span) -> Option<String> {
    let context = span.context();
    let here = context.span().span_context().clone();
    here.is_valid()
        .then(|| format!("00-{}-{}-{:02x}", here.trace_id(), here.span_id(), here.trace_flags().to_u8()))
}

/// A blocking HTTP client, called on the SDK's export thread only.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
}

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(EXPORT_TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            .build();
        Self { agent: config.new_agent() }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let mut answer = self.agent.run(Request::from_parts(parts, &body[..]))?;
        let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec()?;
        let (parts, _) = answer.into_parts();
        Ok(Response::from_parts(parts, Bytes::from(body)))
    }
}

impl HttpClient for Client {
    fn send_bytes<'this, 'future>(
        &'this self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'future>>
    where
        'this: 'future,
        Self: 'future,
    {
        Box::pin(async move { self.send(request) })
    }
}
