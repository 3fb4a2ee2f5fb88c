//! A small OTLP collector for tests: a real HTTP/1.1 server on loopback that takes one request and decodes it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver as Channel, SyncSender, sync_channel};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

/// Largest body that is accepted: one span is some hundred bytes.
const MAX_BODY: usize = 1 << 20;

pub(crate) struct Receiver {
    address: SocketAddr,
    requests: Channel<(String, ExportTraceServiceRequest)>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = sync_channel(1);
        std::thread::spawn(move || receive(&listener, &sender));
        Self { address, requests }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The path and the body of the request. It is handed over before it is answered, so it is here once the
    /// exporter has shut down.
    pub(crate) fn take(self) -> (String, ExportTraceServiceRequest) {
        self.requests.try_recv().expect("no request came before the exporter had shut down")
    }
}

fn receive(listener: &TcpListener, requests: &SyncSender<(String, ExportTraceServiceRequest)>) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "content-type" => assert_eq!(value, "application/x-protobuf"),
            _ => {}
        }
    }
    assert!(length <= MAX_BODY, "a body of {length} bytes");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
    requests.send((path, request)).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
}
