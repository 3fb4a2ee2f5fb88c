//! Whom commands ask, and as whom: by flags, the environment, a file of named contexts, and defaults, in this order.
//!
//! A context that `--context` names counts as a flag: all that it says outranks the environment. The file holds paths
//! and addresses, never secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ValueEnum};
use model::Name;
use serde::Deserialize;
use toml_edit::{DocumentMut, Item, Table, value};

use crate::failure::Failure;

/// Largest file that is read, bytes: thousands of contexts.
const MOST: u64 = 1 << 20;

/// What is known of a coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Key {
    /// Its API.
    Url,
    /// File with the API token.
    TokenFile,
    /// Its CA certificate.
    Ca,
}

impl Key {
    pub(crate) const ALL: [Self; 3] = [Self::Url, Self::TokenFile, Self::Ca];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::TokenFile => "token_file",
            Self::Ca => "ca",
        }
    }

    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Url => "--url",
            Self::TokenFile => "--token-file",
            Self::Ca => "--ca",
        }
    }

    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Url => "NOVAFERRY_URL",
            Self::TokenFile => "NOVAFERRY_TOKEN_FILE",
            Self::Ca => "NOVAFERRY_CA",
        }
    }

    fn default(self) -> &'static str {
        match self {
            Self::Url => "https://localhost:7443",
            Self::TokenFile => "/var/lib/novaferry-coordinator/admin-token",
            Self::Ca => "/var/lib/novaferry-coordinator/ca.pem",
        }
    }
}

/// Whom to ask, and as whom. What is not given is looked for in the configuration file.
///
/// The ids are like no other command's: clap takes arguments of one id for the same.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct Access {
    /// The coordinator's context in the configuration file; see `novaferry config`.
    #[arg(
        id = "access-context",
        long = "context",
        global = true,
        value_name = "NAME",
        env = "NOVAFERRY_CONTEXT",
        hide_env_values = true
    )]
    context: Option<String>,
    /// The coordinator's API; the context's, or <https://localhost:7443>, if not given.
    #[arg(
        id = "access-url",
        long = "url",
        global = true,
        value_name = "URL",
        env = "NOVAFERRY_URL",
        hide_env_values = true
    )]
    url: Option<String>,
    /// File with the API token; the context's, or the coordinator's own on this machine, if not given.
    #[arg(
        id = "access-token-file",
        long = "token-file",
        global = true,
        value_name = "FILE",
        env = "NOVAFERRY_TOKEN_FILE",
        hide_env_values = true
    )]
    token_file: Option<String>,
    /// The coordinator's CA certificate; the context's, or the coordinator's own on this machine, if not given.
    #[arg(
        id = "access-ca",
        long = "ca",
        global = true,
        value_name = "FILE",
        env = "NOVAFERRY_CA",
        hide_env_values = true
    )]
    ca: Option<String>,
}

/// A text, and whether a flag gave it, or the environment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Given {
    pub(crate) text: String,
    by_flag: bool,
}

/// What flags and the environment say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    context: Option<Given>,
    keys: [Option<Given>; 3],
}

impl Access {
    /// With where each comes from. A variable that is empty says nothing.
    pub(crate) fn asked(&self, matches: &ArgMatches) -> Asked {
        let given = |name: &str, text: &Option<String>| {
            let by_flag = matches.value_source(name) == Some(ValueSource::CommandLine);
            let text = text.clone().filter(|text| by_flag || !text.is_empty())?;
            Some(Given { text, by_flag })
        };
        Asked {
            context: given("access-context", &self.context),
            keys: [
                given("access-url", &self.url),
                given("access-token-file", &self.token_file),
                given("access-ca", &self.ca),
            ],
        }
    }
}

impl Asked {
    /// What a flag says.
    pub(crate) fn flag(&self, key: Key) -> Option<&str> {
        self.keys[key as usize].as_ref().filter(|given| given.by_flag).map(|given| given.text.as_str())
    }
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Flag(&'static str),
    Environment(&'static str),
    Context(String),
    /// Of the context that is used when none is named.
    Current,
    Default,
    /// The context does not say, and the default belongs to another coordinator.
    Missing(String),
}

impl Source {
    /// For programs.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Flag(_) => "flag",
            Self::Environment(_) => "environment",
            Self::Context(_) => "context",
            Self::Current => "current",
            Self::Default => "default",
            Self::Missing(_) => "missing",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Environment(name) => f.write_str(name),
            Self::Context(name) => write!(f, "context {name}"),
            Self::Current => f.write_str("current in the file"),
            Self::Default => f.write_str("default"),
            Self::Missing(name) => write!(f, "missing in context {name}"),
        }
    }
}

/// A value, and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Setting {
    pub(crate) value: Option<String>,
    pub(crate) from: Source,
}

/// All that a command uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Resolved {
    pub(crate) context: Option<(String, Source)>,
    keys: [Setting; 3],
}

