//! A running link.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tun_rs::{DeviceBuilder, SyncDevice};

use crate::channel::Counters;
use crate::error::{Kind, LinkError};
use crate::forward::{DEVICE_QUEUE, Forwarded, Forwarder};
use crate::namespace::{Namespace, remove_stale, unique_names};
use crate::spec::LinkSpec;

/// The name of the TUN device in both namespaces.
pub const DEVICE: &str = "nf0";

/// RFC 8200: IPv6 is not available on a link with a smaller MTU.
const IPV6_MIN_MTU: u16 = 1280;

/// An end of the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Side {
    /// 10.83.0.1, fd83::1.
    A,
    /// 10.83.0.2, fd83::2.
    B,
}

impl Side {
    /// The IPv4 address of this end. Namespaces are isolated, so every link uses the same ones.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::A => Ipv4Addr::new(10, 83, 0, 1),
            Self::B => Ipv4Addr::new(10, 83, 0, 2),
        }
    }

    /// The IPv6 address of this end; configured when the MTU is at least 1280.
    #[must_use]
    pub fn address_v6(self) -> Ipv6Addr {
        match self {
            Self::A => Ipv6Addr::new(0xfd83, 0, 0, 0, 0, 0, 0, 1),
            Self::B => Ipv6Addr::new(0xfd83, 0, 0, 0, 0, 0, 0, 2),
        }
    }
}

/// What one direction has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct DirectionStats {
    /// What the link itself did.
    #[serde(flatten)]
    pub counters: Counters,
    /// Packets that the sending device dropped because we read too slowly. They never reached the link: if this is
    /// not zero, the machine is too slow for the test.
    pub overrun: u64,
    /// Packets that the link delivered and the receiving device did not take.
    pub refused: u64,
    /// How late the packets were handed over on average, in microseconds after they were due. With the next one this
    /// says how exact the delays were; packets are never early.
    pub late_mean_us: u64,
    /// How late the latest packet was.
    pub late_worst_us: u64,
}

/// What both directions have done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct LinkStats {
    /// From side A to side B.
    pub a_to_b: DirectionStats,
    /// From side B to side A.
    pub b_to_a: DirectionStats,
}

/// A running link; dropping it stops the forwarding, kills what still runs in the namespaces and removes them.
#[derive(Debug)]
pub struct Link {
    // Dropped first: it holds the devices, which must be gone before their namespaces.
    forwarder: Mutex<Forwarder>,
    namespaces: [Namespace; 2],
}

impl Link {
    /// Makes two fresh network namespaces and joins them by a link that does what `spec` says. What dead processes
    /// left behind is removed first.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an impossible `spec`, [`Kind::Namespace`] or [`Kind::Device`] where the machine or the
    /// privileges do not suffice. Nothing is left behind then.
    pub fn up(spec: &LinkSpec) -> Result<Self, LinkError> {
        spec.check()?;
        remove_stale()?;
        let [name_a, name_b] = unique_names()?;
        let namespaces = [Namespace::create(name_a)?, Namespace::create(name_b)?];
        let device_a = open_device(&namespaces[0], Side::A, spec.mtu)?;
        let device_b = open_device(&namespaces[1], Side::B, spec.mtu)?;
        let forwarder = Mutex::new(Forwarder::start(spec, device_a, device_b)?);
        Ok(Self { forwarder, namespaces })
    }

    /// The name of a side's namespace, for `ip netns exec`.
    #[must_use]
    pub fn namespace(&self, side: Side) -> &str {
        self.side(side).name()
    }

    /// Starts a process inside a side's namespace. It is the caller's to wait for; what still runs when the link is
    /// dropped is killed.
    ///
    /// # Errors
    /// [`Kind::Spawn`] if the program cannot be started, [`Kind::Namespace`] if the namespace cannot be entered.
    pub fn exec(&self, side: Side, mut command: Command) -> Result<Child, LinkError> {
        let what = format!("start {}", command.get_program().display());
        self.enter(side, move || command.spawn())?
            .map_err(|error| LinkError::new(Kind::Spawn, what).caused_by(error))
    }

    /// Runs `action` on a thread of its own inside a side's namespace. Sockets that it opens belong to that side for
    /// as long as they live, also when they are used from elsewhere.
    ///
    /// # Errors
    /// [`Kind::Namespace`] if the namespace cannot be entered.
    ///
    /// # Panics
    /// If `action` panics.
    pub fn enter<T: Send>(&self, side: Side, action: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
        self.side(side).enter(action)
    }

