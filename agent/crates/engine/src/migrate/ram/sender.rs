//! The source's end of QEMU's connections.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use reduce::Choice;
use reduce::Outcome;
use reduce::ram::{Batch, Encoder, PAGE_BYTES, Packer, Page, PageBytes, Plan};
use tokio::io::{AsyncRead, AsyncWrite};

use super::again::SentPages;
use super::flight::InFlight;
use super::frame::{FRAME, Head, Kind, invalid};
use super::lane::Lane;
use super::outbox::Outbox;
use super::reading::Reading;
use crate::cpu::{Cpu, Scratch};
use crate::migrate::contact::{Broken, Channels, given_up};

/// Level of zstd for the heads of frames.
const HEAD_LEVEL: i32 = 1;
/// RAM blocks that are told apart; a machine has a dozen.
const MAX_BLOCKS: usize = 4096;

/// Bytes and pages of a migration's RAM.
#[derive(Debug, Default)]
pub struct RamCounters {
    /// Bytes that QEMU sent, all connections.
    pub plain: AtomicU64,
    /// Bytes on the channels.
    pub wire: AtomicU64,
    /// Bytes that the destination's QEMU has taken.
    pub taken: AtomicU64,
    /// Pages with content.
    pub pages: AtomicU64,
    /// Pages that travelled as a reference or a difference.
    pub reduced: AtomicU64,
    /// Bytes of pages that had been sent before.
    pub again: AtomicU64,
    /// What those were on the channels; a frame of both kinds counts by its share of pages.
    pub again_wire: AtomicU64,
    /// Bytes that travelled as they are because a tokeniser did not know them.
    pub literal: AtomicU64,
}

/// What the connections of one migration share at the source.
#[derive(Debug)]
pub struct RamSender {
    encoder: Mutex<Epoch>,
    blocks: Mutex<HashMap<Bytes, u32>>,
    sent: Mutex<SentPages>,
    level: Choice,
    cpu: Cpu,
    /// Bytes on their way.
    pub flight: InFlight,
    /// What passed.
    pub counters: RamCounters,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RamSender {
    /// A sender whose receiver keeps `slots` pages.
    #[must_use]
    pub fn new(slots: u32, level: Choice, cpu: Cpu) -> Arc<Self> {
        Arc::new(Self {
            encoder: Mutex::new(Epoch { number: 0, encoder: Encoder::new(slots) }),
            blocks: Mutex::default(),
            sent: Mutex::default(),
            level,
            cpu,
            flight: InFlight::default(),
            counters: RamCounters::default(),
        })
    }

    /// A connection began: with the first channel of a later epoch the caches are empty again.
    pub(super) fn enter(&self, epoch: u64) {
        let mut current = lock(&self.encoder);
        if epoch > current.number {
            current.number = epoch;
            current.encoder.reset();
        }
    }

    /// What the other end took of `channel` in this epoch, up to the frame `number`. Of these packets `planned` was the
    /// last with pages.
    pub(super) fn taken(
        &self,
        epoch: u64,
        channel: u8,
        frames: &[Arc<Frame>],
        planned: Option<u64>,
    ) -> io::Result<()> {
        let bytes = frames.iter().map(|frame| frame.plain).sum();
        self.flight.give(channel, bytes);
        self.counters.taken.fetch_add(bytes, Ordering::Relaxed);
        let Some(number) = planned else { return Ok(()) };
        let mut current = lock(&self.encoder);
        if current.number == epoch {
            current.encoder.acknowledge(channel, number).map_err(io::Error::other)?;
        }
        Ok(())
    }

    pub(super) fn block(&self, name: &[u8]) -> u32 {
        let mut blocks = lock(&self.blocks);
        if let Some(number) = blocks.get(name) {
            return *number;
        }
        let number = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        if blocks.len() < MAX_BLOCKS {
            blocks.insert(Bytes::copy_from_slice(name), number);
        }
        number
    }

    /// Carries one connection of QEMU over the channel `number`, and the return path back, until both directions ended.
    ///
    /// # Errors
    /// When QEMU hangs up early, the destination breaks the protocol, or there will be no other channel: then the
    /// migration fails.
    pub async fn carry<S, C>(self: &Arc<Self>, number: u8, socket: S, mut channels: C) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
        C: Channels,
    {
        let (from_qemu, mut to_qemu) = tokio::io::split(socket);
        let outbox = Outbox::default();
        let reading = Reading { shared: self, channel: number, outbox: &outbox }.run(from_qemu);
        let travelling = async {
            let mut lane = Lane::new(self, number, &outbox);
            let mut broken = None;
            while let Some((epoch, read, write)) = channels.next(broken.as_ref()).await {
                match lane.travel(epoch, read, write, &mut to_qemu).await {
                    Ok(()) => return Ok(()),
                    Err(Broken::Channel(error)) => broken = Some(error),
                    Err(Broken::Path(error)) => return Err(error),
                }
            }
            Err(given_up(broken))
        };
        tokio::try_join!(reading, travelling)?;
        Ok(())
    }
}

/// The caches, and the connection that they are of.
#[derive(Debug)]
struct Epoch {
    number: u64,
    encoder: Encoder,
}

/// Pages and what lies between them, as one frame.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) kind: Kind,
    pub(super) head: Vec<u8>,
    pub(super) pages: Vec<(u32, u64, Bytes)>,
}

