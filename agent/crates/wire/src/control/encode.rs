//! Control frames to bytes.

use bytes::{BufMut, Bytes, BytesMut};
use volume::PAGES_PER_CHUNK;

use super::{
    Call, ChannelKind, Control, Direction, FailCode, Held, LaneClass, MAX_DETAIL, MAX_KNOWN, MAX_LEAVES,
    MAX_MESSAGE, MAX_NAME, MAX_RECEIPT, MAX_RUNS, Migrate, Mode, NeedReason, RangeKind, Run, VolumeFormat,
};
use crate::frame::{FRAME_HEADER, FrameHeader, Tag};

fn within(what: &str, len: usize, cap: usize) {
    assert!(len <= cap, "{what} of {len} exceeds the cap of {cap}");
}

fn put_runs(out: &mut BytesMut, runs: &[Run]) {
    within("run count", runs.len(), MAX_RUNS);
    for run in runs {
        out.put_u64_le(run.first);
        out.put_u64_le(run.count);
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16_le(u16::try_from(text.len()).expect("names and details are capped far below 64 KiB"));
    out.put_slice(text.as_bytes());
}

impl Control {
    /// The frame's tag.
    #[must_use]
    pub fn tag(&self) -> Tag {
        match self {
            Self::Open(_) => Tag::Open,
            Self::Offer(_) => Tag::Offer,
            Self::Grant(_) => Tag::Grant,
            Self::Durable(_) => Tag::Durable,
            Self::Leaves(_) => Tag::Leaves,
            Self::Known(_) => Tag::Known,
            Self::PageQuery(_) => Tag::PageQuery,
            Self::PageSums(_) => Tag::PageSums,
            Self::Range(_) => Tag::Range,
            Self::Ack(_) => Tag::Ack,
            Self::Need(_) => Tag::Need,
            Self::Seal(_) => Tag::Seal,
            Self::Sealed(_) => Tag::Sealed,
            Self::Fail(_) => Tag::Fail,
            Self::Drain => Tag::Drain,
            Self::Ping(_) => Tag::Ping,
            Self::Pong(_) => Tag::Pong,
            Self::LaneHello(_) => Tag::LaneHello,
            Self::Migrate(_) => Tag::Migrate,
            Self::Call(_) => Tag::Call,
            Self::Message(_) => Tag::Message,
            Self::ChannelHello(_) => Tag::ChannelHello,
        }
    }

    /// Header and body.
    ///
    /// # Panics
    /// When a list, name, receipt or message is longer than its cap, or page sums do not fit their mask: lists are built by
    /// our own code, which splits them, and names are checked where they come in. A failure's detail is cut instead.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(256);
        out.put_bytes(0, FRAME_HEADER);
        self.put_body(&mut out);
        let header = FrameHeader { tag: self.tag(), len: out.len() - FRAME_HEADER }.encode();
        out[..FRAME_HEADER].copy_from_slice(&header);
        out.freeze()
    }

    fn put_body(&self, out: &mut BytesMut) {
        match self {
            Self::Open(open) => {
                out.put_slice(&open.session.0);
                out.put_u8(match open.direction {
                    Direction::Push => 1,
                    Direction::Pull => 2,
                });
                out.put_u8(match open.mode {
                    Mode::Create => 1,
                    Mode::ResyncTrusted => 2,
                    Mode::ResyncFull => 3,
                });
                out.put_u8(match open.format {
                    VolumeFormat::Raw => 1,
                    VolumeFormat::Qcow2 => 2,
                });
                out.put_u8(open.readback.into());
                out.put_u8(open.lanes);
                out.put_bytes(0, 3);
                for (what, text) in [("pool name", &open.pool), ("volume name", &open.name)] {
                    within(what, text.len(), MAX_NAME);
                    put_text(out, text);
                }
            }
            Self::Offer(offer) => {
                out.put_u64_le(offer.size.0);
                out.put_slice(&offer.remembered_key.0);
                out.put_u64_le(offer.generation.0);
            }
            Self::Grant(grant) => {
                out.put_u64_le(grant.generation.0);
                out.put_slice(&grant.key_id.0);
                out.put_slice(&grant.key.0);
                out.put_u64_le(grant.page_seed);
                out.put_u64_le(grant.first_sequence.0);
                out.put_u64_le(grant.window_bytes);
                out.put_u32_le(grant.window_frames);
                out.put_u8(grant.resumed.into());
                out.put_u8(grant.leaves.into());
                out.put_u8(grant.known.into());
                out.put_u8(grant.zeroed.into());
            }
            Self::Durable(durable) => {
                out.put_u8(durable.last.into());
                out.put_bytes(0, 7);
                put_runs(out, &durable.runs);
            }
            Self::Leaves(leaves) => {
                let (kind, count) = match &leaves.held {
                    Held::Zero(count) => (1, *count),
                    Held::Unknown(count) => (2, *count),
                    Held::Prefixes(prefixes) => {
                        within("prefix count", prefixes.len(), MAX_LEAVES);
                        (3, prefixes.len() as u64)
                    }
                };
                out.put_u64_le(leaves.first.0);
                out.put_u64_le(count);
                out.put_u8(kind);
                out.put_bytes(0, 7);
                if let Held::Prefixes(prefixes) = &leaves.held {
                    prefixes.iter().for_each(|prefix| out.put_slice(prefix));
                }
            }
            Self::Known(known) => {
                within("tag count", known.tags.len(), MAX_KNOWN);
                out.put_u8(known.last.into());
                out.put_bytes(0, 7);
                known.tags.iter().for_each(|tag| out.put_u64_le(*tag));
            }
            Self::PageQuery(query) => {
                out.put_u64_le(query.extent.0);
                out.put_u16_le(query.mask);
                out.put_bytes(0, 6);
            }
            Self::PageSums(sums) => {
                let expected = PAGES_PER_CHUNK * sums.mask.count_ones() as usize;
                assert_eq!(sums.sums.len(), expected, "page sums do not fit their mask {:#x}", sums.mask);
                out.put_u64_le(sums.extent.0);
                out.put_u16_le(sums.mask);
                out.put_bytes(0, 6);
                sums.sums.iter().for_each(|sum| out.put_u64_le(*sum));
            }
            Self::Range(mark) => {
                out.put_u64_le(mark.sequence.0);
                out.put_u64_le(mark.floor.0);
                out.put_u64_le(mark.first.0);
                out.put_u64_le(mark.count);
                out.put_u8(match mark.kind {
                    RangeKind::Zero => 1,
                    RangeKind::Same => 2,
                });
                out.put_bytes(0, 7);
            }
            Self::Ack(ack) => put_runs(out, &ack.runs),
            Self::Need(need) => {
                out.put_u64_le(need.sequence.0);
                out.put_u64_le(need.extent.0);
                out.put_u16_le(need.mask);
                out.put_u8(match need.reason {
                    NeedReason::Unknown => 1,
                    NeedReason::Mismatch => 2,
                });
                out.put_bytes(0, 5);
            }
            Self::Seal(seal) => {
                out.put_slice(&seal.root);
                out.put_u64_le(seal.size.0);
            }
            Self::Sealed(sealed) => {
                within("receipt", sealed.receipt.len(), MAX_RECEIPT);
                out.put_u64_le(sealed.cpu_micros);
                out.put_slice(&sealed.receipt);
            }
            Self::Fail(fail) => {
                out.put_u16_le(fail.code as u16);
                put_text(out, truncate(&fail.detail, MAX_DETAIL));
            }
            Self::Drain => {}
            Self::Ping(nonce) | Self::Pong(nonce) => out.put_u64_le(*nonce),
            Self::LaneHello(hello) => {
                out.put_slice(&hello.session.0);
                out.put_u64_le(hello.generation.0);
                out.put_u8(hello.lane);
                out.put_u8(match hello.class {
                    LaneClass::Data => 1,
                });
                out.put_bytes(0, 6);
            }
            Self::Migrate(Migrate { migration }) | Self::Call(Call { migration }) => {
                out.put_slice(&migration.0);
                out.put_bytes(0, 16);
            }
            Self::Message(body) => {
                within("message", body.len(), MAX_MESSAGE);
                out.put_slice(body);
            }
            Self::ChannelHello(hello) => {
                out.put_slice(&hello.migration.0);
                out.put_u64_le(hello.generation.0);
                out.put_u16_le(hello.channel);
                out.put_u8(match hello.kind {
                    ChannelKind::Ram => 1,
                    ChannelKind::Disk => 2,
                });
                out.put_bytes(0, 5);
            }
        }
    }
}

impl FailCode {
    /// The code's number on the wire.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }
}

fn truncate(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