impl Resolved {
    pub(crate) fn setting(&self, key: Key) -> &Setting {
        &self.keys[key as usize]
    }

    /// The value, which must be there.
    pub(crate) fn need(&self, key: Key) -> Result<&str, Failure> {
        let Setting { value, from } = self.setting(key);
        value.as_deref().ok_or_else(|| {
            let (name, flag) = (key.as_str(), key.flag());
            let context = self.context.as_ref().map_or("NAME", |(name, _)| name);
            let advice = format!("novaferry config set {context} {name} VALUE, or give {flag}");
            Failure::new("access", format!("{name} is {from}"), advice).usage()
        })
    }
}

/// One coordinator of the file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    url: Option<String>,
    token_file: Option<String>,
    ca: Option<String>,
}

impl Context {
    pub(crate) fn get(&self, key: Key) -> Option<&str> {
        match key {
            Key::Url => &self.url,
            Key::TokenFile => &self.token_file,
            Key::Ca => &self.ca,
        }
        .as_deref()
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    current: Option<String>,
    #[serde(default)]
    context: BTreeMap<Name, Context>,
}

/// The configuration file, read.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    /// Where it is, or would be; none without a home.
    pub(crate) path: Option<PathBuf>,
    text: String,
    contents: Contents,
}

/// Where the file belongs: `$XDG_CONFIG_HOME/novaferry/config.toml`, or under `~/.config`.
fn place() -> Option<PathBuf> {
    // The XDG specification says to ignore a path that is not absolute.
    let absolute = |path: &PathBuf| path.is_absolute();
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(absolute);
    let folder = folder.or_else(|| Some(std::env::home_dir().filter(absolute)?.join(".config")));
    Some(folder?.join("novaferry").join("config.toml"))
}

fn unusable(path: &Path, error: &dyn fmt::Display, advice: &str) -> Failure {
    Failure::new("config", format!("{}: {error}", path.display()), advice).usage()
}

impl File {
    /// Reads it. One that is not there is empty.
    pub(crate) fn read() -> Result<Self, Failure> {
        let Some(path) = place() else { return Ok(Self::default()) };
        let refused = |error: std::io::Error| unusable(&path, &error, "let this user read it");
        let text = match std::fs::File::open(&path) {
            Ok(file) => {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut std::io::Read::take(file, MOST + 1), &mut text)
                    .map_err(refused)?;
                if text.len() as u64 > MOST {
                    return Err(unusable(&path, &"more than 1 MiB", "this is no configuration of ours"));
                }
                text
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(refused(error)),
        };
        let contents = parse(&text).map_err(|(line, error)| {
            let advice = "correct the line; a context has the keys url, token_file and ca";
            unusable(&path, &format!("line {line}: {error}"), advice)
        })?;
        Ok(Self { path: Some(path), text, contents })
    }

    pub(crate) fn current(&self) -> Option<&str> {
        self.contents.current.as_deref()
    }

    pub(crate) fn contexts(&self) -> impl Iterator<Item = (&Name, &Context)> {
        self.contents.context.iter()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.contents.context.keys().map(Name::as_str)
    }

    pub(crate) fn context(&self, name: &str) -> Option<&Context> {
        self.contexts().find(|(known, _)| known.as_str() == name).map(|(_, context)| context)
    }

    /// What a command uses.
    pub(crate) fn resolve(&self, asked: &Asked) -> Result<Resolved, Failure> {
        let named = asked.context.as_ref();
        let by_flag = named.is_some_and(|named| named.by_flag);
        let chosen = match (named, self.current()) {
            (Some(named), _) if named.by_flag => Some((named.text.clone(), Source::Flag("--context"))),
            (Some(named), _) => Some((named.text.clone(), Source::Environment("NOVAFERRY_CONTEXT"))),
            (None, Some(current)) => Some((current.to_owned(), Source::Current)),
            (None, None) => None,
        };
        let context = match &chosen {
            Some((name, _)) => Some(self.context(name).ok_or_else(|| self.unknown(name))?),
            None => None,
        };
        let setting = |key: Key| {
            let given = asked.keys[key as usize].as_ref();
            let of_context = || {
                let (name, _) = chosen.as_ref()?;
                let text = self.path_of(key, context?.get(key)?);
                Some(Setting { value: Some(text), from: Source::Context(name.clone()) })
            };
            let of = |given: &Given, from| Some(Setting { value: Some(given.text.clone()), from });
            let flag = || of(given.filter(|given| given.by_flag)?, Source::Flag(key.flag()));
            let variable = || of(given?, Source::Environment(key.variable()));
            let first = flag().or_else(|| if by_flag { of_context() } else { None });
            first.or_else(variable).or_else(of_context).unwrap_or_else(|| match &chosen {
                // The default is this machine's coordinator: its token must not go to another.
                Some((name, _)) => Setting { value: None, from: Source::Missing(name.clone()) },
                None => Setting { value: Some(key.default().to_owned()), from: Source::Default },
            })
        };
        let keys = Key::ALL.map(setting);
        Ok(Resolved { keys, context: chosen })
    }

