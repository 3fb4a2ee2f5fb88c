//! Throughput over loopback: GB/s of the wall clock, and what counts on a shared machine, CPU seconds per GB of both
//! ends together.
//!
//! `cargo run --release -p novaferry-tunnel --example throughput [MIB]`

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use novaferry_tunnel::{
    DataReceiver, DataSender, DialOptions, Event, Inbox, ListenOptions, Listener, OutgoingExtent, Profile,
    ReceiveBuffers, Transport, TransportChoice, TunnelHandle, dial, memory_pair,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use volume::{Buffer, BufferPool, ChunkId, ExtentIndex, Generation, Io, Memory, Sequence, SessionId};
use wire::{ChunkEntry, Control, Direction, Encoding, ExtentHead, Mode, Open, VolumeFormat};

#[expect(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../../tests/tunnel/authority.rs"]
mod authority;

type Parts = (TunnelHandle, DataSender, Inbox, DataReceiver);

const SESSION: SessionId = SessionId([1; 16]);
const EXTENT: u32 = 1 << 20;
const BUFFER: usize = 256 << 10;
const BUFFERS: usize = 128;

/// Buffers that are used again, as the ring's are.
struct Pool {
    free: Arc<Semaphore>,
    store: async_channel::Sender<Vec<u8>>,
    stored: async_channel::Receiver<Vec<u8>>,
}

struct Lent {
    bytes: Vec<u8>,
    store: async_channel::Sender<Vec<u8>>,
    _permit: OwnedSemaphorePermit,
}

impl Memory for Lent {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // The store has room for all that exist; if the pool is gone, so is the need.
        drop(self.store.try_send(std::mem::take(&mut self.bytes)));
    }
}

impl Pool {
    fn new() -> Arc<Self> {
        let (store, stored) = async_channel::bounded(BUFFERS);
        Arc::new(Self { free: Arc::new(Semaphore::new(BUFFERS)), store, stored })
    }

    fn lend(&self, permit: OwnedSemaphorePermit) -> Buffer {
        let bytes = self.stored.try_recv().unwrap_or_else(|_empty| vec![0; BUFFER]);
        Buffer::new(Box::new(Lent { bytes, store: self.store.clone(), _permit: permit }))
    }
}

impl BufferPool for Pool {
    fn buffer_size(&self) -> usize {
        BUFFER
    }
    fn acquire(&self) -> Io<'_, Buffer> {
        Box::pin(async {
            self.lend(self.free.clone().acquire_owned().await.expect("the semaphore is never closed"))
        })
    }
    fn try_acquire(&self) -> Option<Buffer> {
        Some(self.lend(self.free.clone().try_acquire_owned().ok()?))
    }
}

fn buffers() -> ReceiveBuffers {
    ReceiveBuffers { pool: Pool::new(), permits: BUFFERS }
}

/// CPU time of this process in seconds: user and system ticks of /proc/self/stat (proc(5)), 100 a second on Linux.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc is mounted");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    let ticks = |nth: usize| fields[nth].parse::<f64>().expect("ticks are numbers");
    (ticks(11) + ticks(12)) / 100.0
}

struct Case {
    name: &'static str,
    transport: Transport,
    profile: Profile,
    connections: u8,
}

