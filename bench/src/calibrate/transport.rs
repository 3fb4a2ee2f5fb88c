//! Tunnels over loopback, both ends in this process. Each end has threads of its own, so that what they used can be told
//! apart by their names.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use async_channel::{Receiver, Sender, bounded};
use bytes::Bytes;
use disk::{Backend, Disk, Options};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tunnel::{
    Credentials, DialOptions, Event, HOST_URI_PREFIX, Inbox, ListenOptions, Listener, OutgoingExtent,
    ReceiveBuffers, TransportChoice, dial,
};
use volume::{ChunkId, EXTENT, ExtentIndex, Generation, Sequence, SessionId};
use wire::{ChunkEntry, Control, Direction, Encoding, ExtentHead, Mode, Open, VolumeFormat};

use crate::machine::cpu_of;
use crate::model::Tunnel;
use crate::size::gigabytes;

/// Bytes of payload in one piece, as the pool's buffers have them.
const PIECE: usize = 256 << 10;
/// Buffers of an end: 32 MiB.
const BUFFERS: usize = 128;
const SESSION: SessionId = SessionId([1; 16]);
/// Names of threads: ours, and how the tunnel crate's begin.
const SENDER: &str = "bench-tx";
const RECEIVER: &str = "bench-rx";
const DIALLER_THREADS: &str = "tunnel-lane";
const LISTENER_THREADS: &str = "tunnel-listen";

/// Whose thread it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Sender,
    Receiver,
}

/// Sends about `sample` bytes through a tunnel.
pub(super) fn measure(transport: TransportChoice, sample: u64) -> Result<Tunnel> {
    let extents = sample.div_ceil(EXTENT);
    let authority = Authority::new()?;
    let listener = Listener::bind(
        (Ipv4Addr::LOCALHOST, 0).into(),
        &authority.host("receiver")?,
        ListenOptions::default(),
    )?;
    let credentials = authority.host("sender")?;
    let mut options = DialOptions::new("127.0.0.1", listener.local_addr().port());
    options.transport = transport;

    let (registered, is_registered) = bounded(1);
    let (up, is_up) = bounded(1);
    let (go, may_go) = bounded(1);
    let (done, is_done) = bounded(1);
    // Dropped at the end of this function: both threads stay until their clocks have been read.
    let (end, ended) = bounded::<()>(1);
    let receiving = thread(RECEIVER, {
        let ended = ended.clone();
        async move { receive(&listener, extents, registered, done, ended).await }
    })?;
    let sending = thread(SENDER, async move {
        let steps = Steps { is_registered, up, may_go, ended };
        send(&options, &credentials, extents, steps).await
    })?;
    let outcome = (|| {
        is_up.recv_blocking().context("connect both ends")?;
        let (begun, before) = (Instant::now(), clocks()?);
        go.send_blocking(()).context("begin to send")?;
        let mtu = is_done.recv_blocking().context("receive everything")?;
        let (seconds, after) = (begun.elapsed().as_secs_f64(), clocks()?);
        let gigabytes = gigabytes(extents * EXTENT);
        Ok(Tunnel {
            tx: used(&before, &after, End::Sender) / gigabytes,
            rx: used(&before, &after, End::Receiver) / gigabytes,
            speed: gigabytes / seconds,
            mtu,
        })
    })();
    drop((end, go));
    // An end that failed says more than the other one that misses it.
    for side in [sending, receiving] {
        side.join().map_err(|_panic| anyhow!("an end of the tunnel panicked; this is a bug"))??;
    }
    outcome
}

/// Runs an end on a thread of its own.
fn thread(
    name: &str,
    work: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<std::thread::JoinHandle<Result<()>>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || runtime.block_on(work))
        .with_context(|| format!("start the thread {name}"))
}

/// CPU seconds so far of each thread of either end, by the folder that the kernel has for it.
fn clocks() -> Result<HashMap<PathBuf, (End, f64)>> {
    let mut clocks = HashMap::new();
    for task in fs::read_dir("/proc/self/task").context("list this process's threads")? {
        let folder = task.context("list this process's threads")?.path();
        // A thread that ended meanwhile is of an earlier measurement.
        let Ok(name) = fs::read_to_string(folder.join("comm")) else { continue };
        let name = name.trim();
        let end = if name == SENDER || name.starts_with(DIALLER_THREADS) {
            End::Sender
        } else if name == RECEIVER || name.starts_with(LISTENER_THREADS) {
            End::Receiver
        } else {
            continue;
        };
        if let Ok(seconds) = cpu_of(&folder.join("stat")) {
            clocks.insert(folder, (end, seconds));
        }
    }
    Ok(clocks)
}

