//! Crash states: what is found on both disks, whether it keeps what was promised, and whether the copy goes on from it.

use std::collections::BTreeMap;

use disk::sim::{CrashModel, History, SimDisk};
use engine::journal::{Entry, HeaderV1, encode_change, replay};
use session::{Change, ExtentSet};
use volume::conformance::Dice;
use volume::{ByteLen, ChunkId, ExtentIndex, SessionId};

use crate::attempt::{self, Begin, CommitStep, Moment, RIGHT_ORDER, Report, Terms};
use crate::content::{CHUNK_LEN, Volume, is_named, key, older, random, small};

/// Bytes of the journal's disk: more than a small copy writes in a few attempts.
const JOURNAL_LEN: usize = 64 << 10;

/// A copy that is to be interrupted.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What is copied.
    pub source: Volume,
    /// What lies underneath.
    pub under: Volume,
    /// What is known of it.
    pub begin: Begin,
}

impl Workload {
    /// A random one of up to `most` whole extents.
    #[must_use]
    pub fn random(dice: &mut Dice, most: u64) -> Self {
        let source = random(dice, most);
        let empty = Volume::new(source.size(), &[]);
        let old = older(dice, &source);
        let (under, begin) = match dice.below(4) {
            0 => (empty, Begin::Zeroed),
            1 => (old, Begin::Unknown),
            2 => (old.clone(), Begin::Trusted(old)),
            _ => (old, Begin::Unread),
        };
        Self { source, under, begin }
    }

    fn header(&self) -> HeaderV1 {
        HeaderV1 { session: SessionId([9; 16]), size: self.source.size(), key_id: key().id() }
    }

    /// Both disks before the first attempt. The journal's blocks hold what an earlier journal left there.
    #[must_use]
    pub fn disks(&self, dice: &mut Dice) -> (SimDisk, SimDisk) {
        let data = if self.begin == Begin::Zeroed {
            SimDisk::new(self.source.size(), dice.roll())
        } else {
            SimDisk::holding(self.under.bytes(), dice.roll())
        };
        let header = self.header();
        let mut journal = header.encode().to_vec();
        if dice.below(2) == 0 {
            let mut chain = dice.roll();
            for extent in 0..self.source.size().extents() {
                let change = Change::Extent { extent: ExtentIndex(extent), ids: self.source.ids(extent) };
                chain = encode_change(&change, chain, &mut journal);
            }
        }
        journal.resize(JOURNAL_LEN, 0);
        (data, SimDisk::holding(journal, dice.roll()))
    }
}

/// How a journal is read after a crash: [`checked`], or a wrong way that the harness must find.
pub type Replay = fn(&[u8]) -> Option<(Vec<Entry>, (u64, u64))>;

/// The engine's way.
#[must_use]
pub fn checked(bytes: &[u8]) -> Option<(Vec<Entry>, (u64, u64))> {
    let mut entries = Vec::new();
    let replayed = replay(bytes, |entry| entries.push(entry)).ok()??;
    Some((entries, (replayed.end.len, replayed.end.chain)))
}

/// Believes records whatever their checksums say: a deliberate fault.
#[must_use]
pub fn unchecked(bytes: &[u8]) -> Option<(Vec<Entry>, (u64, u64))> {
    let word =
        |at: usize| bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes);
    let extents = ByteLen(word(32)?).extents();
    let (mut at, mut entries, mut chain) = (64, Vec::new(), word(56)?);
    while let (Some(kind), Some(count)) = (bytes.get(at), bytes.get(at + 1)) {
        let (first, body) = (word(at + 8)?, 24 + 32 * usize::from(*count));
        if first >= extents || bytes.len() < at + body + 8 {
            break;
        }
        let run = word(at + 16)?.min(extents - first);
        entries.push(match kind {
            1 => {
                let ids = bytes[at + 24..at + body]
                    .chunks_exact(32)
                    .map(|id| ChunkId(id.try_into().unwrap_or_default()));
                Entry::Settled(Change::Extent { extent: ExtentIndex(first), ids: ids.collect() })
            }
            2 => Entry::Settled(Change::Zero { first: ExtentIndex(first), count: run }),
            3 => Entry::Dirty { first: ExtentIndex(first), count: run },
            _ => break,
        });
        chain = word(at + body)?;
        at += body + 8;
    }
    Some((entries, (at as u64, chain)))
}

