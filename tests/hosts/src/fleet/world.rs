//! What is so on the hosts: VMs, their fencing numbers, and the migrations that each host remembers. It is what agents
//! keep on their disks, so it outlives every line.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use control_api::v1::{self, Progress};
use receipt::ReceiptSigner;
use tokio::sync::mpsc;

use super::{Moved, Truth, machine, vm};
use crate::Random;

/// Commands that wait for a migration.
const COMMANDS: usize = 4;

/// A copy of a VM on a host.
#[derive(Clone, Debug)]
struct Copy {
    name: String,
    runs: bool,
    /// `running`, `suspended` or `stopped`, as the inventory has it.
    state: &'static str,
    /// It may not run here any more.
    fenced: bool,
}

/// What an operator's wish tells a migration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    Cancel,
    Finalise,
    TakeBack,
    KeepSource,
    KeepDestination,
}

#[derive(Debug, Default)]
struct Kept {
    name: String,
    /// Newest intent that was seen.
    seen: u64,
    vms: BTreeMap<String, Copy>,
    /// Newest fencing number of each VM that was ever here.
    generations: HashMap<String, u64>,
    moves: BTreeMap<String, Progress>,
    commands: HashMap<String, mpsc::Sender<Command>>,
    /// What the coordinator says comes.
    expected: Vec<v1::Expected>,
    signer: Option<Arc<ReceiptSigner>>,
}

#[derive(Debug)]
pub(super) struct World {
    hosts: Vec<Kept>,
    by_name: HashMap<String, usize>,
    violations: Vec<String>,
    random: Random,
}

/// A migration that a host may begin.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) generation: u64,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) random: Random,
}

impl World {
    pub(super) fn new(hosts: impl Iterator<Item = (String, Vec<String>)>, random: &mut Random) -> Self {
        let running =
            |id: String| (id.clone(), Copy { name: id, runs: true, state: "running", fenced: false });
        let hosts: Vec<Kept> = hosts
            .map(|(name, vms)| Kept { name, vms: vms.into_iter().map(running).collect(), ..Kept::default() })
            .collect();
        let by_name = hosts.iter().enumerate().map(|(index, host)| (host.name.clone(), index)).collect();
        Self { hosts, by_name, violations: Vec::new(), random: Random::new(random.number()) }
    }

    pub(super) fn name(&self, host: usize) -> &str {
        &self.hosts[host].name
    }

    pub(super) fn seen(&self, host: usize) -> u64 {
        self.hosts[host].seen
    }

    /// Whether an intent is none that is older than what was seen.
    pub(super) fn sees(&mut self, host: usize, generation: u64) -> bool {
        let seen = &mut self.hosts[host].seen;
        *seen = generation.max(*seen);
        generation == *seen
    }

    /// Lets in what an intent expects, unless it is older than what was seen; then false.
    pub(super) fn expect(&mut self, host: usize, intent: &v1::Intent) -> bool {
        let kept = &mut self.hosts[host];
        let holds = intent.generation >= kept.seen;
        if holds {
            kept.expected.clone_from(&intent.expected);
        }
        holds
    }

    pub(super) fn sign_with(&mut self, host: usize, signer: ReceiptSigner) {
        self.hosts[host].signer = Some(Arc::new(signer));
    }

    /// Whom a host signs as.
    pub(super) fn signer(&self, host: usize) -> Option<Arc<ReceiptSigner>> {
        self.hosts[host].signer.clone()
    }

    pub(super) fn observed(&self, host: usize) -> v1::Observed {
        let vms = self.hosts[host].vms.iter();
        let vms = vms.map(|(id, copy)| vm(id, &copy.name, copy.state)).collect();
        v1::Observed { host: Some(machine()), vms }
    }

    /// Migrations that are news to somebody who knows these.
    pub(super) fn moves(&self, host: usize, known: &HashMap<String, Progress>) -> Vec<Progress> {
        let all = self.hosts[host].moves.values();
        all.filter(|progress| known.get(&progress.id) != Some(progress)).cloned().collect()
    }

    pub(super) fn stir(&mut self, count: usize) {
        for _ in 0..count {
            let host = self.random.below(self.hosts.len());
            let vms = &mut self.hosts[host].vms;
            let nth = self.random.below(vms.len());
            if let Some(copy) = vms.values_mut().nth(nth).filter(|copy| copy.runs) {
                copy.state = if copy.state == "running" { "suspended" } else { "running" };
            }
        }
    }

    /// Whether a host knows a migration, and passes a command on to it if so.
    pub(super) fn knows(&self, host: usize, id: &str, command: Option<Command>) -> bool {
        let host = &self.hosts[host];
        if let (Some(command), Some(desk)) = (command, host.commands.get(id)) {
            // One that has ended hears nothing any more; one that is told too much is told again over the next line.
            let _ = desk.try_send(command);
        }
        host.moves.contains_key(id)
    }

