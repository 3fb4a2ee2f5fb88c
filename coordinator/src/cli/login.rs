//! `login`: a coordinator becomes a context.

use std::io::{IsTerminal, Read};

use clap::Args;
use model::Name;
use serde_json::{Value, json};
use service::PinError;

use super::config::absolute;
use super::show::said;
use crate::client::Client;
use crate::config::{Asked, File, Key, checked_url, write};
use crate::failure::Failure;
use crate::output::Format;

/// Longest token that is read, bytes: a JWT has a few thousand at most.
const MOST_TOKEN: u64 = 16 << 10;

#[derive(Debug, Args)]
#[command(after_help = "\
The coordinator proves to be of the CA with this fingerprint, or of that in --ca FILE, before a
token is sent. Its log says the fingerprint when it starts, and on its machine so does:
  openssl x509 -noout -fingerprint -sha256 -in /var/lib/novaferry-coordinator/ca.pem

The token is read from the terminal without echo, from stdin, or from --token-file, and tried. What
is read from a terminal or stdin is kept beside the configuration, for this user alone; of a
--token-file its path is kept.

Examples:
  novaferry login https://coordinator.example:7443 --ca-fingerprint 3f:9a:… --name prod
  pass show novaferry | novaferry login https://coordinator.example:7443 --ca ca.pem")]
pub(super) struct LoginArgs {
    /// The coordinator's API.
    #[arg(value_name = "API")]
    api: String,
    /// SHA-256 of its CA's certificate: 64 hexadecimal digits, with or without colons.
    #[arg(long, value_name = "SHA256", value_parser = fingerprint)]
    ca_fingerprint: Option<Pin>,
    /// The context's name; the coordinator's host name if not given.
    #[arg(long)]
    name: Option<Name>,
}

/// A fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pin([u8; 32]);

pub(super) fn fingerprint(text: &str) -> Result<Pin, String> {
    // As openssl prints it.
    let digits = text.rsplit('=').next().unwrap_or_default().replace(':', "");
    let byte = |at: usize| digits.get(2 * at..2 * at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let bytes: Vec<_> = (0..32).map_while(byte).collect();
    let pin = bytes.try_into().ok().filter(|_| digits.len() == 64 && !digits.contains('+')).map(Pin);
    pin.ok_or_else(|| "write the 64 hexadecimal digits of a SHA-256, with or without colons".to_owned())
}

pub(super) fn login(args: LoginArgs, asked: &Asked, format: Format) -> Result<(), Failure> {
    let LoginArgs { api, ca_fingerprint, name } = args;
    let url = checked_url(&api)?;
    let (address, host) = authority(url)?;
    let name = match name {
        Some(name) => name,
        None => host.to_lowercase().parse().map_err(|error: model::name::InvalidName| {
            Failure::told("usage", &error.to_string()).advising("name the context with --name").usage()
        })?,
    };
    let file = File::read()?;
    let folder = file.folder()?;
    let ca = match (ca_fingerprint, asked.flag(Key::Ca)) {
        (Some(Pin(pin)), None) => pinned(&address, pin)?,
        (None, Some(path)) => std::fs::read_to_string(path).map_err(|error| {
            Failure::new("access", format!("cannot read {path}: {error}"), "name a file that you may read")
                .usage()
        })?,
        (Some(_), Some(_)) | (None, None) => {
            let what = "a coordinator is known by its CA: by --ca-fingerprint, or by --ca";
            let advice = "give one of them; the coordinator's log says the fingerprint when it starts";
            return Err(Failure::new("usage", what, advice).usage());
        }
    };
    let (token, kept) = match asked.flag(Key::TokenFile) {
        Some(path) => (limited(&mut open(path)?, path)?, Some(absolute(path)?)),
        None => (typed(&address)?, None),
    };
    let from = kept.clone().unwrap_or_else(|| "the token's input".to_owned());
    let client = Client::new(url, &ca, "the coordinator's CA")?.with_token(&token, &from);
    // Whoever may look may log in. What is wrong is said before anything is kept.
    client.get::<Value>("/v1/hosts?limit=1")?;

    let ca_file = folder.join(format!("{name}.ca.pem"));
    write(&ca_file, ca.as_bytes())?;
    let token_file = match kept {
        Some(path) => path,
        None => {
            let path = folder.join(format!("{name}.token"));
            write(&path, format!("{token}\n").as_bytes())?;
            path.display().to_string()
        }
    };
    let ca_file = ca_file.display().to_string();
    file.set(&name, &[(Key::Url, url), (Key::TokenFile, &token_file), (Key::Ca, &ca_file)], true)?;
    let shown = json!({ "context": name, "url": url, "token_file": token_file, "ca": ca_file });
    said(format, &shown, &format!("context {name} is {url}, and the current one"));
    Ok(())
}

/// `HOST:PORT`, and the host, of a checked address.
fn authority(url: &str) -> Result<(String, String), Failure> {
    let invalid = || Failure::new("usage", format!("{url:?} has no host"), "write https://HOST:PORT").usage();
    let uri: ureq::http::Uri = url.parse().map_err(|_invalid| invalid())?;
    let host = uri.host().ok_or_else(invalid)?;
    Ok((format!("{host}:{}", uri.port_u16().unwrap_or(443)), host.to_owned()))
}

fn pinned(address: &str, pin: [u8; 32]) -> Result<String, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Failure::new("runtime", format!("cannot start: {error}"), "check the limits of this process")
    })?;
    runtime.block_on(service::authority_at(address, pin)).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let (code, advice) = match &error {
            PinError::Other { .. } => {
                ("untrusted", "compare the fingerprint with the coordinator's; no token was sent")
            }
            _ => ("unreachable", "check the address, and that the coordinator runs"),
        };
        Failure::new(code, format!("{error}{cause}"), advice)
    })
}

fn open(path: &str) -> Result<std::fs::File, Failure> {
    std::fs::File::open(path).map_err(|error| {
        let what = format!("cannot read the token {path}: {error}");
        Failure::new("access", what, "name a file that you may read with --token-file").usage()
    })
}

fn limited(from: &mut dyn Read, name: &str) -> Result<String, Failure> {
    let refused = |why: &str| {
        let what = format!("{name} holds no token: {why}");
        Failure::new("access", what, "`novaferry token make` prints one").usage()
    };
    let mut text = String::new();
    from.take(MOST_TOKEN + 1).read_to_string(&mut text).map_err(|error| refused(&error.to_string()))?;
    let token = text.trim();
    match token {
        "" => Err(refused("it is empty")),
        _ if text.len() as u64 > MOST_TOKEN => Err(refused("it is too long")),
        _ if !token.bytes().all(|byte| byte.is_ascii_graphic()) => Err(refused("it has several words")),
        _ => Ok(token.to_owned()),
    }
}

/// A token that somebody types, unseen, or that a pipe brings.
fn typed(address: &str) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return limited(&mut std::io::stdin(), "stdin");
    }
    let text = rpassword::prompt_password(format!("API token for {address}: ")).map_err(|error| {
        Failure::new("access", format!("cannot read the token: {error}"), "name its file with --token-file")
    })?;
    limited(&mut text.as_bytes(), "what was typed")
}
