//! Two hosts with an emulated link between them.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use link::{DirectionSpec, Link, LinkSpec, Side};

use super::Harness;
use super::copy::Copy;
use super::host::{Daemon, Host};
use super::process::Process;

/// The port of the daemon: namespaces have all ports to themselves.
const PORT: u16 = 7440;

/// A link whose side B is the daemon's.
pub(crate) struct Network<'a> {
    harness: &'a Harness,
    link: Link,
    spec: LinkSpec,
}

impl<'a> Network<'a> {
    pub(crate) fn up(harness: &'a Harness, spec: LinkSpec) -> Self {
        let link = Link::up(&spec).unwrap();
        Self { harness, link, spec }
    }

    /// The daemon's host.
    pub(crate) fn host(&self) -> Host<'a> {
        self.harness.host("host-b").at(SocketAddr::new(Side::B.address().into(), PORT))
    }

    pub(crate) fn start(&self, host: &Host<'_>) -> Daemon {
        host.ready(self.spawn("host-b", Side::B, host.command()))
    }

    pub(crate) fn start_copy(&self, copy: &Copy<'_>) -> Process {
        self.spawn("copy", Side::A, copy.command())
    }

    fn spawn(&self, name: &str, side: Side, mut command: Command) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.link.exec(side, command).unwrap();
        Process::watch(name, child, &self.harness.log)
    }

    /// Both directions change.
    pub(crate) fn change(&mut self, change: impl Fn(&mut DirectionSpec)) {
        change(&mut self.spec.a_to_b);
        change(&mut self.spec.b_to_a);
        self.link.set(&self.spec).unwrap();
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }
}
