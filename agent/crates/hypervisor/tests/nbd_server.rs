//! The server against this crate's own client, and against clients that break the protocol.

#[path = "support/memory.rs"]
mod memory;

use std::sync::Arc;
use std::time::Duration;

use memory::{Memory, Served};
use novaferry_hypervisor::Error;
use novaferry_hypervisor::error::ConnectionLoss;
use novaferry_hypervisor::nbd::client::Options;
use novaferry_hypervisor::nbd::server::{BlockSizes, Ending, Export, Limits, MAX_PAYLOAD, serve};
use novaferry_hypervisor::nbd::wire::{CommandFlags, ErrorCode};
use novaferry_hypervisor::nbd::{Access, Client, NbdVolume};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use volume::conformance::{Dice, check_sink, read_all};
use volume::{Buffer, Kind, Source};

const SIZE: u64 = 1 << 20;

fn filled(length: usize, byte: u8) -> Buffer {
    let mut buffer = Buffer::heap(length);
    buffer.fill(byte);
    buffer
}

fn random(size: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    Dice::new(seed).fill(&mut bytes);
    bytes
}

async fn connect(served: &Served, in_flight: usize) -> Client {
    let options = Options { in_flight, connections: 4, ..Options::default() };
    let client = Client::connect(&served.address(), "disk", &options).await.unwrap();
    assert_eq!(client.connections(), 1, "CAN_MULTI_CONN is not offered");
    client
}

