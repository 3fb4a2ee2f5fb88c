//! The thread that moves packets between the two TUN devices in real time.
//!
//! It owns both channels: everything else talks to it by a bounded queue of commands and an eventfd that wakes it.
//!
//! It runs at normal priority on purpose: with the highest one it preempts the sender at nearly every packet, which
//! cost a fifth to a half of the throughput on two busy processors and made the delays no more exact.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::thread::set_current_timer_slack;
use tun_rs::SyncDevice;

use crate::channel::{Channel, Counters};
use crate::error::{Kind, LinkError};
use crate::spec::LinkSpec;

/// Packets that are read from one device before the other one and the deliveries get their turn. 64 packets are about
/// 0.7 ms at 1 Gbit/s when every one arrives late, and 0.15 ms of our own time.
const BATCH: u32 = 64;

/// Packets that a device keeps for us while this thread does not get its turn: 90 ms at 1 Gbit/s.
pub(crate) const DEVICE_QUEUE: u32 = 8192;

/// Largest IP packet.
const MAX_PACKET: usize = 65_535;

/// Shortest sleep while packets are under way. At 1 Gbit/s a packet is due every 11 us; to wake for each would cost
/// more than to move it. Packets may be late by this much, never early.
const GRAIN: Duration = Duration::from_micros(50);

/// What one direction did, as the forwarder knows it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Forwarded {
    pub(crate) counters: Counters,
    /// Delivered packets that the receiving device did not take.
    pub(crate) refused: u64,
    /// How late after their due time packets were handed over, summed up.
    pub(crate) late_total: Duration,
    /// The latest of them.
    pub(crate) late_worst: Duration,
}

enum Request {
    Set(Box<LinkSpec>, SyncSender<()>),
    Stats(SyncSender<[Forwarded; 2]>),
}

/// The handle on the thread; dropping it stops the thread and closes the devices.
#[derive(Debug)]
pub(crate) struct Forwarder {
    requests: Option<SyncSender<Request>>,
    wake: OwnedFd,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Forwarder {
    /// Starts to move packets between the devices of side A and side B.
    pub(crate) fn start(
        spec: &LinkSpec,
        device_a: SyncDevice,
        device_b: SyncDevice,
    ) -> Result<Self, LinkError> {
        let failed =
            |error: io::Error| LinkError::new(Kind::Device, "start the forwarding thread").caused_by(error);
        device_a.set_nonblocking(true).map_err(failed)?;
        device_b.set_nonblocking(true).map_err(failed)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| failed(error.into()))?;
        let (requests, incoming) = sync_channel(1);
        let mut state = Driver {
            devices: [device_a, device_b],
            directions: [
                Direction::new(Channel::new(spec.a_to_b.clone(), spec.mtu, spec.seed_a_to_b())),
                Direction::new(Channel::new(spec.b_to_a.clone(), spec.mtu, spec.seed_b_to_a())),
            ],
            incoming,
            wake: wake.try_clone().map_err(failed)?,
        };
        let thread = thread::Builder::new()
            .name("link-forwarder".into())
            .spawn(move || state.run())
            .map_err(failed)?;
        Ok(Self { requests: Some(requests), wake, thread: Some(thread) })
    }

    /// Changes the link; when this returns, the change is in effect.
    pub(crate) fn set(&mut self, spec: LinkSpec) -> Result<(), LinkError> {
        self.ask(|reply| Request::Set(Box::new(spec), reply))
    }

    /// What was done so far, from A to B and from B to A.
    pub(crate) fn stats(&mut self) -> Result<[Forwarded; 2], LinkError> {
        self.ask(Request::Stats)
    }

    fn ask<T>(&mut self, request: impl FnOnce(SyncSender<T>) -> Request) -> Result<T, LinkError> {
        let (reply, answer) = sync_channel(1);
        let sent = self.requests.as_ref().is_some_and(|requests| requests.send(request(reply)).is_ok());
        if sent
            && self.wake().is_ok()
            && let Ok(answer) = answer.recv()
        {
            return Ok(answer);
        }
        let error = LinkError::new(Kind::Forwarder, "reach the forwarding thread, it has ended");
        Err(match self.stop() {
            Err(cause) => error.caused_by(cause),
            Ok(()) => error,
        })
    }

    fn wake(&self) -> io::Result<()> {
        match rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
            // The counter is full: the thread has been woken already.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn stop(&mut self) -> io::Result<()> {
        self.requests = None;
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.wake()?;
        thread.join().unwrap_or_else(|_panic| Err(io::Error::other("the forwarding thread has panicked")))
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            // A destructor has nobody to pass the error to.
            eprintln!("novaferry-link: the forwarding thread failed: {error}");
        }
    }
}

