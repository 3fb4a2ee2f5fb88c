//! Reading the command line of a running QEMU: where its monitors are (QEMU's `qemu-options.hx`; option syntax:
//! `util/qemu-option.c`, `chardev/char.c`, `monitor/monitor.c`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What a monitor speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    /// QMP: for programs.
    Qmp,
    /// HMP: for people.
    Hmp,
}

/// A monitor of a running QEMU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Monitor {
    /// What it speaks.
    pub language: Language,
    /// Where.
    pub endpoint: Endpoint,
}

/// Where a monitor is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// QEMU listens at this unix socket. The path may be relative to QEMU's folder.
    Listens(PathBuf),
    /// Something else: a terminal, TCP, a file descriptor, a socket that QEMU connects to. The text is QEMU's.
    Other(String),
}

/// What of a QEMU's command line matters here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CommandLine {
    /// The name that `-name` gives.
    pub name: Option<String>,
    /// Whether the name is written as libvirt does (`guest=`).
    pub name_is_guest: bool,
    /// The file of `-pidfile`.
    pub pid_file: Option<PathBuf>,
    /// The monitors, in their order.
    pub monitors: Vec<Monitor>,
    /// The arguments, with the program.
    arguments: Vec<Vec<u8>>,
}

/// An option list: `first,key=value,flag`. A comma in a value is doubled.
#[derive(Debug)]
struct Options(Vec<(Option<String>, Vec<u8>)>);

impl Options {
    fn parse(text: &[u8]) -> Self {
        let mut parts = vec![Vec::new()];
        let mut bytes = text.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            if byte == b',' && bytes.next_if_eq(&b',').is_none() {
                parts.push(Vec::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(byte);
            }
        }
        let split = |part: Vec<u8>| match part.iter().position(|byte| *byte == b'=') {
            Some(at) => (Some(String::from_utf8_lossy(&part[..at]).into_owned()), part[at + 1..].to_vec()),
            None => (None, part),
        };
        Self(parts.into_iter().map(split).collect())
    }

    /// The value of a key; the last one counts, as for QEMU.
    fn get(&self, key: &str) -> Option<&[u8]> {
        let found = self.0.iter().rev().find(|(name, _)| name.as_deref() == Some(key));
        found.map(|(_, value)| value.as_slice())
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// The first part, if it has no key.
    fn first(&self) -> Option<&[u8]> {
        self.0.first().filter(|(name, _)| name.is_none()).map(|(_, value)| value.as_slice())
    }

    /// Whether `flag`, `flag=on` (or `yes`, `true`, `y`) stands there.
    fn is_on(&self, flag: &str) -> bool {
        let bare = self.0.iter().skip(1).any(|(name, value)| name.is_none() && value == flag.as_bytes());
        bare || self.get(flag).is_some_and(|value| matches!(value, b"on" | b"yes" | b"true" | b"y"))
    }
}

impl CommandLine {
    /// Reads the arguments, each ended by a zero byte, as in `/proc/PID/cmdline`.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        let arguments: Vec<Vec<u8>> = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        let mut line = Self::default();
        let mut sockets: Vec<(String, Endpoint)> = Vec::new();
        let mut monitors: Vec<(Language, Place)> = Vec::new();
        let mut rest = arguments.iter().skip(1);
        while let Some(argument) = rest.next() {
            let Some(option) = option_name(argument) else { continue };
            if !TAKES_VALUE.contains(&option) {
                continue;
            }
            let Some(value) = rest.next() else { break };
            match option {
                "qmp" | "qmp-pretty" => monitors.push((Language::Qmp, place(value))),
                "monitor" => monitors.push((Language::Hmp, place(value))),
                "chardev" => sockets.extend(socket(value)),
                "mon" => {
                    let options = Options::parse(value);
                    let id = options.get("chardev").or_else(|| options.first()).unwrap_or_default();
                    let language = match options.get("mode") {
                        Some(b"control") => Language::Qmp,
                        _ => Language::Hmp,
                    };
                    monitors.push((language, Place::Named(String::from_utf8_lossy(id).into_owned())));
                }
                "name" => {
                    let options = Options::parse(value);
                    let guest = options.text("guest");
                    line.name_is_guest = guest.is_some();
                    line.name =
                        guest.or_else(|| options.first().map(|n| String::from_utf8_lossy(n).into_owned()));
                }
                "pidfile" => line.pid_file = Some(path(value)),
                _ => {}
            }
        }
        let endpoint = |place| match place {
            Place::Here(endpoint) => endpoint,
            Place::Named(id) => {
                let found = sockets.iter().rev().find(|(name, _)| *name == id);
                found.map_or_else(|| Endpoint::Other(format!("chardev:{id}")), |(_, found)| found.clone())
            }
        };
        line.monitors = monitors
            .into_iter()
            .map(|(language, place)| Monitor { language, endpoint: endpoint(place) })
            .filter(|monitor| monitor.endpoint != Endpoint::Other("none".to_owned()))
            .collect();
        line.arguments = arguments;
        line
    }

