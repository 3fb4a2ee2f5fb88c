//! What goes wrong, and when.

use volume::conformance::Dice;

/// A kind of call that a fault can strike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each variant is the call of its name")]
pub enum Call {
    Read,
    Write,
    Zero,
    Flush,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// EIO. A write has no effect; a flush poisons.
    Io,
    /// ENOSPC, for changes and flushes.
    NoSpace,
    /// The transfer takes several steps of random length; the caller sees none of it.
    Short,
    /// The call is pending until [`super::SimDisk::release`].
    Stall,
    /// EIO after a random choice of the write's sectors (of this many bytes) was taken.
    Torn {
        /// Bytes in a sector.
        sector: usize,
    },
    /// Lie: a write is answered and forgotten; a flush is answered without effect.
    Lost,
    /// Lie: a write is answered and read back, but no flush makes it durable. On a flush, as `Lost`.
    Volatile,
    /// Lie: a write lands at another multiple of `block` bytes.
    Misdirected {
        /// Bytes in the units that addresses go wrong by.
        block: u64,
    },
    /// Lie: a read returns one wrong bit.
    BitFlip,
}

impl Fault {
    /// True for faults that break a promise silently. Only verification of content can find them.
    #[must_use]
    pub fn is_lie(self) -> bool {
        match self {
            Self::Io | Self::NoSpace | Self::Short | Self::Stall | Self::Torn { .. } => false,
            Self::Lost | Self::Volatile | Self::Misdirected { .. } | Self::BitFlip => true,
        }
    }
}

/// When a rule applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum When {
    /// At the disk's `n`th call, counted from 0 over all kinds (see [`super::SimDisk::calls`]).
    Call(u64),
    /// At the `n`th call of the rule's kind from now, counted from 0; once.
    Nth(u64),
    /// With this chance in a million, at every call.
    PerMillion(u32),
    /// Always.
    Always,
}

/// One fault for one kind of call.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    call: Call,
    when: When,
    fault: Fault,
}

impl Rule {
    /// `fault` strikes calls of kind `call`, when `when` says so.
    #[must_use]
    pub fn new(call: Call, when: When, fault: Fault) -> Self {
        Self { call, when, fault }
    }
}

/// The fault that strikes call number `index`, if any.
pub(super) fn strike(rules: &mut Vec<Rule>, dice: &mut Dice, call: Call, index: u64) -> Option<Fault> {
    let mut struck = None;
    rules.retain_mut(|rule| {
        if struck.is_some() || rule.call != call {
            return true;
        }
        let (hit, keep) = match &mut rule.when {
            When::Call(n) => (*n == index, *n > index),
            When::Nth(0) => (true, false),
            When::Nth(n) => {
                *n -= 1;
                (false, true)
            }
            When::PerMillion(chance) => (dice.below(1_000_000) < u64::from(*chance), true),
            When::Always => (true, true),
        };
        if hit {
            struck = Some(rule.fault);
        }
        keep
    });
    struck
}
