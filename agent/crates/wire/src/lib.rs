//! Layer 1: the novaferry protocol as bytes. `SPEC.md` beside this crate is the normative text.
//!
//! A connection starts with the frozen [`prelude`]; the versions offered there choose how the rest is read. Frames
//! have a fixed 8-byte header ([`frame`]); control frames ([`control`]) travel on one bidirectional stream, extent
//! frames ([`extent`]) on many unidirectional ones, their payload behind the head and never inside a struct. A
//! migration has channels instead of extents: after their first frame they are no business of this crate.
//!
//! Every length is checked against a named cap before anything is allocated, tag 0 is invalid, reserved bits must
//! be zero, and a body must be used up exactly. Decoding arbitrary bytes never panics.

mod codec;
pub mod control;
pub mod error;
pub mod extent;
pub mod frame;
pub mod prelude;

pub use control::{
    Ack, Call, ChannelHello, ChannelKind, Control, Direction, Durable, Fail, FailCode, Grant, HashKeyBytes,
    Held, Known, LaneClass, LaneHello, Leaves, Migrate, Mode, Need, NeedReason, Offer, Open, PageQuery,
    PageSums, RangeKind, RangeMark, Run, Seal, Sealed, VolumeFormat,
};
pub use error::DecodeError;
pub use extent::{ChunkEntry, Encoding, ExtentHead};
pub use frame::{FRAME_HEADER, FrameHeader, MAX_CONTROL_BODY, MAX_EXTENT_HEAD, MAX_PAYLOAD, Tag};
pub use prelude::{PRELUDE, Prelude, negotiate};

/// The newest protocol version that this build speaks.
pub const VERSION: u16 = 1;
/// The oldest protocol version that this build speaks: its own and, from version 2 on, the one before.
pub const OLDEST_VERSION: u16 = 1;
/// ALPN protocol name of version 1; a later version adds its own name in front.
pub const ALPN: &[u8] = b"novaferry/1";