    /// The arguments as text, with the program. What is no UTF-8 becomes other text, which names no file.
    pub(super) fn texts(&self) -> Vec<String> {
        self.arguments.iter().map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
    }

    /// Whether the program is one of QEMU's system emulators, by its name.
    #[must_use]
    pub fn is_qemu_system(&self) -> bool {
        let program = self.arguments.first().map(Vec::as_slice).unwrap_or_default();
        let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        name.starts_with(b"qemu-system-")
    }

    /// Whether libvirt runs it: it always names the guest so, and keeps its files in its own folders.
    #[must_use]
    pub fn is_libvirt(&self) -> bool {
        let inside = |argument: &Vec<u8>| {
            [&b"/var/lib/libvirt/"[..], b"/run/libvirt/"]
                .iter()
                .any(|folder| argument.windows(folder.len()).any(|part| part == *folder))
        };
        self.name_is_guest && self.arguments.iter().any(inside)
    }

    /// Whether an argument names a file inside `folder`.
    #[must_use]
    pub fn names_file_in(&self, folder: &Path) -> bool {
        let mut prefix = folder.as_os_str().as_encoded_bytes().to_vec();
        prefix.push(b'/');
        // At its start, or after what can come before a path in an option: a longer path is another folder.
        let begins = |before: Option<&u8>| before.is_none_or(|byte| b"=:,\"".contains(byte));
        self.arguments.iter().skip(1).any(|argument| {
            let mut places = argument.windows(prefix.len()).enumerate();
            places
                .any(|(at, part)| part == prefix && begins(at.checked_sub(1).and_then(|at| argument.get(at))))
        })
    }
}

/// The options that are looked at. All of them take a value. The others need not be known: their values do not look
/// like one of these.
const TAKES_VALUE: [&str; 7] = ["qmp", "qmp-pretty", "monitor", "chardev", "mon", "name", "pidfile"];

/// The option's name; QEMU takes one dash or two.
fn option_name(argument: &[u8]) -> Option<&str> {
    let name = argument.strip_prefix(b"-")?;
    std::str::from_utf8(name.strip_prefix(b"-").unwrap_or(name)).ok()
}

/// Where a monitor option says that it is.
#[derive(Debug)]
enum Place {
    Here(Endpoint),
    /// A character device's id.
    Named(String),
}

/// The short form: `unix:PATH,server=on,wait=off`, `stdio`, `tcp:…`, `chardev:ID`.
fn place(value: &[u8]) -> Place {
    if let Some(id) = value.strip_prefix(b"chardev:") {
        return Place::Named(String::from_utf8_lossy(id).into_owned());
    }
    let other = || Place::Here(Endpoint::Other(String::from_utf8_lossy(value).into_owned()));
    let Some(rest) = value.strip_prefix(b"unix:") else { return other() };
    let options = Options::parse(rest);
    let Some(file) = options.get("path").or_else(|| options.first()) else { return other() };
    if options.is_on("server") { Place::Here(Endpoint::Listens(path(file))) } else { other() }
}

/// A character device: its id, and where it is.
fn socket(value: &[u8]) -> Option<(String, Endpoint)> {
    let options = Options::parse(value);
    let id = options.text("id")?;
    let kind = options.get("backend").or_else(|| options.first()).unwrap_or_default();
    let listens = kind == b"socket" && options.is_on("server") && !options.is_on("abstract");
    let endpoint = match options.get("path").filter(|_| listens) {
        Some(file) => Endpoint::Listens(path(file)),
        None => Endpoint::Other(String::from_utf8_lossy(value).into_owned()),
    };
    Some((id, endpoint))
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

#[cfg(test)]
mod tests;
