//! The crate's one error: a small kind to match on, the operation, what was wrong and what to do.

use std::error::Error;
use std::fmt;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Bytes that came from outside do not decode.
    Corrupt,
    /// Bytes that came from outside use a form that is never accepted.
    Refused,
    /// A length or count does not fit what it belongs to.
    WrongLength,
    /// The format is of a version that this program does not know.
    UnknownVersion,
    /// The library underneath failed without a fault of the input.
    Internal,
}

/// The operation that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Op {
    /// Computing the chunk ids of an extent.
    Identify,
    /// Building a volume's root.
    BuildRoot,
    /// Reading a leaf table.
    ReadLeafTable,
    /// Writing a leaf table.
    WriteLeafTable,
    /// Comparing a chunk with page sums.
    Compare,
    /// Putting changed pages into a chunk.
    ApplyPages,
    /// Compressing a batch.
    Compress,
    /// Decompressing a batch.
    Decompress,
    /// Encoding a packet of RAM pages.
    EncodePages,
    /// Decoding a packet of RAM pages.
    DecodePages,
    /// Taking note that packets of RAM pages were decoded.
    AcknowledgePages,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identify => "compute the chunk ids of an extent",
            Self::BuildRoot => "build the root of a volume",
            Self::ReadLeafTable => "read a leaf table",
            Self::WriteLeafTable => "write a leaf table",
            Self::Compare => "compare a chunk with page sums",
            Self::ApplyPages => "apply changed pages to a chunk",
            Self::Compress => "compress a batch",
            Self::Decompress => "decompress a batch",
            Self::EncodePages => "encode a packet of RAM pages",
            Self::DecodePages => "decode a packet of RAM pages",
            Self::AcknowledgePages => "acknowledge packets of RAM pages",
        })
    }
}

/// The error of every fallible function here. `Display` says what failed, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op}: {what}; {}", self.advice())]
pub struct ReduceError {
    kind: Kind,
    op: Op,
    what: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ReduceError {
    pub(crate) fn new(kind: Kind, op: Op, what: impl Into<String>) -> Self {
        Self { kind, op, what: what.into(), source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind, to match on.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The operation that failed.
    #[must_use]
    pub fn op(&self) -> Op {
        self.op
    }

    /// What the reader of the message should do.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match (self.op, self.kind) {
            (Op::ReadLeafTable, Kind::UnknownVersion) => {
                "use the program version that wrote it, or delete the table and transfer the volume in full"
            }
            (Op::ReadLeafTable, _) => {
                "delete the table; the next transfer of the volume reads and compares everything"
            }
            (Op::Decompress | Op::ApplyPages, Kind::Corrupt | Kind::Refused | Kind::WrongLength) => {
                "do not write it: close the session and check the peer"
            }
            (Op::DecodePages | Op::AcknowledgePages, _) => {
                "do not let the guest run here: end the attempt and check the peer"
            }
            (_, Kind::Internal) => "free memory on this host and try again",
            _ => "this is a fault of the program: report it with the log",
        }
    }
}