#[derive(Debug)]
struct Direction {
    channel: Channel,
    refused: u64,
    late_total: Duration,
    late_worst: Duration,
}

impl Direction {
    fn new(channel: Channel) -> Self {
        Self { channel, refused: 0, late_total: Duration::ZERO, late_worst: Duration::ZERO }
    }
}

/// The thread's own state. Direction 0 goes from device 0 to device 1, direction 1 back.
struct Driver {
    devices: [SyncDevice; 2],
    directions: [Direction; 2],
    incoming: Receiver<Request>,
    wake: OwnedFd,
}

/// What woke the thread.
struct Ready {
    readable: [bool; 2],
    woken: bool,
}

impl Driver {
    fn run(&mut self) -> io::Result<()> {
        // The default slack of 50 us would be added to every delivery.
        set_current_timer_slack(NonZeroU64::new(1))?;
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let ready = self.wait()?;
            // What was sent before a request was made must be treated as of before it.
            let at_most = if ready.woken { DEVICE_QUEUE } else { BATCH };
            for from in 0..2 {
                if ready.readable[from] || ready.woken {
                    self.read(from, at_most, &mut buffer)?;
                }
            }
            if ready.woken && self.answer()?.is_break() {
                return Ok(());
            }
            let now = Instant::now();
            for from in 0..2 {
                self.deliver(from, now);
            }
        }
    }

    /// Sleeps until a packet or a request comes in, or a packet is due.
    fn wait(&self) -> io::Result<Ready> {
        let due = self.directions.iter().filter_map(|direction| direction.channel.poll_timeout()).min();
        let timeout = due.map(|due| {
            let left = due.saturating_duration_since(Instant::now());
            // A packet that is due already is not waited for; one that is nearly due brings its successors with it.
            if left.is_zero() { left } else { left.max(GRAIN) }
        });
        let timeout = match timeout.map(Timespec::try_from).transpose() {
            Ok(timeout) => timeout,
            Err(error) => return Err(io::Error::other(error)),
        };
        let mut polled = [
            PollFd::new(&self.devices[0], PollFlags::IN),
            PollFd::new(&self.devices[1], PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let happened = polled.map(|polled| !polled.revents().is_empty());
        Ok(Ready { readable: [happened[0], happened[1]], woken: happened[2] })
    }

    fn answer(&mut self) -> io::Result<std::ops::ControlFlow<()>> {
        match rustix::io::read(&self.wake, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            match self.incoming.try_recv() {
                Ok(Request::Set(spec, reply)) => {
                    let now = Instant::now();
                    self.directions[0].channel.handle_spec(now, spec.a_to_b, spec.mtu);
                    self.directions[1].channel.handle_spec(now, spec.b_to_a, spec.mtu);
                    // The asker waits for the reply; if it is gone, nobody needs one.
                    reply.send(()).ok();
                }
                Ok(Request::Stats(reply)) => {
                    let stats = self.directions.each_ref().map(|direction| Forwarded {
                        counters: direction.channel.counters(),
                        refused: direction.refused,
                        late_total: direction.late_total,
                        late_worst: direction.late_worst,
                    });
                    reply.send(stats).ok();
                }
                Err(TryRecvError::Empty) => return Ok(std::ops::ControlFlow::Continue(())),
                Err(TryRecvError::Disconnected) => return Ok(std::ops::ControlFlow::Break(())),
            }
        }
    }

    /// Takes in what waits in a device, but no more than `at_most` packets.
    fn read(&mut self, from: usize, at_most: u32, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..at_most {
            match rustix::io::read(self.devices[from].as_fd(), &mut *buffer) {
                Ok(length) => self.directions[from].channel.handle_packet(Instant::now(), &buffer[..length]),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Hands over what has arrived. A device that does not take a packet (it is down, or the packet's first bits were
    /// corrupted) is the receiving host's trouble, not the link's: that is counted.
    fn deliver(&mut self, from: usize, now: Instant) {
        let Direction { channel, refused, late_total, late_worst } = &mut self.directions[from];
        let to = &self.devices[1 - from];
        while let Some(due) = channel.poll_timeout()
            && let Some(packet) = channel.poll_deliver(now)
        {
            let late = now.saturating_duration_since(due);
            *late_total += late;
            *late_worst = late.max(*late_worst);
            while let Err(error) = rustix::io::write(to.as_fd(), packet) {
                if error != Errno::INTR {
                    *refused += 1;
                    break;
                }
            }
        }
    }
}
