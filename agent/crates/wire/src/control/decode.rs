//! Bytes to control frames. Everything is checked here that can be checked without knowing the session.

use volume::{ByteLen, ChunkIndex, ExtentIndex, Generation, KeyId, MAX_VOLUME, Sequence, SessionId};

use super::{
    Ack, Call, ChannelHello, ChannelKind, Control, Direction, Durable, Fail, FailCode, Grant, HashKeyBytes,
    Held, Known, LaneClass, LaneHello, Leaves, MAX_DETAIL, MAX_KNOWN, MAX_NAME, MAX_RECEIPT, MAX_RUNS,
    Migrate, Mode, Need, NeedReason, Offer, Open, PageQuery, PageSums, RangeKind, RangeMark, Run, Seal,
    Sealed, VolumeFormat,
};
use crate::codec::Reader;
use crate::error::DecodeError;
use crate::frame::{MAX_CONTROL_BODY, Tag};

fn invalid<T>(field: &'static str, value: impl Into<u64>) -> Result<T, DecodeError> {
    Err(DecodeError::Invalid { field, value: value.into() })
}

fn text(reader: &mut Reader<'_>, field: &'static str, cap: usize) -> Result<String, DecodeError> {
    let len = usize::from(reader.u16()?);
    if len > cap {
        return Err(DecodeError::TooLong { field, value: len as u64, cap: cap as u64 });
    }
    let bytes = reader.take(len)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => invalid(field, error.valid_up_to() as u64),
    }
}

fn size(reader: &mut Reader<'_>) -> Result<ByteLen, DecodeError> {
    match reader.u64()? {
        value if value > MAX_VOLUME => {
            Err(DecodeError::TooLong { field: "volume size", value, cap: MAX_VOLUME })
        }
        value => Ok(ByteLen(value)),
    }
}

/// How many items of `width` bytes the rest of the body holds. A broken last item is found when it is read.
fn items(reader: &Reader<'_>, width: usize, field: &'static str, cap: usize) -> Result<usize, DecodeError> {
    let count = reader.remaining() / width;
    if count > cap {
        return Err(DecodeError::TooLong { field, value: count as u64, cap: cap as u64 });
    }
    Ok(count)
}

/// Non-empty, ascending, disjoint runs up to the end of the body.
fn runs(reader: &mut Reader<'_>) -> Result<Vec<Run>, DecodeError> {
    let mut runs = Vec::with_capacity(items(reader, 16, "run count", MAX_RUNS)?);
    let mut end = 0;
    while reader.remaining() > 0 {
        let run = Run { first: reader.u64()?, count: reader.u64()? };
        if run.count == 0 || (run.first < end && !runs.is_empty()) {
            return invalid("run", run.first);
        }
        end = match run.first.checked_add(run.count) {
            Some(end) => end,
            None => return invalid("run", run.count),
        };
        runs.push(run);
    }
    Ok(runs)
}

fn range_end(first: u64, count: u64) -> Result<(), DecodeError> {
    if count == 0 || first.checked_add(count).is_none() {
        return invalid("extent count", count);
    }
    Ok(())
}

fn floor_below(sequence: Sequence, floor: Sequence) -> Result<(), DecodeError> {
    if floor > sequence { invalid("floor", floor.0) } else { Ok(()) }
}

