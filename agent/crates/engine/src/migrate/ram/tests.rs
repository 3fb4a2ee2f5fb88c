//! Both ends of a connection with everything between them real but QEMU and the network: what goes in comes out.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use reduce::Choice;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::{RamReceiver, RamSender};
use crate::cpu::Cpu;
use crate::migrate::contact::Channels;

const SLOTS: u32 = 256;

/// Channels that are there from the begin, one after the other.
struct Prepared(VecDeque<(DuplexStream, DuplexStream)>, u64);

impl Channels for Prepared {
    type Read = DuplexStream;
    type Write = DuplexStream;

    async fn next(&mut self, _broken: Option<&io::Error>) -> Option<(u64, DuplexStream, DuplexStream)> {
        let (read, write) = self.0.pop_front()?;
        self.1 += 1;
        Some((self.1, read, write))
    }
}

/// Both ends of as many channels as there are numbers. A channel breaks when so many bytes passed to the destination,
/// which loses what is in it.
fn channels(room: usize, breaks: &[Option<u64>]) -> (Prepared, Prepared) {
    let (mut ours, mut theirs) = (VecDeque::new(), VecDeque::new());
    for after in breaks {
        let (a_out, mut cut_in) = duplex(room);
        let (mut cut_out, b_in) = duplex(room);
        let (b_out, a_in) = duplex(room);
        let after = after.unwrap_or(u64::MAX);
        tokio::spawn(async move {
            let mut some = (&mut cut_in).take(after);
            drop(tokio::io::copy(&mut some, &mut cut_out).await);
        });
        ours.push_back((a_in, a_out));
        theirs.push_back((b_in, b_out));
    }
    (Prepared(ours, 0), Prepared(theirs, 0))
}

/// Sends `bytes` as the source's QEMU and `back` as the destination's; returns what each of them got.
async fn through(
    sender: &Arc<RamSender>,
    receiver: &Arc<RamReceiver>,
    number: u8,
    bytes: Vec<u8>,
    back: Vec<u8>,
    room: usize,
) -> (Vec<u8>, Vec<u8>) {
    through_breaks(sender, receiver, number, bytes, back, room, &[None]).await
}

async fn through_breaks(
    sender: &Arc<RamSender>,
    receiver: &Arc<RamReceiver>,
    number: u8,
    bytes: Vec<u8>,
    back: Vec<u8>,
    room: usize,
    breaks: &[Option<u64>],
) -> (Vec<u8>, Vec<u8>) {
    let (source_qemu, source_socket) = duplex(room);
    let (destination_qemu, destination_socket) = duplex(room);
    let (ours, theirs) = channels(room, breaks);
    let (sender, receiver) = (Arc::clone(sender), Arc::clone(receiver));
    let sending = tokio::spawn(async move { sender.carry(number, source_socket, ours).await });
    let receiving = tokio::spawn(async move { receiver.carry(destination_socket, theirs).await });
    let talk = |qemu: DuplexStream, says: Vec<u8>| async move {
        let (mut read, mut write) = tokio::io::split(qemu);
        let mut heard = Vec::new();
        let (said, listened) = tokio::join!(
            async {
                write.write_all(&says).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut heard)
        );
        said.unwrap();
        listened.unwrap();
        heard
    };
    let (got_back, got) = tokio::join!(talk(source_qemu, bytes), talk(destination_qemu, back));
    sending.await.unwrap().unwrap();
    receiving.await.unwrap().unwrap();
    (got, got_back)
}

fn ends() -> (Arc<RamSender>, Arc<RamReceiver>) {
    let cpu = Cpu::start(2).unwrap();
    (RamSender::new(SLOTS, Choice::Level(1), cpu.clone()), RamReceiver::new(SLOTS, cpu))
}

/// A multifd packet as QEMU 10 writes it (`migration/multifd.h`, `MultiFDPacket_t`).
fn packet(number: u64, pages: &[(u64, [u8; 4096])], zero: &[u64]) -> Vec<u8> {
    let count = |n: usize| u32::try_from(n).unwrap().to_be_bytes();
    let mut out = Vec::new();
    out.extend_from_slice(&0x1122_3344_u32.to_be_bytes());
    out.extend_from_slice(&1_u32.to_be_bytes());
    out.extend_from_slice(&u32::from(pages.is_empty() && zero.is_empty()).to_be_bytes()); // SYNC
    out.extend_from_slice(&count(if pages.is_empty() && zero.is_empty() { 0 } else { 128 }));
    out.extend_from_slice(&count(pages.len()));
    out.extend_from_slice(&count(pages.len() * 4096));
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&count(zero.len()));
    out.extend_from_slice(&[0; 28]);
    let mut block = [0; 256];
    block[..6].copy_from_slice(b"pc.ram");
    out.extend_from_slice(&block);
    let offsets = pages.iter().map(|(offset, _)| *offset).chain(zero.iter().copied());
    let mut room = 128;
    for offset in offsets {
        out.extend_from_slice(&offset.to_be_bytes());
        room -= 1;
    }
    out.resize(out.len() + room * 8, 0);
    for (_, page) in pages {
        out.extend_from_slice(page);
    }
    out
}

