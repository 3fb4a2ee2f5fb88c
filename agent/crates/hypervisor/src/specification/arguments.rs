//! QEMU's option syntax (`util/keyval.c`, `util/qemu-option.c`, `docs/system/invocation`): arguments, `key=value`
//! lists, sizes.

use serde_json::{Map, Value};

use super::SpecificationError;

/// Options of QEMU that take no value. Of any other it is assumed when the next argument is no option.
const ALONE: &[&str] = &[
    "S",
    "daemonize",
    "enable-kvm",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-hpet",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nographic",
    "only-migratable",
    "preconfig",
    "snapshot",
    "usb",
];

/// One option with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Argument<'a> {
    /// Without dashes. Empty for an argument that is no option: an image for the first IDE disk.
    pub(crate) name: &'a str,
    pub(crate) value: &'a str,
}

/// The options of a process, whose name comes first.
pub(crate) fn split(arguments: &[String]) -> Vec<Argument<'_>> {
    let mut rest = arguments.iter().skip(1).map(String::as_str).peekable();
    let mut found = Vec::new();
    while let Some(argument) = rest.next() {
        let Some(name) = argument.strip_prefix('-').filter(|name| !name.is_empty()) else {
            found.push(Argument { name: "", value: argument });
            continue;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let takes_value = !ALONE.contains(&name);
        // A value may start with a dash ("-append -x"), which only options known to take one get.
        let value = if takes_value
            && (VALUED.contains(&name) || rest.peek().is_some_and(|next| !next.starts_with('-')))
        {
            rest.next().unwrap_or_default()
        } else {
            ""
        };
        found.push(Argument { name, value });
    }
    found
}

/// Options whose value may start with a dash.
const VALUED: &[&str] = &["append", "name", "cpu", "kernel", "initrd", "serial", "monitor", "qmp"];

/// A list of `key=value`, taken apart by its reader.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Pairs(Vec<(String, String)>);

impl Pairs {
    /// Reads `first,key=value,flag,noflag` or a JSON object, whose nested keys become dotted.
    pub(crate) fn read(option: &str, text: &str, implied: Option<&str>) -> Result<Self, SpecificationError> {
        if text.starts_with('{') {
            let object: Map<String, Value> =
                serde_json::from_str(text).ok().ok_or_else(|| bad(option, "no JSON"))?;
            let mut pairs = Self::default();
            pairs.flatten("", &object);
            return Ok(pairs);
        }
        let mut pairs = Vec::new();
        for (at, part) in split_commas(text).into_iter().enumerate() {
            let pair = match (part.split_once('='), implied) {
                (Some((key, value)), _) => (key.to_owned(), value.to_owned()),
                (None, Some(key)) if at == 0 => (key.to_owned(), part),
                (None, _) if part.is_empty() => continue,
                // `server`, `nowait`: the old way to write on and off.
                (None, _) => match part.strip_prefix("no").filter(|key| OLD_FLAGS.contains(key)) {
                    Some(key) => (key.to_owned(), "off".to_owned()),
                    None => (part, "on".to_owned()),
                },
            };
            pairs.push(pair);
        }
        Ok(Self(pairs))
    }

    fn flatten(&mut self, prefix: &str, object: &Map<String, Value>) {
        for (key, value) in object {
            let key = format!("{prefix}{key}");
            match value {
                Value::Object(inner) => self.flatten(&format!("{key}."), inner),
                Value::String(text) => self.0.push((key, text.clone())),
                Value::Bool(true) => self.0.push((key, "on".to_owned())),
                Value::Bool(false) => self.0.push((key, "off".to_owned())),
                // Explicitly nothing: `"backing": null`.
                Value::Null => {}
                Value::Number(_) | Value::Array(_) => self.0.push((key, value.to_string())),
            }
        }
    }

    /// Takes a key out: the last one counts, as in QEMU.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().rposition(|(name, _)| name == key)?;
        let value = self.0.remove(at).1;
        self.0.retain(|(name, _)| name != key);
        Some(value)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Takes out all the keys that start so.
    pub(crate) fn take_prefix(&mut self, prefix: &str) -> Self {
        let (inner, outer) =
            std::mem::take(&mut self.0).into_iter().partition(|(key, _)| key.starts_with(prefix));
        self.0 = outer;
        let inner: Vec<(String, String)> = inner;
        Self(inner.into_iter().map(|(key, value)| (key[prefix.len()..].to_owned(), value)).collect())
    }

    /// What nobody took.
    pub(crate) fn rest(self) -> Vec<(String, String)> {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Flags that were written with a leading `no`.
const OLD_FLAGS: &[&str] = &["wait", "delay", "mux"];

/// Parts between commas; two commas are one that is meant.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

/// `on` and its relatives.
pub(crate) fn flag(option: &str, text: &str) -> Result<bool, SpecificationError> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(bad(option, "on or off expected")),
    }
}

pub(crate) fn number<N: std::str::FromStr>(option: &str, text: &str) -> Result<N, SpecificationError> {
    text.parse().ok().ok_or_else(|| bad(option, "a number expected"))
}

/// A size in bytes; without a suffix in units of `unit`.
pub(crate) fn size(option: &str, text: &str, unit: u64) -> Result<u64, SpecificationError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => unit,
        "b" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return Err(bad(option, "a size expected, such as 512M")),
    };
    let count: u64 = number(option, digits)?;
    count.checked_mul(unit).ok_or_else(|| bad(option, "this size is too large"))
}

pub(crate) fn bad(option: &str, why: &'static str) -> SpecificationError {
    SpecificationError::Argument { option: format!("-{option}"), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        Pairs::read("x", text, Some("driver")).unwrap().rest()
    }

    #[test]
    fn lists_are_read_as_qemu_reads_them() {
        let owned = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(
            pairs("file,filename=/a,,b,ro"),
            owned(&[("driver", "file"), ("filename", "/a,b"), ("ro", "on")])
        );
        assert_eq!(
            pairs("unix:/x,server,nowait"),
            owned(&[("driver", "unix:/x"), ("server", "on"), ("wait", "off")])
        );
        let json =
            pairs(r#"{"driver":"raw","file":{"driver":"file","filename":"/a,b"},"ro":true,"n":3,"z":null}"#);
        let expected = owned(&[
            ("driver", "raw"),
            ("file.driver", "file"),
            ("file.filename", "/a,b"),
            ("n", "3"),
            ("ro", "on"),
        ]);
        let mut json = json;
        json.sort();
        assert_eq!(json, expected);
        assert!(Pairs::read("x", "{", None).is_err());
    }

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(size("m", "512", 1 << 20).unwrap(), 512 << 20);
        assert_eq!(size("m", "2G", 1 << 20).unwrap(), 2 << 30);
        for bad in ["", "G", "1X", "1.5G", "99999999999T", "-1"] {
            assert!(size("m", bad, 1).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_take_their_values() {
        let line: Vec<_> =
            ["qemu", "-S", "-append", "-x", "--m", "1G", "-daemonize", "disk.img", "-odd", "-q"]
                .map(String::from)
                .into();
        let found: Vec<_> =
            split(&line).into_iter().map(|argument| (argument.name, argument.value)).collect();
        let expected = [
            ("S", ""),
            ("append", "-x"),
            ("m", "1G"),
            ("daemonize", ""),
            ("", "disk.img"),
            ("odd", ""),
            ("q", ""),
        ];
        assert_eq!(found, expected);
    }
}