async fn connect(case: &Case) -> (Parts, Parts, Option<Listener>) {
    let choice = match case.transport {
        Transport::Quic => TransportChoice::Quic,
        Transport::Tcp => TransportChoice::Tcp,
        Transport::Memory => {
            let (left, right) = memory_pair(buffers(), buffers()).expect("the buffers are enough");
            return (left.split(), right.split(), None);
        }
    };
    let authority = authority::Authority::new("throughput");
    let options = ListenOptions { profile: case.profile, ..ListenOptions::default() };
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), &authority.host("receiver"), options)
        .expect("a port is free");
    let options = DialOptions {
        transport: choice,
        profile: case.profile,
        connections: case.connections,
        ..DialOptions::new("127.0.0.1", listener.local_addr().port())
    };
    let dialler = dial(&options, &authority.host("sender"), buffers()).await.expect("the listener is there");
    let open = Open {
        session: SESSION,
        direction: Direction::Push,
        mode: Mode::Create,
        format: VolumeFormat::Raw,
        readback: false,
        lanes: case.connections,
        pool: "pool".into(),
        name: "disk".into(),
    };
    let (handle, data, inbox, receiver) = dialler.split();
    handle.send(Control::Open(open)).await.expect("the tunnel is new");
    let accepter = listener.accept().await.expect("somebody dialled").accept(buffers()).expect("enough");
    let (accept_handle, accept_data, accept_inbox, accept_receiver) = accepter.split();
    accept_handle.register(SESSION, Generation(1));
    handle.open_lanes(SESSION, Generation(1)).await.expect("the lanes come up");
    (
        (handle, data, inbox, receiver),
        (accept_handle, accept_data, accept_inbox, accept_receiver),
        Some(listener),
    )
}

async fn run(case: &Case, extents: u64) {
    let (sender, receiver, _listener) = connect(case).await;
    let (handle, data, inbox, _unused) = sender;
    let (_receiver_handle, _unused_data, receiver_inbox, received) = receiver;
    let drains = [inbox, receiver_inbox].map(|inbox| {
        tokio::spawn(async move { while !matches!(inbox.recv().await, None | Some(Event::Closed(_))) {} })
    });
    let piece = Bytes::from(vec![0x5a; BUFFER]);
    let (cpu, start) = (cpu_seconds(), Instant::now());
    let producer = tokio::spawn(async move {
        for sequence in 0..extents {
            let head = ExtentHead {
                sequence: Sequence(sequence),
                floor: Sequence(0),
                extent: ExtentIndex(sequence),
                encoding: Encoding::Raw,
                wire_len: EXTENT,
                plain_len: EXTENT,
                chunks: vec![ChunkEntry::Data(ChunkId([1; 32])); 16],
            };
            let payload = vec![piece.clone(); 4];
            let extent = OutgoingExtent { sequence: Sequence(sequence), head: head.encode(), payload };
            data.send(extent).await.expect("the tunnel is up");
        }
    });
    for _ in 0..extents {
        received.recv().await.expect("the tunnel is up");
    }
    producer.await.expect("the producer ends");
    #[expect(clippy::cast_precision_loss, reason = "a few GB")]
    let gigabytes = (extents * u64::from(EXTENT)) as f64 / 1e9;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let stats = handle.stats();
    let mtu = stats.lanes.iter().map(|lane| lane.mtu).max().unwrap_or(0);
    println!(
        "{:22} {:5.2} GB/s  {:5.2} CPU-s/GB  mtu {:5}  lost {}",
        case.name,
        gigabytes / seconds,
        cpu / gigabytes,
        mtu,
        stats.lost_packets
    );
    drop((handle, received));
    for drain in drains {
        drain.abort();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mib: u64 = std::env::args().nth(1).map_or(Ok(1024), |text| text.parse()).expect("MIB is a number");
    let case = |name, transport, profile, connections| Case { name, transport, profile, connections };
    for case in [
        case("quic lan, 1 connection", Transport::Quic, Profile::Lan, 1),
        case("quic lan, 2 connections", Transport::Quic, Profile::Lan, 2),
        case("quic lan, 4 connections", Transport::Quic, Profile::Lan, 4),
        case("quic wan, 1 connection", Transport::Quic, Profile::Wan, 1),
        case("quic wan, 2 connections", Transport::Quic, Profile::Wan, 2),
        case("quic wan, 4 connections", Transport::Quic, Profile::Wan, 4),
        case("tcp, 1 connection", Transport::Tcp, Profile::Lan, 1),
        case("tcp, 2 connections", Transport::Tcp, Profile::Lan, 2),
        case("tcp, 4 connections", Transport::Tcp, Profile::Lan, 4),
        case("memory", Transport::Memory, Profile::Lan, 1),
    ] {
        run(&case, mib).await;
    }
    println!("load {}", std::fs::read_to_string("/proc/loadavg").expect("proc is mounted").trim());
}
