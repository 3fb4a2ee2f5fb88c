//! A migration as the engine takes it: from what somebody asks, or from the record of an earlier daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::migrate;
use engine::migrate::mode::admit;
use engine::migrate::record::{Record, Role};
use engine::migrate::source::{Job, OnNoConverge, Options, Way};
use engine::migrate::status::SourceState;
use hypervisor::inventory::{Process, State, Vm};
use tunnel::{DialOptions, PeerName, Profile, TransportChoice};
use volume::SessionId;

use crate::address::HostAddress;
use crate::config::units::ByteSize;
use crate::config::vms::{check_ram_cache, slots};
use crate::control::migration::{Migrate, Mode, Network, NoConverge, Transport};

/// Longest pause that can be asked for, milliseconds (QEMU: `downtime-limit`, 2000 s).
const MAX_DOWNTIME_MS: u64 = 2_000_000;
/// Longest time to converge that can be asked for, milliseconds: a week.
const MAX_TIMEOUT_MS: u64 = 7 * 86_400_000;
/// Addresses of one destination.
const MAX_WAYS: usize = 16;

/// A VM that somebody wants to move.
///
/// # Errors
/// For people: what stands against it, and what to do.
pub(super) fn of_request(migration: SessionId, asked: &Migrate, vm: &Vm) -> Result<(Job, Record), String> {
    let name = &vm.id;
    let mode = engine_mode(asked.mode);
    if vm.state == State::Suspended {
        return Err(format!("the QEMU of VM {name} was stopped by a signal; continue it (kill -CONT) first"));
    }
    // A VM that is off has no socket, and needs none.
    let qmp = admit(&vm.access, mode)
        .map_err(|why| format!("VM {name} cannot be moved {}: {}; {}", mode.name(), why.evidence, why.fix))?
        .unwrap_or_default();
    if mode == migrate::mode::Mode::Cold && !asked.cutover.is_now() {
        return Err(format!(
            "VM {name} is off: there is no cut-over to wait for; leave it out, or begin later"
        ));
    }
    let mut all = vec![asked.to.clone()];
    all.extend(asked.alternates.iter().cloned());
    if asked.called && asked.to.is_empty() {
        all.clear();
    }
    let to = ways(&all, asked.called)?;
    let mut dial = anywhere();
    if let Some(peer) = &asked.peer {
        dial.expect_peer = Some(peer.parse().map_err(|error: tunnel::InvalidPeerName| error.to_string())?);
    }
    dial.transport = match asked.transport {
        Transport::Quic => TransportChoice::Quic,
        Transport::Tcp => TransportChoice::Tcp,
        Transport::Auto => TransportChoice::Auto,
    };
    dial.profile = match asked.profile {
        Network::Lan => Profile::Lan,
        Network::Wan => Profile::Wan,
    };
    dial.via.clone_from(&asked.via);
    dial.limit = asked.limit;
    let role = Role::Source {
        state: SourceState::Preparing,
        address: to.first().map(ToString::to_string).unwrap_or_default(),
        alternates: to.iter().skip(1).map(ToString::to_string).collect(),
        qmp: text("the QMP socket", &qmp)?,
        folder: vm.folder.as_deref().map(|folder| text("the folder", folder)).transpose()?,
        process: vm.process.map(|process| (process.pid, process.start_time)),
        fenced: false,
        was_paused: false,
    };
    let mut record = Record::new(migration, name, "", role);
    record.mode = mode;
    let job = Job {
        migration,
        vm: name.clone(),
        qmp,
        process: vm.process,
        folder: vm.folder.clone(),
        dial,
        to,
        options: options(asked)?,
        traceparent: asked.traceparent.clone(),
    };
    Ok((job, record))
}

/// Each way has its own address.
fn anywhere() -> DialOptions {
    DialOptions::new(String::new(), 0)
}

/// Addresses of a destination: `novaferry://HOST:PORT`. `called`: it dials this host if none of them answers.
///
/// # Errors
/// For people: which is none.
pub(crate) fn ways(addresses: &[String], called: bool) -> Result<Vec<Way>, String> {
    if addresses.len() > MAX_WAYS {
        return Err(format!(
            "{} addresses of one destination are too many; name {MAX_WAYS} at most",
            addresses.len()
        ));
    }
    let parsed = addresses.iter().map(|one| one.parse::<HostAddress>().map(way));
    let called = called.then_some(Ok(Way::Called));
    parsed.chain(called).collect::<Result<_, _>>().map_err(|error| error.to_string())
}

