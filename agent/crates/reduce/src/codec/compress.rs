//! The sending half.

use std::fmt;

use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, zstd_sys::ZSTD_EndDirective};

use super::{LEVELS, MAX_BATCH, WINDOW_LOG, ZstdError};
use crate::error::{Kind, Op, ReduceError};

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The frame is the first so many bytes of the output.
    Compressed(usize),
    /// The frame would not be smaller than 97 % of the plain bytes, or not fit the output: send the batch raw.
    DoesNotPay,
}

/// A reusable zstd context; one a CPU thread. Holds 1.3 MiB after level 1 or lower and 12 MiB after level 9.
pub struct Compressor {
    context: CCtx<'static>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compressor({} bytes)", self.context.sizeof())
    }
}

impl Compressor {
    /// A new context.
    ///
    /// # Errors
    /// [`Kind::Internal`] when there is no memory for it.
    pub fn new() -> Result<Self, ReduceError> {
        let context = CCtx::try_create()
            .ok_or_else(|| ReduceError::new(Kind::Internal, Op::Compress, "no memory for a zstd context"))?;
        Ok(Self { context })
    }

    /// Bytes that the context holds now.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.context.sizeof()
    }

    /// Compresses the concatenation of `segments` into `out`. Nothing is written past `out`, and work stops as soon
    /// as the frame is too long to pay.
    ///
    /// # Errors
    /// [`Kind::WrongLength`] for a level outside [`LEVELS`] or more than [`MAX_BATCH`] bytes; [`Kind::Internal`] when
    /// zstd fails.
    pub fn compress(
        &mut self,
        level: i32,
        segments: &[&[u8]],
        out: &mut [u8],
    ) -> Result<Outcome, ReduceError> {
        let plain: usize = segments.iter().map(|segment| segment.len()).sum();
        if !LEVELS.contains(&level) || plain > MAX_BATCH {
            let what = format!(
                "{plain} bytes at level {level}; at most {MAX_BATCH} bytes at {LEVELS:?} are allowed"
            );
            return Err(ReduceError::new(Kind::WrongLength, Op::Compress, what));
        }
        // 97 % of the plain size, rounded down: below that raw costs the receiver less than it costs the link.
        let limit = out.len().min(plain * 97 / 100);
        if limit == 0 {
            return Ok(Outcome::DoesNotPay);
        }
        self.start(level, plain)?;
        let mut output = OutBuffer::around(&mut out[..limit]);
        for segment in segments {
            let mut input = InBuffer::around(segment);
            while input.pos() < segment.len() {
                self.step(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_continue)?;
                if output.pos() == limit {
                    return Ok(Outcome::DoesNotPay);
                }
            }
        }
        loop {
            let left = self.step(&mut output, &mut InBuffer::around(&[]), ZSTD_EndDirective::ZSTD_e_end)?;
            if left == 0 {
                return Ok(Outcome::Compressed(output.pos()));
            }
            if output.pos() == limit {
                return Ok(Outcome::DoesNotPay);
            }
        }
    }

    fn start(&mut self, level: i32, plain: usize) -> Result<(), ReduceError> {
        self.context.reset(ResetDirective::SessionOnly).map_err(|code| failed("reset the context", code))?;
        // Below level 3 zstd's own window (512 KiB) gives the same ratio with 0.5 MiB less memory; from 3 on it would
        // ask for up to 4 MiB, were the size below not known.
        let settings = [
            CParameter::CompressionLevel(level),
            CParameter::WindowLog(if level < 3 { 0 } else { WINDOW_LOG }),
            CParameter::ChecksumFlag(false),
            CParameter::ContentSizeFlag(false),
        ];
        for setting in settings {
            self.context.set_parameter(setting).map_err(|code| failed("set a parameter", code))?;
        }
        // Not written to the frame; lets zstd choose tables of the right size for short batches.
        self.context.set_pledged_src_size(Some(plain as u64)).map_err(|code| failed("set the size", code))?;
        Ok(())
    }

    fn step(
        &mut self,
        output: &mut OutBuffer<'_, [u8]>,
        input: &mut InBuffer<'_>,
        end: ZSTD_EndDirective,
    ) -> Result<usize, ReduceError> {
        self.context.compress_stream2(output, input, end).map_err(|code| failed("compress", code))
    }
}

fn failed(what: &str, code: usize) -> ReduceError {
    ReduceError::new(Kind::Internal, Op::Compress, what).caused_by(ZstdError::of(code))
}
