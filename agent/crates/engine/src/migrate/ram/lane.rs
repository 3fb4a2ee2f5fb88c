//! One connection of QEMU at the source, over one channel after the other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};

use super::frame::{FRAME, Head, Kind, invalid};
use super::outbox::Outbox;
use super::sender::{Frame, Item, RamSender};
use crate::migrate::contact::Broken;

/// Frames of the return path that are acknowledged together.
const TOGETHER: u64 = 64;

/// What is kept from channel to channel.
pub(super) struct Lane<'a> {
    out: Out<'a>,
    returns: Returns,
    /// Of the last frame of the return path: what QEMU has not taken yet.
    rest: Bytes,
}

/// The direction to the destination.
struct Out<'a> {
    shared: &'a Arc<RamSender>,
    channel: u8,
    outbox: &'a Outbox<Arc<Frame>>,
}

/// The return path: what came of it.
#[derive(Default)]
struct Returns {
    /// Frames that came, and that the destination may be told of.
    taken: AtomicU64,
    /// There are more.
    more: Notify,
}

impl Returns {
    /// Waits until so many came after `told` that it is worth a frame.
    async fn worth_telling(&self, told: u64) -> u64 {
        loop {
            let more = self.more.notified();
            let taken = self.taken.load(Ordering::Acquire);
            if taken >= told + TOGETHER {
                return taken;
            }
            more.await;
        }
    }
}

/// Bytes for QEMU, which it has not all taken yet.
pub(super) async fn hand_over<Q: AsyncWrite + Unpin>(to_qemu: &mut Q, rest: &mut Bytes) -> io::Result<()> {
    while rest.has_remaining() {
        // Cancelled here, nothing was written; what was is taken off before the next await.
        let len = to_qemu.write(rest).await?;
        if len == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        rest.advance(len);
    }
    to_qemu.flush().await
}

impl<'a> Lane<'a> {
    pub(super) fn new(shared: &'a Arc<RamSender>, channel: u8, outbox: &'a Outbox<Arc<Frame>>) -> Self {
        Self { out: Out { shared, channel, outbox }, returns: Returns::default(), rest: Bytes::new() }
    }

    /// Carries both directions over one channel, until both have ended or it broke.
    pub(super) async fn travel<R, W, Q>(
        &mut self,
        epoch: u64,
        read: R,
        write: W,
        to_qemu: &mut Q,
    ) -> Result<(), Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
        Q: AsyncWrite + Unpin,
    {
        let Self { out, returns, rest } = self;
        out.shared.enter(epoch);
        let (resumed, resume) = oneshot::channel();
        tokio::try_join!(
            out.forward(epoch, write, returns, resume),
            out.back(epoch, read, resumed, returns, rest, to_qemu)
        )?;
        Ok(())
    }
}

impl Out<'_> {
    async fn forward<W: AsyncWrite + Unpin>(
        &self,
        epoch: u64,
        mut write: W,
        returns: &Returns,
        resume: oneshot::Receiver<u64>,
    ) -> Result<(), Broken> {
        let mut told = returns.taken.load(Ordering::Acquire);
        self.put(&mut write, &Head::plain(Kind::Resume, 0, told).encode()).await?;
        // Where nothing was sent before nothing needs to be waited for.
        let mut number = match self.outbox.sent() {
            0 => 0,
            // Without an answer the other direction broke, and says why.
            _ => resume.await.map_err(|gone| Broken::Channel(io::Error::other(gone)))?,
        };
        loop {
            let frame = tokio::select! {
                biased;
                frame = self.outbox.after(number) => frame,
                taken = returns.worth_telling(told) => {
                    told = taken;
                    self.put(&mut write, &Head::plain(Kind::Ack, 0, told).encode()).await?;
                    continue;
                }
            };
            number += 1;
            match &frame.item {
                Item::Literal(bytes) => {
                    let head = Head::plain(Kind::Literal, bytes.len(), number).encode();
                    write.write_all(&head).await.map_err(Broken::Channel)?;
                    self.put(&mut write, bytes).await?;
                }
                Item::Packet(_) => {
                    let packed = self.shared.packed(epoch, self.channel, number, Arc::clone(&frame)).await?;
                    self.put(&mut write, &packed).await?;
                }
                Item::End => {
                    self.put(&mut write, &Head::plain(Kind::End, 0, number).encode()).await?;
                    return write.shutdown().await.map_err(Broken::Channel);
                }
            }
        }
    }

    async fn put<W: AsyncWrite + Unpin>(&self, write: &mut W, bytes: &[u8]) -> Result<(), Broken> {
        write.write_all(bytes).await.map_err(Broken::Channel)?;
        write.flush().await.map_err(Broken::Channel)?;
        self.shared.counters.wire.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn back<R, Q>(
        &self,
        epoch: u64,
        mut read: R,
        resumed: oneshot::Sender<u64>,
        returns: &Returns,
        rest: &mut Bytes,
        to_qemu: &mut Q,
    ) -> Result<(), Broken>
    where
        R: AsyncRead + Unpin,
        Q: AsyncWrite + Unpin,
    {
        hand_over(to_qemu, rest).await?;
        let head = next_head(&mut read).await?;
        if head.kind != Kind::Resume {
            return Err(invalid("a channel that does not say where it begins").into());
        }
        self.taken(epoch, head.number, false)?;
        // Fails when the other direction broke first, and says why.
        let _gone = resumed.send(head.number);
        loop {
            let head = next_head(&mut read).await?;
            match head.kind {
                Kind::Ack => self.taken(epoch, head.number, true)?,
                Kind::Literal | Kind::End => {
                    if head.number != returns.taken.load(Ordering::Acquire) + 1 {
                        return Err(invalid("a frame of the return path is missing").into());
                    }
                    let mut body = vec![0; head.body as usize]; // at most MAX_LITERAL, as decoded
                    read.read_exact(&mut body).await.map_err(Broken::Channel)?;
                    *rest = Bytes::from(body);
                    returns.taken.store(head.number, Ordering::Release);
                    returns.more.notify_waiters();
                    if head.kind == Kind::End {
                        // QEMU at the destination hung up. Ours may have gone first.
                        drop(to_qemu.shutdown().await);
                        return Ok(());
                    }
                    hand_over(to_qemu, rest).await?;
                }
                Kind::Multifd | Kind::Mixed | Kind::Resume => {
                    return Err(invalid("what has no place on the return path").into());
                }
            }
        }
    }

    /// The destination's QEMU has taken the frames up to this number; those that this epoch's encoder knows of when
    /// `planned`.
    fn taken(&self, epoch: u64, number: u64, planned: bool) -> io::Result<()> {
        let frames = self.outbox.acknowledge(number)?;
        let first = number + 1 - frames.len() as u64;
        let last = frames.iter().rposition(|frame| planned && frame.has_pages());
        self.shared.taken(epoch, self.channel, &frames, last.map(|at| first + at as u64))
    }
}

pub(super) async fn next_head<R: AsyncRead + Unpin>(read: &mut R) -> Result<Head, Broken> {
    let mut bytes = [0; FRAME];
    read.read_exact(&mut bytes).await.map_err(Broken::Channel)?;
    Ok(Head::decode(&bytes)?)
}