    pub(crate) fn unknown(&self, name: &str) -> Failure {
        let what = format!("there is no context {name}");
        let near = crate::cli::near::to(name, self.names());
        let advice = near.map_or_else(
            || "`novaferry config list` shows those that there are; `novaferry login` makes one".to_owned(),
            |near| near.question(),
        );
        Failure::new("config", what, advice).usage()
    }

    /// A path of the file is below the file's folder, or of the home with `~/`, or absolute.
    fn path_of(&self, key: Key, text: &str) -> String {
        let folder = self.path.as_deref().and_then(Path::parent);
        let home = text.strip_prefix("~/").and_then(|rest| Some(std::env::home_dir()?.join(rest)));
        match (key, home, folder) {
            (Key::Url, ..) | (_, None, None) => text.to_owned(),
            (_, Some(path), _) => path.display().to_string(),
            (_, None, Some(folder)) => folder.join(text).display().to_string(),
        }
    }

    /// The file's path, which must be known to write.
    pub(crate) fn folder(&self) -> Result<&Path, Failure> {
        self.path.as_deref().and_then(Path::parent).ok_or_else(|| {
            let what = "this user has no home to keep a configuration in";
            Failure::new("config", what, "set HOME or XDG_CONFIG_HOME").usage()
        })
    }

    /// Sets keys of a context, and makes it the current one if it is to be, or there is none.
    pub(crate) fn set(&self, name: &Name, keys: &[(Key, &str)], make_current: bool) -> Result<(), Failure> {
        self.edit(|document| {
            let all = document.entry("context").or_insert_with(|| {
                let mut table = Table::new();
                table.set_implicit(true);
                Item::Table(table)
            });
            for (key, text) in keys {
                all[name.as_str()].or_insert(Item::Table(Table::new()))[key.as_str()] = value(*text);
            }
            if make_current || self.current().is_none() {
                document["current"] = value(name.as_str());
            }
        })
    }

    pub(crate) fn make_current(&self, name: &str) -> Result<(), Failure> {
        self.edit(|document| document["current"] = value(name))
    }

    /// Forgets a key of a context, or the whole context.
    pub(crate) fn unset(&self, name: &str, key: Option<Key>) -> Result<(), Failure> {
        self.edit(|document| {
            let all = document.get_mut("context").and_then(Item::as_table_like_mut);
            match (all, key) {
                (Some(all), Some(key)) => {
                    if let Some(context) = all.get_mut(name).and_then(Item::as_table_like_mut) {
                        context.remove(key.as_str());
                    }
                }
                (Some(all), None) => {
                    all.remove(name);
                    if self.current() == Some(name) {
                        document.remove("current");
                    }
                }
                (None, _) => {}
            }
        })
    }

    /// Changes the file; comments and order stay.
    fn edit(&self, change: impl FnOnce(&mut DocumentMut)) -> Result<(), Failure> {
        self.folder()?;
        let path = self.path.as_deref().unwrap_or_else(|| Path::new(""));
        let advice = "correct it by hand";
        let mut document: DocumentMut =
            self.text.parse().map_err(|error: toml_edit::TomlError| unusable(path, &error, advice))?;
        change(&mut document);
        let text = document.to_string();
        // What this program cannot read again must not be left behind.
        parse(&text).map_err(|(line, error)| unusable(path, &format!("line {line}: {error}"), advice))?;
        write(path, text.as_bytes())
    }
}

/// What the file says, or the first line that makes no sense.
fn parse(text: &str) -> Result<Contents, (usize, String)> {
    let contents: Contents = toml_edit::de::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        (line, error.message().to_owned())
    })?;
    let unknown =
        contents.current.as_ref().filter(|name| !contents.context.keys().any(|n| n.as_str() == *name));
    if let Some(name) = unknown {
        let line = text.lines().position(|line| line.trim_start().starts_with("current")).unwrap_or(0) + 1;
        return Err((line, format!("current is {name}, and there is no [context.{name}]")));
    }
    Ok(contents)
}

/// Writes a file that only this user reads, at once or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| unusable(path, &error, "let this user write there");
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    })();
    written.map_err(|error| {
        // It may not be there; the first error is what matters.
        drop(std::fs::remove_file(&beside));
        failed(error)
    })
}

/// An API's address that a token may be sent to.
pub(crate) fn checked_url(text: &str) -> Result<&str, Failure> {
    let rest = text.strip_prefix("https://").unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') || text.contains(char::is_whitespace) {
        let what = format!("{text:?} is no address of a coordinator");
        return Err(
            Failure::new("access", what, "write one such as https://coordinator.example:7443").usage()
        );
    }
    Ok(text.trim_end_matches('/'))
}

#[cfg(test)]
mod tests;
