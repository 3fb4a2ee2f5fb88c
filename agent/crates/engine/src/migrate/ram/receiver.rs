//! The destination's end of QEMU's connections.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reduce::ram::{Decoder, PAGE_BYTES, Unpacker};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{FRAME, Head, Kind, MAX_LITERAL, invalid, split_mixed, unfold_offsets};
use crate::cpu::{Cpu, Scratch};

/// Frames of the return path and acknowledgements that wait for the channel.
const BACK_QUEUE: usize = 64;
/// Where a multifd header counts the bytes that follow it (QEMU, `MultiFDPacket_t`), big-endian.
const NEXT_PACKET_SIZE: std::ops::Range<usize> = 20..24;

/// What the connections of one migration share at the destination.
#[derive(Debug)]
pub struct RamReceiver {
    decoder: Mutex<Decoder>,
    cpu: Cpu,
    /// Bytes that QEMU was given.
    pub plain: AtomicU64,
}

impl RamReceiver {
    /// A receiver that keeps `slots` pages.
    #[must_use]
    pub fn new(slots: u32, cpu: Cpu) -> Arc<Self> {
        Arc::new(Self { decoder: Mutex::new(Decoder::new(slots)), cpu, plain: AtomicU64::new(0) })
    }

    /// Carries one channel to a connection of QEMU, and QEMU's return path back, until both directions ended.
    ///
    /// # Errors
    /// When either side breaks, or the source breaks the protocol: then the migration fails.
    pub async fn carry<S, R, W>(self: &Arc<Self>, socket: S, read: R, write: W) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
        R: AsyncRead + Send + Unpin,
        W: AsyncWrite + Send + Unpin,
    {
        let (from_qemu, to_qemu) = tokio::io::split(socket);
        let (back, outgoing) = async_channel::bounded(BACK_QUEUE);
        tokio::try_join!(
            self.forward(read, to_qemu, back.clone()),
            return_path(from_qemu, back),
            send_back(write, outgoing)
        )?;
        Ok(())
    }

    async fn forward<R, Q>(
        self: &Arc<Self>,
        mut read: R,
        mut to_qemu: Q,
        back: async_channel::Sender<Vec<u8>>,
    ) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        Q: AsyncWrite + Unpin,
    {
        let mut bytes = [0; FRAME];
        loop {
            read.read_exact(&mut bytes).await?;
            let head = Head::decode(&bytes)?;
            // Both lengths are within their caps, as decoded.
            let mut rest = vec![0; head.head_wire as usize + head.body as usize];
            read.read_exact(&mut rest).await?;
            match head.kind {
                Kind::Literal => {
                    to_qemu.write_all(&rest).await?;
                    self.plain.fetch_add(rest.len() as u64, Ordering::Relaxed);
                }
                Kind::Multifd | Kind::Mixed => {
                    let receiver = Arc::clone(self);
                    let plain = self.cpu.run(move |scratch| receiver.unpack(head, &rest, scratch)).await?;
                    to_qemu.write_all(&plain).await?;
                    self.plain.fetch_add(plain.len() as u64, Ordering::Relaxed);
                    let ack = Head::plain(Kind::Ack, 0, head.number).encode().to_vec();
                    if back.send(ack).await.is_err() {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                }
                Kind::End => {
                    // Our QEMU may have hung up first, when it had all.
                    drop(to_qemu.shutdown().await);
                    return Ok(());
                }
                Kind::Ack => return Err(invalid("an acknowledgement by the source")),
            }
            to_qemu.flush().await?;
        }
    }

    fn unpack(&self, fixed: Head, wire: &[u8], scratch: &mut Scratch) -> io::Result<Vec<u8>> {
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
            let mut decoder = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
            decoder.apply(&packet, &mut plain).map_err(io::Error::other)?;
        }
        if fixed.kind == Kind::Multifd {
            unfold_offsets(&mut head);
            let mut size = [0; 4];
            size.copy_from_slice(&head[NEXT_PACKET_SIZE]);
            // Without pages QEMU leaves the size of an earlier packet in the field, and sends nothing.
            if pages > 0 && u32::from_be_bytes(size) as usize != plain.len() {
                return Err(invalid("a packet whose header counts other bytes"));
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

async fn return_path<Q: AsyncRead + Unpin>(
    mut from_qemu: Q,
    back: async_channel::Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut buffer = vec![0; MAX_LITERAL];
    loop {
        let len = match from_qemu.read(&mut buffer).await {
            Ok(0) => break,
            Ok(len) => len,
            // QEMU closes its end with unread bytes when it has all that it needs.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error),
        };
        let mut frame = Head::plain(Kind::Literal, len, 0).encode().to_vec();
        frame.extend_from_slice(&buffer[..len]);
        if back.send(frame).await.is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    // The last frame of this direction waits until the acknowledgements of the other are out: see `send_back`.
    drop(back);
    Ok(())
}

/// Ends after both the return path and the acknowledgements have.
async fn send_back<W: AsyncWrite + Unpin>(
    mut write: W,
    outgoing: async_channel::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Ok(frame) = outgoing.recv().await {
        write.write_all(&frame).await?;
        if outgoing.is_empty() {
            write.flush().await?;
        }
    }
    write.write_all(&Head::plain(Kind::End, 0, 0).encode()).await?;
    write.flush().await?;
    write.shutdown().await
}