/// What the threads of an end used between two looks. Those that ended in between belonged to an earlier measurement.
fn used(before: &HashMap<PathBuf, (End, f64)>, after: &HashMap<PathBuf, (End, f64)>, which: End) -> f64 {
    let of_end = after.iter().filter(|(_, (end, _))| *end == which);
    of_end.map(|(thread, (_, now))| now - before.get(thread).map_or(0.0, |(_, then)| *then)).sum()
}

fn buffers() -> Result<ReceiveBuffers> {
    let disk = Disk::start(&Options { backend: Backend::Plain, buffers: BUFFERS, registered: false })?;
    Ok(ReceiveBuffers { pool: disk.buffers(), permits: BUFFERS })
}

/// Takes events until the tunnel ends: an inbox that is full would hold its lane up.
fn drain(inbox: Inbox) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move { while !matches!(inbox.recv().await, None | Some(Event::Closed(_))) {} })
}

async fn receive(
    listener: &Listener,
    extents: u64,
    registered: Sender<()>,
    done: Sender<u16>,
    ended: Receiver<()>,
) -> Result<()> {
    let incoming = listener.accept().await.context("wait for the sender")?;
    let (handle, _unused, inbox, data) = incoming.accept(buffers()?)?.split();
    handle.register(SESSION, Generation(1));
    let drained = drain(inbox);
    registered.send(()).await.context("say that further connections are welcome")?;
    for _ in 0..extents {
        data.recv().await.context("receive an extent")?;
    }
    let mtu = handle.stats().lanes.iter().map(|lane| lane.mtu).max().unwrap_or(0);
    done.send(mtu).await.context("say that everything is there")?;
    // Ends with an error when the other side is dropped, which is the sign.
    let _closed = ended.recv().await;
    drained.abort();
    Ok(())
}

/// What the sender waits for, and says.
struct Steps {
    is_registered: Receiver<()>,
    up: Sender<()>,
    may_go: Receiver<()>,
    ended: Receiver<()>,
}

async fn send(options: &DialOptions, credentials: &Credentials, extents: u64, steps: Steps) -> Result<()> {
    let Steps { is_registered, up, may_go, ended } = steps;
    let (handle, data, inbox, _unused) = dial(options, credentials, buffers()?).await?.split();
    let drained = drain(inbox);
    handle
        .send(Control::Open(Open {
            session: SESSION,
            direction: Direction::Push,
            mode: Mode::Create,
            format: VolumeFormat::Raw,
            readback: false,
            lanes: 1,
            pool: "pool".into(),
            name: "disk".into(),
        }))
        .await
        .map_err(|error| anyhow!("open a session: {error:?}"))?;
    is_registered.recv().await.context("wait for the receiver")?;
    // Over TCP, data has a connection of its own.
    handle.open_lanes(SESSION, Generation(1)).await?;
    up.send(()).await.context("say that the tunnel is up")?;
    may_go.recv().await.context("wait for the beginning")?;
    let piece = Bytes::from(vec![0x5a; PIECE]);
    let extent = u32::try_from(EXTENT)?;
    for nth in 0..extents {
        let head = ExtentHead {
            sequence: Sequence(nth),
            floor: Sequence(0),
            extent: ExtentIndex(nth),
            encoding: Encoding::Raw,
            wire_len: extent,
            plain_len: extent,
            chunks: vec![ChunkEntry::Data(ChunkId([1; 32])); volume::CHUNKS_PER_EXTENT],
        };
        let payload = vec![piece.clone(); usize::try_from(EXTENT)? / PIECE];
        let outgoing = OutgoingExtent { sequence: Sequence(nth), head: head.encode(), payload };
        data.send(outgoing).await.map_err(|error| anyhow!("send an extent: {error:?}"))?;
    }
    let _closed = ended.recv().await;
    drained.abort();
    Ok(())
}

/// A CA that lives as long as one measurement.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rustls_pki_types::CertificateDer<'static>,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "novaferry-bench");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ED25519).context("make a key")?;
        let certificate = parameters.self_signed(&key).context("sign the CA")?.der().clone();
        Ok(Self { issuer: Issuer::new(parameters, key), certificate })
    }

    /// Credentials as `pki issue` makes them.
    fn host(&self, name: &str) -> Result<Credentials> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        let uri = format!("{HOST_URI_PREFIX}{name}");
        parameters.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().context("name a host")?)];
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ED25519).context("make a key")?;
        let certificate = parameters.signed_by(&key, &self.issuer).context("sign a host")?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(Credentials::new(
            vec![certificate.der().clone()],
            key.into(),
            vec![self.certificate.clone()],
            Vec::new(),
        )?)
    }
}
