//! The destination's end of QEMU's connections.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use reduce::ram::{Decoder, PAGE_BYTES, Unpacker};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};

use super::frame::{Head, Kind, MAX_LITERAL, invalid, split_mixed, unfold_offsets};
use super::lane::{hand_over, next_head};
use super::outbox::Outbox;
use crate::cpu::{Cpu, Scratch};
use crate::migrate::contact::{Broken, Channels, given_up};

/// Bytes of the return path that may wait for their acknowledgement; QEMU says little there.
const MAX_RETURNS: u64 = 64 << 20;
/// Where a multifd header counts the bytes that follow it (QEMU, `MultiFDPacket_t`), big-endian.
const NEXT_PACKET_SIZE: std::ops::Range<usize> = 20..24;

/// The pages that are kept, and the connection that they are of.
#[derive(Debug)]
struct Epoch {
    number: u64,
    decoder: Decoder,
}

/// What the connections of one migration share at the destination.
#[derive(Debug)]
pub struct RamReceiver {
    decoder: Mutex<Epoch>,
    cpu: Cpu,
    /// Bytes that QEMU was given.
    pub plain: AtomicU64,
}

impl RamReceiver {
    /// A receiver that keeps `slots` pages.
    #[must_use]
    pub fn new(slots: u32, cpu: Cpu) -> Arc<Self> {
        let decoder = Mutex::new(Epoch { number: 0, decoder: Decoder::new(slots) });
        Arc::new(Self { decoder, cpu, plain: AtomicU64::new(0) })
    }

    fn epoch(&self) -> MutexGuard<'_, Epoch> {
        self.decoder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries one channel to a connection of QEMU, and QEMU's return path back, until both directions ended.
    ///
    /// # Errors
    /// When QEMU hangs up early, the source breaks the protocol, or no other channel comes: then the migration fails.
    pub async fn carry<S, C>(self: &Arc<Self>, socket: S, mut channels: C) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
        C: Channels,
    {
        let (from_qemu, mut to_qemu) = tokio::io::split(socket);
        let returns = Outbox::default();
        let travelling = async {
            let mut lane = Lane::new(self, &returns);
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
        tokio::try_join!(return_path(from_qemu, &returns), travelling)?;
        Ok(())
    }

    /// A connection began: with the first channel of a later epoch the pages are forgotten.
    fn enter(&self, epoch: u64) {
        let mut current = self.epoch();
        if epoch > current.number {
            current.number = epoch;
            current.decoder.reset();
        }
    }

    fn unpack(&self, epoch: u64, fixed: Head, wire: &[u8], scratch: &mut Scratch) -> Result<Vec<u8>, Broken> {
        let (wire_head, body) = wire.split_at(fixed.head_wire as usize);
        let pages = usize::from(fixed.pages);
        let mut head = vec![0; fixed.head_plain as usize]; // at most MAX_HEAD, as decoded
        if fixed.compressed {
            scratch.decompressor.decompress(wire_head, &mut [&mut head[..]]).map_err(io::Error::other)?;
        } else {
            head.copy_from_slice(wire_head);
        }
        let mut plain = Vec::with_capacity(pages * PAGE_BYTES);
        if pages > 0 {
            if scratch.unpacker.is_none() {
                scratch.unpacker = Some(Unpacker::new().map_err(io::Error::other)?);
            }
            let unpacker = scratch.unpacker.as_mut().ok_or_else(|| invalid("no unpacker"))?;
            let packet = unpacker.unpack(body, pages).map_err(io::Error::other)?;
            let mut current = self.epoch();
            if current.number != epoch {
                let why = io::Error::new(io::ErrorKind::NotConnected, "there is a newer connection");
                return Err(Broken::Channel(why));
            }
            current.decoder.apply(&packet, &mut plain).map_err(io::Error::other)?;
        }
        if fixed.kind == Kind::Multifd {
            unfold_offsets(&mut head);
            let mut size = [0; 4];
            size.copy_from_slice(&head[NEXT_PACKET_SIZE]);
            // Without pages QEMU leaves the size of an earlier packet in the field, and sends nothing.
            if pages > 0 && u32::from_be_bytes(size) as usize != plain.len() {
                return Err(invalid("a packet whose header counts other bytes").into());
            }
            head.extend_from_slice(&plain);
            return Ok(head);
        }
        let (lengths, mut literals) = split_mixed(&head, pages)?;
        let mut out = Vec::with_capacity(literals.len() + plain.len());
        let mut content = plain.chunks_exact(PAGE_BYTES);
        for len in lengths {
            let (literal, left) = literals.split_at(len);
            literals = left;
            out.extend_from_slice(literal);
            out.extend_from_slice(content.next().unwrap_or(&[]));
        }
        Ok(out)
    }
}

/// Reads what QEMU answers, until it hangs up.
async fn return_path<Q: AsyncRead + Unpin>(mut from_qemu: Q, returns: &Outbox<Bytes>) -> io::Result<()> {
    let mut buffer = vec![0; MAX_LITERAL];
    loop {
        let len = match from_qemu.read(&mut buffer).await {
            Ok(0) => break,
            Ok(len) => len,
            // QEMU closes its end with unread bytes when it has all that it needs.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error),
        };
        if returns.weight() > MAX_RETURNS {
            return Err(invalid("the source does not take the return path"));
        }
        returns.push(Bytes::copy_from_slice(&buffer[..len]), len as u64);
    }
    // An empty frame is the end.
    returns.push(Bytes::new(), 0);
    Ok(())
}

/// What is kept from channel to channel.
struct Lane<'a> {
    shared: &'a Arc<RamReceiver>,
    returns: &'a Outbox<Bytes>,
    taken: Taken,
    /// The frame after the last one that QEMU has taken, as far as it has not: it is finished before another channel is
    /// told where to begin.
    rest: Option<Bytes>,
}

