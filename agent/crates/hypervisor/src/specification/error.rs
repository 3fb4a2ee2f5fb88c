//! Why a specification is refused.

/// Why a specification, or a request made of one, is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecificationError {
    /// Made by a program of another version.
    #[error(
        "the specification has version {found}, this program knows {known}; use the same release on both hosts"
    )]
    Version {
        /// What it says.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// Longer than it may be.
    #[error("{field} is {found} long, at most {limit} is accepted")]
    TooLong {
        /// Which part.
        field: &'static str,
        /// Its length: bytes of a string, entries of a list.
        found: usize,
        /// The cap.
        limit: usize,
    },
    /// Not a value that this part may have.
    #[error("{field} cannot be {value:?}: {why}")]
    Value {
        /// Which part.
        field: &'static str,
        /// What it is, shortened.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two of the same name.
    #[error("{field} {value:?} is there twice")]
    Twice {
        /// Which part.
        field: &'static str,
        /// The name.
        value: String,
    },
    /// A part is missing.
    #[error("{field} is missing for {value:?}")]
    Missing {
        /// Which part.
        field: &'static str,
        /// Of what.
        value: String,
    },
    /// The arguments are not those of a QEMU that could have started.
    #[error("argument {option:?} of the running QEMU is not understood: {why}")]
    Argument {
        /// Which option.
        option: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl SpecificationError {
    /// A wrong value, shortened for the message.
    pub(super) fn value(field: &'static str, value: &str, why: &'static str) -> Self {
        Self::Value { field, value: value.chars().take(80).collect(), why }
    }
}
