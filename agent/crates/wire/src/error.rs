//! Why bytes could not be decoded. The peer is at fault in every case; the connection ends.

/// A violation of the wire format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The first eight bytes are not ours: something else speaks on this port.
    #[error("the peer does not speak the novaferry protocol (bad magic)")]
    BadMagic,
    /// The prelude's own version is unknown.
    #[error("prelude version {0} is unknown; upgrade the older side")]
    PreludeVersion(u8),
    /// No protocol version is spoken by both sides.
    #[error(
        "no common protocol version: the peer speaks {theirs_min} to {theirs_max}, this side {ours_min} to {ours_max}; upgrade the older side"
    )]
    NoCommonVersion {
        /// Peer's oldest.
        theirs_min: u16,
        /// Peer's newest.
        theirs_max: u16,
        /// Our oldest.
        ours_min: u16,
        /// Our newest.
        ours_max: u16,
    },
    /// A frame tag that this version does not define.
    #[error("unknown frame tag {0}")]
    UnknownTag(u8),
    /// A length field above its cap.
    #[error("{field} of {value} exceeds the cap of {cap}")]
    TooLong {
        /// Which length.
        field: &'static str,
        /// What the peer declared.
        value: u64,
        /// What is allowed.
        cap: u64,
    },
    /// The body ended before its fields did.
    #[error("frame is truncated in {0}")]
    Truncated(&'static str),
    /// Bytes were left after the last field.
    #[error("{0} bytes follow the last field of a frame")]
    Trailing(usize),
    /// A field holds a value that its type does not allow.
    #[error("{field} holds the invalid value {value}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Reserved bits that are not zero.
    #[error("reserved bits of {0} are not zero")]
    Reserved(&'static str),
}