/// What a frame carries.
#[derive(Debug)]
pub(super) enum Item {
    Literal(Bytes),
    Packet(Job),
    End,
}

/// A frame as it is kept until it is acknowledged.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) item: Item,
    /// Its bytes in flight.
    pub(super) plain: u64,
}

impl Frame {
    /// The encoder knows of it.
    pub(super) fn has_pages(&self) -> bool {
        matches!(&self.item, Item::Packet(job) if !job.pages.is_empty())
    }
}

impl RamSender {
    /// Counts those of a frame's pages that were sent before; `wire` is the whole frame.
    fn note_again(&self, pages: &[(u32, u64, Bytes)], wire: u64) {
        let mut sent = lock(&self.sent);
        let again = pages.iter().filter(|(block, offset, _)| sent.note(*block, *offset)).count() as u64;
        drop(sent);
        self.counters.again.fetch_add(again * PAGE_BYTES as u64, Ordering::Relaxed);
        self.counters.again_wire.fetch_add(wire * again / pages.len().max(1) as u64, Ordering::Relaxed);
    }

    /// The whole frame of a job, made on a CPU thread.
    pub(super) async fn packed(
        self: &Arc<Self>,
        epoch: u64,
        channel: u8,
        number: u64,
        frame: Arc<Frame>,
    ) -> Result<Vec<u8>, Broken> {
        let shared = Arc::clone(self);
        let packed = self.cpu.run(move |scratch| match &frame.item {
            Item::Packet(job) => shared.pack(epoch, channel, number, job, scratch),
            Item::Literal(_) | Item::End => Err(Broken::Path(invalid("no packet"))),
        });
        packed.await
    }

    /// The lock is held for the decisions alone.
    fn pack(
        &self,
        epoch: u64,
        channel: u8,
        number: u64,
        job: &Job,
        scratch: &mut Scratch,
    ) -> Result<Vec<u8>, Broken> {
        let Job { kind, head: plain_head, pages } = job;
        let mut room = vec![0; plain_head.len()];
        let outcome = scratch.compressor.compress(HEAD_LEVEL, &[plain_head], &mut room);
        let (compressed, head) = match outcome.map_err(io::Error::other)? {
            Outcome::Compressed(len) => (true, &room[..len]),
            Outcome::DoesNotPay => (false, &plain_head[..]),
        };
        let mut frame = vec![0; FRAME];
        frame.extend_from_slice(head);
        if !pages.is_empty() {
            let batch = pages.iter().map(page).collect::<io::Result<Vec<Page<'_>>>>()?;
            let batch = Batch::new(batch).map_err(io::Error::other)?;
            let plan = self.plan(epoch, channel, number, batch)?;
            let packer = packer(scratch)?;
            let stats = plan.pack(packer, self.level, &mut frame).map_err(io::Error::other)?;
            self.counters.pages.fetch_add(pages.len() as u64, Ordering::Relaxed);
            let reduced = u64::from(stats.same) + u64::from(stats.copied) + u64::from(stats.delta);
            self.counters.reduced.fetch_add(reduced, Ordering::Relaxed);
            self.note_again(pages, frame.len() as u64);
        }
        let body = frame.len() - FRAME - head.len();
        let small = |len: usize| u32::try_from(len).map_err(|_over| invalid("a frame over 4 GiB"));
        let fixed = Head {
            kind: *kind,
            compressed,
            pages: u16::try_from(pages.len()).map_err(|_over| invalid("pages"))?,
            head_wire: small(head.len())?,
            head_plain: small(plain_head.len())?,
            body: small(body)?,
            number,
        };
        frame[..FRAME].copy_from_slice(&fixed.encode());
        Ok(frame)
    }
}

impl RamSender {
    fn plan<'a>(&self, epoch: u64, channel: u8, number: u64, batch: Batch<'a>) -> Result<Plan<'a>, Broken> {
        let mut current = lock(&self.encoder);
        if current.number != epoch {
            let why = io::Error::new(io::ErrorKind::NotConnected, "there is a newer connection");
            return Err(Broken::Channel(why));
        }
        Ok(current.encoder.plan(channel, number, batch).map_err(io::Error::other)?)
    }
}

fn page((block, offset, data): &(u32, u64, Bytes)) -> io::Result<Page<'_>> {
    let bytes: &PageBytes = data[..].try_into().map_err(|_short| invalid("a page of another length"))?;
    Ok(Page { block: *block, offset: *offset, bytes })
}

fn packer(scratch: &mut Scratch) -> io::Result<&mut Packer> {
    if scratch.packer.is_none() {
        scratch.packer = Some(Packer::new().map_err(io::Error::other)?);
    }
    scratch.packer.as_mut().ok_or_else(|| invalid("no packer"))
}
