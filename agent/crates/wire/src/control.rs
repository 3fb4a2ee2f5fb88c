//! Control frames: everything but payload. Layouts are in `SPEC.md`; each type here mirrors one table there.

mod decode;
mod encode;

use std::fmt;

use volume::{ByteLen, ChunkIndex, ExtentIndex, Generation, KeyId, Sequence, SessionId};

use crate::frame::MAX_CONTROL_BODY;

/// Longest pool or volume name in bytes.
pub const MAX_NAME: usize = 128;
/// Longest explanation in a [`Fail`].
pub const MAX_DETAIL: usize = 512;
/// Longest receipt in a [`Sealed`]: body, signature and a certificate chain.
pub const MAX_RECEIPT: usize = 32 << 10;
/// Longest [`Control::Message`] in bytes.
pub const MAX_MESSAGE: usize = MAX_CONTROL_BODY;
/// Most runs in one [`Durable`] or [`Ack`].
pub const MAX_RUNS: usize = (MAX_CONTROL_BODY - 16) / 16;
/// Most prefixes in one [`Leaves`].
pub const MAX_LEAVES: usize = (MAX_CONTROL_BODY - 24) / 16;
/// Most tags in one [`Known`].
pub const MAX_KNOWN: usize = (MAX_CONTROL_BODY - 16) / 8;

/// Which way the bytes go, seen from the dialler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The dialler sends.
    Push,
    /// The dialler receives.
    Pull,
}

/// What the target may hold before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// A new volume; refused when there is a sealed one of this name.
    Create,
    /// Re-sync onto an old copy; its sealed leaf table is believed.
    ResyncTrusted,
    /// Re-sync onto an old copy; the receiver reads it.
    ResyncFull,
}

/// How the receiver stores the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeFormat {
    /// Byte for byte.
    Raw,
    /// A qcow2 image whose guest-visible content is the volume.
    Qcow2,
}

/// First frame of the dialler.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// Chosen at random for a new session, repeated to resume one.
    pub session: SessionId,
    /// Which way.
    pub direction: Direction,
    /// What the target may hold.
    pub mode: Mode,
    /// How the target is stored (push) or is to be stored (pull: informative).
    pub format: VolumeFormat,
    /// Whether the receiver reads everything back from the medium before it seals.
    pub readback: bool,
    /// Connections that the dialler wants, this one included.
    pub lanes: u8,
    /// Pool on the accepting side.
    pub pool: String,
    /// Volume in that pool.
    pub name: String,
}

/// The sender's side of the terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Length of the volume.
    pub size: ByteLen,
    /// Key that the sender's remembered chunk ids were made with, all zero when it remembers none.
    pub remembered_key: KeyId,
    /// Generation in which the sender last worked on this session, 0 for none.
    pub generation: Generation,
}

/// Key bytes on their way; never printed, wiped by whoever keeps them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKeyBytes(pub [u8; 32]);

impl fmt::Debug for HashKeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKeyBytes(..)")
    }
}

/// The receiver's side of the terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// This attempt's fencing number; older ones are refused from now on.
    pub generation: Generation,
    /// Names `key`.
    pub key_id: KeyId,
    /// Key of all chunk ids in this session.
    pub key: HashKeyBytes,
    /// Seed of the page sums.
    pub page_seed: u64,
    /// The first sequence that the sender may use.
    pub first_sequence: Sequence,
    /// Payload bytes that may be unacknowledged.
    pub window_bytes: u64,
    /// Sequences that may be unacknowledged.
    pub window_frames: u32,
    /// [`Durable`] frames follow: an earlier attempt got somewhere.
    pub resumed: bool,
    /// [`Leaves`] frames follow while the session goes on; an extent is sent once its leaves have come.
    pub leaves: bool,
    /// [`Known`] frames follow.
    pub known: bool,
    /// The target reads as zeros wherever nothing was written, so zeros need not be sent.
    pub zeroed: bool,
}

/// `count` items from `first`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First item.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// Extents that need not be sent, from an earlier attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Durable {
    /// Ascending, disjoint runs of extents.
    pub runs: Vec<Run>,
    /// No further frame follows.
    pub last: bool,
}

/// What the target holds in a run of chunks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Held {
    /// This many zero chunks.
    Zero(u64),
    /// This many chunks of which nothing is known: send them.
    Unknown(u64),
    /// One prefix of the chunk id each; all zero for a zero chunk.
    Prefixes(Vec<[u8; 16]>),
}

/// What the target holds, in ascending order without gaps, a bounded way ahead of what is settled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaves {
    /// The first chunk described: where the frame before stopped.
    pub first: ChunkIndex,
    /// The run.
    pub held: Held,
}

/// Tags of chunks that the receiver can serve to itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// First 8 bytes of each id.
    pub tags: Vec<u64>,
    /// No further frame follows.
    pub last: bool,
}

/// Asks for the page sums of an extent's chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageQuery {
    /// Which extent.
    pub extent: ExtentIndex,
    /// Which of its chunks (bit 0 is the first).
    pub mask: u16,
}

/// Page sums of an extent's chunks, as the target holds them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageSums {
    /// Which extent.
    pub extent: ExtentIndex,
    /// Which of its chunks.
    pub mask: u16,
    /// 16 sums for each chunk of the mask, in order; pages past the end are 0.
    pub sums: Vec<u64>,
}

/// What a run of extents is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeKind {
    /// All zero.
    Zero,
    /// What the target declared in its leaves.
    Same,
}

