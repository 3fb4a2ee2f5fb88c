//! Traces over OTLP: HTTP with protobuf bodies.
//!
//! The SDK exports from a thread of its own, outside any async runtime; so the client is a blocking one.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::Subscriber;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

use super::ObserveError;
use crate::config::Otlp;

/// One attempt to deliver a batch. A collector that is slower loses batches; transfers never wait for it.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer of a collector that is read: an answer is a few bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// Which spans are exported: ours at debug and above; the network crates' would drown them and feed on themselves.
const FILTER: &str =
    "debug,hyper=off,ureq=off,ureq_proto=off,rustls=off,quinn=off,quinn_proto=off,opentelemetry=off";

/// The exporter and its buffer.
#[derive(Debug)]
pub(super) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    pub(super) fn new(otlp: &Otlp, host: &str) -> Result<Self, ObserveError> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", otlp.endpoint))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| ObserveError::Otlp {
                endpoint: otlp.endpoint.clone(),
                source: Some(Box::new(error)),
            })?;
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "novaferry-agent"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", host.to_owned()),
            ])
            .build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let tracer = provider.tracer("novaferry");
        Ok(Self { provider, tracer })
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        tracing_opentelemetry::layer().with_tracer(self.tracer.clone()).with_filter(EnvFilter::new(FILTER))
    }

    pub(super) fn shutdown(self, timeout: Duration) -> Result<(), ObserveError> {
        self.provider
            .shutdown_with_timeout(timeout)
            .map_err(|error| ObserveError::Flush { source: Box::new(error) })
    }
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