    /// Changes the link: packets sent after this has returned meet the new one, those sent before it was called the
    /// old one. See [`Channel::handle_spec`](crate::Channel::handle_spec) for those under way. The seed is not used again, and the
    /// MTU is that of the path: the devices keep theirs, larger packets vanish.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an impossible `spec`, [`Kind::Forwarder`] if the link has died.
    pub fn set(&self, spec: &LinkSpec) -> Result<(), LinkError> {
        spec.check()?;
        self.forwarder().set(spec.clone())
    }

    /// What the link has done so far.
    ///
    /// # Errors
    /// [`Kind::Forwarder`] if the link has died, [`Kind::Device`] if the devices' counters cannot be read.
    pub fn stats(&self) -> Result<LinkStats, LinkError> {
        let [a_to_b, b_to_a] = self.forwarder().stats()?;
        Ok(LinkStats { a_to_b: self.complete(Side::A, a_to_b)?, b_to_a: self.complete(Side::B, b_to_a)? })
    }

    fn complete(&self, from: Side, forwarded: Forwarded) -> Result<DirectionStats, LinkError> {
        let Forwarded { counters, refused, late_total, late_worst } = forwarded;
        let micros = |time: u128| u64::try_from(time).unwrap_or(u64::MAX);
        let late_mean_us = micros(late_total.as_micros() / u128::from(counters.delivered.max(1)));
        let late_worst_us = micros(late_worst.as_micros());
        let failed =
            |error| LinkError::new(Kind::Device, format!("read the counters of {DEVICE}")).caused_by(error);
        let overrun = self.enter(from, || {
            let table = fs::read_to_string("/proc/thread-self/net/dev")?;
            send_drops(&table, DEVICE)
                .ok_or_else(|| io::Error::other(format!("{DEVICE} is not in /proc/net/dev")))
        })?;
        let overrun = overrun.map_err(failed)?;
        Ok(DirectionStats { counters, overrun, refused, late_mean_us, late_worst_us })
    }

    fn side(&self, side: Side) -> &Namespace {
        match side {
            Side::A => &self.namespaces[0],
            Side::B => &self.namespaces[1],
        }
    }

    fn forwarder(&self) -> MutexGuard<'_, Forwarder> {
        // A panic of a holder cannot leave the handle half-changed.
        self.forwarder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the TUN device of a side: a device belongs to the namespace of the thread that opens it.
fn open_device(namespace: &Namespace, side: Side, mtu: u16) -> Result<SyncDevice, LinkError> {
    let device = namespace
        .enter(|| DeviceBuilder::new().name(DEVICE).inherit_enable_state().build_sync())?
        .map_err(|error| {
        LinkError::new(Kind::Device, format!("open the TUN device in {}", namespace.name())).caused_by(error)
    })?;
    // No link-local address, router solicitation or multicast report, and hence not up before that is said: nothing
    // but the users' own packets may draw from the seeded sequence.
    let mut commands = format!(
        "link set dev lo up\n\
         link set dev {DEVICE} mtu {mtu} txqueuelen {DEVICE_QUEUE} multicast off\n\
         link set dev {DEVICE} addrgenmode none\n\
         address add {}/30 dev {DEVICE}\n",
        side.address()
    );
    if mtu >= IPV6_MIN_MTU {
        commands += &format!("address add {}/64 dev {DEVICE} nodad\n", side.address_v6());
    }
    commands += &format!("link set dev {DEVICE} up\n");
    namespace.configure(&commands)?;
    Ok(device)
}

/// The packets that a device has dropped on sending, from a table as in `/proc/net/dev` (`proc_pid_net(5)`): behind
/// the name come eight columns on receiving, then bytes, packets, errors and drops on sending.
fn send_drops(table: &str, device: &str) -> Option<u64> {
    table.lines().find_map(|line| {
        let (name, columns) = line.split_once(':')?;
        if name.trim() != device {
            return None;
        }
        columns.split_whitespace().nth(11)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::send_drops;

    #[test]
    fn the_drops_are_found() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
                     face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo\n\
                     \x20   lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                     \x20  nf0: 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36\n";
        assert_eq!(send_drops(table, "nf0"), Some(32));
        assert_eq!(send_drops(table, "lo"), Some(12));
        assert_eq!(send_drops(table, "nf1"), None);
    }
}
