//! What the tests of this crate share: capabilities, folders on a real file system, loop devices, processes.
#![expect(clippy::print_stdout, reason = "seeds and skips are for the reader of the test's output")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use novaferry_disk::{Backend, Disk, Options};

/// Something that a machine may lack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capability {
    /// io_uring.
    Uring,
    /// Root and loop devices.
    Loop,
    /// Root alone.
    Root,
    /// QEMU's command-line tools.
    Qemu,
}

impl Capability {
    fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Loop => "loop",
            Self::Root => "root",
            Self::Qemu => "qemu",
        }
    }
}

/// Says that a test cannot run here; fails when NOVAFERRY_REQUIRE demands that it can.
pub fn skip(test: &str, capability: Capability, why: &str) {
    let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name.trim() == capability.name()),
        "{test} cannot run ({why}) but NOVAFERRY_REQUIRE demands {}",
        capability.name()
    );
    println!("SKIP {test}: {why}");
}

/// Why a capability is missing, if it is.
pub fn missing(capability: Capability) -> Option<String> {
    match capability {
        Capability::Uring => {
            let options = Options { backend: Backend::Uring, buffers: 1, registered: false };
            Disk::start(&options).err().map(|error| format!("{error}"))
        }
        Capability::Root => (!rustix::process::geteuid().is_root()).then(|| "needs root".into()),
        Capability::Qemu => {
            Command::new("qemu-io").arg("--version").output().err().map(|error| format!("qemu-io: {error}"))
        }
        Capability::Loop => missing(Capability::Root)
            .or_else(|| (!Path::new("/dev/loop-control").exists()).then(|| "no /dev/loop-control".into()))
            .or_else(|| {
                Command::new("losetup").arg("--version").output().err().map(|e| format!("losetup: {e}"))
            }),
    }
}

/// A small disk context, or `None` after having said why not.
pub fn disk_with(test: &str, backend: Backend, registered: bool) -> Option<Disk> {
    if backend == Backend::Uring
        && let Some(why) = missing(Capability::Uring)
    {
        skip(test, Capability::Uring, &why);
        return None;
    }
    Some(Disk::start(&Options { backend, buffers: 16, registered }).unwrap())
}

/// A folder beside the build's output, which is on a real disk more often than /tmp is; removed on drop.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("disk-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// One test at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A loop device over a sparse file; both go when it is dropped.
pub struct LoopDevice {
    path: PathBuf,
    folder: Option<tempfile::TempDir>,
}

impl LoopDevice {
    pub fn new(size: u64, sector: u32) -> Self {
        let folder = folder();
        let mut device = Self::over(&folder.path().join("backing"), size, sector);
        device.folder = Some(folder);
        device
    }

    /// Over a file of the caller's, which is made here and stays.
    pub fn over(backing: &Path, size: u64, sector: u32) -> Self {
        std::fs::File::create(backing).unwrap().set_len(size).unwrap();
        let sector = sector.to_string();
        let name = run("losetup", &["--find", "--show", "--sector-size", &sector, backing.to_str().unwrap()]);
        Self { path: name.trim().into(), folder: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.path.to_str().unwrap()]);
    }
}

/// A mounted file system of its own; unmounted when dropped.
pub struct Mount {
    folder: tempfile::TempDir,
    device: Option<LoopDevice>,
}

impl Mount {
    /// A tmpfs of `size` bytes.
    pub fn tmpfs(size: u64) -> Self {
        let folder = folder();
        let options = format!("size={size}");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", folder.path().to_str().unwrap()]);
        Self { folder, device: None }
    }

    /// An ext4 of `size` bytes on a loop device.
    pub fn ext4(size: u64) -> Self {
        let device = LoopDevice::new(size, 512);
        let name = device.path().to_str().unwrap().to_owned();
        run("mkfs.ext4", &["-q", "-F", &name]);
        let folder = folder();
        run("mount", &[&name, folder.path().to_str().unwrap()]);
        Self { folder, device: Some(device) }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn device(&self) -> &Path {
        self.device.as_ref().unwrap().path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[self.folder.path().to_str().unwrap()]);
    }
}
