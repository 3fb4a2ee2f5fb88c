//! What both sides of a connection do with their socket.

use std::io::{self, IoSlice};

use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Bytes read ahead, so that small messages cost one system call for many. Data goes around it.
pub(super) const READ_AHEAD: usize = 64 << 10;

/// Writes head and payload in as few system calls as the socket allows.
pub(super) async fn write_both<W>(socket: &mut W, head: &[u8], payload: &[u8]) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let mut parts = [IoSlice::new(head), IoSlice::new(payload)];
    let mut rest = &mut parts[..];
    IoSlice::advance_slices(&mut rest, 0); // drops empty parts
    while !rest.is_empty() {
        let written = socket.write_vectored(rest).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}