/// A run of extents that needs no payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RangeMark {
    /// What they are.
    pub kind: RangeKind,
    /// Order of this write.
    pub sequence: Sequence,
    /// As in [`crate::ExtentHead`].
    pub floor: Sequence,
    /// First extent.
    pub first: ExtentIndex,
    /// How many extents.
    pub count: u64,
}

/// Sequences whose effect is durable: fdatasync of the data, then of the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Ascending, disjoint runs of sequences.
    pub runs: Vec<Run>,
}

/// Why chunks must be sent in full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NeedReason {
    /// The receiver does not hold the referenced content.
    Unknown,
    /// What it holds is not what was meant: the id of the result is another.
    Mismatch,
}

/// Send these chunks of this extent in full. The sequence is settled by it: nothing of it was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    /// The frame that could not be applied.
    pub sequence: Sequence,
    /// Its extent.
    pub extent: ExtentIndex,
    /// Which chunks.
    pub mask: u16,
    /// Why.
    pub reason: NeedReason,
}

/// All is sent and acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seal {
    /// Merkle root of what the sender read.
    pub root: [u8; 32],
    /// Length of the volume.
    pub size: ByteLen,
}

/// The receiver's root is the same, and the volume is sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// CPU time that the receiver spent on this session, microseconds.
    pub cpu_micros: u64,
    /// The signed receipt, as the engine writes it.
    pub receipt: Vec<u8>,
}

macro_rules! fail_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal),* $(,)?) => {
        /// Why a session ended, as the peer is told. Separate from local errors: it carries no paths and no causes.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u16)]
        pub enum FailCode { $($(#[$doc])* $name = $value),* }
        impl FailCode {
            /// Every code of this version.
            pub const ALL: &[Self] = &[$(Self::$name),*];
            pub(crate) fn from_wire(value: u16) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}
fail_codes! {
    /// The peer broke the protocol.
    Protocol = 1,
    /// No common version.
    Version = 2,
    /// The peer's identity may not do this.
    NotAuthorised = 3,
    /// The pool or volume does not exist.
    NotFound = 4,
    /// A sealed volume of this name exists; re-sync or choose another name.
    Exists = 5,
    /// The volume belongs to another owner.
    NotOwner = 6,
    /// Another session works on the volume.
    Busy = 7,
    /// The pool's quota does not allow the volume.
    Quota = 8,
    /// The target's storage is full.
    NoSpace = 9,
    /// The target is smaller than the source.
    TooSmall = 10,
    /// The name is not allowed.
    BadName = 11,
    /// A newer generation of this session or volume exists.
    StaleGeneration = 12,
    /// Reading or writing failed on the peer's side.
    Storage = 13,
    /// A flush failed: what was written since the last acknowledgement is not trusted.
    FlushFailed = 14,
    /// The source changed while it was read.
    SourceChanged = 15,
    /// The roots differ.
    RootMismatch = 16,
    /// Somebody cancelled the session.
    Cancelled = 17,
    /// Too many sessions, or not enough memory for another.
    Overloaded = 18,
    /// The old copy cannot be trusted; re-sync in full.
    NotTrusted = 19,
    /// The peer cannot do what was asked (format, mode).
    Unsupported = 20,
    /// Nothing was heard for too long.
    TimedOut = 21,
    /// Something else; the detail says what.
    Internal = 22,
}

/// The session is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fail {
    /// Why.
    pub code: FailCode,
    /// For people.
    pub detail: String,
}

/// What a further connection carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LaneClass {
    /// Extent frames.
    Data,
}

/// Binds a further connection to a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaneHello {
    /// Which session.
    pub session: SessionId,
    /// As granted: an older one is refused.
    pub generation: Generation,
    /// Number of the lane, from 1.
    pub lane: u8,
    /// What it carries.
    pub class: LaneClass,
}

/// First frame of the dialler when a running VM is to move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Migrate {
    /// Chosen at random for a new migration, repeated to take up one that lost its tunnel.
    pub migration: SessionId,
}

/// First frame of the dialler when a VM is to move to it: for destinations that their sources cannot dial. The accepting
/// side answers with [`Migrate`] when it takes the connection, and opens the channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// As the coordinator chose it.
    pub migration: SessionId,
}

/// What a channel of a migration carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ChannelKind {
    /// A migration stream of the hypervisor: the VM's memory, and the state of its devices.
    Ram,
    /// Blocks of a disk.
    Disk,
}

/// Binds a stream or connection to a migration. After the answer it carries raw bytes of another layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelHello {
    /// Which migration.
    pub migration: SessionId,
    /// As the accepting side gave it: any other is refused.
    pub generation: Generation,
    /// Number of the channel; no two that are open have the same.
    pub channel: u16,
    /// What it carries.
    pub kind: ChannelKind,
}

/// Any control frame.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each variant is the frame of its name")]
pub enum Control {
    Open(Open),
    Offer(Offer),
    Grant(Grant),
    Durable(Durable),
    Leaves(Leaves),
    Known(Known),
    PageQuery(PageQuery),
    PageSums(PageSums),
    Range(RangeMark),
    Ack(Ack),
    Need(Need),
    Seal(Seal),
    Sealed(Sealed),
    Fail(Fail),
    Drain,
    Ping(u64),
    Pong(u64),
    LaneHello(LaneHello),
    Migrate(Migrate),
    /// At most [`MAX_MESSAGE`] bytes with a version and a meaning of their own.
    Message(Vec<u8>),
    ChannelHello(ChannelHello),
    Call(Call),
}

#[cfg(test)]
mod tests;