fn disk() -> Export {
    Export::new("disk", SIZE)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited 30 s for {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_suite_passes_through_client_and_server() {
    for (seed, (minimum, size)) in (0..).zip([
        (1, 3 * SIZE + 77),
        (512, 512),
        (512, 5 * SIZE + 512),
        (4096, 4 * SIZE),
        (65_536, 2 * SIZE),
    ]) {
        let sizes = BlockSizes { minimum, preferred: 65_536, maximum: 1 << 20 };
        let export = Export { sizes, ..Export::new("disk", size) };
        let mut served = Served::start(export, Memory::new(random(size, seed)));
        let volume = NbdVolume::new(connect(&served, 16).await, Access::ReadWrite).unwrap();
        assert_eq!((volume.geometry().size.0, volume.geometry().logical_block), (size, minimum));
        check_sink(&volume, seed).await;
        assert!(read_all(&volume).await == served.memory.content());
        volume.close().await;
        assert_eq!(served.ending().await.unwrap(), Ending::Disconnected);
        assert!(
            served.memory.durable.lock().unwrap().clone() == served.memory.content(),
            "it ends with a flush"
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write { block: u64, blocks: u64, byte: u8, fua: bool },
    Zero { block: u64, blocks: u64, keep: bool, fua: bool },
    Trim { block: u64, blocks: u64 },
    Read { block: u64, blocks: u64 },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0_u64..128).prop_flat_map(|block| (Just(block), 1..=128 - block));
    prop_oneof![
        3 => (range(), any::<u8>(), any::<bool>())
            .prop_map(|((block, blocks), byte, fua)| Step::Write { block, blocks, byte, fua }),
        2 => (range(), any::<bool>(), any::<bool>())
            .prop_map(|((block, blocks), keep, fua)| Step::Zero { block, blocks, keep, fua }),
        1 => range().prop_map(|(block, blocks)| Step::Trim { block, blocks }),
        2 => range().prop_map(|(block, blocks)| Step::Read { block, blocks }),
        1 => Just(Step::Flush),
    ]
}

fn place(block: u64, blocks: u64) -> std::ops::Range<usize> {
    usize::try_from(block * 512).unwrap()..usize::try_from((block + blocks) * 512).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_requests_leave_what_a_model_says(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let size = 64 << 10;
            let served = Served::start(Export::new("disk", size), Memory::new(random(size, 1)));
            let client = connect(&served, 4).await;
            let mut model = random(size, 1);
            let mut durable = model.clone();
            for step in steps {
                let flags = |set, flag| if set { flag } else { CommandFlags::NONE };
                match step {
                    Step::Write { block, blocks, byte, fua } => {
                        let place = place(block, blocks);
                        model[place.clone()].fill(byte);
                        if fua {
                            durable[place.clone()].fill(byte);
                        }
                        let flags = flags(fua, CommandFlags::FUA);
                        client.write(block * 512, filled(place.len(), byte), flags).await.0.unwrap();
                    }
                    Step::Zero { block, blocks, keep, fua } => {
                        model[place(block, blocks)].fill(0);
                        if fua {
                            durable[place(block, blocks)].fill(0);
                        }
                        let flags = flags(fua, CommandFlags::FUA).and(flags(keep, CommandFlags::NO_HOLE));
                        let length = u32::try_from(blocks * 512).unwrap();
                        client.write_zeroes(block * 512, length, flags).await.unwrap();
                    }
                    Step::Trim { block, blocks } => {
                        model[place(block, blocks)].fill(0);
                        client.trim(block * 512, u32::try_from(blocks * 512).unwrap()).await.unwrap();
                    }
                    Step::Read { block, blocks } => {
                        let place = place(block, blocks);
                        let (result, buffer) = client.read(block * 512, filled(place.len(), 0x77)).await;
                        result.unwrap();
                        assert!(buffer[..] == model[place]);
                    }
                    Step::Flush => {
                        durable.clone_from(&model);
                        client.flush().await.unwrap();
                    }
                }
            }
            assert!(served.memory.content() == model);
            assert!(*served.memory.durable.lock().unwrap() == durable, "FUA and FLUSH mean what they say");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_run_together_within_the_limits() {
    for (limits, most_running, most_bytes) in [
        (Limits::default(), 32, 64 << 20),
        (Limits { requests: 3, ..Limits::default() }, 3, 64 << 20),
        (Limits { bytes: 0, ..Limits::default() }, 1, 1 << 20),
    ] {
        let size = 64 << 20;
        let export = Export { limits, ..Export::new("disk", size) };
        let memory = Memory { gate: tokio::sync::Semaphore::new(0), ..Memory::new(vec![0; 64 << 20]) };
        let served = Served::start(export, memory);
        let client = Arc::new(connect(&served, 128).await);
        let mut writes = tokio::task::JoinSet::new();
        for n in 0..64_u8 {
            let client = Arc::clone(&client);
            writes.spawn(async move {
                client.write(u64::from(n) << 20, filled(1 << 20, n), CommandFlags::NONE).await.0
            });
        }
        until("the writes to pile up", || served.memory.seen().running == most_running).await;
        served.memory.gate.add_permits(64);
        while let Some(result) = writes.join_next().await {
            result.unwrap().unwrap();
        }
        let seen = served.memory.seen().clone();
        assert_eq!((seen.writes, seen.most_running), (64, most_running), "{limits:?}");
        assert!(seen.most_bytes <= most_bytes, "{limits:?}: {seen:?}");
        let content = served.memory.content();
        let whole = |(n, block): (usize, &[u8])| block.iter().all(|byte| usize::from(*byte) == n);
        assert!(content.chunks(1 << 20).enumerate().all(whole));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_covers_what_was_answered_and_waits_for_nothing_else() {
    let memory = Memory { gate: tokio::sync::Semaphore::new(1), ..Memory::new(random(SIZE, 3)) };
    let served = Served::start(disk(), memory);
    let client = Arc::new(connect(&served, 16).await);
    client.write(0, filled(512, 1), CommandFlags::NONE).await.0.unwrap();
    let waiting = {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.write(512, filled(512, 2), CommandFlags::NONE).await.0 })
    };
    until("the second write to be in flight", || served.memory.seen().running == 1).await;
    client.flush().await.unwrap();
    let durable = served.memory.durable.lock().unwrap()[..1024].to_vec();
    assert!(durable[..512] == [1; 512], "answered before the flush");
    assert!(durable[512..] == random(SIZE, 3)[512..1024], "in flight while the flush was answered");
    served.memory.gate.add_permits(1);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn failures_of_the_handler_are_answered_and_the_connection_goes_on() {
    let mut served = Served::start(disk(), Memory::new(vec![0; 1 << 20]));
    let client = connect(&served, 16).await;
    for (kind, expected) in [
        (Kind::NoSpace, ErrorCode::ENOSPC),
        (Kind::Quota, ErrorCode::ENOSPC),
        (Kind::Permission, ErrorCode::EPERM),
        (Kind::Invalid, ErrorCode::EINVAL),
        (Kind::Unsupported, ErrorCode::ENOTSUP),
        (Kind::Poisoned, ErrorCode::EIO),
        (Kind::Io, ErrorCode::EIO),
    ] {
        *served.memory.failure.lock().unwrap() = Some(kind);
        for result in [
            client.write(0, filled(512, 1), CommandFlags::NONE).await.0,
            client.read(0, filled(512, 1)).await.0,
            client.write_zeroes(0, 512, CommandFlags::NONE).await,
            client.trim(0, 512).await,
            client.flush().await,
        ] {
            match result.unwrap_err() {
                Error::Server { code, message, .. } => {
                    assert!(code == expected && message.contains("the test's volume"), "{code} {message}")
                }
                other => panic!("{other}"),
            }
        }
    }
    *served.memory.failure.lock().unwrap() = None;
    client.write(0, filled(512, 9), CommandFlags::FUA).await.0.unwrap();
    client.close().await;
    assert_eq!(served.ending().await.unwrap(), Ending::Disconnected);

    let memory = Memory { short: true, ..Memory::new(vec![0; 1 << 20]) };
    let served = Served::start(disk(), memory);
    let error = connect(&served, 1).await.read(0, filled(512, 1)).await.0.unwrap_err();
    assert!(matches!(error, Error::Server { code: ErrorCode::EIO, .. }), "a short read is no read: {error}");
}

#[tokio::test]
async fn a_read_only_export_is_one_and_a_wrong_name_is_refused() {
    let served = Served::start(Export { read_only: true, ..disk() }, Memory::new(random(SIZE, 4)));
    let error = Client::connect(&served.address(), "other", &Options::default()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    let volume = NbdVolume::new(connect(&served, 4).await, Access::ReadOnly).unwrap();
    assert!(read_all(&volume).await == random(SIZE, 4));
    drop(volume);
    let error = NbdVolume::new(connect(&served, 4).await, Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), Kind::Permission, "{error}");
}

#[tokio::test]
async fn cancelling_answers_what_is_under_way_and_takes_nothing_more() {
    let memory = Memory { gate: tokio::sync::Semaphore::new(0), ..Memory::new(vec![0; 1 << 20]) };
    let mut served = Served::start(disk(), memory);
    let client = Arc::new(connect(&served, 16).await);
    let write = {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.write(0, filled(512, 5), CommandFlags::NONE).await.0 })
    };
    until("the write to run", || served.memory.seen().running == 1).await;
    served.cancel();
    served.memory.gate.add_permits(1);
    write.await.unwrap().unwrap();
    assert_eq!(served.ending().await.unwrap(), Ending::Cancelled);
    let error = client.flush().await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    // Also in the middle of the handshake.
    drop(UnixStream::connect(&served.path).await.unwrap());
    assert_eq!(served.ending().await.unwrap(), Ending::Cancelled);
}

#[tokio::test]
async fn a_lost_client_is_an_error_after_its_requests_have_ended() {
    let memory = Memory { gate: tokio::sync::Semaphore::new(0), ..Memory::new(vec![0; 1 << 20]) };
    let mut served = Served::start(disk(), memory);
    let client = connect(&served, 16).await;
    {
        let mut write = Box::pin(client.write(0, filled(512, 5), CommandFlags::NONE));
        tokio::select! {
            _ = &mut write => panic!("the gate is shut"),
            () = until("the write to run", || served.memory.seen().running == 1) => {}
        }
    }
    drop(client);
    let early = tokio::time::timeout(Duration::from_millis(50), served.ending()).await;
    assert!(early.is_err(), "the write still runs: a successor must not overtake it");
    served.memory.gate.add_permits(1);
    let error = served.ending().await.unwrap_err();
    assert!(matches!(error, Error::Client { source: ConnectionLoss::Socket(_), .. }), "{error}");
    let seen = served.memory.seen().clone();
    assert_eq!((seen.running, seen.writes), (0, 1));
}

#[tokio::test]
async fn dropping_the_server_drops_the_calls_that_run() {
    let memory = Arc::new(Memory { gate: tokio::sync::Semaphore::new(0), ..Memory::new(vec![0; 1 << 20]) });
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let handler = Arc::clone(&memory);
    let task = tokio::spawn(async move { serve(theirs, &disk(), handler, std::future::pending()).await });
    ours.write_all(&enter_by_name(b"disk")).await.unwrap();
    ours.write_all(&[&request(0, 1, 0, 512)[..], &[1; 512]].concat()).await.unwrap();
    until("the write to run", || memory.seen().running == 1).await;
    task.abort();
    until("the write to be dropped", || memory.seen().running == 0).await;
    assert_eq!(memory.seen().writes, 0);
}

#[tokio::test]
async fn a_panic_of_the_handler_is_passed_on() {
    let memory = Memory { broken: true, ..Memory::new(vec![0; 1 << 20]) };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let task =
        tokio::spawn(async move { serve(theirs, &disk(), Arc::new(memory), std::future::pending()).await });
    ours.write_all(&enter_by_name(b"disk")).await.unwrap();
    ours.write_all(&[request(0, 3, 0, 0), request(0, 2, 0, 0)].concat()).await.unwrap();
    let panic = task.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the test's bug"));
}

#[tokio::test]
async fn exports_that_make_no_sense_are_not_served() {
    let sizes = |minimum, maximum| BlockSizes { minimum, preferred: 4096, maximum };
    for export in [
        Export::new("disk", 0),
        Export::new("disk", 513),
        Export::new("disk", u64::MAX),
        Export::new("x".repeat(4097), SIZE),
        Export { sizes: sizes(3, 1 << 20), ..disk() },
        Export { sizes: sizes(512, 4096), ..disk() },
        Export { sizes: sizes(512, MAX_PAYLOAD + 512), ..disk() },
    ] {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let handler = Arc::new(Memory::new(Vec::new()));
        let error = serve(theirs, &export, handler, std::future::pending()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
}

// What follows is written apart from the crate's codec, so that both can be wrong only independently.

fn option(number: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = b"IHAVEOPT".to_vec();
    out.extend(number.to_be_bytes());
    out.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    out.extend(payload);
    out
}

/// Client flags with NO_ZEROES, and EXPORT_NAME.
fn enter_by_name(name: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 3], &option(1, name)[..]].concat()
}

fn request(flags: u16, command: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend([0xc0; 8]);
    out.extend(offset.to_be_bytes());
    out.extend(length.to_be_bytes());
    out
}

/// Sends these bytes and reads until the server ends the connection. Returns what it said after its greeting, and how
/// it calls the end.
async fn exchange(served: &mut Served, bytes: &[u8], close: bool) -> (Vec<u8>, Result<Ending, Error>) {
    let stream = UnixStream::connect(&served.path).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    // The server may cut the connection while this is sent.
    drop(write.write_all(bytes).await);
    let held = if close {
        drop(write);
        None
    } else {
        Some(write)
    };
    let mut said = Vec::new();
    // A reset is an end, too.
    drop(read.read_to_end(&mut said).await);
    drop(held);
    assert_eq!(&said[..said.len().min(18)], b"NBDMAGICIHAVEOPT\x00\x03");
    (said.split_off(said.len().min(18)), served.ending().await)
}

#[tokio::test]
async fn clients_without_structured_replies_are_served() {
    let mut served = Served::start(disk(), Memory::new(random(SIZE, 8)));
    let mut bytes = enter_by_name(b"disk");
    for (flags, command, offset, length) in
        [(0, 0, 4096, 512), (0, 0, SIZE, 512), (0, 7, 0, 512), (0, 99, 0, 512), (0, 3, 0, 0), (0, 2, 0, 0)]
    {
        bytes.extend(request(flags, command, offset, length));
    }
    let (said, ending) = exchange(&mut served, &bytes, false).await;
    assert_eq!(ending.unwrap(), Ending::Disconnected);
    assert_eq!(said[..10], [0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x6d]);
    // Answers come in any order; one of them carries data.
    let ok = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &[0xc0; 8]].concat();
    let invalid = [&0x6744_6698_u32.to_be_bytes()[..], &[0, 0, 0, 22], &[0xc0; 8]].concat();
    let count = |wanted: &[u8]| said.windows(16).filter(|window| *window == wanted).count();
    assert_eq!((said.len(), count(&ok), count(&invalid)), (10 + 5 * 16 + 512, 2, 3));
    let data = &random(SIZE, 8)[4096..4608];
    assert!(said.windows(16 + 512).any(|window| window[..16] == ok && window[16..] == *data));

    // Without NO_ZEROES the padding is there.
    let bytes = [&[0, 0, 0, 1], &option(1, b"disk")[..], &request(0, 2, 0, 0)].concat();
    assert_eq!(exchange(&mut served, &bytes, false).await.0.len(), 134);
}

#[tokio::test]
async fn options_are_answered_or_refused() {
    let sizes = BlockSizes { minimum: 4096, preferred: 4096, maximum: 1 << 20 };
    let mut served = Served::start(Export { sizes, ..disk() }, Memory::new(vec![0; 1 << 20]));
    let query = |name: &str| {
        let length = u32::try_from(name.len()).unwrap().to_be_bytes();
        [&length[..], name.as_bytes(), &[0, 0]].concat()
    };
    for (number, payload, reply) in [
        (3_u32, Vec::new(), 2_u32),
        (3, vec![1], 0x8000_0003),
        (4, Vec::new(), 0x8000_0001),
        (5, Vec::new(), 0x8000_0001),
        (6, query("disk"), 3),
        (6, query("other"), 0x8000_0006),
        (7, query("disk"), 0x8000_0008),
        (7, vec![0xff; 4], 0x8000_0003),
        (8, Vec::new(), 1),
        (9, vec![0; 8], 0x8000_0001),
        (10, vec![0; 8], 0x8000_0001),
        (11, Vec::new(), 0x8000_0001),
        (0x1234_5678, vec![7; 8192], 0x8000_0001),
    ] {
        let bytes = [&[0, 0, 0, 3], &option(number, &payload)[..], &option(2, &[])].concat();
        let (said, ending) = exchange(&mut served, &bytes, false).await;
        assert_eq!(ending.unwrap(), Ending::Aborted);
        let head =
            [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &number.to_be_bytes(), &reply.to_be_bytes()];
        assert_eq!(said[..16], head.concat(), "option {number}");
    }
}

#[tokio::test]
async fn clients_that_break_the_protocol_are_cut_off() {
    let mut served = Served::start(disk(), Memory::new(vec![0; 1 << 20]));
    let flood = option(9, &[]).repeat(65);
    let mut long = b"IHAVEOPT\x00\x00\x00\x07".to_vec();
    long.extend(u32::MAX.to_be_bytes());
    let started = |bytes: &[u8]| [&enter_by_name(b"disk"), bytes].concat();
    for (expected, bytes) in [
        ("client flags", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("client flags", vec![0, 0, 0, 0]),
        ("option magic", vec![0, 0, 0, 3, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]),
        ("option of 4294967295 bytes", [&[0, 0, 0, 3], &long[..]].concat()),
        ("more than 64 options", [&[0, 0, 0, 3], &flood[..]].concat()),
        ("\"other\" was asked for", enter_by_name(b"other")),
        ("not UTF-8", enter_by_name(b"\xff")),
        ("request magic", started(&[0; 28])),
        ("request to write of 1049088 bytes", started(&request(0, 1, 0, (1 << 20) + 512))),
        ("request to write of 4294967295 bytes", started(&request(0, 1, 0, u32::MAX))),
    ] {
        let (_, ending) = exchange(&mut served, &bytes, false).await;
        match ending.unwrap_err() {
            Error::Client { source: ConnectionLoss::Protocol(error), .. } => {
                assert!(error.to_string().contains(expected), "{expected}: {error}")
            }
            other => panic!("{expected}: {other}"),
        }
    }
    for bytes in [
        Vec::new(),
        vec![0, 0, 0],
        b"\x00\x00\x00\x03IHAVEOPT".to_vec(),
        [&[0, 0, 0, 3], &option(7, &[0; 20])[..30]].concat(),
        started(&[]),
        started(&request(0, 1, 0, 512)[..27]),
        started(&request(0, 1, 0, 512)),
        started(&[&request(0, 1, 0, 512)[..], &[1; 511]].concat()),
    ] {
        let (_, ending) = exchange(&mut served, &bytes, true).await;
        let error = ending.unwrap_err();
        assert!(matches!(error, Error::Client { source: ConnectionLoss::Socket(_), .. }), "{error}");
    }
    assert_eq!(served.memory.seen().writes, 0, "half a request is none");
    connect(&served, 1).await.flush().await.unwrap();
}

#[tokio::test]
async fn a_silent_client_is_cut_off() {
    let limits = Limits { handshake: Duration::from_millis(20), ..Limits::default() };
    let mut served = Served::start(Export { limits, ..disk() }, Memory::new(vec![0; 1 << 20]));
    let (_, ending) = exchange(&mut served, &[0, 0], false).await;
    let error = ending.unwrap_err();
    assert!(matches!(error, Error::Client { source: ConnectionLoss::Silent { .. }, .. }), "{error}");
    // What it leaves out after the handshake is its own business: a mirror may be idle for hours.
    let client = connect(&served, 1).await;
    tokio::time::sleep(Duration::from_millis(40)).await;
    client.flush().await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_fills_nothing() {
    let limits = Limits { requests: 4, ..Limits::default() };
    let served = Served::start(Export { limits, ..disk() }, Memory::new(random(SIZE, 2)));
    let mut stream = UnixStream::connect(&served.path).await.unwrap();
    stream.write_all(&enter_by_name(b"disk")).await.unwrap();
    let read = request(0, 0, 0, 1 << 20);
    // More than the socket holds of either.
    let sent = async {
        for _ in 0..4096 {
            stream.write_all(&read.repeat(64)).await.unwrap();
        }
    };
    let blocked = tokio::time::timeout(Duration::from_millis(300), sent).await;
    assert!(blocked.is_err(), "the server stops reading");
    assert!(served.memory.seen().most_running <= 4);
}
