//! The audit log: every entry carries the hash of the one before it, so that nothing in the middle can be changed or
//! left out unnoticed. Who holds a copy of the newest hash can tell whether the end was cut off, too.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The hash before the first entry.
pub const ORIGIN: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// First line of what is hashed: no other text of ours begins so.
const CONTEXT: &str = "novaferry audit 1";

/// What was done, by whom, and what came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Deed {
    /// When.
    pub at: Timestamp,
    /// Who: `token:ID`, `jwt:SUBJECT`, `host:NAME`, `coordinator`.
    pub actor: String,
    /// What, as [`super::access::Action::as_str`] has it, or of a host: `join`, `renew`.
    pub action: String,
    /// To what: a host, a VM, a migration, a token.
    pub subject: String,
    /// `done`, `refused`, or `failed`.
    pub outcome: String,
    /// What else is worth knowing. No secrets.
    pub detail: String,
}

/// A deed in its place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Entry {
    /// From 1 on, without a gap.
    pub number: u64,
    /// What was done.
    #[serde(flatten)]
    pub deed: Deed,
    /// [`Entry::hash`] of the entry before.
    pub previous: String,
    /// Over all of the above, hexadecimal.
    pub hash: String,
}

/// Where the chain is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the audit log is broken at entry {number}: it was changed, or entries before it are missing")]
pub struct Broken {
    /// The first entry that does not fit.
    pub number: u64,
}

impl Entry {
    /// The entry of this number after the one with that hash.
    #[must_use]
    pub fn new(number: u64, previous: &str, deed: Deed) -> Self {
        let hash = hash(number, previous, &deed);
        Self { number, previous: previous.to_owned(), hash, deed }
    }
}

/// Every part with its length before it: no two entries have the same text.
fn hash(number: u64, previous: &str, deed: &Deed) -> String {
    let Deed { at, actor, action, subject, outcome, detail } = deed;
    let (number, at) = (number.to_string(), at.as_millisecond().to_string());
    let mut digest = Sha256::new();
    for part in [CONTEXT, previous, &number, &at, actor, action, subject, outcome, detail] {
        digest.update(part.len().to_be_bytes());
        digest.update(part.as_bytes());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks entries that follow one another; gives the last hash.
///
/// # Errors
/// At the first that does not fit.
pub fn verify<'a>(
    mut number: u64,
    previous: &str,
    entries: impl IntoIterator<Item = &'a Entry>,
) -> Result<String, Broken> {
    let mut previous = previous.to_owned();
    for entry in entries {
        let fits = entry.number == number
            && entry.previous == previous
            && entry.hash == hash(number, &previous, &entry.deed);
        if !fits {
            return Err(Broken { number });
        }
        previous.clone_from(&entry.hash);
        number += 1;
    }
    Ok(previous)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(count: u64) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut previous = ORIGIN.to_owned();
        for number in 1..=count {
            let deed = Deed {
                at: Timestamp::from_millisecond(1_800_000_000_000 + i64::try_from(number).unwrap()).unwrap(),
                actor: "token:ab".to_owned(),
                action: "migrate".to_owned(),
                subject: format!("web-{number}"),
                outcome: "done".to_owned(),
                detail: String::new(),
            };
            let entry = Entry::new(number, &previous, deed);
            previous.clone_from(&entry.hash);
            entries.push(entry);
        }
        entries
    }

    #[test]
    fn a_whole_chain_verifies_also_in_parts() {
        let entries = chain(5);
        let end = verify(1, ORIGIN, &entries).unwrap();
        let middle = verify(1, ORIGIN, &entries[..2]).unwrap();
        assert_eq!(verify(3, &middle, &entries[2..]).unwrap(), end);
        assert_eq!(verify(1, ORIGIN, []).unwrap(), ORIGIN);
    }

    #[test]
    fn every_change_is_noticed_where_it_is() {
        let changes: [fn(&mut Entry); 9] = [
            |entry| entry.number += 1,
            |entry| entry.deed.at += jiff::SignedDuration::from_millis(1),
            |entry| entry.deed.actor.push('x'),
            |entry| entry.deed.action.push('x'),
            |entry| entry.deed.subject.push('x'),
            |entry| entry.deed.outcome = "refused".to_owned(),
            |entry| entry.deed.detail.push('x'),
            |entry| entry.previous = ORIGIN.to_owned(),
            // A letter that moves from one part to the next.
            |entry| {
                let moved = entry.deed.action.pop().unwrap();
                entry.deed.subject.insert(0, moved);
            },
        ];
        for change in changes {
            let mut entries = chain(5);
            change(&mut entries[2]);
            assert_eq!(verify(1, ORIGIN, &entries), Err(Broken { number: 3 }));
        }
        let mut entries = chain(5);
        entries.remove(2);
        assert_eq!(verify(1, ORIGIN, &entries), Err(Broken { number: 3 }));
    }
}
