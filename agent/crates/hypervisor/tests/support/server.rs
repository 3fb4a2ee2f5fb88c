//! A scripted NBD server on a unix socket, written apart from the crate's codec so that both can be wrong only
//! independently. It runs the handshake as scripted; what comes after is the test's.

use std::path::PathBuf;

use novaferry_hypervisor::nbd::Address;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

pub(crate) const HAS_FLAGS: u16 = 1;
pub(crate) const FLUSH: u16 = 1 << 2;
pub(crate) const FUA: u16 = 1 << 3;
pub(crate) const WRITE_ZEROES: u16 = 1 << 6;
pub(crate) const MULTI_CONN: u16 = 1 << 8;

/// What the handshake grants.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) size: u64,
    pub(crate) flags: u16,
    pub(crate) sizes: Option<(u32, u32, u32)>,
    pub(crate) structured: bool,
    pub(crate) allocation: bool,
    /// Without GO only EXPORT_NAME is known.
    pub(crate) go: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            size: 1 << 20,
            flags: HAS_FLAGS | FLUSH | WRITE_ZEROES,
            sizes: None,
            structured: true,
            allocation: true,
            go: true,
        }
    }
}

/// A listening server; connections run `serve`. Ends with the test.
pub(crate) struct Server {
    pub(crate) address: Address,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn start<F>(serve: impl Fn(UnixStream) -> F + Send + 'static) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("nbd");
    let listener = UnixListener::bind(&path).unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    Server { address: Address::Unix(path), task, _folder: folder }
}

pub(crate) const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";

/// Sends the greeting and reads the client's flags.
pub(crate) async fn greet(stream: &mut UnixStream) {
    stream.write_all(GREETING).await.unwrap();
    assert_eq!(stream.read_u32().await.unwrap(), 3);
}

/// Reads an option: its number and payload.
pub(crate) async fn option(stream: &mut UnixStream) -> Option<(u32, Vec<u8>)> {
    let magic = stream.read_u64().await.ok()?;
    assert_eq!(magic, u64::from_be_bytes(*b"IHAVEOPT"));
    let option = stream.read_u32().await.ok()?;
    let mut payload = vec![0; stream.read_u32().await.ok()? as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((option, payload))
}

pub(crate) fn option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    out.extend(payload);
    out
}

/// Runs the whole handshake. `None` when the client left.
pub(crate) async fn handshake(stream: &mut UnixStream, script: &Script) -> Option<()> {
    greet(stream).await;
    let unknown = 0x8000_0001;
    loop {
        let (number, _) = option(stream).await?;
        let mut reply = Vec::new();
        let mut finished = false;
        match number {
            1 => {
                reply.extend(script.size.to_be_bytes());
                reply.extend(script.flags.to_be_bytes());
                finished = true;
            }
            7 if script.go => {
                let mut information = 0_u16.to_be_bytes().to_vec();
                information.extend(script.size.to_be_bytes());
                information.extend(script.flags.to_be_bytes());
                reply.extend(option_reply(7, 3, &information));
                if let Some((minimum, preferred, maximum)) = script.sizes {
                    let mut information = 3_u16.to_be_bytes().to_vec();
                    information.extend([minimum, preferred, maximum].iter().flat_map(|n| n.to_be_bytes()));
                    reply.extend(option_reply(7, 3, &information));
                }
                reply.extend(option_reply(7, 1, &[]));
                finished = true;
            }
            8 if script.structured => reply.extend(option_reply(8, 1, &[])),
            10 if script.allocation => {
                reply.extend(option_reply(10, 4, b"\x00\x00\x00\x07base:allocation"));
                reply.extend(option_reply(10, 1, &[]));
            }
            other => reply.extend(option_reply(other, unknown, b"not here")),
        }
        stream.write_all(&reply).await.ok()?;
        if finished {
            return Some(());
        }
    }
}

/// A request's head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

pub(crate) async fn request(stream: &mut UnixStream) -> Option<Request> {
    assert_eq!(stream.read_u32().await.ok()?, 0x2560_9513);
    Some(Request {
        flags: stream.read_u16().await.ok()?,
        command: stream.read_u16().await.ok()?,
        cookie: stream.read_u64().await.ok()?,
        offset: stream.read_u64().await.ok()?,
        length: stream.read_u32().await.ok()?,
    })
}

pub(crate) fn simple(cookie: u64, error: u32) -> Vec<u8> {
    let mut out = 0x6744_6698_u32.to_be_bytes().to_vec();
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out
}

pub(crate) fn chunk(cookie: u64, done: bool, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = chunk_head(cookie, done, kind, u32::try_from(payload.len()).unwrap());
    out.extend(payload);
    out
}

pub(crate) fn chunk_head(cookie: u64, done: bool, kind: u16, length: u32) -> Vec<u8> {
    let mut out = 0x668e_33ef_u32.to_be_bytes().to_vec();
    out.extend(u16::from(done).to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(length.to_be_bytes());
    out
}
