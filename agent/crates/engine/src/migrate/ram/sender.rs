//! The source's end of QEMU's connections.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use hypervisor::{multifd, stream};
use reduce::Choice;
use reduce::Outcome;
use reduce::ram::{Batch, Encoder, MAX_PAGES, PAGE_BYTES, Packer, Page, PageBytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::again::SentPages;
use super::flight::InFlight;
use super::frame::{FRAME, Head, Kind, MAX_LITERAL, fold_offsets, invalid};
use crate::cpu::{Cpu, Scratch};

/// Literal bytes that a mixed frame may hold before it is sent.
const MIXED_LITERALS: usize = 64 << 10;
/// Literals without pages that are shorter travel as they are.
const SHORT_LITERAL: usize = 512;
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
    encoder: Mutex<Encoder>,
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

/// A packet on its way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u64,
    /// Plain bytes.
    len: u64,
    /// The encoder knows of it: it has pages.
    planned: bool,
}

/// Packets on their way on one channel.
type Unacknowledged = Mutex<std::collections::VecDeque<Sent>>;

impl RamSender {
    /// A sender whose receiver keeps `slots` pages.
    #[must_use]
    pub fn new(slots: u32, level: Choice, cpu: Cpu) -> Arc<Self> {
        Arc::new(Self {
            encoder: Mutex::new(Encoder::new(slots)),
            blocks: Mutex::default(),
            sent: Mutex::default(),
            level,
            cpu,
            flight: InFlight::default(),
            counters: RamCounters::default(),
        })
    }

    fn block(&self, name: &[u8]) -> u32 {
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

    /// Carries one connection of QEMU to the channel `number`, and the return path back, until both directions ended.
    ///
    /// # Errors
    /// When either side breaks: then the migration fails.
    pub async fn carry<S, R, W>(self: &Arc<Self>, number: u8, socket: S, read: R, write: W) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
        R: AsyncRead + Send + Unpin,
        W: AsyncWrite + Send + Unpin,
    {
        let (from_qemu, to_qemu) = tokio::io::split(socket);
        let unacknowledged = Unacknowledged::default();
        let forward =
            Forward { shared: self, channel: number, write, unacknowledged: &unacknowledged, number: 0 };
        tokio::try_join!(forward.run(from_qemu), self.back(number, read, to_qemu, &unacknowledged))?;
        Ok(())
    }

    async fn back<R, Q>(
        &self,
        channel: u8,
        mut read: R,
        mut to_qemu: Q,
        unacknowledged: &Unacknowledged,
    ) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        Q: AsyncWrite + Unpin,
    {
        let mut bytes = [0; FRAME];
        loop {
            read.read_exact(&mut bytes).await?;
            let head = Head::decode(&bytes)?;
            match head.kind {
                Kind::Ack => self.acknowledged(channel, head.number, unacknowledged)?,
                Kind::Literal => {
                    let mut body = vec![0; head.body as usize]; // at most MAX_LITERAL, as decoded
                    read.read_exact(&mut body).await?;
                    to_qemu.write_all(&body).await?;
                    to_qemu.flush().await?;
                }
                Kind::End => {
                    // QEMU at the destination hung up. Ours may have gone first.
                    drop(to_qemu.shutdown().await);
                    break;
                }
                Kind::Multifd | Kind::Mixed => return Err(invalid("pages on the return path")),
            }
        }
        Ok(())
    }

    fn acknowledged(&self, channel: u8, number: u64, unacknowledged: &Unacknowledged) -> io::Result<()> {
        let (mut bytes, mut planned) = (0, None);
        {
            let mut waiting = lock(unacknowledged);
            if waiting.front().is_none_or(|first| first.number > number)
                || waiting.back().is_some_and(|last| last.number < number)
            {
                return Err(invalid("an acknowledgement of what was not sent"));
            }
            while let Some(sent) = waiting.pop_front_if(|sent| sent.number <= number) {
                bytes += sent.len;
                planned = if sent.planned { Some(sent.number) } else { planned };
            }
        }
        self.flight.give(bytes);
        self.counters.taken.fetch_add(bytes, Ordering::Relaxed);
        match planned {
            Some(number) => lock(&self.encoder).acknowledge(channel, number).map_err(io::Error::other),
            None => Ok(()),
        }
    }
}

/// One connection on its way out.
struct Forward<'a, W> {
    shared: &'a Arc<RamSender>,
    channel: u8,
    write: W,
    unacknowledged: &'a Unacknowledged,
    /// The last packet's number.
    number: u64,
}