/// What QEMU has taken.
#[derive(Default)]
struct Taken {
    /// Number of the last frame.
    number: AtomicU64,
    /// It was the last of all.
    ended: AtomicBool,
    changed: Notify,
}

impl Taken {
    fn note(&self, number: u64, ended: bool) {
        self.number.store(number, Ordering::Release);
        self.ended.store(ended, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Waits until more is taken than `told`.
    async fn more_than(&self, told: u64) -> u64 {
        loop {
            let changed = self.changed.notified();
            let number = self.number.load(Ordering::Acquire);
            if number > told {
                return number;
            }
            changed.await;
        }
    }

    async fn end(&self) {
        loop {
            let changed = self.changed.notified();
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            changed.await;
        }
    }
}

impl<'a> Lane<'a> {
    fn new(shared: &'a Arc<RamReceiver>, returns: &'a Outbox<Bytes>) -> Self {
        Self { shared, returns, taken: Taken::default(), rest: None }
    }

    /// Carries both directions over one channel, until both have ended or it broke.
    async fn travel<R, W, Q>(&mut self, epoch: u64, read: R, write: W, to_qemu: &mut Q) -> Result<(), Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
        Q: AsyncWrite + Unpin,
    {
        self.shared.enter(epoch);
        let (resumed, resume) = oneshot::channel();
        let Self { shared, returns, taken, rest } = self;
        take(taken, rest, to_qemu).await?;
        let incoming = Incoming { shared, epoch, returns, taken };
        tokio::try_join!(incoming.run(read, resumed, rest, to_qemu), back(write, resume, returns, taken))?;
        Ok(())
    }
}

/// One channel's direction to QEMU.
struct Incoming<'a> {
    shared: &'a Arc<RamReceiver>,
    epoch: u64,
    returns: &'a Outbox<Bytes>,
    taken: &'a Taken,
}

impl Incoming<'_> {
    async fn run<R, Q>(
        &self,
        mut read: R,
        resumed: oneshot::Sender<u64>,
        rest: &mut Option<Bytes>,
        to_qemu: &mut Q,
    ) -> Result<(), Broken>
    where
        R: AsyncRead + Unpin,
        Q: AsyncWrite + Unpin,
    {
        let head = next_head(&mut read).await?;
        if head.kind != Kind::Resume {
            return Err(invalid("a channel that does not say where it begins").into());
        }
        self.returns.acknowledge(head.number)?;
        // Fails when the other direction broke first, and says why.
        let _gone = resumed.send(head.number);
        if self.taken.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        loop {
            let head = next_head(&mut read).await?;
            if head.kind == Kind::Ack {
                self.returns.acknowledge(head.number)?;
                continue;
            }
            if head.number != self.taken.number.load(Ordering::Acquire) + 1 {
                return Err(invalid("a frame is missing").into());
            }
            // Both lengths are within their caps, as decoded.
            let mut body = vec![0; head.head_wire as usize + head.body as usize];
            read.read_exact(&mut body).await.map_err(Broken::Channel)?;
            let plain: Bytes = match head.kind {
                Kind::Literal => body.into(),
                Kind::Multifd | Kind::Mixed => {
                    let (receiver, epoch) = (Arc::clone(self.shared), self.epoch);
                    let plain =
                        self.shared.cpu.run(move |scratch| receiver.unpack(epoch, head, &body, scratch));
                    plain.await?.into()
                }
                Kind::End => {
                    // Our QEMU may have hung up first, when it had all.
                    drop(to_qemu.shutdown().await);
                    self.taken.note(head.number, true);
                    return Ok(());
                }
                Kind::Ack | Kind::Resume => return Err(invalid("a second begin").into()),
            };
            self.shared.plain.fetch_add(plain.len() as u64, Ordering::Relaxed);
            *rest = Some(plain);
            take(self.taken, rest, to_qemu).await?;
        }
    }
}

