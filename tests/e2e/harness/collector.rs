//! A collector of traces: a real HTTP/1.1 server on loopback that keeps the spans which it is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;

/// Largest body that is accepted.
const MAX_BODY: usize = 4 << 20;

/// A span, as far as tests look at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// Host of the agent.
    pub(crate) host: String,
    pub(crate) name: String,
    /// The attribute of that name.
    pub(crate) role: String,
    pub(crate) trace: Vec<u8>,
    pub(crate) id: Vec<u8>,
    pub(crate) parent: Vec<u8>,
}

/// Runs until the process ends.
pub(crate) struct Collector {
    pub(crate) endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever breaks off sends it again, or has been killed.
                if let Some(request) = stream.ok().and_then(read) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).extend(of(request));
                }
            }
        });
        Self { endpoint, spans }
    }

    /// What has come so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(stream: TcpStream) -> Option<ExportTraceServiceRequest> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim_end().is_empty() {
            break;
        }
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?
            }
            _ => {}
        }
    }
    assert!(length <= MAX_BODY, "a body of {length} bytes");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    reader.into_inner().write_all(answer).ok()?;
    Some(ExportTraceServiceRequest::decode(&body[..]).expect("it is OTLP"))
}

fn of(request: ExportTraceServiceRequest) -> Vec<Span> {
    let text = |key: &str, of: &[KeyValue]| {
        let value = of.iter().find(|one| one.key == key).and_then(|one| one.value.clone()?.value);
        match value {
            Some(Value::StringValue(text)) => text,
            _ => String::new(),
        }
    };
    let mut spans = Vec::new();
    for resource in request.resource_spans {
        let about = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                host: text("service.instance.id", &about),
                role: text("role", &span.attributes),
                name: span.name,
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
            });
        }
    }
    spans
}