/// Pages and what lies between them, as one frame.
struct Job {
    kind: Kind,
    head: Vec<u8>,
    pages: Vec<(u32, u64, Bytes)>,
}

impl<W: AsyncWrite + Unpin> Forward<'_, W> {
    async fn run<Q: AsyncRead + Unpin>(mut self, mut from_qemu: Q) -> io::Result<()> {
        let mut first = BytesMut::with_capacity(MAX_LITERAL);
        let kind = loop {
            if from_qemu.read_buf(&mut first).await? == 0 {
                break stream::Kind::Unknown;
            }
            if let Some(kind) = stream::detect(&first) {
                break kind;
            }
        };
        match kind {
            stream::Kind::Multifd => self.multifd(from_qemu, &first).await?,
            stream::Kind::Main => self.main(from_qemu, &first).await?,
            stream::Kind::Unknown => self.literally(from_qemu, first).await?,
        }
        self.write.write_all(&Head::plain(Kind::End, 0, 0).encode()).await?;
        self.write.flush().await?;
        self.write.shutdown().await
    }

    async fn literally<Q: AsyncRead + Unpin>(
        &mut self,
        mut from_qemu: Q,
        mut bytes: BytesMut,
    ) -> io::Result<()> {
        loop {
            if !bytes.is_empty() {
                self.literal(&bytes.split().freeze()).await?;
            }
            bytes.reserve(MAX_LITERAL);
            if from_qemu.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn multifd<Q: AsyncRead + Unpin>(&mut self, mut from_qemu: Q, first: &[u8]) -> io::Result<()> {
        let mut tokens = multifd::Tokeniser::new();
        tokens.push(first);
        loop {
            while let Some(token) = tokens.next_token() {
                match token {
                    multifd::Token::Hello(hello) => self.literal(hello.bytes()).await?,
                    multifd::Token::Literal(bytes) => self.literal(&bytes).await?,
                    multifd::Token::Packet(packet) => {
                        let block = self.shared.block(packet.block());
                        let pages = packet
                            .normal_offsets()
                            .enumerate()
                            .map(|(nth, offset)| {
                                let at = nth * PAGE_BYTES;
                                (block, offset, packet.pages().slice(at..at + PAGE_BYTES))
                            })
                            .collect();
                        let mut head = packet.header().to_vec();
                        fold_offsets(&mut head);
                        self.packet(Job { kind: Kind::Multifd, head, pages }).await?;
                    }
                }
            }
            if from_qemu.read_buf(&mut tokens.input()).await? == 0 {
                break;
            }
        }
        if let Some(multifd::Token::Literal(rest)) = tokens.finish() {
            self.literal(&rest).await?;
        }
        Ok(())
    }

    async fn main<Q: AsyncRead + Unpin>(&mut self, mut from_qemu: Q, first: &[u8]) -> io::Result<()> {
        let mut tokens = stream::Tokeniser::new();
        let mut mixed = Mixed::default();
        tokens.push(first);
        loop {
            while let Some(token) = tokens.next_token() {
                match token {
                    stream::Token::Literal(bytes) => {
                        if !mixed.has_room(bytes.len()) {
                            self.mixed(&mut mixed).await?;
                        }
                        if bytes.len() > MIXED_LITERALS {
                            self.literal(&bytes).await?;
                        } else {
                            mixed.literal(&bytes);
                        }
                    }
                    stream::Token::Page(page) => {
                        mixed.page(u32::from(page.block.index()), page.offset, page.data);
                    }
                }
                if mixed.is_full() {
                    self.mixed(&mut mixed).await?;
                }
            }
            // What is there goes out before we wait for more: the last part of a migration is all latency. Nor is that
            // part held up by compression, once nothing but it comes.
            if tokens.literal_because().is_some() && mixed.pages.is_empty() {
                self.literal(&Bytes::from(std::mem::take(&mut mixed.literals))).await?;
            } else {
                self.mixed(&mut mixed).await?;
            }
            if from_qemu.read_buf(&mut tokens.input()).await? == 0 {
                break;
            }
        }
        if let Some(stream::Token::Literal(rest)) = tokens.finish() {
            self.literal(&rest).await?;
        }
        Ok(())
    }

    async fn mixed(&mut self, mixed: &mut Mixed) -> io::Result<()> {
        let Mixed { literals, lengths, pages } = std::mem::take(mixed);
        // Runs of zero pages are long literals that compress to nothing; a short one is not worth a number.
        if pages.is_empty() && literals.len() < SHORT_LITERAL {
            return self.literal(&Bytes::from(literals)).await;
        }
        let mut head = Vec::with_capacity(4 * (lengths.len() + 1) + literals.len());
        let last = literals.len() - lengths.iter().sum::<usize>();
        for len in lengths.iter().chain([&last]) {
            head.extend_from_slice(&u32::try_from(*len).unwrap_or(u32::MAX).to_le_bytes());
        }
        head.extend_from_slice(&literals);
        self.packet(Job { kind: Kind::Mixed, head, pages }).await
    }

    /// Not bounded by what is in flight: the device state must not wait behind it.
    async fn literal(&mut self, bytes: &Bytes) -> io::Result<()> {
        for part in bytes.chunks(MAX_LITERAL) {
            self.write.write_all(&Head::plain(Kind::Literal, part.len(), 0).encode()).await?;
            self.write.write_all(part).await?;
            let counters = &self.shared.counters;
            counters.plain.fetch_add(part.len() as u64, Ordering::Relaxed);
            counters.literal.fetch_add(part.len() as u64, Ordering::Relaxed);
            counters.wire.fetch_add((FRAME + part.len()) as u64, Ordering::Relaxed);
        }
        self.write.flush().await
    }

    async fn packet(&mut self, job: Job) -> io::Result<()> {
        let plain = (job.head.len() + job.pages.len() * PAGE_BYTES) as u64;
        self.shared.flight.take(plain).await;
        self.number += 1;
        let number = self.number;
        let planned = !job.pages.is_empty();
        lock(self.unacknowledged).push_back(Sent { number, len: plain, planned });
        let (shared, channel) = (Arc::clone(self.shared), self.channel);
        let frame = self.shared.cpu.run(move |scratch| shared.pack(channel, number, &job, scratch)).await?;
        self.write.write_all(&frame).await?;
        self.write.flush().await?;
        let counters = &self.shared.counters;
        counters.plain.fetch_add(plain, Ordering::Relaxed);
        counters.wire.fetch_add(frame.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Tokens of a single stream that wait to become a frame.
#[derive(Default)]
struct Mixed {
    literals: Vec<u8>,
    /// Literal bytes before each page.
    lengths: Vec<usize>,
    pages: Vec<(u32, u64, Bytes)>,
}

impl Mixed {
    fn literal(&mut self, bytes: &[u8]) {
        self.literals.extend_from_slice(bytes);
    }

    fn page(&mut self, block: u32, offset: u64, data: Bytes) {
        let before: usize = self.lengths.iter().sum();
        self.lengths.push(self.literals.len() - before);
        self.pages.push((block, offset, data));
    }

    fn has_room(&self, literal: usize) -> bool {
        self.literals.len() + literal <= MIXED_LITERALS
    }

    fn is_full(&self) -> bool {
        self.pages.len() == MAX_PAGES
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

    /// The whole frame of a job. Runs on a CPU thread; the lock is held for the decisions alone.
    fn pack(&self, channel: u8, number: u64, job: &Job, scratch: &mut Scratch) -> io::Result<Vec<u8>> {
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
            let plan = lock(&self.encoder).plan(channel, number, batch).map_err(io::Error::other)?;
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