    /// A host begins to move a VM, if it has it and nothing else moves it.
    pub(super) fn begin(&mut self, host: usize, wanted: &v1::Migration) -> Result<Begun, String> {
        let random = Random::new(self.random.number());
        let kept = &mut self.hosts[host];
        if kept.moves.contains_key(&wanted.id) {
            self.violations.push(format!("migration {} is begun twice at {}", wanted.id, kept.name));
            return Err("it is known here".to_owned());
        }
        if !kept.vms.get(&wanted.vm).is_some_and(|copy| copy.runs) {
            return Err(format!("there is no VM {:?} here", wanted.vm));
        }
        let busy = kept.moves.values().find(|one| one.vm == wanted.vm && !one.over);
        if let Some(busy) = busy {
            return Err(format!("migration {} moves VM {} already", busy.id, wanted.vm));
        }
        // Used up, whatever becomes of it: a destination that has seen it takes no other migration under it.
        let known = kept.generations.entry(wanted.vm.clone()).or_default();
        *known += 1;
        let generation = *known;
        let (commands, inbox) = mpsc::channel(COMMANDS);
        kept.commands.insert(wanted.id.clone(), commands);
        Ok(Begun { generation, commands: inbox, random })
    }

    /// The destination makes room, unless it has seen this fencing number or a newer one.
    pub(super) fn admit(
        &mut self,
        source: usize,
        wanted: &v1::Migration,
        generation: u64,
    ) -> Result<usize, String> {
        let (peer, vm) = (wanted.peer.as_str(), wanted.vm.as_str());
        let index = *self.by_name.get(peer).ok_or_else(|| format!("no host {peer} answers"))?;
        let from = self.name(source).to_owned();
        let comes = v1::Expected { migration: wanted.id.clone(), vm: vm.to_owned(), from, dial: Vec::new() };
        if !self.hosts[index].expected.contains(&comes) {
            self.violations.push(format!("{} may begin and is not expected at {peer}", wanted.id));
            return Err(format!("{peer} does not expect it"));
        }
        let known = self.hosts[index].generations.entry(vm.to_owned()).or_default();
        if *known >= generation {
            return Err(format!(
                "{peer} has seen generation {known} of VM {vm}, which is not older than {generation}"
            ));
        }
        *known = generation;
        Ok(index)
    }

    /// Keeps where a migration stands at a host.
    pub(super) fn note(&mut self, host: usize, progress: Progress) {
        let kept = &mut self.hosts[host];
        if progress.over {
            kept.commands.remove(&progress.id);
        }
        kept.moves.insert(progress.id.clone(), progress);
    }

    fn copy(&mut self, host: usize, vm: &str, change: impl FnOnce(&mut Copy)) {
        let kept = &mut self.hosts[host];
        match kept.vms.get_mut(vm) {
            Some(copy) => change(copy),
            None => self.violations.push(format!("VM {vm} is gone from {} while it moves", kept.name)),
        }
    }

    pub(super) fn pause(&mut self, host: usize, vm: &str) {
        self.copy(host, vm, |copy| (copy.runs, copy.state) = (false, "suspended"));
    }

    pub(super) fn fence(&mut self, host: usize, vm: &str) {
        self.copy(host, vm, |copy| (copy.fenced, copy.state) = (true, "stopped"));
    }

    /// No two hosts run it.
    fn alone(&mut self, vm: &str) {
        let runs = |kept: &&Kept| kept.vms.get(vm).is_some_and(|copy| copy.runs);
        let hosts: Vec<_> = self.hosts.iter().filter(runs).map(|kept| kept.name.clone()).collect();
        if hosts.len() > 1 {
            self.violations.push(format!("VM {vm} runs on {}", hosts.join(" and ")));
        }
    }

    pub(super) fn resume(&mut self, host: usize, vm: &str) {
        self.copy(host, vm, |copy| (copy.runs, copy.fenced, copy.state) = (true, false, "running"));
        self.alone(vm);
    }

    pub(super) fn run_there(&mut self, source: usize, destination: usize, vm: &str) {
        let left = self.hosts[source].vms.get(vm);
        if !left.is_some_and(|copy| copy.fenced && !copy.runs) {
            self.violations.push(format!("VM {vm} runs at its destination before its source is fenced"));
        }
        let name = left.map_or_else(|| vm.to_owned(), |copy| copy.name.clone());
        let copy = Copy { name, runs: true, state: "running", fenced: false };
        self.hosts[destination].vms.insert(vm.to_owned(), copy);
        self.alone(vm);
    }

    /// A host has no copy any more.
    pub(super) fn remove(&mut self, host: usize, vm: &str) {
        self.hosts[host].vms.remove(vm);
    }

    pub(super) fn truth(&self) -> Truth {
        let mut truth = Truth { violations: self.violations.clone(), ..Truth::default() };
        for kept in &self.hosts {
            for (vm, copy) in &kept.vms {
                truth.vms.entry(vm.clone()).or_default().push((kept.name.clone(), copy.runs));
            }
            for (id, progress) in &kept.moves {
                let moved =
                    truth.moves.entry(id.clone()).or_insert_with(|| Moved { over: true, ..Moved::default() });
                moved.vm.clone_from(&progress.vm);
                moved.over &= progress.over;
                let part = Some((kept.name.clone(), progress.state.clone()));
                if progress.role == "source" {
                    moved.source = part;
                } else {
                    moved.destination = part;
                }
            }
        }
        truth
    }
}
