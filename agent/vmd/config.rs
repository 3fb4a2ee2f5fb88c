//! Flags and file, merged and checked.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

/// Largest configuration file or list of users, bytes: a cap against reading a device by mistake.
const MAX_FILE: u64 = 4 << 20;

/// What the file and the flags may say.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileConfig {
    /// Socket to answer on [default: /run/novaferry-vmd/vmd.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Folder for records and fences; keep it across reboots [default: /var/lib/novaferry-vmd]
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Folder of VMs, as NovaCron lays it out [default: /var/lib/novacron/vms]
    #[arg(long, value_name = "FOLDER")]
    vms: Option<PathBuf>,
    /// Folder below which disks may lie (repeatable); the folder of VMs always may
    #[arg(long = "disk-folder", value_name = "FOLDER")]
    #[serde(default)]
    disk_folders: Vec<PathBuf>,
    /// Folder of kernels [default: /var/lib/novaferry-vmd/boot]
    #[arg(long, value_name = "FOLDER")]
    boot: Option<PathBuf>,
    /// Folder of firmware [default: /usr/share/OVMF]
    #[arg(long, value_name = "FOLDER")]
    firmware: Option<PathBuf>,
    /// QEMU [default: /usr/bin/qemu-system-x86_64]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
    /// User, name or number, that may ask besides root and vmd's own
    #[arg(long, value_name = "USER")]
    agent_user: Option<String>,
    /// Group, name or number, that may ask and gets the VMs' sockets and disks
    #[arg(long, value_name = "GROUP")]
    agent_group: Option<String>,
    /// Users for VMs, FIRST-LAST; nobody else may have these numbers [default: 420000-424095]
    #[arg(long, value_name = "RANGE")]
    uids: Option<String>,
}

impl FileConfig {
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = read_text(path)?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// These, and where they say nothing, the others.
    pub(crate) fn over(self, other: Self) -> Self {
        let Self { socket, state, vms, disk_folders, boot, firmware, qemu, agent_user, agent_group, uids } =
            self;
        Self {
            socket: socket.or(other.socket),
            state: state.or(other.state),
            vms: vms.or(other.vms),
            disk_folders: if disk_folders.is_empty() { other.disk_folders } else { disk_folders },
            boot: boot.or(other.boot),
            firmware: firmware.or(other.firmware),
            qemu: qemu.or(other.qemu),
            agent_user: agent_user.or(other.agent_user),
            agent_group: agent_group.or(other.agent_group),
            uids: uids.or(other.uids),
        }
    }
}

/// What vmd works with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) socket: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) vms: PathBuf,
    pub(crate) disk_folders: Vec<PathBuf>,
    pub(crate) boot: PathBuf,
    pub(crate) firmware: PathBuf,
    pub(crate) qemu: PathBuf,
    pub(crate) agent_uid: Option<u32>,
    /// The group of sockets and disks; vmd's own where none is configured.
    pub(crate) agent_gid: u32,
    pub(crate) agent_gid_may_ask: bool,
    /// First and last.
    pub(crate) uids: (u32, u32),
    pub(crate) own_uid: u32,
}

impl Config {
    pub(crate) fn new(file: FileConfig) -> Result<Self, String> {
        let FileConfig {
            socket,
            state,
            vms,
            disk_folders,
            boot,
            firmware,
            qemu,
            agent_user,
            agent_group,
            uids,
        } = file;
        let absolute = |path: Option<PathBuf>, default: &str| {
            let path = path.unwrap_or_else(|| default.into());
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(format!("{} must be an absolute path", path.display()))
            }
        };
        let vms = absolute(vms, "/var/lib/novacron/vms")?;
        let mut folders = vec![vms.clone()];
        for folder in disk_folders {
            folders.push(absolute(Some(folder), "")?);
        }
        let range = uids.as_deref().unwrap_or("420000-424095");
        let uids =
            range.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let uids = uids.filter(|(first, last)| (1000..=*last).contains(first));
        let gid = agent_group.as_deref().map(|name| number_of(name, "/etc/group")).transpose()?;
        Ok(Self {
            socket: absolute(socket, "/run/novaferry-vmd/vmd.sock")?,
            state: absolute(state, "/var/lib/novaferry-vmd")?,
            vms,
            disk_folders: folders,
            boot: absolute(boot, "/var/lib/novaferry-vmd/boot")?,
            firmware: absolute(firmware, "/usr/share/OVMF")?,
            qemu: absolute(qemu, "/usr/bin/qemu-system-x86_64")?,
            agent_uid: agent_user.as_deref().map(|name| number_of(name, "/etc/passwd")).transpose()?,
            agent_gid: gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
            agent_gid_may_ask: gid.is_some(),
            uids: uids
                .ok_or_else(|| format!("{range:?} is no range of users; write FIRST-LAST, 1000 or more"))?,
            own_uid: rustix::process::geteuid().as_raw(),
        })
    }

    pub(crate) const fn is_root(&self) -> bool {
        self.own_uid == 0
    }
}

/// The number of a user or group: given as such, or from the file (not from directory services: give the number then).
fn number_of(name: &str, file: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = read_text(Path::new(file))?;
    let line = text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|line| line[0] == name);
    let number = line.and_then(|line| line.get(2)?.parse().ok());
    number.ok_or_else(|| format!("{file} has no {name}; create it, or give its number"))
}

fn read_text(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let failed = |error| format!("cannot read {}: {error}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the example shows behind `#key = ` must be the default.
    #[test]
    fn the_example_shows_the_defaults() {
        let text = include_str!("../../systemd/vmd.toml.example");
        toml::from_str::<FileConfig>(text).unwrap();
        let shown: String = text
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| !line.starts_with(' '))
            .map(|line| format!("{line}\n"))
            .collect();
        let shown = Config::new(toml::from_str(&shown).unwrap()).unwrap();
        let default = Config::new(FileConfig::default()).unwrap();
        assert_eq!(format!("{shown:?}"), format!("{default:?}"));
    }

    #[test]
    fn flags_win_and_nonsense_is_refused() {
        let file: FileConfig =
            toml::from_str("vms = \"/a\"\nagent_user = \"root\"\nuids = \"2000-2001\"").unwrap();
        let flags = FileConfig { vms: Some("/b".into()), ..FileConfig::default() };
        let config = Config::new(flags.over(file)).unwrap();
        assert_eq!((config.vms.to_str(), config.agent_uid, config.uids), (Some("/b"), Some(0), (2000, 2001)));
        assert_eq!(config.disk_folders, [PathBuf::from("/b")]);
        for uids in ["", "5", "9-8", "0-10", "3000-2000"] {
            let file = FileConfig { uids: Some(uids.to_owned()), ..FileConfig::default() };
            assert!(Config::new(file).is_err(), "{uids}");
        }
        let file = FileConfig { agent_user: Some("nobody-of-that-name".to_owned()), ..FileConfig::default() };
        assert!(Config::new(file).is_err());
        assert!(Config::new(FileConfig { vms: Some("relative".into()), ..FileConfig::default() }).is_err());
        assert!(toml::from_str::<FileConfig>("vm = 1").is_err());
    }
}
