//! Logs, metrics endpoint and traces, through real sockets on loopback.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use novaferry_agent::config::{Log, LogFormat};
use novaferry_agent::observe::prometheus::{Endpoint, Health, HealthState, recorder};
use novaferry_agent::observe::{logs, names};

#[cfg(feature = "otlp")]
#[path = "observe/otlp_receiver.rs"]
mod otlp_receiver;

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"))
}

#[test]
fn the_endpoint_serves_metrics_with_help_and_health() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (recorder, scrape) = recorder().unwrap();
    metrics::with_local_recorder(&recorder, || {
        metrics::counter!(names::WIRE_BYTES, names::DIRECTION => names::SENT).increment(42);
        metrics::histogram!(names::FSYNC_SECONDS).record(0.003);
    });
    let endpoint = runtime.block_on(Endpoint::bind("127.0.0.1:0".parse().unwrap())).unwrap();
    let address = endpoint.address();
    let health = Health::new();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = runtime.spawn(endpoint.serve(scrape, health.clone(), async { stopped.await.unwrap() }));

    let metrics = get(address, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK"), "{metrics}");
    for expected in [
        "# HELP novaferry_wire_bytes_total Bytes on the network, with framing, without IP and UDP.",
        "# TYPE novaferry_wire_bytes_total counter",
        "novaferry_wire_bytes_total{direction=\"sent\"} 42",
        "novaferry_wire_bytes_total{direction=\"received\"} 0",
        "novaferry_sessions_active 0",
        "novaferry_fsync_seconds_bucket{le=\"0.0025\"} 0",
        "novaferry_fsync_seconds_bucket{le=\"0.005\"} 1",
        "novaferry_fsync_seconds_count 1",
    ] {
        assert!(metrics.lines().any(|line| line == expected), "{expected:?} is not in\n{metrics}");
    }

    assert!(get(address, "/healthz").starts_with("HTTP/1.1 503"));
    health.set(HealthState::Ready);
    assert!(get(address, "/healthz").starts_with("HTTP/1.1 200"));
    health.set(HealthState::Draining);
    let draining = get(address, "/healthz");
    assert!(draining.starts_with("HTTP/1.1 503") && draining.ends_with("draining\n"), "{draining}");
    assert!(get(address, "/").starts_with("HTTP/1.1 404"));
    assert!(
        ask(address, "POST /metrics HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .starts_with("HTTP/1.1 405")
    );
    assert!(ask(address, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));

    stop.send(()).unwrap();
    runtime.block_on(server).unwrap();
    assert!(TcpStream::connect(address).is_err(), "the endpoint is closed after stop");
}

#[test]
fn an_address_in_use_is_an_error_with_advice() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(Endpoint::bind(address)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {address} for metrics; choose another [metrics] listen, or \"off\"")
    );
}

#[test]
fn metric_names_follow_prometheus_rules() {
    let mut seen = std::collections::BTreeSet::new();
    for metric in names::ALL {
        assert!(seen.insert(metric.name), "{} is there twice", metric.name);
        assert!(metric.name.starts_with("novaferry_"), "{}", metric.name);
        assert!(metric.help.ends_with('.'), "{}", metric.help);
        assert_eq!(
            metric.name.ends_with("_total"),
            metric.kind == names::MetricKind::Counter,
            "{}",
            metric.name
        );
    }
}

