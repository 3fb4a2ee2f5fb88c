//! A machine that runs for as long as the value lives.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::arguments::Settings;
use crate::available::QEMU;
use crate::error::{Error, Kind};
use crate::layout::{Layout, config};
use crate::serial::Serial;
use crate::{disk, init};

/// How long QEMU may take until its sockets are there. It takes a tenth of a second, on a busy machine more.
const STARTS: Duration = Duration::from_secs(30);

/// How often it is looked whether it has.
const POLL: Duration = Duration::from_millis(5);

/// A QEMU process and its folder. When it is dropped, also by a panic, QEMU is killed; the folder stays.
#[derive(Debug)]
pub struct Vm {
    settings: Settings,
    layout: Layout,
    serial: Serial,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Vm {
    /// Makes the folder of a machine in `vms`, with its disk (if it is not there yet) and `config.json`, starts QEMU
    /// and waits until it can be spoken to.
    ///
    /// # Errors
    /// [`Kind::Files`]; [`Kind::Start`] with QEMU's own words if it does not come up.
    pub fn start(vms: &Path, settings: Settings) -> Result<Self, Error> {
        let layout = Layout::new(vms, &settings.id);
        let arguments = settings.arguments(&layout);
        let failed = |error: io::Error| {
            Error::new(Kind::Files, format!("make {}", layout.folder().display())).caused_by(error)
        };
        fs::create_dir_all(layout.folder()).map_err(failed)?;
        let image = settings.disk_path(&layout);
        if !image.exists() {
            disk::create(&image, settings.disk.format, settings.disk.size, &settings.first_bytes())?;
        }
        if let (Some(seed), Some(path)) = (&settings.seed, settings.seed_path(&layout))
            && !path.exists()
        {
            disk::create(&path, seed.format, seed.size, &disk::seed())?;
        }
        let config = config(&settings.id, settings.memory, settings.processors, &image, settings.disk.size);
        fs::write(layout.config(), format!("{config:#}\n")).map_err(failed)?;
        // What an earlier machine left would be taken for this one's. QEMU replaces its sockets itself.
        for stale in [layout.pid_file(), layout.serial()] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let log = File::create(layout.log()).map_err(failed)?;
        let serial = Serial::follow(layout.serial())?;
        let child = Command::new(QEMU)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| Error::new(Kind::Start, format!("start {QEMU}")).caused_by(error))?;
        let mut vm = Self { settings, layout, serial, child, ended: None };
        vm.wait_until_up()?;
        Ok(vm)
    }

    fn wait_until_up(&mut self) -> Result<(), Error> {
        let control = self.settings.control;
        let mut sockets = Vec::new();
        if control.has_qmp() {
            sockets.push(self.layout.qmp());
        }
        if control.has_monitor() {
            sockets.push(self.layout.monitor());
        }
        let end = Instant::now() + STARTS;
        loop {
            let started = fs::metadata(self.layout.pid_file()).is_ok_and(|metadata| metadata.len() > 0);
            if started && sockets.iter().all(|socket| UnixStream::connect(socket).is_ok()) {
                return Ok(());
            }
            let why = match self.ended()? {
                Some(status) => format!("it ended with {status}"),
                None if Instant::now() >= end => format!("it is not up after {} s", STARTS.as_secs()),
                None => {
                    thread::sleep(POLL);
                    continue;
                }
            };
            return Err(Error::new(Kind::Start, format!("start {QEMU} for {}: {why}", self.settings.id))
                .caused_by(self.log()));
        }
    }

    /// What it was made of.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its files.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its disk's image.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.settings.disk_path(&self.layout)
    }

    /// What the guest prints here.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What QEMU has complained about so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.layout.log()).map_or_else(
            |error| format!("{}: {error}", self.layout.log().display()),
            |bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned(),
        )
    }

    /// How QEMU ended, if it has.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        if self.ended.is_none() {
            let ended = self.child.try_wait();
            self.ended =
                ended.map_err(|error| Error::new(Kind::Start, "ask for QEMU's end").caused_by(error))?;
        }
        Ok(self.ended)
    }

    /// Waits until QEMU ends by itself.
    ///
    /// # Errors
    /// [`Kind::Timeout`] if it still runs after `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                return Err(Error::new(Kind::Timeout, format!("wait for the end of {}", self.settings.id)));
            }
            thread::sleep(POLL);
        }
    }

    /// Kills QEMU with SIGKILL, as a crash would; what the guest has printed stays in [`Vm::serial`].
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> Result<(), Error> {
        if self.ended.is_none() {
            let failed = |error| Error::new(Kind::Start, "kill QEMU").caused_by(error);
            self.child.kill().map_err(failed)?;
            self.ended = Some(self.child.wait().map_err(failed)?);
        }
        Ok(())
    }

    /// Waits until the guest runs: the first heartbeat of the Linux guest, the first `A` of the boot sector. Not for a
    /// destination, where nothing starts.
    ///
    /// # Errors
    /// As [`Serial::wait`].
    pub fn wait_for_boot(&self, limit: Duration) -> Result<(), Error> {
        match &self.settings.payload {
            crate::Payload::Linux(..) => {
                self.serial.wait_for_text(init::READY, limit)?;
                self.serial.wait_for_heartbeats(1, limit)
            }
            crate::Payload::BootSector(_) => self.serial.wait_for_text("A", limit),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell anything else.
        let _ = self.kill();
    }
}
