//! `serve`: the coordinator.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use sd_notify::NotifyState;
use service::{Access, KeySource, Limits, Reach, Secret, Service, ServiceError, Settings};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::keep::KeyFrom;
use crate::failure::Failure;
use crate::traces;

/// Name of the credential with NovaCron's secret (systemd, `LoadCredential=`).
const CREDENTIAL: &str = "auth-secret";

#[derive(Debug, Args)]
#[command(after_help = "\
The first start makes the CA and an administrator's token in the state folder: ca.pem is for people and programs that
ask, admin-token for the first of them. SIGTERM ends it; migrations go on, and agents dial again.
Environment: NOVAFERRY_LOG, a log filter such as \"info\" or \"novaferry_service=debug,info\"; AUTH_SECRET, NovaCron's
secret of 32 bytes or more, unless it is in a file or the credential auth-secret; OTEL_EXPORTER_OTLP_ENDPOINT, a
collector of traces such as http://127.0.0.1:4318, also for all other commands.

Examples:
  novaferry serve
  novaferry serve --database-file /etc/novaferry/database
  novaferry serve --state /srv/coordinator --api 0.0.0.0:7443 --name coordinator.example")]
pub(crate) struct ServeArgs {
    /// Folder of the database and the CA.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/novaferry-coordinator")]
    state: PathBuf,
    /// A PostgreSQL database that several coordinators share, as postgres://USER@HOST/NAME; one of them leads, the
    /// others stand by. A password belongs into --database-file or into the environment.
    #[arg(long, value_name = "URL", env = "NOVAFERRY_DATABASE", hide_env_values = true)]
    database: Option<String>,
    /// File with the address of the database.
    #[arg(long, value_name = "FILE", conflicts_with = "database")]
    database_file: Option<PathBuf>,
    #[command(flatten)]
    ca_key: KeyFrom,
    /// Where agents dial.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7444")]
    agents: SocketAddr,
    /// Where people and programs ask.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7443")]
    api: SocketAddr,
    /// Where Prometheus asks for /metrics: plain HTTP without a token, so keep it on this host. Nowhere if not given.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// A DNS name or address by which people reach it; give it several times for several.
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// Requests a second of one token; twice as many at once; 0 is no limit.
    #[arg(long, value_name = "N", default_value_t = 200)]
    rate_limit: u32,
    /// Requests a second of one address without a good token; twice as many at once; 0 is no limit.
    #[arg(long, value_name = "N", default_value_t = 20)]
    address_rate_limit: u32,
    /// Where webhooks may be sent: `public` is https to public addresses, `private` also http and addresses of private
    /// networks and of this host, `off` is nowhere.
    #[arg(long, value_name = "REACH", default_value = "public")]
    webhooks: Reach,
    /// File with NovaCron's AUTH_SECRET: bearers of its JWTs (HS256) are let in by their roles.
    #[arg(long, value_name = "FILE")]
    auth_secret_file: Option<PathBuf>,
}

/// The secret that is shared with NovaCron, if there is one: by its flag, as a credential, or in the environment.
fn secret(file: Option<PathBuf>) -> Result<Option<Secret>, Failure> {
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY");
    let credential = credential.map(|folder| PathBuf::from(folder).join(CREDENTIAL));
    let path = file.or_else(|| credential.filter(|path| path.exists()));
    let text = match &path {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            let what = format!("cannot read {}: {error}", path.display());
            Failure::new("access", what, "let this service's user read it").usage()
        })?,
        None => match std::env::var("AUTH_SECRET") {
            Ok(text) => text,
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(error @ std::env::VarError::NotUnicode(_)) => {
                drop(error);
                return Err(
                    Failure::new("access", "AUTH_SECRET is not UTF-8", "use the one of NovaCron").usage()
                );
            }
        },
    };
    let secret = Secret::new(&text).map_err(|error| Failure::told("access", &error.to_string()).usage())?;
    Ok(Some(secret))
}

/// The address of the database, if one is named; never with a password that other users of this machine can see.
fn database(args: &ServeArgs) -> Result<Option<String>, Failure> {
    if let Some(file) = &args.database_file {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let what = format!("cannot read {}: {error}", file.display());
            Failure::new("database", what, "write the database's address into it").usage()
        })?;
        return Ok(Some(text.trim().to_owned()));
    }
    let by_argument =
        std::env::args_os().any(|argument| argument.to_string_lossy().starts_with("--database"));
    let address = args.database.as_deref().and_then(|url| url.split_once("://")?.1.split_once('@'));
    if by_argument && address.is_some_and(|(user, _)| user.contains(':')) {
        let what = "a password on the command line is seen by every user of this machine";
        return Err(
            Failure::new("database", what, "write the address into a file, for --database-file").usage()
        );
    }
    Ok(args.database.clone())
}

pub(crate) fn run(mut args: ServeArgs) -> Result<(), Failure> {
    args.database = database(&args)?;
    let filter = std::env::var("NOVAFERRY_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(&filter).map_err(|error| {
        Failure::new("log", format!("NOVAFERRY_LOG is no filter: {error}"), "write \"info\", for example")
            .usage()
    })?;
    traces::service(filter, || run_to_the_end(args))
}

fn run_to_the_end(mut args: ServeArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| {
        Failure::new("runtime", format!("cannot start threads: {error}"), "check the limits of this process")
    })?;
    let access = Access {
        limits: Limits {
            caller: NonZeroU32::new(args.rate_limit),
            address: NonZeroU32::new(args.address_rate_limit),
        },
        secret: secret(args.auth_secret_file.clone())?,
    };
    let ca_key = std::mem::take(&mut args.ca_key).source()?;
    runtime.block_on(serve(args, ca_key, access)).map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Failure::told("serve", &text)
    })
}

async fn serve(args: ServeArgs, ca_key: KeySource, access: Access) -> Result<(), ServiceError> {
    let ServeArgs { state, database, agents, api, metrics, name, webhooks, .. } = args;
    let stop = CancellationToken::new();
    // Before anything that others can see: a signal that comes early must not kill.
    let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    for waiting in signals {
        let mut waiting = waiting.map_err(|error| ServiceError::Internal(error.to_string()))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            waiting.recv().await;
            stop.cancel();
        });
    }
    let settings = Settings { state, database, ca_key, agents, api, metrics, names: name, access, webhooks };
    let opened = Service::open(settings);
    let service = tokio::select! {
        service = opened => service?,
        // One that stands by may do so for long.
        () = stop.cancelled() => return Ok(()),
    };
    let address = |found: std::io::Result<SocketAddr>| found.map(|a| a.to_string()).unwrap_or_default();
    tracing::info!(agents = address(service.agents()), api = address(service.api()), "ready");
    tracing::info!(fingerprint = service.fingerprint(), "the CA, for `novaferry login`");
    if let Some(address) = service.metrics() {
        tracing::info!(%address, "metrics");
    }
    notify(NotifyState::Ready);
    let ended = service.run(stop.clone()).await;
    notify(NotifyState::Stopping);
    tracing::info!("stopped");
    ended
}

/// Tells systemd, if it is there.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