/// The coordinator's own are checked against a scrape of it, in its own tests.
#[test]
fn alerts_and_dashboard_name_metrics_that_are_there() {
    let mut seen = std::collections::BTreeSet::new();
    for file in ["alerts.yaml", "dashboard.json"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if word.starts_with("novaferry_") && !word.starts_with("novaferry_coordinator_") {
                let name = ["_bucket", "_sum", "_count"]
                    .iter()
                    .fold(word, |w, end| w.strip_suffix(end).unwrap_or(w));
                assert!(names::ALL.iter().any(|metric| metric.name == name), "{file}: nobody exports {name}");
                seen.insert(name.to_owned());
            }
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log(format: LogFormat) -> Log {
    Log { format, level: "info".into() }
}

fn speak() {
    let span = tracing::info_span!("session", session = "00ff", generation = 7_u64);
    let _entered = span.enter();
    tracing::debug!("not at level info");
    tracing::info!(extent = 3, "sealed");
}

#[test]
fn json_lines_carry_session_and_generation() {
    let lines = Lines::default();
    let writer = lines.clone();
    let (subscriber, telemetry) =
        logs::subscriber(&log(LogFormat::Json), None, None, "host-a", move || writer.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, speak);
    telemetry.shutdown().unwrap();
    let text = lines.text();
    let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["fields"]["message"], "sealed");
    assert_eq!(line["fields"]["extent"], 3);
    assert_eq!(line["spans"][0]["session"], "00ff");
    assert_eq!(line["spans"][0]["generation"], 7);
}

#[test]
fn text_lines_carry_them_too_and_the_environment_wins() {
    let lines = Lines::default();
    let writer = lines.clone();
    let filter = Some("debug".to_owned());
    let (subscriber, _telemetry) =
        logs::subscriber(&log(LogFormat::Text), filter, None, "host-a", move || writer.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, speak);
    let text = lines.text();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("session=\"00ff\" generation=7") && text.contains("not at level info"), "{text}");
}

#[test]
fn a_bad_filter_in_the_environment_is_named() {
    let bad = Some("engine=loud".to_owned());
    let Err(error) = logs::subscriber(&log(LogFormat::Text), bad, None, "a", std::io::sink) else {
        panic!("a bad filter was accepted");
    };
    assert!(
        error.to_string().starts_with("NOVAFERRY_LOG = \"engine=loud\" is no log filter; write"),
        "{error}"
    );
}

#[cfg(feature = "otlp")]
mod traces {
    use novaferry_agent::config::Otlp;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;

    use super::*;

    #[test]
    fn spans_reach_the_collector_with_session_and_generation() {
        let receiver = otlp_receiver::Receiver::start();
        let otlp = Otlp { endpoint: format!("http://{}", receiver.address()) };
        let (subscriber, telemetry) =
            logs::subscriber(&log(LogFormat::Text), None, Some(&otlp), "host-a", std::io::sink).unwrap();
        tracing::subscriber::with_default(subscriber, speak);
        telemetry.shutdown().unwrap();

        let (path, request) = receiver.take();
        assert_eq!(path, "/v1/traces");
        let resource = &request.resource_spans[0];
        let attribute = |key: &str, of: &[opentelemetry_proto::tonic::common::v1::KeyValue]| {
            let found = of.iter().find(|attribute| attribute.key == key);
            found.and_then(|attribute| attribute.value.clone()).and_then(|value| value.value)
        };
        let of_resource = &resource.resource.as_ref().unwrap().attributes;
        assert_eq!(
            attribute("service.name", of_resource),
            Some(Value::StringValue("novaferry-agent".into()))
        );
        assert_eq!(attribute("service.instance.id", of_resource), Some(Value::StringValue("host-a".into())));
        let span = &resource.scope_spans[0].spans[0];
        assert_eq!(span.name, "session");
        assert_eq!(attribute("session", &span.attributes), Some(Value::StringValue("00ff".into())));
        // OTLP has no unsigned integers: a u64 field arrives as text.
        assert_eq!(attribute("generation", &span.attributes), Some(Value::StringValue("7".into())));
    }

    #[test]
    fn a_collector_that_is_down_costs_spans_and_nothing_else() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let otlp = Otlp { endpoint: format!("http://{unused}") };
        let (subscriber, telemetry) =
            logs::subscriber(&log(LogFormat::Text), None, Some(&otlp), "host-a", std::io::sink).unwrap();
        tracing::subscriber::with_default(subscriber, speak);
        // Whether the SDK reports the lost batch is its business; what matters is that this returns.
        drop(telemetry.shutdown());
    }
}
