//! In which order VMs move, and when the last has arrived: as many at once as hosts, links and the operator allow.

use std::collections::BTreeMap;

use model::Name;

/// Migrations that one host takes part in at once.
pub const A_HOST: usize = 2;
/// Migrations of one plan at once, unless asked otherwise.
pub const AT_ONCE: usize = 8;

/// A move that waits for its turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Move {
    /// From here.
    pub source: Name,
    /// To here.
    pub destination: Name,
    /// Over this, if it is declared.
    pub link: Option<Name>,
    /// As many as this may use it at once.
    pub link_most: Option<u32>,
    /// What it takes, milliseconds.
    pub duration_ms: u64,
}

/// What runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Running {
    all: usize,
    hosts: BTreeMap<Name, usize>,
    links: BTreeMap<Name, usize>,
}

impl Running {
    /// One more runs.
    pub fn begin(&mut self, one: &Move) {
        self.all += 1;
        for host in [&one.source, &one.destination] {
            *self.hosts.entry(host.clone()).or_default() += 1;
        }
        if let Some(link) = &one.link {
            *self.links.entry(link.clone()).or_default() += 1;
        }
    }

    /// One has ended.
    pub fn end(&mut self, one: &Move) {
        self.all = self.all.saturating_sub(1);
        let less =
            |count: Option<&mut usize>| count.into_iter().for_each(|count| *count = count.saturating_sub(1));
        less(self.hosts.get_mut(&one.source));
        less(self.hosts.get_mut(&one.destination));
        less(one.link.as_ref().and_then(|link| self.links.get_mut(link)));
    }

    /// Whether one more may run.
    #[must_use]
    pub fn admits(&self, one: &Move, at_once: usize) -> bool {
        let host = |name: &Name| self.hosts.get(name).copied().unwrap_or(0) < A_HOST;
        let on_link = one.link.as_ref().and_then(|link| self.links.get(link)).copied().unwrap_or(0);
        let most = one.link_most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        self.all < at_once && host(&one.source) && host(&one.destination) && on_link < most.max(1)
    }
}

/// When each move begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Which of the moves that were given.
    pub nth: usize,
    /// From the plan's start, milliseconds.
    pub begins_ms: u64,
    /// Its wave, from 1: those that begin together.
    pub wave: u32,
}

/// The order of all moves, and when the last ends. The longest go first, so that none is left for the end alone.
#[must_use]
pub fn order(moves: &[Move], at_once: usize) -> (Vec<Turn>, u64) {
    let at_once = at_once.max(1);
    let mut waiting: Vec<usize> = (0..moves.len()).collect();
    waiting.sort_by_key(|nth| std::cmp::Reverse(moves[*nth].duration_ms));
    let mut running = Running::default();
    let mut ends: Vec<(u64, usize)> = Vec::new();
    let (mut turns, mut now, mut wave) = (Vec::with_capacity(moves.len()), 0, 0);
    while !waiting.is_empty() {
        let before = turns.len();
        waiting.retain(|nth| {
            let one = &moves[*nth];
            if !running.admits(one, at_once) {
                return true;
            }
            running.begin(one);
            ends.push((now + one.duration_ms, *nth));
            turns.push(Turn { nth: *nth, begins_ms: now, wave: wave + 1 });
            false
        });
        wave += u32::from(turns.len() > before);
        ends.sort_unstable();
        // With nothing running everything is admitted, so there is one that ends.
        let Some((end, nth)) = (!ends.is_empty()).then(|| ends.remove(0)) else { break };
        now = end;
        running.end(&moves[nth]);
    }
    let last = ends.last().map_or(now, |(end, _)| *end);
    (turns, last)
}
