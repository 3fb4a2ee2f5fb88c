//! Whether this machine has what a test needs.

use std::env;
use std::path::{Path, PathBuf};

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// The name by which `NOVAFERRY_REQUIRE` demands it.
pub const CAPABILITY: &str = "qemu-system";

/// The Linux guest's files, as `scripts/make-test-guest.sh` made them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Linux {
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The initramfs with the guest's program.
    pub initramfs: PathBuf,
}

/// Whether `test` can start machines. If not, prints a SKIP line that names the test.
///
/// # Panics
/// If `NOVAFERRY_REQUIRE` demands it.
#[must_use]
pub fn available(test: &str) -> bool {
    let missing = emulator_missing();
    if let Some(why) = &missing {
        skip(test, why);
    }
    missing.is_none()
}

fn emulator_missing() -> Option<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|folder| folder.join(QEMU).is_file());
    (!found).then(|| format!("{QEMU} is not installed"))
}

impl Linux {
    /// The Linux guest, if `test` can start machines and the guest has been made. If not, prints a SKIP line that names
    /// the test. The files are those of one version for as long as the caller keeps the value.
    ///
    /// # Panics
    /// If `NOVAFERRY_REQUIRE` demands it.
    #[must_use]
    pub fn available(test: &str) -> Option<Self> {
        Self::find().inspect_err(|why| skip(test, why)).ok()
    }

    /// As [`Linux::available`], for programs that are no tests.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn find() -> Result<Self, String> {
        if let Some(why) = emulator_missing() {
            return Err(why);
        }
        let folder = folder();
        let linux = folder.join("current").canonicalize().ok().map(|version| Self::in_folder(&version));
        linux.filter(|linux| linux.kernel.is_file() && linux.initramfs.is_file()).ok_or_else(|| {
            format!("there is no test guest in {}: run scripts/make-test-guest.sh", folder.display())
        })
    }

    fn in_folder(folder: &Path) -> Self {
        Self { kernel: folder.join("vmlinux"), initramfs: folder.join("initramfs") }
    }
}

/// Where the script puts it.
fn folder() -> PathBuf {
    env::var_os("NOVAFERRY_GUEST").map_or_else(
        || format!("/var/tmp/novaferry-guest-{}", rustix::process::getuid().as_raw()).into(),
        PathBuf::from,
    )
}

fn skip(test: &str, why: &str) {
    let required = env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == CAPABILITY),
        "{test}: {CAPABILITY} is required: {why} (NOVAFERRY_REQUIRE={required})"
    );
    #[expect(clippy::print_stdout, reason = "a skipped test says so by name")]
    {
        println!("SKIP {test}: {why}");
    }
}
