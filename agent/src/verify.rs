//! `verify`: whether a volume is what a receipt states, and whether the receiver it names signed that.

mod key;
mod scan;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use engine::ends::LocalVolume;
use engine::process::{Process, SessionLimits};
use engine::progress::Progress;
use engine::receipt::Receipt;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::failure::Failure;
use crate::output::{self, Format, bytes, progress};
use crate::{copy, signals, state};
use pki::TrustStore;

/// What `verify` was asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The receipt's file.
    pub receipt: PathBuf,
    /// The volume.
    pub volume: LocalVolume,
    /// Folder with `ca.pem` and perhaps `crl.pem`.
    pub trust: Option<PathBuf>,
    /// The hash key, or a folder of keys.
    pub key: Option<PathBuf>,
    /// Configuration whose pools' keys are tried.
    pub config: Option<PathBuf>,
    /// State folder of `copy`.
    pub state: Option<PathBuf>,
    /// For whom to print.
    pub output: Format,
}

/// What was found.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Verdict {
    content: &'static str,
    signature: &'static str,
    signer: Option<String>,
    volume: String,
    logical_bytes: u64,
    root: String,
    seconds: f64,
}

/// Largest file that is read as a receipt.
const MAX_RECEIPT: u64 = wire::control::MAX_RECEIPT as u64;

/// Verifies.
///
/// # Errors
/// When the content differs, the signature is not good though it was to be checked, or something cannot be read.
pub async fn run(settings: Settings) -> Result<(), Failure> {
    let begun = Instant::now();
    let receipt = read(&settings.receipt)?;
    let signer = match &settings.trust {
        None => {
            tracing::warn!("signature not checked: pass --trust DIR with the ca.pem of the receiver's CA");
            None
        }
        Some(folder) => Some(copy::receipt::signer(&receipt, &TrustStore::load(folder)?)?),
    };
    let config = match &settings.config {
        Some(path) => Some(Config::load(path)?.0),
        None => None,
    };
    let key = key::find(&receipt, settings.key.as_deref(), config.as_ref(), settings.state.clone())?;
    let (stop, cancel) = (CancellationToken::new(), CancellationToken::new());
    signals::stop_on_signals(stop.clone(), cancel)?;
    let counters = Arc::new(Progress::default());
    let ended = CancellationToken::new();
    let shown = tokio::spawn(progress::show(Arc::clone(&counters), settings.output, ended.clone()));
    let process = Process::start(SessionLimits::default(), disk::Backend::Auto)?;
    let found = tokio::select! {
        found = scan::root(&process, &settings.volume, key, receipt.body.size, &counters) => found,
        () = stop.cancelled() => Err(engine::EngineError::Interrupted.into()),
    };
    ended.cancel();
    if let Err(error) = shown.await {
        tracing::error!(%error, "showing progress failed; this is a bug");
    }
    let root = found?;
    if root != receipt.body.root {
        return Err(Failure::new(
            "differs",
            format!(
                "{} is not what the receipt states: its root is {root}, the receipt's is {}",
                settings.volume.label()?,
                receipt.body.root
            ),
            "it was changed since, or it is another volume; copy it again with --resync full",
        ));
    }
    let verdict = Verdict {
        content: "equal",
        signature: if signer.is_some() { "verified" } else { "not checked" },
        signer: signer.map(|signer| signer.name.to_string()),
        volume: settings.volume.label()?,
        logical_bytes: receipt.body.size,
        root,
        seconds: begun.elapsed().as_secs_f64(),
    };
    match settings.output {
        Format::Json => output::json(&verdict),
        Format::Text => output::line(&verdict.text()),
    }
    Ok(())
}

impl Verdict {
    fn text(&self) -> String {
        let signature = match &self.signer {
            Some(name) => format!("signed by {name}, signature verified"),
            None => "SIGNATURE NOT CHECKED (pass --trust DIR)".to_owned(),
        };
        format!(
            "equal: {} ({}) is what the receipt states; {signature}\nroot {}",
            self.volume,
            bytes(self.logical_bytes),
            self.root
        )
    }
}

fn read(path: &Path) -> Result<Receipt, Failure> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_RECEIPT + 1).read_to_end(&mut bytes)).map_err(
        |error| {
            let what = format!("cannot read the receipt {}: {error}", path.display());
            Failure::new(
                "receipt",
                what,
                "check the path; `copy` keeps receipts in receipts/ of its state folder",
            )
        },
    )?;
    Receipt::parse(&bytes).map_err(|error| {
        Failure::new("receipt", format!("{}: {error}", path.display()), "name a receipt that `copy` wrote")
    })
}

/// Where `copy` keeps keys, if there is such a folder.
fn keys_of_copies(asked: Option<PathBuf>) -> Option<PathBuf> {
    let folder = state::existing(asked)?.join("keys");
    folder.is_dir().then_some(folder)
}
