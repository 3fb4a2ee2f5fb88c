//! QEMU as a process of its own, that neither vmd's nor the agent's end touches.
//!
//! vmd runs itself as `novaferry-vmd launch -- PROGRAM…`: that makes a session of its own, sets the umask, starts the
//! program and ends, so the program belongs to nobody (the double fork, without `fork`). Where systemd is PID 1, the
//! whole runs inside `systemd-run --scope`, because systemd otherwise ends what a stopped service left behind; that
//! needs the D-Bus socket of systemd, which root may use.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::Launch;

/// What is started.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub(crate) vm: &'a str,
    pub(crate) qemu: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    /// The user and group that it runs as; none is vmd's.
    pub(crate) uid: Option<u32>,
    /// Groups of the devices that the VM needs.
    pub(crate) groups: Vec<u32>,
    pub(crate) folder: &'a Path,
    pub(crate) log: &'a Path,
}

/// Whether systemd runs this host (`sd_booted(3)`).
pub(crate) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Name of a VM's unit.
pub(crate) fn unit(vm: &str, generation: u64) -> String {
    // The generation, because a scope that failed keeps its name until it is reset.
    format!("novaferry-vm-{vm}-{generation}.scope")
}

/// Starts it; returns its process id.
pub(crate) fn start(program: &Program<'_>, scope: Option<&str>) -> io::Result<u32> {
    let own = std::env::current_exe()?;
    let line = command(program, scope, &own);
    let output = Command::new(&line[0])
        .args(&line[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if let (true, Ok(pid)) = (output.status.success(), said.trim().parse()) {
        return Ok(pid);
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn command(program: &Program<'_>, scope: Option<&str>, own: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = Vec::new();
    let mut add = |words: &[&OsStr]| line.extend(words.iter().map(|&word| word.to_owned()));
    if let Some(scope) = scope {
        let [unit, description] = [format!("--unit={scope}"), format!("--description=VM {}", program.vm)];
        let words = ["systemd-run", "--scope", "--quiet", "--collect", &unit, &description, "--"];
        add(&words.map(OsStr::new));
    }
    let [launch, log, folder, end] = ["launch", "--log", "--folder", "--"].map(OsStr::new);
    add(&[own.as_os_str(), launch, log, program.log.as_os_str(), folder, program.folder.as_os_str(), end]);
    if let Some(uid) = program.uid {
        let groups: Vec<String> = program.groups.iter().map(u32::to_string).collect();
        let groups = match groups[..] {
            [] => "--clear-groups".to_owned(),
            _ => format!("--groups={}", groups.join(",")),
        };
        let [uid, gid] = [format!("--reuid={uid}"), format!("--regid={uid}")];
        let words = [
            "setpriv",
            &uid,
            &gid,
            &groups,
            "--no-new-privs",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--",
        ];
        add(&words.map(OsStr::new));
    }
    add(&[program.qemu.as_os_str()]);
    line.extend(program.arguments.iter().cloned());
    line
}

/// `novaferry-vmd launch`: starts the process, prints its id and ends.
#[expect(clippy::print_stdout, reason = "the id is what this command prints")]
pub(crate) fn detach(arguments: &Launch) -> io::Result<()> {
    // A session leader already, under a shell or systemd-run: then there is nothing to leave.
    match rustix::process::setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o007));
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&arguments.log)?;
    let child = Command::new(&arguments.command[0])
        .args(&arguments.command[1..])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .current_dir(&arguments.folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {:?}: {error}", arguments.command[0]))
        })?;
    println!("{}", child.id());
    Ok(())
}

/// What of a log is kept when it grew beyond that, bytes.
const MAX_LOG: u64 = 1 << 20;
/// What is reported of a log, bytes.
const MAX_SAID: u64 = 4 << 10;

/// The log of a VM. In vmd's own folder: in the VM's, its QEMU could put a link in its place.
pub(crate) fn log_path(state: &Path, vm: &str) -> PathBuf {
    state.join("logs").join(format!("{vm}.log"))
}

/// The end of what a program said, as text without control characters other than line ends.
pub(crate) fn last_words(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_SAID)))?;
        let mut said = Vec::new();
        file.take(MAX_SAID).read_to_end(&mut said)?;
        Ok(said)
    };
    match read() {
        Ok(said) => String::from_utf8_lossy(&said)
            .trim()
            .chars()
            .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
            .collect(),
        Err(error) => format!("(its log cannot be read: {error})"),
    }
}

/// Empties a log that grew too long: the process appends, so it goes on at the start.
pub(crate) fn cap_log(log: &Path) -> io::Result<()> {
    match std::fs::metadata(log) {
        Ok(metadata) if metadata.len() > MAX_LOG => OpenOptions::new().write(true).open(log)?.set_len(0),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program<'a>(uid: Option<u32>, groups: &[u32]) -> Program<'a> {
        let [qemu, folder, log] = ["/usr/bin/qemu", "/vms/a/run", "/state/a.log"].map(Path::new);
        Program { vm: "a", qemu, arguments: vec!["-S".into()], uid, groups: groups.to_vec(), folder, log }
    }

    fn words(program: &Program<'_>, scope: Option<&str>) -> String {
        let line = command(program, scope, Path::new("/usr/bin/novaferry-vmd"));
        line.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_line_of_commands_is_as_documented() {
        assert_eq!(
            words(&program(None, &[]), None),
            "/usr/bin/novaferry-vmd launch --log /state/a.log --folder /vms/a/run -- /usr/bin/qemu -S"
        );
        assert_eq!(
            words(&program(Some(420_000), &[107, 64055]), Some(&unit("a", 3))),
            "systemd-run --scope --quiet --collect --unit=novaferry-vm-a-3.scope --description=VM a -- \
             /usr/bin/novaferry-vmd launch --log /state/a.log --folder /vms/a/run -- \
             setpriv --reuid=420000 --regid=420000 --groups=107,64055 --no-new-privs --inh-caps=-all --bounding-set=-all -- \
             /usr/bin/qemu -S"
        );
        assert!(words(&program(Some(420_000), &[]), None).contains("--clear-groups"));
    }

    #[test]
    fn logs_are_short_and_plain() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(&log, [vec![b'x'; 5000], b"\nwhy\x1b[2J\n".to_vec()].concat()).unwrap();
        let said = last_words(&log);
        assert!(said.ends_with("x\nwhy [2J") && said.len() <= 4096, "{said}");
        cap_log(&log).unwrap();
        assert!(std::fs::metadata(&log).unwrap().len() > 0);
        std::fs::write(&log, vec![b'x'; (1 << 20) + 1]).unwrap();
        cap_log(&log).unwrap();
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
        cap_log(&folder.path().join("absent")).unwrap();
    }
}