fn way(address: HostAddress) -> Way {
    let HostAddress { host, port } = address;
    Way::At { host, port }
}

/// A way as [`Way`] prints it.
fn recorded(text: &str) -> Result<Way, String> {
    match Way::named(text) {
        Some(way) => Ok(way),
        None => HostAddress::from_authority(text).map(way).map_err(|error| error.to_string()),
    }
}

fn text(what: &str, path: &Path) -> Result<String, String> {
    let known = path.to_str().map(ToOwned::to_owned);
    known.ok_or_else(|| format!("{what} {} is not UTF-8; rename it", path.display()))
}

fn engine_mode(asked: Mode) -> migrate::mode::Mode {
    match asked {
        Mode::Live => migrate::mode::Mode::Live,
        Mode::Warm => migrate::mode::Mode::Warm,
        Mode::Cold => migrate::mode::Mode::Cold,
    }
}

fn options(asked: &Migrate) -> Result<Options, String> {
    let within = |what: &str, millis: u64, most: u64| {
        if (1..=most).contains(&millis) {
            return Ok(Duration::from_millis(millis));
        }
        Err(format!("{what} of {millis} ms is not possible; choose 1 to {most} ms"))
    };
    if asked.multifd > Migrate::MAX_MULTIFD {
        let most = Migrate::MAX_MULTIFD;
        return Err(format!("{} multifd channels are not possible; choose 0 to {most}", asked.multifd));
    }
    let cache = ByteSize(asked.ram_cache);
    check_ram_cache(cache).map_err(|advice| format!("a cache of {cache} is not possible; {advice}"))?;
    let level = match asked.compress {
        None => reduce::Choice::Raw,
        Some(level) if reduce::codec::LEVELS.contains(&level) => reduce::Choice::Level(level),
        Some(level) => {
            let (least, most) = (reduce::codec::LEVELS.start(), reduce::codec::LEVELS.end());
            return Err(format!("compression level {level} is not possible; choose {least} to {most}"));
        }
    };
    Ok(Options {
        mode: engine_mode(asked.mode),
        max_downtime: within("a downtime", asked.max_downtime_ms, MAX_DOWNTIME_MS)?,
        timeout: within("a timeout", asked.timeout_ms, MAX_TIMEOUT_MS)?,
        on_no_converge: match asked.on_no_converge {
            NoConverge::Cancel => OnNoConverge::Cancel,
            NoConverge::Throttle => OnNoConverge::Throttle,
        },
        // Post-copy's requests come back on the stream that carries everything: there is no multifd then.
        multifd: if asked.postcopy { 0 } else { asked.multifd },
        postcopy: asked.postcopy,
        slots: slots(cache),
        level,
        hold: asked.hold,
        readback: asked.readback,
        reconnect: match asked.reconnect_ms {
            0 => Duration::ZERO,
            wanted => within("a wait for the connection", wanted, Migrate::MAX_RECONNECT_MS)?,
        },
        pool: asked.pool.clone(),
        cutover: asked.cutover,
        dry_run: asked.dry_run,
    })
}

/// A migration that an earlier daemon left. What nobody wrote down is chosen so that nothing is given up unasked: the
/// source's copy is kept until somebody finalises it.
///
/// # Errors
/// For people: what in the record makes no sense.
pub(super) fn of_record(migration: SessionId, record: &Record) -> Result<Job, String> {
    let Role::Source { address, alternates, qmp, folder, process, .. } = &record.role else {
        return Err("it is a destination's".to_owned());
    };
    let mut dial = anywhere();
    if !record.peer.is_empty() {
        let peer: PeerName =
            record.peer.parse().map_err(|error: tunnel::InvalidPeerName| error.to_string())?;
        dial.expect_peer = Some(peer);
    }
    let safe = Migrate { hold: true, ..Migrate::new(record.vm.clone(), address.clone()) };
    Ok(Job {
        migration,
        vm: record.vm.clone(),
        qmp: qmp.into(),
        process: process.map(|(pid, start_time)| Process { pid, start_time }),
        folder: folder.as_ref().map(PathBuf::from),
        dial,
        to: [address].into_iter().chain(alternates).map(|one| recorded(one)).collect::<Result<_, _>>()?,
        options: Options { mode: record.mode, cutover: record.cutover, ..options(&safe)? },
        traceparent: None,
    })
}
