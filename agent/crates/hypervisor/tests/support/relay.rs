//! Stands between two migrating QEMUs: passes on what it rebuilds from tokens, and counts.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::BufMut;
use novaferry_hypervisor::multifd;
use novaferry_hypervisor::stream::{self, Kind, Reason};

/// What passed over a connection from source to destination.
pub(crate) struct Channel {
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
    pub(crate) pages: usize,
    pub(crate) page_places: Vec<usize>,
    /// Of multifd packets.
    pub(crate) zero_pages: usize,
    pub(crate) syncs: usize,
    pub(crate) number: u8,
    /// Bytes outside of pages and packets.
    pub(crate) literal: usize,
    /// Bytes after the first that was not known.
    pub(crate) passed_through: usize,
    pub(crate) literal_because: Option<Reason>,
    pub(crate) multifd_because: Option<multifd::Reason>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Channel")
            .field("bytes", &self.bytes.len())
            .field("pages", &self.pages)
            .field("zero_pages", &self.zero_pages)
            .field("syncs", &self.syncs)
            .field("literal", &self.literal)
            .field("literal_because", &self.literal_because)
            .field("multifd_because", &self.multifd_because)
            .finish_non_exhaustive()
    }
}

/// A listener and the threads of its connections.
pub(crate) struct Relay {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    acceptor: JoinHandle<Vec<JoinHandle<Channel>>>,
}

impl Relay {
    pub(crate) fn start(path: &Path, destination: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("listen");
        let ended = Arc::new(AtomicBool::new(false));
        let (flag, destination) = (Arc::clone(&ended), destination.to_owned());
        let acceptor = std::thread::spawn(move || {
            let mut connections = Vec::new();
            loop {
                let (source, _) = listener.accept().expect("accept");
                if flag.load(Ordering::Acquire) {
                    return connections;
                }
                let target = UnixStream::connect(&destination).expect("connect to the destination");
                connections.push(std::thread::spawn(move || relay(source, target)));
            }
        });
        Self { path: path.to_owned(), ended, acceptor }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What passed, once both QEMUs have ended.
    pub(crate) fn finish(self) -> Vec<Channel> {
        self.ended.store(true, Ordering::Release);
        let _wakes_the_acceptor = UnixStream::connect(&self.path).expect("connect");
        let connections = self.acceptor.join().expect("no panic");
        connections.into_iter().map(|one| one.join().expect("no panic")).collect()
    }
}

fn relay(mut source: UnixStream, mut target: UnixStream) -> Channel {
    let mut from_target = target.try_clone().expect("clone");
    let mut to_source = source.try_clone().expect("clone");
    let back = std::thread::spawn(move || {
        // Either end may leave first.
        let _ = std::io::copy(&mut from_target, &mut to_source);
        let _ = to_source.shutdown(Shutdown::Write);
    });
    let mut channel = Channel {
        kind: Kind::Unknown,
        bytes: Vec::new(),
        pages: 0,
        page_places: Vec::new(),
        zero_pages: 0,
        syncs: 0,
        number: 0,
        literal: 0,
        passed_through: 0,
        literal_because: None,
        multifd_because: None,
    };
    let mut first = Vec::new();
    while stream::detect(&first).is_none() {
        let mut byte = [0];
        if source.read(&mut byte).expect("read from the source") == 0 {
            break;
        }
        first.push(byte[0]);
    }
    channel.kind = stream::detect(&first).unwrap_or(Kind::Unknown);
    channel.bytes.extend(&first);
    let mut pass = |bytes: &[u8]| {
        // The source hears of it by the return path, or by QEMU's end.
        let _ = target.write_all(bytes);
    };
    let rebuilt = match channel.kind {
        Kind::Multifd => packets(&mut source, &first, &mut channel, &mut pass),
        Kind::Main | Kind::Unknown => sections(&mut source, &first, &mut channel, &mut pass),
    };
    assert!(rebuilt == channel.bytes, "the tokens are what came in");
    let _ = target.shutdown(Shutdown::Write);
    back.join().expect("no panic");
    channel
}

/// Reads into the room that a tokeniser offers. False at the end.
fn read(source: &mut UnixStream, mut room: impl BufMut, seen: &mut Vec<u8>) -> bool {
    let mut buffer = vec![0; room.remaining_mut().min(1 << 20)];
    // A QEMU that is killed resets its connections.
    let length = source.read(&mut buffer).unwrap_or(0);
    room.put_slice(&buffer[..length]);
    seen.extend_from_slice(&buffer[..length]);
    length > 0
}

fn packets(
    source: &mut UnixStream,
    first: &[u8],
    channel: &mut Channel,
    pass: &mut impl FnMut(&[u8]),
) -> Vec<u8> {
    let mut tokeniser = multifd::Tokeniser::new();
    tokeniser.push(first);
    let mut rebuilt = Vec::new();
    let mut take = |token: &multifd::Token, channel: &mut Channel| {
        let at = rebuilt.len();
        match token {
            multifd::Token::Hello(hello) => channel.number = hello.channel(),
            multifd::Token::Packet(packet) => {
                channel.pages += packet.normal_offsets().len();
                channel.zero_pages += packet.zero_offsets().len();
                channel.syncs += usize::from(packet.is_sync());
                for page in 0..packet.normal_offsets().len() {
                    channel.page_places.push(at + multifd::HEADER + page * multifd::PAGE);
                }
            }
            multifd::Token::Literal(bytes) => channel.literal += bytes.len(),
        }
        multifd::rebuild(token, &mut rebuilt);
        pass(&rebuilt[at..]);
    };
    while read(source, tokeniser.input(), &mut channel.bytes) {
        while let Some(token) = tokeniser.next_token() {
            take(&token, channel);
        }
    }
    channel.multifd_because = tokeniser.literal_because();
    if let Some(token) = tokeniser.finish() {
        take(&token, channel);
    }
    channel.passed_through = channel.literal;
    rebuilt
}

fn sections(
    source: &mut UnixStream,
    first: &[u8],
    channel: &mut Channel,
    pass: &mut impl FnMut(&[u8]),
) -> Vec<u8> {
    let mut tokeniser = stream::Tokeniser::new();
    tokeniser.push(first);
    let mut rebuilt = Vec::new();
    let mut take = |token: &stream::Token, channel: &mut Channel| {
        let at = rebuilt.len();
        match token {
            stream::Token::Page(_) => {
                channel.pages += 1;
                channel.page_places.push(at);
            }
            stream::Token::Literal(bytes) => channel.literal += bytes.len(),
        }
        stream::rebuild(token, &mut rebuilt);
        pass(&rebuilt[at..]);
    };
    while read(source, tokeniser.input(), &mut channel.bytes) {
        while let Some(token) = tokeniser.next_token() {
            take(&token, channel);
            if tokeniser.literal_because().is_some() {
                let stream::Token::Literal(bytes) = token else { panic!("literal for good") };
                channel.passed_through += bytes.len();
            }
        }
    }
    channel.literal_because = tokeniser.literal_because().cloned();
    if let Some(token) = tokeniser.finish() {
        take(&token, channel);
    }
    rebuilt
}
