//! `config`: the coordinators that this user knows.

use clap::Subcommand;
use model::Name;
use serde_json::{Value, json};

use super::show::{Column, ListArgs, said};
use crate::config::{Asked, File, Key, checked_url};
use crate::failure::Failure;
use crate::output::{self, Format};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
The file:
  current = \"prod\"
  [context.prod]
  url = \"https://coordinator.example:7443\"
  token_file = \"prod.token\"               # beside the file, or absolute, or under ~/
  ca = \"prod.ca.pem\"

Which value counts: that of a flag (--context included, with all that it says), of the environment
(NOVAFERRY_URL, NOVAFERRY_TOKEN_FILE, NOVAFERRY_CA, NOVAFERRY_CONTEXT), of the current context, or
else the default.

Examples:
  novaferry login https://coordinator.example:7443 --ca-fingerprint 3f:9a:… --name prod
  novaferry config use prod
  novaferry config show")]
pub(super) enum ConfigCommand {
    /// Shows what commands use, and where each value comes from.
    Show,
    /// Lists the contexts.
    List(ListArgs),
    /// Makes a context the current one.
    Use {
        /// Which.
        context: String,
    },
    /// Sets a key of a context; the context is made if there is none.
    #[command(after_help = "Example:\n  novaferry config set prod url https://coordinator.example:7443")]
    Set {
        /// Which.
        context: Name,
        /// What of it.
        #[arg(value_enum)]
        key: Key,
        /// An address, or the path of a file.
        value: String,
    },
    /// Forgets a key of a context, or the whole context.
    Unset {
        /// Which.
        context: String,
        /// What of it; all if not given.
        #[arg(value_enum)]
        key: Option<Key>,
    },
    /// Prints where the file is, or would be.
    Path,
}

const COLUMNS: &[Column] = &[
    Column::new("CURRENT", |one| one["current"].clone())
        .shown(|current| if current.as_bool() == Some(true) { "*" } else { "" }.to_owned()),
    Column::new("CONTEXT", |one| one["context"].clone()),
    Column::new("URL", |one| one["url"].clone()),
    Column::new("TOKEN_FILE", |one| one["token_file"].clone()),
    Column::new("CA", |one| one["ca"].clone()),
];

pub(super) fn config(command: ConfigCommand, asked: &Asked, format: Format) -> Result<(), Failure> {
    let file = File::read()?;
    let path = || file.path.as_ref().map(|path| path.display().to_string());
    let known = |name: &str| file.context(name).map(drop).ok_or_else(|| file.unknown(name));
    match command {
        ConfigCommand::Show => show(&file, asked, format)?,
        ConfigCommand::List(args) => {
            let contexts = file.contexts().map(|(name, context)| {
                let current = file.current() == Some(name.as_str());
                let mut one = json!({ "context": name, "current": current });
                for key in Key::ALL {
                    one[key.as_str()] = context.get(key).into();
                }
                one
            });
            args.print(format, contexts.collect(), COLUMNS)?;
        }
        ConfigCommand::Use { context } => {
            known(&context)?;
            file.make_current(&context)?;
            said(format, &json!({ "current": context }), &format!("{context} is the current context"));
        }
        ConfigCommand::Set { context, key, value } => {
            let value = match key {
                Key::Url => checked_url(&value)?.to_owned(),
                Key::TokenFile | Key::Ca => absolute(&value)?,
            };
            let first = file.current().is_none();
            file.set(&context, &[(key, &value)], false)?;
            let words = if first { ", and the current one" } else { "" };
            let shown = json!({ "context": context, "key": key.as_str(), "value": value });
            said(format, &shown, &format!("{} of context {context} is {value}{words}", key.as_str()));
        }
        ConfigCommand::Unset { context, key } => {
            known(&context)?;
            file.unset(&context, key)?;
            let what = key.map_or_else(String::new, |key| format!("{} of ", key.as_str()));
            let shown = json!({ "context": context, "key": key.map(Key::as_str), "value": null });
            said(format, &shown, &format!("{what}context {context} is forgotten"));
        }
        ConfigCommand::Path => {
            file.folder()?;
            said(format, &json!({ "file": path() }), &path().unwrap_or_default());
        }
    }
    Ok(())
}

/// A path of this folder as one of any.
pub(super) fn absolute(path: &str) -> Result<String, Failure> {
    let absolute = std::path::absolute(path).map_err(|error| {
        Failure::new("usage", format!("{path:?} is no path: {error}"), "name a file").usage()
    })?;
    Ok(absolute.display().to_string())
}

fn show(file: &File, asked: &Asked, format: Format) -> Result<(), Failure> {
    let settings = file.resolve(asked)?;
    let path = file.path.as_ref().map(|path| path.display().to_string());
    if format == Format::Text {
        let dash = || "-".to_owned();
        let none = || vec!["context".to_owned(), dash(), "none is chosen".to_owned()];
        let context = settings.context.as_ref();
        let context = context.map(|(name, from)| vec!["context".to_owned(), name.clone(), from.to_string()]);
        let keys = Key::ALL.map(|key| {
            let setting = settings.setting(key);
            vec![
                key.as_str().to_owned(),
                setting.value.clone().unwrap_or_else(dash),
                setting.from.to_string(),
            ]
        });
        let all = std::iter::once(context.unwrap_or_else(none)).chain(keys);
        output::table(&["KEY", "VALUE", "FROM"], all);
        let missing = file.path.as_ref().is_some_and(|path| !path.exists());
        output::line(&format!(
            "file: {}{}",
            path.unwrap_or_else(dash),
            if missing { " (not there)" } else { "" }
        ));
        return Ok(());
    }
    let mut shown = json!({ "file": path });
    let context = settings.context.as_ref();
    shown["context"] =
        context.map_or(Value::Null, |(name, from)| json!({ "value": name, "from": from.kind() }));
    for key in Key::ALL {
        let setting = settings.setting(key);
        shown[key.as_str()] = json!({ "value": setting.value, "from": setting.from.kind() });
    }
    output::value(format, &shown);
    Ok(())
}
