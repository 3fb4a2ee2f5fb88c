//! What this host's QEMU can run: its version, its boards, and its processor models with what this host lacks of each. A
//! QEMU without a machine is started for it and ends at once; it opens nothing and runs no guest.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hypervisor::qmp::CpuDefinition;
use hypervisor::specification::Accelerator;
use hypervisor::vmd::{HostStatus, Processor};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long QEMU may take for all of it: it takes a fifth of a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest of all that it says: QEMU 10 says 55 KB.
const MAX_SAID: u64 = 4 << 20;
/// What is kept of its complaints.
const MAX_COMPLAINT: u64 = 2 << 10;
/// What it is asked, in order.
const COMMANDS: [&str; 4] = ["qmp_capabilities", "query-version", "query-machines", "query-cpu-definitions"];

/// Asks.
pub(crate) fn ask(qemu: &Path, accelerator: Accelerator) -> io::Result<HostStatus> {
    let accelerator = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    let arguments = ["-machine", "none", "-accel", accelerator, "-nodefaults", "-no-user-config"];
    let mut child = Command::new(qemu)
        .args(arguments)
        .args(["-display", "none", "-S", "-qmp", "stdio"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::other(format!("{}: {error}", qemu.display())))?;
    let answers = converse(&mut child);
    // It holds nothing that needs an orderly end.
    child.kill()?;
    child.wait()?;
    let answers = answers.map_err(|error| {
        let mut said = String::new();
        let complaint =
            child.stderr.take().map(|stderr| stderr.take(MAX_COMPLAINT).read_to_string(&mut said));
        let said = if matches!(complaint, Some(Ok(_))) { said.trim() } else { "" };
        let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        io::Error::other(format!("{} -accel {accelerator}: {error} {said}", qemu.display()))
    })?;
    let status = read(answers).map_err(io::Error::from)?;
    Ok(HostStatus { program: Some(qemu.to_owned()), ..status })
}

/// What it answers to each command.
fn converse(child: &mut Child) -> io::Result<Vec<Value>> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    for command in COMMANDS {
        writeln!(stdin, "{{\"execute\":\"{command}\"}}")?;
    }
    let (lines, heard) = mpsc::sync_channel(COMMANDS.len());
    // Ends when QEMU does.
    std::thread::Builder::new().name("qemu".to_owned()).spawn(move || {
        let said = BufReader::new(stdout.take(MAX_SAID)).lines();
        for line in said {
            if lines.send(line).is_err() {
                return;
            }
        }
    })?;
    let (began, mut answers) = (Instant::now(), Vec::new());
    while answers.len() < COMMANDS.len() {
        let left = PATIENCE.saturating_sub(began.elapsed());
        let line = heard.recv_timeout(left).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => io::Error::from(io::ErrorKind::TimedOut),
            mpsc::RecvTimeoutError::Disconnected => io::Error::other("it ended."),
        })??;
        let mut message: Value = serde_json::from_str(&line)?;
        if let Some(error) = message.get("error") {
            return Err(io::Error::other(format!("it refuses: {error}")));
        }
        // The greeting and events are no answers.
        if let Some(answer) = message.get_mut("return") {
            answers.push(answer.take());
        }
    }
    Ok(answers)
}

/// The answers as what they mean.
fn read(answers: Vec<Value>) -> Result<HostStatus, serde_json::Error> {
    #[derive(Deserialize)]
    struct Version {
        qemu: Numbers,
    }
    #[derive(Deserialize)]
    struct Numbers {
        major: u32,
        minor: u32,
        micro: u32,
    }
    #[derive(Deserialize)]
    struct Machine {
        name: String,
        alias: Option<String>,
    }
    fn next<T: DeserializeOwned>(answers: &mut impl Iterator<Item = Value>) -> Result<T, serde_json::Error> {
        serde_json::from_value(answers.next().unwrap_or_default())
    }
    let mut answers = answers.into_iter().skip(1);
    let Version { qemu: Numbers { major, minor, micro } } = next(&mut answers)?;
    let machines: Vec<Machine> = next(&mut answers)?;
    let processors: Vec<CpuDefinition> = next(&mut answers)?;
    Ok(HostStatus {
        version: (major, minor, micro),
        program: None,
        machines: machines.into_iter().flat_map(|one| std::iter::once(one.name).chain(one.alias)).collect(),
        processors: processors
            .into_iter()
            .map(|one| Processor { name: one.name, lacks: one.unavailable_features.unwrap_or_default() })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_read() {
        let answers = vec![
            json!({}),
            json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "x"}),
            json!([{"name": "pc-q35-10.0", "alias": "q35", "cpu-max": 288}, {"name": "microvm"}]),
            json!([{"name": "EPYC", "typename": "t", "static": false, "unavailable-features": ["avx2"]}]),
        ];
        let status = read(answers).unwrap();
        assert_eq!(status.version, (10, 0, 2));
        assert_eq!(status.machines, ["pc-q35-10.0", "q35", "microvm"]);
        let lacks = vec!["avx2".to_owned()];
        assert_eq!(status.processors, [Processor { name: "EPYC".to_owned(), lacks }]);
        assert!(read(vec![json!({}), json!([])]).is_err());
        assert!(read(Vec::new()).is_err());
    }

    #[test]
    fn what_is_no_qemu_is_said() {
        let absent = ask(Path::new("/nowhere/qemu"), Accelerator::Tcg).unwrap_err().to_string();
        assert!(absent.starts_with("/nowhere/qemu: "), "{absent}");
        let other = ask(Path::new("/bin/true"), Accelerator::Kvm).unwrap_err().to_string();
        assert!(other.starts_with("/bin/true -accel kvm: "), "{other}");
    }
}
