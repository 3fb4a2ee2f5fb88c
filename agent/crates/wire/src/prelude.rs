//! The frozen prelude: the first 32 bytes in each direction of a session's control stream. They never change, in
//! any version, so that two builds of any age can tell each other what they speak.

use crate::codec::Reader;
use crate::error::DecodeError;

/// Length of the prelude in bytes.
pub const PRELUDE: usize = 32;
/// First bytes of every prelude.
pub const MAGIC: [u8; 8] = *b"NOVAFRRY";
/// Version of the prelude's own layout.
pub const PRELUDE_VERSION: u8 = 1;

/// What one side offers, or, in the answer, what was chosen (`min == max`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prelude {
    /// Oldest protocol version offered.
    pub min: u16,
    /// Newest protocol version offered.
    pub max: u16,
    /// Feature bits offered; the answer holds those that both sides have. Unknown bits are ignored.
    pub features: u64,
}

impl Prelude {
    /// What this build offers.
    #[must_use]
    pub fn ours() -> Self {
        Self { min: crate::OLDEST_VERSION, max: crate::VERSION, features: 0 }
    }

    /// The 32 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PRELUDE] {
        let mut out = [0; PRELUDE];
        out[..8].copy_from_slice(&MAGIC);
        out[8] = PRELUDE_VERSION;
        // 9..12 reserved
        out[12..14].copy_from_slice(&self.min.to_le_bytes());
        out[14..16].copy_from_slice(&self.max.to_le_bytes());
        out[16..24].copy_from_slice(&self.features.to_le_bytes());
        // 24..32 reserved
        out
    }

    /// Reads the 32 bytes. Reserved bytes must be zero.
    pub fn decode(bytes: &[u8; PRELUDE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, "prelude");
        if reader.array::<8>()? != MAGIC {
            return Err(DecodeError::BadMagic);
        }
        let version = reader.u8()?;
        if version != PRELUDE_VERSION {
            return Err(DecodeError::PreludeVersion(version));
        }
        reader.reserved(3)?;
        let prelude = Self { min: reader.u16()?, max: reader.u16()?, features: reader.u64()? };
        reader.reserved(8)?;
        reader.finish()?;
        if prelude.min > prelude.max {
            return Err(DecodeError::Invalid { field: "prelude version range", value: prelude.min.into() });
        }
        Ok(prelude)
    }
}

/// The answer to an offer: the newest version that both speak, and the features that both have.
pub fn negotiate(ours: &Prelude, theirs: &Prelude) -> Result<Prelude, DecodeError> {
    let version = ours.max.min(theirs.max);
    if version == 0 || version < ours.min || version < theirs.min {
        return Err(DecodeError::NoCommonVersion {
            theirs_min: theirs.min,
            theirs_max: theirs.max,
            ours_min: ours.min,
            ours_max: ours.max,
        });
    }
    Ok(Prelude { min: version, max: version, features: ours.features & theirs.features })
}

#[cfg(test)]
mod tests;