/// Gives QEMU the frame that it is to take next.
async fn take<Q: AsyncWrite + Unpin>(
    taken: &Taken,
    rest: &mut Option<Bytes>,
    to_qemu: &mut Q,
) -> Result<(), Broken> {
    if let Some(bytes) = rest {
        hand_over(to_qemu, bytes).await?;
        *rest = None;
        taken.note(taken.number.load(Ordering::Acquire) + 1, false);
    }
    Ok(())
}

/// The return path and the acknowledgements. Its last frame waits until the other direction has ended, so that all of
/// that is acknowledged.
async fn back<W: AsyncWrite + Unpin>(
    mut write: W,
    resume: oneshot::Receiver<u64>,
    returns: &Outbox<Bytes>,
    taken: &Taken,
) -> Result<(), Broken> {
    let mut told = taken.number.load(Ordering::Acquire);
    put(&mut write, &Head::plain(Kind::Resume, 0, told).encode()).await?;
    // Without an answer the other direction broke, and says why.
    let mut number = resume.await.map_err(|gone| Broken::Channel(io::Error::other(gone)))?;
    loop {
        let frame = tokio::select! {
            biased;
            more = taken.more_than(told) => {
                told = more;
                put(&mut write, &Head::plain(Kind::Ack, 0, told).encode()).await?;
                continue;
            }
            frame = async {
                let frame = returns.after(number).await;
                if frame.is_empty() {
                    taken.end().await;
                }
                frame
            } => frame,
        };
        number += 1;
        if frame.is_empty() {
            put(&mut write, &Head::plain(Kind::End, 0, number).encode()).await?;
            return write.shutdown().await.map_err(Broken::Channel);
        }
        write
            .write_all(&Head::plain(Kind::Literal, frame.len(), number).encode())
            .await
            .map_err(Broken::Channel)?;
        put(&mut write, &frame).await?;
    }
}

async fn put<W: AsyncWrite + Unpin>(write: &mut W, bytes: &[u8]) -> Result<(), Broken> {
    write.write_all(bytes).await.map_err(Broken::Channel)?;
    write.flush().await.map_err(Broken::Channel)
}