fn page(seed: u64) -> [u8; 4096] {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = [0; 4096];
    for byte in &mut out {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[3];
    }
    out
}

fn multifd_channel(rounds: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&0x1122_3344_u32.to_be_bytes());
    out.extend_from_slice(&1_u32.to_be_bytes());
    out.resize(64, 7);
    for round in 0..rounds {
        let pages: Vec<(u64, [u8; 4096])> = (0..100_u64)
            .map(|nth| {
                let mut content = page(nth);
                // A small edit in each round: from the second on these travel as differences.
                content[8..16].copy_from_slice(&round.to_le_bytes());
                (nth * 4096, content)
            })
            .collect();
        out.extend_from_slice(&packet(round * 2, &pages, &[1 << 30, (1 << 30) + 4096]));
        out.extend_from_slice(&packet(round * 2 + 1, &[], &[]));
    }
    out
}

#[tokio::test]
async fn a_multifd_channel_arrives_byte_for_byte_and_smaller() {
    for room in [1 << 20, 3000] {
        let (sender, receiver) = ends();
        let bytes = multifd_channel(8);
        let (got, back) = through(&sender, &receiver, 1, bytes.clone(), b"return path".to_vec(), room).await;
        assert!(got == bytes, "the channel was changed");
        assert_eq!(back, b"return path");
        let wire = sender.counters.wire.load(std::sync::atomic::Ordering::Relaxed);
        let first_round = 100 * 4096;
        assert!(wire < first_round * 3 / 2, "{wire} bytes for 8 rounds of {first_round}");
        assert_eq!(sender.flight.bytes(), 0, "everything was acknowledged");
        let load =
            |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(load(&sender.counters.again), 7 * first_round, "all rounds but the first");
        let cost = load(&sender.counters.again_wire);
        assert!((1..first_round / 2).contains(&cost), "{cost} bytes for pages sent again");
    }
}

#[tokio::test]
async fn two_channels_share_what_was_sent() {
    let (sender, receiver) = ends();
    let bytes = multifd_channel(3);
    let first = through(&sender, &receiver, 1, bytes.clone(), Vec::new(), 1 << 20).await;
    let before = sender.counters.wire.load(std::sync::atomic::Ordering::Relaxed);
    let second = through(&sender, &receiver, 2, bytes.clone(), Vec::new(), 1 << 20).await;
    assert!(first.0 == bytes && second.0 == bytes);
    let again = sender.counters.wire.load(std::sync::atomic::Ordering::Relaxed) - before;
    assert!(again < before / 10, "{again} bytes for what went before on another channel, {before} then");
}

#[tokio::test]
async fn what_nobody_knows_passes_unchanged() {
    let mut main = b"QEVM".to_vec();
    main.extend_from_slice(&3_u32.to_be_bytes());
    main.extend_from_slice(&page(5));
    for bytes in [Vec::new(), vec![9], page(1).to_vec(), main, multifd_channel(1)[..70_000].to_vec()] {
        let (sender, receiver) = ends();
        let (got, back) = through(&sender, &receiver, 1, bytes.clone(), vec![1; 100_000], 5000).await;
        assert!(got == bytes, "{} bytes were changed", bytes.len());
        assert_eq!(back.len(), 100_000);
    }
}

#[tokio::test]
async fn a_channel_after_a_broken_one_goes_on_where_it_stopped() {
    let bytes = multifd_channel(8);
    // Within the first frame, within heads and bodies, in later rounds, and again and again.
    for first in [1, 23, 24, 100, 5000, 77_777, 300_000] {
        for room in [1 << 20, 3000] {
            let (sender, receiver) = ends();
            let breaks = [Some(first), Some(first / 2), Some(40_000), Some(0), Some(90_000), None];
            let back: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
            let (got, got_back) =
                through_breaks(&sender, &receiver, 1, bytes.clone(), back.clone(), room, &breaks).await;
            assert!(got == bytes, "after {first} bytes the channel was changed");
            assert!(got_back == back, "after {first} bytes the return path was changed");
            assert_eq!(sender.flight.bytes(), 0, "everything was acknowledged");
        }
    }
}

#[tokio::test]
async fn without_another_channel_a_broken_one_fails_both_ends() {
    let (sender, receiver) = ends();
    let (source_qemu, source_socket) = duplex(1 << 20);
    let (_destination_qemu, destination_socket) = duplex(1 << 20);
    let (ours, theirs) = channels(1 << 20, &[Some(5000)]);
    let (mut write, bytes) = (source_qemu, multifd_channel(1));
    let (sent, sending, receiving) = tokio::join!(
        write.write_all(&bytes),
        sender.carry(1, source_socket, ours),
        receiver.carry(destination_socket, theirs)
    );
    sent.unwrap();
    assert!(sending.is_err() && receiving.is_err(), "{sending:?} {receiving:?}");
}
