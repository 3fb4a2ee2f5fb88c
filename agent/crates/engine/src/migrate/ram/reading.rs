//! QEMU's bytes at the source, cut into frames.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use hypervisor::{multifd, stream};
use reduce::ram::{MAX_PAGES, PAGE_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::frame::{Kind, MAX_LITERAL, fold_offsets};
use super::outbox::Outbox;
use super::sender::{Frame, Item, Job, RamSender};

/// Literal bytes that a mixed frame may hold before it is sent.
const MIXED_LITERALS: usize = 64 << 10;
/// Literals without pages that are shorter travel as they are.
const SHORT_LITERAL: usize = 512;
/// Literal bytes that may wait for their acknowledgement: the device state must not wait behind what is in flight, so
/// that they have a bound of their own.
const MAX_LITERALS: u64 = 16 << 20;

/// One connection of QEMU on its way out.
pub(super) struct Reading<'a> {
    pub(super) shared: &'a Arc<RamSender>,
    /// The channel's number.
    pub(super) channel: u8,
    pub(super) outbox: &'a Outbox<Arc<Frame>>,
}

impl Reading<'_> {
    /// Reads until QEMU hangs up.
    pub(super) async fn run<Q: AsyncRead + Unpin>(self, mut from_qemu: Q) -> io::Result<()> {
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
        self.outbox.push(Arc::new(Frame { item: Item::End, plain: 0 }), 0);
        Ok(())
    }

    async fn literally<Q: AsyncRead + Unpin>(&self, mut from_qemu: Q, mut bytes: BytesMut) -> io::Result<()> {
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

    async fn multifd<Q: AsyncRead + Unpin>(&self, mut from_qemu: Q, first: &[u8]) -> io::Result<()> {
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

    async fn main<Q: AsyncRead + Unpin>(&self, mut from_qemu: Q, first: &[u8]) -> io::Result<()> {
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

    async fn mixed(&self, mixed: &mut Mixed) -> io::Result<()> {
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
    async fn literal(&self, bytes: &Bytes) -> io::Result<()> {
        let mut bytes = bytes.clone();
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(MAX_LITERAL));
            let len = part.len() as u64;
            self.outbox.lighter_than(MAX_LITERALS).await;
            self.shared.counters.plain.fetch_add(len, Ordering::Relaxed);
            self.shared.counters.literal.fetch_add(len, Ordering::Relaxed);
            self.outbox.push(Arc::new(Frame { item: Item::Literal(part), plain: 0 }), len);
        }
        Ok(())
    }

    async fn packet(&self, job: Job) -> io::Result<()> {
        let plain = (job.head.len() + job.pages.len() * PAGE_BYTES) as u64;
        self.shared.flight.take(self.channel, plain).await;
        self.shared.counters.plain.fetch_add(plain, Ordering::Relaxed);
        self.outbox.push(Arc::new(Frame { item: Item::Packet(job), plain }), 0);
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