/// Both disks after a crash.
#[derive(Debug)]
pub struct State {
    /// The target.
    pub data: SimDisk,
    /// The journal's disk.
    pub journal: SimDisk,
}

/// What was found by replaying a journal.
#[derive(Debug)]
pub struct Recovered {
    /// Ids of what the journal knows.
    pub known: BTreeMap<u64, Vec<ChunkId>>,
    /// Where it goes on.
    pub end: (u64, u64),
}

/// Replays the journal and compares what it claims with the target.
///
/// # Errors
/// The promise that was broken.
pub fn recover(
    source: &Volume,
    (data, journal): (&SimDisk, &SimDisk),
    acknowledged: &ExtentSet,
    replay: Replay,
) -> Result<Recovered, String> {
    let (entries, end) = replay(&journal.durable()).ok_or("the journal's header is gone")?;
    let mut known = BTreeMap::new();
    for entry in entries {
        match entry {
            Entry::Settled(Change::Extent { extent, ids }) => drop(known.insert(extent.0, ids)),
            Entry::Settled(Change::Zero { first, count }) => {
                for extent in first.0..first.0 + count {
                    known.insert(extent, vec![ChunkId::ZERO; source.chunks_of(extent).len()]);
                }
            }
            Entry::Dirty { first, count } => {
                known.retain(|extent, _| *extent < first.0 || *extent >= first.0 + count);
            }
            Entry::Settled(Change::Same { .. }) => return Err("a journal never says the same".to_owned()),
        }
    }
    let missing = (0..source.size().extents()).find(|e| acknowledged.contains(*e) && !known.contains_key(e));
    if let Some(extent) = missing {
        return Err(format!("extent {extent} was acknowledged and the journal does not know it"));
    }
    let medium = data.durable();
    for (extent, ids) in &known {
        let chunks = source.chunks_of(*extent);
        if ids.len() != chunks.len() {
            return Err(format!("the journal names {} chunks of extent {extent}", ids.len()));
        }
        for (chunk, id) in chunks.zip(ids) {
            let start = chunk * CHUNK_LEN;
            if !is_named(*id, &medium[start..start + source.chunk_len(chunk)]) {
                let told = if acknowledged.contains(*extent) { "acknowledged" } else { "journalled" };
                return Err(format!("extent {extent} is {told}, and chunk {chunk} has other content"));
            }
        }
        if acknowledged.contains(*extent) && *ids != source.ids(*extent) {
            return Err(format!("the journal names other content of extent {extent} than was acknowledged"));
        }
    }
    Ok(Recovered { known, end })
}

/// A recorded run from which crash states are made.
#[derive(Debug)]
pub struct Recording {
    data: History,
    journal: History,
    /// What happened.
    pub report: Report,
}

/// Runs a workload's first attempt and records it.
///
/// # Panics
/// When the record does not have every change.
#[must_use]
pub fn record(workload: &Workload, order: &'static [CommitStep], dice: &mut Dice) -> Recording {
    let (data, journal) = workload.disks(dice);
    let (data, journal) = (data.recording(), journal.recording());
    let header = workload.header();
    let terms = Terms {
        source: &workload.source,
        data: &data,
        journal: &journal,
        journal_end: (engine::journal::HEADER_LEN as u64, header.chain()),
        known: BTreeMap::new(),
        begin: workload.begin.clone(),
        remembered: None,
        order,
        takes_back: true,
    };
    let report = attempt::run(terms, dice);
    recording(&data, &journal, report)
}

fn recording(data: &SimDisk, journal: &SimDisk, report: Report) -> Recording {
    let (data, journal) = (data.history().expect("it records"), journal.history().expect("it records"));
    let last = report.moments.last().expect("there is a first moment");
    assert_eq!(
        (last.data + 1, last.journal + 1),
        (data.moments(), journal.moments()),
        "every change is a moment"
    );
    Recording { data, journal, report }
}

impl Recording {
    /// A state that may be found after a crash at this moment.
    pub fn crash(&self, moment: &Moment, dice: &mut Dice) -> State {
        let model =
            CrashModel { sector: if dice.below(2) == 0 { 512 } else { 4096 }, reorder: dice.below(2) == 0 };
        State {
            data: self.data.crash_at(moment.data, model, dice),
            journal: self.journal.crash_at(moment.journal, model, dice),
        }
    }

