//! The reader task: replies in whatever order the server gives them, data straight into the waiting buffers.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, BufReader};
use tokio::sync::watch;

use super::super::socket::READ_AHEAD;
use super::super::wire::transmission::{ChunkType, Kind, SIMPLE_REST, STRUCTURED_REST};
use super::super::wire::{Chunk, ChunkHeader, ErrorCode, Header, MetaContext, ProtocolError};
use super::{ReadHalf, Shared, Slot, Work};
use crate::error::{ConnectionLoss, Error};

pub(super) struct Reader {
    shared: Arc<Shared>,
    socket: BufReader<ReadHalf>,
    /// The request whose reply is being read. Here rather than in a future, so that ending the task keeps it.
    current: Option<Slot>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, socket: ReadHalf) -> Self {
        Self { shared, socket: BufReader::with_capacity(READ_AHEAD, socket), current: None }
    }

    /// Reads replies until the connection ends, and records why it did.
    pub(super) async fn run(mut self, mut ended: watch::Receiver<bool>) {
        let loss = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => ConnectionLoss::Closed,
            loss = self.replies() => loss,
        };
        let loss = self.shared.lose(loss);
        if let Some(slot) = self.current.take() {
            slot.finish(Err(self.shared.lost(loss)));
        }
    }

    /// Reads replies until the connection ends.
    async fn replies(&mut self) -> ConnectionLoss {
        loop {
            if let Err(loss) = self.reply().await {
                return loss;
            }
        }
    }

    async fn reply(&mut self) -> Result<(), ConnectionLoss> {
        let magic = self.bytes::<4>().await?;
        match Kind::decode(magic)? {
            Kind::Simple => {
                let header = Header::decode_simple(&self.bytes::<SIMPLE_REST>().await?);
                self.simple(header).await
            }
            Kind::Structured => {
                let header = ChunkHeader::decode(&self.bytes::<STRUCTURED_REST>().await?)?;
                self.structured(&header).await
            }
        }
    }

    async fn simple(&mut self, header: Header) -> Result<(), ConnectionLoss> {
        let slot = self.current.insert(self.shared.take(header.cookie())?);
        let result = match header.error() {
            Some(code) => {
                Err(Error::Server { command: slot.command, code, offset: None, message: String::new() })
            }
            None => {
                match &mut slot.work {
                    Work::Plain => {}
                    Work::Read { buffer, .. } if !self.shared.structured => {
                        self.socket.read_exact(buffer.as_mut()).await?;
                    }
                    Work::Read { .. } | Work::Status(_) => return Err(slot.wrong("simple reply").into()),
                }
                Ok(())
            }
        };
        if let Some(slot) = self.current.take() {
            slot.finish(result);
        }
        Ok(())
    }

    async fn structured(&mut self, header: &ChunkHeader) -> Result<(), ConnectionLoss> {
        let slot = self.current.insert(self.shared.take(header.cookie)?);
        if !self.shared.structured {
            return Err(slot.wrong("structured reply").into());
        }
        if header.kind == ChunkType::Data {
            let mut place = [0; 8];
            self.socket.read_exact(&mut place).await?;
            let Work::Read { buffer, coverage } = &mut slot.work else {
                return Err(slot.wrong("data chunk").into());
            };
            let place = coverage.add(slot.offset, u64::from_be_bytes(place), u64::from(header.length) - 8)?;
            self.socket.read_exact(&mut buffer.as_mut()[place]).await?;
        } else {
            let mut payload = vec![0; header.length as usize];
            self.socket.read_exact(&mut payload).await?;
            apply(slot, Chunk::decode(header, &payload)?, &self.shared.contexts)?;
        }
        if !header.done {
            if let Some(slot) = self.current.take() {
                self.shared.put_back(header.cookie, slot);
            }
            return Ok(());
        }
        let result = match slot.error.take() {
            Some(error) => Err(error),
            None => {
                match &slot.work {
                    Work::Plain => {}
                    Work::Read { coverage, .. } => coverage.complete()?,
                    Work::Status(found) if found.len() < self.shared.contexts.len() => {
                        return Err(ProtocolError::BadStatus { why: "leaves out a context" }.into());
                    }
                    Work::Status(_) => {}
                }
                Ok(())
            }
        };
        if let Some(slot) = self.current.take() {
            slot.finish(result);
        }
        Ok(())
    }

    async fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ConnectionLoss> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).await?;
        Ok(bytes)
    }
}

/// Applies a chunk other than data to the request that it answers.
fn apply(slot: &mut Slot, chunk: Chunk<'_>, contexts: &[MetaContext]) -> Result<(), ProtocolError> {
    match (chunk, &mut slot.work) {
        (Chunk::None, _) => Ok(()),
        (Chunk::Error { code, message, offset }, _) => {
            let code = if code == ErrorCode(0) { ErrorCode::EINVAL } else { code };
            let error = Error::Server { command: slot.command, code, offset, message };
            slot.error.get_or_insert(error);
            Ok(())
        }
        (Chunk::Hole { offset, length }, Work::Read { buffer, coverage }) => {
            let place = coverage.add(slot.offset, offset, length.into())?;
            buffer.as_mut()[place].fill(0);
            Ok(())
        }
        (Chunk::Status { context, extents }, Work::Status(found)) => {
            if !contexts.iter().any(|known| known.id == context) {
                return Err(ProtocolError::BadStatus { why: "is about a context that was not chosen" });
            }
            if found.iter().any(|(known, _)| *known == context) {
                return Err(ProtocolError::BadStatus { why: "repeats a context" });
            }
            let before_last: u64 =
                extents[..extents.len() - 1].iter().map(|extent| u64::from(extent.length)).sum();
            if before_last >= u64::from(slot.length) {
                return Err(ProtocolError::BadStatus { why: "goes on past what was asked" });
            }
            found.push((context, extents));
            Ok(())
        }
        (Chunk::Data { .. } | Chunk::Hole { .. }, _) => Err(slot.wrong("data chunk")),
        (Chunk::Status { .. }, _) => Err(slot.wrong("block status chunk")),
    }
}
