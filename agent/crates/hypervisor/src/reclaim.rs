//! Takes a guest back from a post-copy whose destination never ran it.
//!
//! QEMU neither cancels such a migration nor lets the guest go on while it is paused; but all of its memory is still
//! where it was. So the migration is resumed towards ourselves, and we say what a destination says that has everything:
//! QEMU completes it, and a completed migration lets the guest go on. Source: QEMU's `migration/migration.c`
//! (`postcopy_do_resume`), `migration/ram.c` (`ramblock_recv_bitmap_send`) and `migration/savevm.c`, 10.0.
//!
//! ```text
//! QEMU                                   here
//!  RECV_BITMAP name, for each block ───►  every page of it is here
//!  POSTCOPY_RESUME ────────────────────►  go on
//!  end of the stream ──────────────────►  done, without an error
//! ```
//!
//! Whoever calls it must know that the guest ran nowhere else.

use std::collections::BTreeMap;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A command in QEMU's stream (`QEMU_VM_COMMAND`).
const COMMAND: u8 = 0x08;
/// `MIG_CMD_PING`, `MIG_CMD_POSTCOPY_RESUME`, `MIG_CMD_RECV_BITMAP`.
const PING: u16 = 2;
const RESUME: u16 = 9;
const RECV_BITMAP: u16 = 10;
/// `MIG_RP_MSG_SHUT`, `_PONG`, `_RECV_BITMAP`, `_RESUME_ACK`.
const SHUT: u16 = 1;
const PONG: u16 = 2;
const BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;
/// `MIGRATION_RESUME_ACK_VALUE`, and the value for no error.
const ACKNOWLEDGED: u32 = 1;
const NO_ERROR: u32 = 0;
/// `RAMBLOCK_RECV_BITMAP_ENDING`.
const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;
const PAGE: u64 = 4096;
/// What a bitmap is written in; not on the stack.
static ONES: [u8; 64 << 10] = [0xff; 64 << 10];

/// The RAM blocks in QEMU's answer to `info ramblock`: bytes in use by name.
#[must_use]
pub fn ram_blocks(text: &str) -> BTreeMap<String, u64> {
    let block = |line: &str| {
        let name = line.split_whitespace().next()?;
        // Offset, used, total, and in newer versions the address.
        let used = line.split_whitespace().filter_map(|word| word.strip_prefix("0x")).nth(1)?;
        Some((name.to_owned(), u64::from_str_radix(used, 16).ok()?))
    };
    text.lines().filter_map(block).collect()
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("QEMU resumes in an unknown way: {what}"))
}

/// Answers on the first connection of a QEMU that resumes, until it hangs up. What comes on the second is of no use.
///
/// # Errors
/// When QEMU breaks off or says what is not known: then the migration is paused again.
pub async fn answer<S>(mut stream: S, blocks: &BTreeMap<String, u64>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        if stream.read_u8().await? != COMMAND {
            return Err(invalid("something else than a command"));
        }
        let (command, len) = (stream.read_u16().await?, stream.read_u16().await?);
        let mut data = vec![0; usize::from(len)];
        stream.read_exact(&mut data).await?;
        match command {
            RECV_BITMAP => have_all(&mut stream, &data, blocks).await?,
            PING => {
                stream.write_u16(PONG).await?;
                stream.write_u16(len).await?;
                stream.write_all(&data).await?;
            }
            RESUME => break,
            _ => return Err(invalid("an unknown command")),
        }
        stream.flush().await?;
    }
    for (message, value) in [(RESUME_ACK, ACKNOWLEDGED), (SHUT, NO_ERROR)] {
        stream.write_u16(message).await?;
        stream.write_u16(4).await?;
        stream.write_u32(value).await?;
    }
    stream.flush().await?;
    // No page is sent any more: the rest is the end of the stream.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

/// Says that every page of a block is there.
async fn have_all<S: AsyncWrite + Unpin>(
    stream: &mut S,
    name: &[u8],
    blocks: &BTreeMap<String, u64>,
) -> io::Result<()> {
    let text = name.split_first().and_then(|(_, text)| std::str::from_utf8(text).ok());
    let used = text.and_then(|text| blocks.get(text)).ok_or_else(|| invalid("an unknown block"))?;
    stream.write_u16(BITMAP).await?;
    stream.write_u16(u16::try_from(name.len()).map_err(|_long| invalid("a long name"))?).await?;
    stream.write_all(name).await?;
    let mut left = used.div_ceil(PAGE).div_ceil(64) * 8;
    stream.write_u64(left).await?;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(ONES.len()).min(ONES.len());
        stream.write_all(&ONES[..piece]).await?;
        left -= piece as u64;
    }
    stream.write_u64(BITMAP_END).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_from_old_and_new_answers() {
        let new = "   Block Name    PSize   Offset   Used   Total   HVA  RO\n\
                   pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 0x00007f2873e00000  rw\n";
        let old = "Block Name    PSize   Offset   Used   Total\n\
                   /rom@etc/acpi/tables    4 KiB  0x0000000008080000 0x0000000000020000 0x0000000000200000\n";
        assert_eq!(ram_blocks(new), BTreeMap::from([("pc.ram".to_owned(), 0x0800_0000)]));
        assert_eq!(ram_blocks(old), BTreeMap::from([("/rom@etc/acpi/tables".to_owned(), 0x2_0000)]));
        assert_eq!(ram_blocks("nonsense 0x"), BTreeMap::new());
    }

    #[tokio::test]
    async fn an_unknown_block_or_command_ends_it() {
        for wrong in [&b"\x08\0\x0a\0\x02\x01x"[..], b"\x08\0\x07\0\0", b"\x04"] {
            let (mut qemu, here) = tokio::io::duplex(64);
            qemu.write_all(wrong).await.unwrap();
            let error = answer(here, &BTreeMap::new()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }
}