    /// All states of a crash at this moment in which each change is absent or complete; `None` when one disk has more
    /// than `limit` of them.
    #[must_use]
    pub fn all(&self, moment: &Moment, limit: usize) -> Option<(Vec<SimDisk>, Vec<SimDisk>)> {
        Some((self.data.crash_states(moment.data, limit)?, self.journal.crash_states(moment.journal, limit)?))
    }
}

/// Recovers from a state, and completes the copy; up to `crashes` times it may crash again on the way, and the source
/// may change in between. `takes_back`: see [`Terms::takes_back`]. Returns how many states were checked.
///
/// # Errors
/// The promise that was broken.
pub fn survive(
    workload: &Workload,
    state: &State,
    acknowledged: &ExtentSet,
    dice: &mut Dice,
    crashes: u32,
    takes_back: bool,
) -> Result<u64, String> {
    let Recovered { known, end } =
        recover(&workload.source, (&state.data, &state.journal), acknowledged, checked)?;
    // The sender has heard of some of the acknowledgements, or has lost its journal altogether.
    let remembered = (dice.below(3) > 0).then(|| {
        let mut set = ExtentSet::new(workload.source.size().extents());
        (0..set.extents()).filter(|e| acknowledged.contains(*e) && dice.below(8) > 0).for_each(|extent| {
            set.insert(extent);
        });
        set
    });
    let begin = match workload.begin {
        // What an interrupted attempt left is zero no more; what it left of an old copy must be read.
        Begin::Zeroed | Begin::Unknown => Begin::Unknown,
        Begin::Trusted(_) | Begin::Unread => Begin::Unread,
    };
    let again = crashes > 0 && dice.below(4) == 0;
    // Now and then the source has changed since, and may change back: then nothing that the sender remembers counts,
    // and the journal speaks of content that is about to be overwritten.
    let changed = again && dice.below(2) == 0;
    let workload = &if changed {
        Workload {
            source: older(dice, &workload.source),
            under: workload.source.clone(),
            begin: workload.begin.clone(),
        }
    } else {
        workload.clone()
    };
    let (remembered, acknowledged) = if changed {
        (None, &ExtentSet::new(workload.source.size().extents()))
    } else {
        (remembered, acknowledged)
    };
    // The engine cuts the file; the next flush of it makes that durable together with what was appended.
    let mut kept = state.journal.durable();
    kept[small(end.0)..].fill(0);
    let (data, journal) =
        (SimDisk::holding(state.data.durable(), dice.roll()), SimDisk::holding(kept, dice.roll()));
    let (data, journal) = if again { (data.recording(), journal.recording()) } else { (data, journal) };
    let terms = Terms {
        source: &workload.source,
        data: &data,
        journal: &journal,
        journal_end: end,
        known,
        begin,
        remembered,
        order: RIGHT_ORDER,
        takes_back,
    };
    let report = attempt::run(terms, dice);
    report.outcome.clone()?;
    if data.durable() != workload.source.bytes() {
        return Err("the volume was sealed with other content than the source".to_owned());
    }
    if !again {
        return Ok(1);
    }
    let recording = recording(&data, &journal, report);
    let moments = &recording.report.moments;
    let moment = &moments[small(dice.below(moments.len() as u64))];
    let mut told = acknowledged.clone();
    moment.taken_back.runs().flat_map(|run| run.first..run.first + run.count).for_each(|extent| {
        told.remove(extent);
    });
    moment.acknowledged.runs().for_each(|run| told.insert_run(run.first, run.count));
    let next = recording.crash(moment, dice);
    // Back to what lay there before: the case in which a claim of the journal that was not taken back does harm.
    if changed && dice.below(2) == 0 {
        let back = Workload { source: workload.under.clone(), ..workload.clone() };
        return Ok(1 + survive(
            &back,
            &next,
            &ExtentSet::new(told.extents()),
            dice,
            crashes - 1,
            takes_back,
        )?);
    }
    Ok(1 + survive(workload, &next, &told, dice, crashes - 1, takes_back)?)
}
