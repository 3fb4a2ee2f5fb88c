//! The receiving half: every byte here may come from a hostile peer.
//!
//! What bounds the work: the frame is no longer than its content (a longer one should have been sent raw), the content
//! goes into slices that the caller has already, and zstd keeps at most one window of 1 MiB besides. The first bytes
//! are read here, before zstd sees any, so that only one form of frame gets that far.

use std::fmt;

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::{MAX_BATCH, WINDOW_LOG, ZstdError};
use crate::error::{Kind, Op, ReduceError};

/// Start of a zstd frame (RFC 8878, 3.1.1). Skippable and legacy frames start otherwise.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A reusable zstd context; one a CPU thread. Holds at most about 1.5 MiB, whatever it is given.
pub struct Decompressor {
    context: DCtx<'static>,
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decompressor({} bytes)", self.context.sizeof())
    }
}

impl Decompressor {
    /// A new context.
    ///
    /// # Errors
    /// [`Kind::Internal`] when there is no memory for it.
    pub fn new() -> Result<Self, ReduceError> {
        let mut context = DCtx::try_create().ok_or_else(|| internal("no memory for a zstd context"))?;
        let window = DParameter::WindowLogMax(WINDOW_LOG);
        context
            .set_parameter(window)
            .map_err(|code| internal("set the largest window").caused_by(ZstdError::of(code)))?;
        Ok(Self { context })
    }

    /// Bytes that the context holds now.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.context.sizeof()
    }

    /// Decompresses one frame that must fill `out`, taken together, exactly. After an error the content of `out` is
    /// arbitrary.
    ///
    /// # Errors
    /// [`Kind::Refused`] for anything that is not a single plain zstd frame within the window limit;
    /// [`Kind::WrongLength`] when `out` exceeds [`MAX_BATCH`], or the content or the frame has another length than it
    /// must have; [`Kind::Corrupt`] when zstd cannot decode it.
    pub fn decompress(&mut self, frame: &[u8], out: &mut [&mut [u8]]) -> Result<(), ReduceError> {
        let plain: usize = out.iter().map(|segment| segment.len()).sum();
        if plain > MAX_BATCH {
            return Err(wrong(format!("{plain} bytes are declared, {MAX_BATCH} allowed")));
        }
        if frame.len() > plain {
            return Err(wrong(format!("a frame of {} bytes for {plain} plain bytes", frame.len())));
        }
        check_header(frame, plain)?;
        let reset = self.context.reset(ResetDirective::SessionOnly);
        reset.map_err(|code| internal("reset").caused_by(ZstdError::of(code)))?;
        let mut input = InBuffer::around(frame);
        let mut ended = false;
        for segment in out.iter_mut().filter(|segment| !segment.is_empty()) {
            let mut output = OutBuffer::around(&mut **segment);
            while output.pos() < output.capacity() {
                ended = self.step(&mut output, &mut input, ended, plain)?;
            }
        }
        // The content is complete; what may be left is an empty last block or a checksum.
        while !ended {
            ended = self.step(&mut OutBuffer::around(&mut [][..]), &mut input, ended, plain)?;
        }
        if input.pos() != frame.len() {
            return Err(refused(format!("{} bytes follow the frame", frame.len() - input.pos())));
        }
        Ok(())
    }

    /// One step. True when the frame has ended. Every call either makes progress or fails.
    fn step(
        &mut self,
        output: &mut OutBuffer<'_, [u8]>,
        input: &mut InBuffer<'_>,
        ended: bool,
        plain: usize,
    ) -> Result<bool, ReduceError> {
        if ended {
            return Err(wrong(format!("the frame holds less than the declared {plain} bytes")));
        }
        let before = (output.pos(), input.pos());
        let left = self.context.decompress_stream(output, input).map_err(|code| {
            ReduceError::new(Kind::Corrupt, Op::Decompress, "the frame does not decode")
                .caused_by(ZstdError::of(code))
        })?;
        if left != 0 && before == (output.pos(), input.pos()) {
            let full = output.pos() == output.capacity();
            let what = if full { "holds more than" } else { "is cut off before" };
            return Err(wrong(format!("the frame {what} the declared {plain} bytes")));
        }
        Ok(left == 0)
    }
}

/// Reads the frame header (RFC 8878, 3.1.1.1) and refuses what our compressor never writes and what would make zstd
/// reserve more than a window.
fn check_header(frame: &[u8], plain: usize) -> Result<(), ReduceError> {
    let cut = || refused("it is too short for a zstd frame".to_owned());
    let (magic, rest) = frame.split_first_chunk::<4>().ok_or_else(cut)?;
    if *magic != MAGIC {
        return Err(refused("it is no zstd frame".to_owned()));
    }
    let (&descriptor, rest) = rest.split_first().ok_or_else(cut)?;
    if descriptor & 0b11 != 0 {
        return Err(refused("it needs a dictionary".to_owned()));
    }
    if descriptor & 0b1_1000 != 0 {
        return Err(refused("reserved bits are set".to_owned()));
    }
    let single_segment = descriptor & 0b10_0000 != 0;
    let mut rest = rest;
    if !single_segment {
        let (&window, tail) = rest.split_first().ok_or_else(cut)?;
        let base = 1_u64 << (10 + u32::from(window >> 3));
        let window = base + base / 8 * u64::from(window & 7);
        if window > 1 << WINDOW_LOG {
            return Err(refused(format!("its window of {window} bytes exceeds {}", 1 << WINDOW_LOG)));
        }
        rest = tail;
    }
    let content = match (descriptor >> 6, single_segment) {
        (0, false) => return Ok(()),
        (0, true) => u64::from(*rest.first().ok_or_else(cut)?),
        (1, _) => u64::from(u16::from_le_bytes(*rest.first_chunk().ok_or_else(cut)?)) + 256,
        (2, _) => u64::from(u32::from_le_bytes(*rest.first_chunk().ok_or_else(cut)?)),
        _ => u64::from_le_bytes(*rest.first_chunk().ok_or_else(cut)?),
    };
    if content != plain as u64 {
        return Err(wrong(format!("the frame says {content} bytes, {plain} are declared")));
    }
    Ok(())
}

fn internal(what: &str) -> ReduceError {
    ReduceError::new(Kind::Internal, Op::Decompress, what)
}

fn refused(what: String) -> ReduceError {
    ReduceError::new(Kind::Refused, Op::Decompress, what)
}

fn wrong(what: String) -> ReduceError {
    ReduceError::new(Kind::WrongLength, Op::Decompress, what)
}
