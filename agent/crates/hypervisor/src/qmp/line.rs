//! Lines from a monitor socket, bounded: QEMU ends each message with a newline and puts none inside.
//!
//! A message longer than the cap ends the connection, because what follows could not be told apart from its rest.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes asked of the socket at a time. Replies are mostly under 4 KiB; a block-node list can have some hundred.
const READ_STEP: usize = 16 << 10;

/// What the other side may leave in front of a reply on the guest agent's channel (QEMU: `qga/main.c`, sentinel 0xFF).
pub(crate) const SENTINEL: u8 = 0xff;

/// Why there is no further line.
#[derive(Debug)]
pub(crate) enum LineError {
    /// The socket failed, or ended (`UnexpectedEof`).
    Socket(io::Error),
    /// More than the cap without a newline.
    TooLong,
}

/// Cuts a byte stream into lines of at most `limit` bytes (without the newline).
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    stream: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are known to hold no newline.
    searched: usize,
    limit: usize,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    pub(crate) fn new(stream: R, limit: usize) -> Self {
        Self { stream, buffer: Vec::new(), searched: 0, limit }
    }

    /// The next line that is not empty. Safe to cancel: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Vec<u8>, LineError> {
        loop {
            while let Some(found) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + found;
                if end > self.limit {
                    return Err(LineError::TooLong);
                }
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                line.truncate(line.trim_ascii_end().len());
                if !line.is_empty() {
                    return Ok(line);
                }
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.limit {
                return Err(LineError::TooLong);
            }
            self.buffer.reserve(READ_STEP);
            if self.stream.read_buf(&mut self.buffer).await.map_err(LineError::Socket)? == 0 {
                return Err(LineError::Socket(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// The stream, to write to.
    pub(crate) fn stream_mut(&mut self) -> &mut R {
        &mut self.stream
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(bytes: &[u8], limit: usize) -> (Vec<Vec<u8>>, LineError) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = LineReader::new(bytes, limit);
            let mut lines = Vec::new();
            loop {
                match reader.next().await {
                    Ok(line) => lines.push(line),
                    Err(error) => return (lines, error),
                }
            }
        })
    }

    #[test]
    fn empty_lines_and_carriage_returns_do_not_count() {
        let (lines, end) = read_all(b"\r\n\n{}\r\n[1]\n{\"unfinished\"", 100);
        assert_eq!(lines, [b"{}".to_vec(), b"[1]".to_vec()]);
        assert!(matches!(end, LineError::Socket(error) if error.kind() == io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn a_line_of_the_limit_passes_and_one_more_byte_does_not() {
        for (length, fits) in [(49_999, true), (50_000, true), (50_001, false), (1 << 20, false)] {
            let mut bytes = vec![b'x'; length];
            bytes.push(b'\n');
            let (lines, end) = read_all(&bytes, 50_000);
            assert_eq!(lines.len(), usize::from(fits), "{length}");
            assert_eq!(matches!(end, LineError::TooLong), !fits, "{length}");
        }
    }

    proptest! {
        #[test]
        fn lines_come_back_whole(lines in proptest::collection::vec("[a-z{}]{1,40}", 0..20)) {
            let bytes = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            let (read, _) = read_all(bytes.as_bytes(), 64);
            prop_assert_eq!(read, lines.into_iter().map(String::into_bytes).collect::<Vec<_>>());
        }
    }
}