impl Control {
    /// Reads the body of a control frame. [`Tag::Extent`] is no control frame.
    pub fn decode(tag: Tag, body: &[u8]) -> Result<Self, DecodeError> {
        if body.len() > MAX_CONTROL_BODY {
            let (value, cap) = (body.len() as u64, MAX_CONTROL_BODY as u64);
            return Err(DecodeError::TooLong { field: "frame body", value, cap });
        }
        let mut reader = Reader::new(body, "control frame");
        let r = &mut reader;
        let frame = match tag {
            Tag::Open => Self::Open(open(r)?),
            Tag::Offer => Self::Offer(Offer {
                size: size(r)?,
                remembered_key: KeyId(r.array()?),
                generation: Generation(r.u64()?),
            }),
            Tag::Grant => Self::Grant(grant(r)?),
            Tag::Durable => {
                let last = r.bool("last")?;
                r.reserved(7)?;
                Self::Durable(Durable { runs: runs(r)?, last })
            }
            Tag::Leaves => Self::Leaves(leaves(r)?),
            Tag::Known => {
                let last = r.bool("last")?;
                r.reserved(7)?;
                let mut tags = Vec::with_capacity(items(r, 8, "tag count", MAX_KNOWN)?);
                while r.remaining() > 0 {
                    tags.push(r.u64()?);
                }
                Self::Known(Known { tags, last })
            }
            Tag::PageQuery => {
                let query = PageQuery { extent: ExtentIndex(r.u64()?), mask: r.u16()? };
                r.reserved(6)?;
                if query.mask == 0 {
                    return invalid("chunk mask", 0_u64);
                }
                Self::PageQuery(query)
            }
            Tag::PageSums => Self::PageSums(page_sums(r)?),
            Tag::Extent => return Err(DecodeError::UnknownTag(tag as u8)),
            Tag::Range => Self::Range(range_mark(r)?),
            Tag::Ack => Self::Ack(Ack { runs: runs(r)? }),
            Tag::Need => Self::Need(need(r)?),
            Tag::Seal => Self::Seal(Seal { root: r.array()?, size: size(r)? }),
            Tag::Sealed => {
                let cpu_micros = r.u64()?;
                if r.remaining() > MAX_RECEIPT {
                    let (value, cap) = (r.remaining() as u64, MAX_RECEIPT as u64);
                    return Err(DecodeError::TooLong { field: "receipt", value, cap });
                }
                Self::Sealed(Sealed { cpu_micros, receipt: r.take(r.remaining())?.to_vec() })
            }
            Tag::Fail => {
                let number = r.u16()?;
                // A newer peer may fail for reasons that this version has no name for; the detail still tells.
                let code = FailCode::from_wire(number).unwrap_or(FailCode::Internal);
                Self::Fail(Fail { code, detail: text(r, "failure detail", MAX_DETAIL)? })
            }
            Tag::Drain => Self::Drain,
            Tag::Ping => Self::Ping(r.u64()?),
            Tag::Pong => Self::Pong(r.u64()?),
            Tag::LaneHello => Self::LaneHello(lane_hello(r)?),
            Tag::Migrate => {
                let migration = SessionId(r.array()?);
                r.reserved(16)?;
                Self::Migrate(Migrate { migration })
            }
            Tag::Call => {
                let migration = SessionId(r.array()?);
                r.reserved(16)?;
                Self::Call(Call { migration })
            }
            // Its cap is that of every body, which was checked above.
            Tag::Message => Self::Message(r.take(r.remaining())?.to_vec()),
            Tag::ChannelHello => Self::ChannelHello(channel_hello(r)?),
        };
        reader.finish()?;
        Ok(frame)
    }
}

fn open(r: &mut Reader<'_>) -> Result<Open, DecodeError> {
    let session = SessionId(r.array()?);
    let direction = match r.u8()? {
        1 => Direction::Push,
        2 => Direction::Pull,
        value => return invalid("direction", value),
    };
    let mode = match r.u8()? {
        1 => Mode::Create,
        2 => Mode::ResyncTrusted,
        3 => Mode::ResyncFull,
        value => return invalid("mode", value),
    };
    let format = match r.u8()? {
        1 => VolumeFormat::Raw,
        2 => VolumeFormat::Qcow2,
        value => return invalid("format", value),
    };
    let readback = r.bool("readback")?;
    let lanes = r.u8()?;
    if lanes == 0 {
        return invalid("lanes", 0_u64);
    }
    r.reserved(3)?;
    let pool = text(r, "pool name", MAX_NAME)?;
    let name = text(r, "volume name", MAX_NAME)?;
    Ok(Open { session, direction, mode, format, readback, lanes, pool, name })
}

