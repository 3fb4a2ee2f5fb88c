//! Honest servers that lack things: the volume conforms all the same. Also nbdkit, as a second real server.

#[path = "support/capability.rs"]
mod capability;
#[path = "support/images.rs"]
mod images;
#[expect(dead_code, reason = "only the hostile tests break the protocol")]
#[path = "support/server.rs"]
mod server;

use std::sync::{Arc, Mutex};

use capability::have;
use images::{pattern, raw};
use novaferry_hypervisor::nbd::client::Options;
use novaferry_hypervisor::nbd::{Access, Client, NbdVolume, Uri};
use server::{
    FLUSH, FUA, HAS_FLAGS, MULTI_CONN, Script, Server, WRITE_ZEROES, handshake, request, simple, start,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use volume::conformance::{check_sink, read_all};
use volume::{Buffer, ByteOffset, ByteRange, Kind, Sink, Source, ZeroMode};

/// What the server saw.
#[derive(Default)]
struct Seen {
    connections: usize,
    flushes: usize,
    writes: usize,
    writes_without_fua: usize,
    zeroes: usize,
    misaligned: usize,
    largest: u32,
}

/// A server that keeps its export in memory and answers with simple replies.
struct Memory {
    script: Script,
    bytes: Mutex<Vec<u8>>,
    seen: Mutex<Seen>,
    /// Answers WRITE_ZEROES with ENOTSUP although it is offered.
    refuse_zeroes: bool,
    fail_flush: bool,
}

impl Memory {
    fn new(script: Script) -> Self {
        let bytes = Mutex::new(pattern(usize::try_from(script.size).unwrap(), 5));
        let script = Script { structured: false, allocation: false, ..script };
        Self { script, bytes, seen: Mutex::default(), refuse_zeroes: false, fail_flush: false }
    }

    fn start(self) -> (Server, Arc<Self>) {
        let memory = Arc::new(self);
        let shared = Arc::clone(&memory);
        let server = start(move |stream| Arc::clone(&shared).serve(stream));
        (server, memory)
    }

    async fn serve(self: Arc<Self>, mut stream: UnixStream) {
        self.seen.lock().unwrap().connections += 1;
        if handshake(&mut stream, &self.script).await.is_none() {
            return;
        }
        while let Some(r) = request(&mut stream).await {
            let mut payload = Vec::new();
            if r.command == 1 {
                payload.resize(r.length as usize, 0);
                if stream.read_exact(&mut payload).await.is_err() {
                    return;
                }
            }
            let mut reply = simple(r.cookie, 0);
            {
                let mut seen = self.seen.lock().unwrap();
                let mut bytes = self.bytes.lock().unwrap();
                let place = usize::try_from(r.offset).unwrap()
                    ..usize::try_from(r.offset + u64::from(r.length)).unwrap();
                let block = self.script.sizes.map_or(1, |sizes| sizes.0);
                seen.misaligned += usize::from(r.offset % u64::from(block) != 0 || r.length % block != 0);
                match r.command {
                    0 => {
                        seen.largest = seen.largest.max(r.length);
                        reply.extend(&bytes[place]);
                    }
                    1 => {
                        seen.largest = seen.largest.max(r.length);
                        seen.writes += 1;
                        seen.writes_without_fua += usize::from(r.flags & 1 == 0);
                        bytes[place].copy_from_slice(&payload);
                    }
                    2 => return,
                    3 => {
                        seen.flushes += 1;
                        if self.fail_flush {
                            reply = simple(r.cookie, 5);
                        }
                    }
                    6 => {
                        seen.zeroes += 1;
                        if self.refuse_zeroes {
                            reply = simple(r.cookie, 95);
                        } else {
                            bytes[place].fill(0);
                        }
                    }
                    other => panic!("command {other} was not offered"),
                }
            }
            if stream.write_all(&reply).await.is_err() {
                return;
            }
        }
    }
}

async fn open(server: &Server, connections: usize) -> NbdVolume {
    let uri = Uri { address: server.address.clone(), export: String::new() };
    let options = Options { connections, ..Options::default() };
    NbdVolume::open(&uri, Access::ReadWrite, &options).await.unwrap()
}

#[tokio::test]
async fn volumes_conform_whatever_the_server_lacks() {
    let usual = Script { size: 3 << 20, ..Script::default() };
    let blocks = |minimum, maximum| Script { sizes: Some((minimum, 4096, maximum)), ..usual.clone() };
    for (seed, script) in (0..).zip([
        usual.clone(),
        Script { go: false, ..usual.clone() },
        Script { flags: HAS_FLAGS | FLUSH, ..usual.clone() },
        Script { flags: HAS_FLAGS | FUA, ..usual.clone() },
        Script { flags: HAS_FLAGS | FUA | FLUSH | WRITE_ZEROES | MULTI_CONN, ..usual.clone() },
        blocks(512, 32 << 20),
        blocks(4096, 8192),
        blocks(1, 4096),
        Script { size: 1_000_001, ..usual.clone() },
    ]) {
        for refuse_zeroes in [false, true] {
            let (server, memory) = Memory { refuse_zeroes, ..Memory::new(script.clone()) }.start();
            let volume = open(&server, 3).await;
            assert!(read_all(&volume).await == *memory.bytes.lock().unwrap(), "{script:?}");
            check_sink(&volume, seed).await;
            let seen = memory.seen.lock().unwrap();
            let multi = script.flags & MULTI_CONN != 0;
            assert_eq!(seen.connections, if multi { 3 } else { 1 }, "{script:?}");
            assert_eq!(seen.misaligned, 0, "{script:?}");
            assert!(seen.largest <= script.sizes.map_or(32 << 20, |sizes| sizes.2), "{script:?}");
            if script.flags & WRITE_ZEROES == 0 {
                assert_eq!(seen.zeroes, 0);
            } else if refuse_zeroes {
                assert!(seen.zeroes <= 1, "asked once, {} times", seen.zeroes);
            }
            if script.flags & FLUSH == 0 {
                assert_eq!((seen.flushes, seen.writes_without_fua), (0, 0), "every write carries FUA");
                assert!(seen.writes > 0);
            } else {
                assert!(seen.flushes > 0);
            }
        }
    }
}

#[tokio::test]
async fn unaligned_requests_are_read_changed_and_written_back() {
    let script = Script { size: 1 << 20, sizes: Some((4096, 4096, 65536)), ..Script::default() };
    let (server, memory) = Memory::new(script).start();
    let mut model = memory.bytes.lock().unwrap().clone();
    let volume = Arc::new(open(&server, 1).await);
    // Neighbouring writes inside the same blocks, all at once: none may undo another.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200_usize {
        let (at, length) = (1000 + n * 700, 700);
        let fill = u8::try_from(n % 251 + 1).unwrap();
        model[at..at + length].fill(fill);
        let volume = Arc::clone(&volume);
        tasks.spawn(async move {
            let mut buffer = Buffer::heap(length);
            buffer.fill(fill);
            volume.write_at(ByteOffset(at as u64), buffer).await.0.unwrap();
        });
    }
    for zero in [ByteRange { start: 200_001, end: 200_005 }, ByteRange { start: 300_000, end: 409_601 }] {
        model[usize::try_from(zero.start).unwrap()..usize::try_from(zero.end).unwrap()].fill(0);
        volume.zero(zero, ZeroMode::Deallocate).await.unwrap();
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    assert!(read_all(&*volume).await == model);
    assert!(*memory.bytes.lock().unwrap() == model);
    assert_eq!(memory.seen.lock().unwrap().misaligned, 0);
}

#[tokio::test]
async fn an_export_that_can_make_nothing_durable_is_not_written() {
    let (server, _) = Memory::new(Script { flags: HAS_FLAGS, ..Script::default() }).start();
    let client = Client::connect(&server.address, "", &Options::default()).await.unwrap();
    assert_eq!(NbdVolume::new(client, Access::ReadWrite).unwrap_err().kind(), Kind::Unsupported);
    let client = Client::connect(&server.address, "", &Options::default()).await.unwrap();
    NbdVolume::new(client, Access::ReadOnly).unwrap();
}

#[tokio::test]
async fn a_failed_flush_poisons_the_volume() {
    let (server, memory) = Memory { fail_flush: true, ..Memory::new(Script::default()) }.start();
    let volume = open(&server, 1).await;
    volume.write_at(ByteOffset(0), Buffer::heap(512)).await.0.unwrap();
    assert_eq!(volume.flush().await.unwrap_err().kind(), Kind::Io);
    let range = ByteRange { start: 0, end: 512 };
    for kind in [
        volume.flush().await.unwrap_err().kind(),
        volume.write_at(ByteOffset(0), Buffer::heap(512)).await.0.unwrap_err().kind(),
        volume.read_at(ByteOffset(0), Buffer::heap(512)).await.0.unwrap_err().kind(),
        volume.zero(range, ZeroMode::Allocate).await.unwrap_err().kind(),
        volume.next_data(ByteOffset(0)).await.unwrap_err().kind(),
    ] {
        assert_eq!(kind, Kind::Poisoned);
    }
    assert_eq!(memory.seen.lock().unwrap().flushes, 1, "a failed flush is not tried again");
}

#[tokio::test]
async fn tcp_and_nbdkit_conform() {
    if !have("nbdkit", "nbdkit", "tcp_and_nbdkit_conform") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let size = 1_000_001;
    let bytes = pattern(size, 8);
    let path = raw(folder.path(), "disk.raw", &bytes);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // The socket is passed like qemu-nbd's, so the port is never free for others and nothing polls.
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", r#"export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&0 0</dev/null"#, "nbdkit"])
        .args(["nbdkit", "--foreground", "--exit-with-parent", "-e", "disk one", "file"])
        .arg(format!("file={}", path.display()))
        .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .spawn()
        .map(Kill)
        .unwrap();
    let uri: Uri = format!("nbd://127.0.0.1:{port}/disk%20one").parse().unwrap();
    let options = Options { connections: 2, ..Options::default() };
    let volume = NbdVolume::open(&uri, Access::ReadWrite, &options).await.unwrap();
    assert_eq!(volume.geometry().size.0, size as u64, "nbdkit serves odd sizes exactly");
    assert!(read_all(&volume).await == bytes);
    check_sink(&volume, 77).await;
    let expected = read_all(&volume).await;
    volume.close().await;
    child.0.kill().unwrap();
    assert!(std::fs::read(&path).unwrap() == expected);
}

struct Kill(std::process::Child);

impl Drop for Kill {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
