//! How a VM is moved, and which VM can be moved how.

use std::path::PathBuf;

use hypervisor::inventory::Access;
use serde::{Deserialize, Serialize};

use super::preflight::Finding;

/// How a VM is moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// With its memory: the guest does not notice but for a pause.
    #[default]
    Live,
    /// Without its memory: the disks are copied in rounds while the guest runs, and it boots at the destination.
    Warm,
    /// Switched off: its disks are copied, and it stays off at the destination.
    Cold,
}

impl Mode {
    /// The word in reports and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// The QMP socket by which a VM is moved; none for a cold move, which needs no QEMU.
///
/// # Errors
/// Why the VM cannot be moved so, and what to do.
pub fn admit(access: &Access, mode: Mode) -> Result<Option<PathBuf>, Finding> {
    match (access, mode) {
        (Access::Live { qmp }, Mode::Live | Mode::Warm) => Ok(Some(qmp.clone())),
        (Access::Live { .. }, Mode::Cold) => Err(Finding::blocking(
            "vm-runs",
            "the VM runs, and a cold move is for one that is off",
            "shut it down first, or use --mode live or warm",
        )),
        (Access::ColdOrWarmOnly { reason, fix }, Mode::Live | Mode::Warm) => Err(Finding::blocking(
            "no-qmp",
            format!("the VM cannot be driven: {reason}"),
            format!("start it with {fix}; or shut it down and use --mode cold"),
        )),
        (Access::ColdOrWarmOnly { .. }, Mode::Cold) => Err(Finding::blocking(
            "vm-runs",
            "the VM runs, and a cold move is for one that is off",
            "shut it down first",
        )),
        (Access::NotYet { reason }, _) => {
            Err(Finding::blocking("not-yet", reason.clone(), "this version cannot move it"))
        }
        (Access::Stopped, Mode::Cold) => Ok(None),
        (Access::Stopped, Mode::Live | Mode::Warm) => {
            Err(Finding::blocking("vm-stopped", "the VM does not run", "use --mode cold, or start it first"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vm_is_moved_as_it_can_be() {
        let qmp = PathBuf::from("/q");
        let live = Access::Live { qmp: qmp.clone() };
        let human = Access::ColdOrWarmOnly { reason: "HMP only".into(), fix: "-qmp unix:x".into() };
        assert_eq!(admit(&live, Mode::Live), Ok(Some(qmp.clone())));
        assert_eq!(admit(&live, Mode::Warm), Ok(Some(qmp)));
        assert_eq!(admit(&Access::Stopped, Mode::Cold), Ok(None));
        for (access, mode, rule) in [
            (&live, Mode::Cold, "vm-runs"),
            (&human, Mode::Warm, "no-qmp"),
            (&human, Mode::Live, "no-qmp"),
            (&human, Mode::Cold, "vm-runs"),
            (&Access::NotYet { reason: "libvirt".into() }, Mode::Warm, "not-yet"),
            (&Access::Stopped, Mode::Warm, "vm-stopped"),
        ] {
            let finding = admit(access, mode).unwrap_err();
            assert_eq!((finding.rule.as_str(), finding.blocking), (rule, true));
            assert!(rule != "no-qmp" || finding.fix.contains("-qmp unix:x"), "{}", finding.fix);
        }
    }
}
