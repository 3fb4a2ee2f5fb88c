//! `pki`: a CA for hosts without a coordinator.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::OutputArg;
use crate::failure::Failure;
use crate::output::{self, Format};
use pki::{
    self, Authority, CA_DAYS, CertificateReport, CrlReport, InvalidPeerName, IssueOptions, Issued, LEAF_DAYS,
    PeerName, RevokeReport, RevokeTarget, Serial,
};

#[derive(Debug, Args)]
pub(super) struct PkiArgs {
    #[command(subcommand)]
    command: PkiCommand,
    /// What to print.
    #[arg(long, value_enum, default_value_t, global = true)]
    output: OutputArg,
}

#[derive(Debug, Subcommand)]
enum PkiCommand {
    /// Makes a CA in a new folder. Its key never leaves that folder: keep it off the hosts.
    #[command(after_help = "Example:\n  novaferry-agent pki init ca")]
    Init {
        /// The folder to make.
        #[arg(value_name = "CA")]
        folder: PathBuf,
        /// How long the CA's certificate is valid.
        #[arg(long, value_name = "DAYS", default_value_t = CA_DAYS)]
        days: u32,
    },
    /// Makes a host's identity: a folder with its key, certificate, CA and revocation list.
    #[command(after_help = "\
Examples:
  novaferry-agent pki issue host-a --ca ca --out hosts
  novaferry-agent pki issue host-a --ca ca --out hosts --renew")]
    Issue {
        /// The host's name: a-z, 0-9, '.' and '-'.
        #[arg(value_name = "NAME", value_parser = peer_name)]
        name: PeerName,
        /// The CA's folder.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Where to make the folder NAME; outside the CA's folder.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long the certificate is valid.
        #[arg(long, value_name = "DAYS", default_value_t = LEAF_DAYS)]
        days: u32,
        /// Replace the host's key and certificate. Revoke the old one by its serial afterwards.
        #[arg(long)]
        renew: bool,
    },
    /// Revokes a host's certificates, or one by its serial, and signs a new revocation list.
    #[command(after_help = "\
Examples:
  novaferry-agent pki revoke host-a --ca ca --publish hosts/host-b
  novaferry-agent pki revoke --serial 4f2a... --ca ca")]
    Revoke {
        /// Every certificate of this host.
        #[arg(value_name = "NAME", value_parser = peer_name, required_unless_present = "serial", conflicts_with = "serial")]
        name: Option<PeerName>,
        /// Only the certificate with this serial number.
        #[arg(long, value_name = "SERIAL", value_parser = serial)]
        serial: Option<Serial>,
        /// The CA's folder.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Copy the new list into these hosts' folders; daemons there pick it up by themselves.
        #[arg(long, value_name = "DIR", num_args = 1..)]
        publish: Vec<PathBuf>,
    },
    /// Signs a new revocation list; the old one is due after 30 days.
    #[command(after_help = "Example:\n  novaferry-agent pki crl --ca ca --publish hosts/host-a hosts/host-b")]
    Crl {
        /// The CA's folder.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Copy the new list into these hosts' folders.
        #[arg(long, value_name = "DIR", num_args = 1..)]
        publish: Vec<PathBuf>,
    },
    /// Shows a host's certificate.
    #[command(after_help = "Example:\n  novaferry-agent pki show hosts/host-a")]
    Show {
        /// The host's folder.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

fn peer_name(text: &str) -> Result<PeerName, InvalidPeerName> {
    text.parse()
}

fn serial(text: &str) -> Result<Serial, pki::PkiError> {
    text.parse()
}

pub(super) fn run(args: PkiArgs) -> (Format, Result<(), Failure>) {
    let format = args.output.into();
    (format, execute(args.command, format))
}

fn execute(command: PkiCommand, format: Format) -> Result<(), Failure> {
    let now = SystemTime::now();
    match command {
        PkiCommand::Init { folder, days } => {
            let authority = Authority::init(&folder, days, now)?;
            print(format, &Made { folder: authority.folder().to_owned() });
        }
        PkiCommand::Issue { name, ca, out, days, renew } => {
            let issued = Authority::open(&ca)?.issue(&name, &out, IssueOptions { days, renew }, now)?;
            print(format, &IssuedText(issued));
        }
        PkiCommand::Revoke { name, serial, ca, publish } => {
            let target = match (name, serial) {
                (Some(name), None) => RevokeTarget::Name(name),
                (None, Some(serial)) => RevokeTarget::Serial(serial),
                _ => return Err(Failure::usage("name a host or a serial", "see `pki revoke --help`")),
            };
            let mut authority = Authority::open(&ca)?;
            let report = authority.revoke(&target, now)?;
            let published = authority.publish_crl(&publish)?;
            print(format, &Revoked { report, published });
        }
        PkiCommand::Crl { ca, publish } => {
            let mut authority = Authority::open(&ca)?;
            let list = authority.sign_crl(now)?;
            let published = authority.publish_crl(&publish)?;
            print(format, &Signed { list, published });
        }
        PkiCommand::Show { folder } => print(format, &Shown(pki::show(&folder, now)?)),
    }
    Ok(())
}

fn print(format: Format, value: &(impl Serialize + Display)) {
    match format {
        Format::Text => output::line(&value.to_string()),
        Format::Json => output::json(value),
    }
}

#[derive(Serialize)]
struct Made {
    folder: PathBuf,
}

impl Display for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CA in {}; keep ca.key there secret, and back the folder up", self.folder.display())
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct IssuedText(Issued);

impl Display for IssuedText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nfolder       {}", self.0.certificate, self.0.folder.display())?;
        for serial in &self.0.still_valid {
            write!(f, "\nstill valid  {serial}; revoke it when the host uses the new certificate")?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Revoked {
    #[serde(flatten)]
    report: RevokeReport,
    published: Vec<PathBuf>,
}

impl Display for Revoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for serial in &self.report.revoked {
            writeln!(f, "revoked      {serial} of {}", self.report.name)?;
        }
        list(f, &self.report.crl, &self.published)
    }
}

#[derive(Serialize)]
struct Signed {
    #[serde(flatten)]
    list: CrlReport,
    published: Vec<PathBuf>,
}

impl Display for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        list(f, &self.list, &self.published)
    }
}

fn list(f: &mut std::fmt::Formatter<'_>, list: &CrlReport, published: &[PathBuf]) -> std::fmt::Result {
    write!(
        f,
        "list         number {} with {} certificates, {}",
        list.number,
        list.revoked,
        list.path.display()
    )?;
    if published.is_empty() {
        write!(f, "\nnext         copy it to every host as crl.pem")?;
    }
    for path in published {
        write!(f, "\npublished    {}", path.display())?;
    }
    Ok(())
}

#[derive(Serialize)]
#[serde(transparent)]
struct Shown(CertificateReport);

impl Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