fn grant(r: &mut Reader<'_>) -> Result<Grant, DecodeError> {
    Ok(Grant {
        generation: Generation(r.u64()?),
        key_id: KeyId(r.array()?),
        key: HashKeyBytes(r.array()?),
        page_seed: r.u64()?,
        first_sequence: Sequence(r.u64()?),
        window_bytes: r.u64()?,
        window_frames: r.u32()?,
        resumed: r.bool("resumed")?,
        leaves: r.bool("leaves")?,
        known: r.bool("known")?,
        zeroed: r.bool("zeroed")?,
    })
}

fn leaves(r: &mut Reader<'_>) -> Result<Leaves, DecodeError> {
    let first = ChunkIndex(r.u64()?);
    let count = r.u64()?;
    let kind = r.u8()?;
    r.reserved(7)?;
    if count == 0 || first.0.checked_add(count).is_none() {
        return invalid("chunk count", count);
    }
    let held = match kind {
        1 => Held::Zero(count),
        2 => Held::Unknown(count),
        3 if r.remaining() as u64 == count.saturating_mul(16) => {
            let mut prefixes = Vec::with_capacity(r.remaining() / 16);
            while r.remaining() > 0 {
                prefixes.push(r.array()?);
            }
            Held::Prefixes(prefixes)
        }
        3 => return invalid("chunk count", count),
        value => return invalid("kind of leaves", value),
    };
    Ok(Leaves { first, held })
}

fn page_sums(r: &mut Reader<'_>) -> Result<PageSums, DecodeError> {
    let extent = ExtentIndex(r.u64()?);
    let mask = r.u16()?;
    r.reserved(6)?;
    let expected = 16 * mask.count_ones() as usize;
    if mask == 0 || r.remaining() != expected * 8 {
        return invalid("page sums", r.remaining() as u64);
    }
    let sums = (0..expected).map(|_| r.u64()).collect::<Result<_, _>>()?;
    Ok(PageSums { extent, mask, sums })
}

fn range_mark(r: &mut Reader<'_>) -> Result<RangeMark, DecodeError> {
    let sequence = Sequence(r.u64()?);
    let floor = Sequence(r.u64()?);
    let first = ExtentIndex(r.u64()?);
    let count = r.u64()?;
    let kind = match r.u8()? {
        1 => RangeKind::Zero,
        2 => RangeKind::Same,
        value => return invalid("range kind", value),
    };
    r.reserved(7)?;
    range_end(first.0, count)?;
    floor_below(sequence, floor)?;
    Ok(RangeMark { kind, sequence, floor, first, count })
}

fn need(r: &mut Reader<'_>) -> Result<Need, DecodeError> {
    let sequence = Sequence(r.u64()?);
    let extent = ExtentIndex(r.u64()?);
    let mask = r.u16()?;
    let reason = match r.u8()? {
        1 => NeedReason::Unknown,
        2 => NeedReason::Mismatch,
        value => return invalid("reason", value),
    };
    r.reserved(5)?;
    if mask == 0 {
        return invalid("chunk mask", 0_u64);
    }
    Ok(Need { sequence, extent, mask, reason })
}

fn lane_hello(r: &mut Reader<'_>) -> Result<LaneHello, DecodeError> {
    let session = SessionId(r.array()?);
    let generation = Generation(r.u64()?);
    let lane = r.u8()?;
    let class = match r.u8()? {
        1 => LaneClass::Data,
        value => return invalid("lane class", value),
    };
    r.reserved(6)?;
    if lane == 0 {
        return invalid("lane", 0_u64);
    }
    Ok(LaneHello { session, generation, lane, class })
}

fn channel_hello(r: &mut Reader<'_>) -> Result<ChannelHello, DecodeError> {
    let migration = SessionId(r.array()?);
    let generation = Generation(r.u64()?);
    let channel = r.u16()?;
    let kind = match r.u8()? {
        1 => ChannelKind::Ram,
        2 => ChannelKind::Disk,
        value => return invalid("channel kind", value),
    };
    r.reserved(5)?;
    Ok(ChannelHello { migration, generation, channel, kind })
}
