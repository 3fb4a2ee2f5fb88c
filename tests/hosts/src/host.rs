//! A host that says what a test tells it to say. Every function waits until it is done, and panics when it cannot be, or
//! takes half a minute.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use control_api::v1::from_agent::What as Said;
use control_api::v1::to_agent::What as Told;
use control_api::v1::{self, FromAgent, Intent, Progress};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::line::{self, Line};
use crate::{PATIENCE, fleet};

/// One runtime for all hosts of a process, as long as there is one.
static RUNTIME: Mutex<Weak<Runtime>> = Mutex::new(Weak::new());

fn runtime() -> Arc<Runtime> {
    let mut shared = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime starts");
        let runtime = Arc::new(runtime);
        *shared = Arc::downgrade(&runtime);
        runtime
    })
}

/// A host with its line. Its line ends when it is dropped.
#[derive(Debug)]
pub struct Host {
    // Before the runtime: it ends in there.
    line: Line,
    runtime: Arc<Runtime>,
}

impl Host {
    /// Joins the coordinator whose agents dial this `HOST:PORT`, and connects.
    #[must_use]
    pub fn join(agents: &str, token: &str, name: &str) -> Self {
        let runtime = runtime();
        let connect = async {
            let identity = line::join(agents, token, name).await.expect("it is let in");
            line::open(agents, &identity, line::hello(name, 0)).await.expect("a host has a line")
        };
        let line = runtime
            .block_on(async { timeout(PATIENCE, connect).await })
            .expect("the coordinator answers in time");
        Self { line, runtime }
    }

    /// Says that it has these VMs: id, name and state. All can be moved live.
    pub fn has(&self, vms: &[[&str; 3]]) {
        self.has_all(vms.iter().map(|[id, name, state]| fleet::vm(id, name, state)).collect());
    }

    /// Says that it has these VMs, with all that is known of them.
    pub fn has_all(&self, vms: Vec<v1::Vm>) {
        self.say(Said::Observed(v1::Observed { host: Some(fleet::machine()), vms }));
    }

    /// Waits for the next word of what is wanted of it.
    pub fn intent(&mut self) -> Intent {
        let Self { runtime, line } = self;
        runtime.block_on(async {
            let intent = async {
                loop {
                    let message = line.told.message().await.expect("the line holds");
                    if let Some(Told::Intent(intent)) = message.expect("the line goes on").what {
                        return intent;
                    }
                }
            };
            timeout(PATIENCE, intent).await.expect("something is wanted")
        })
    }

    /// Says where a migration stands here.
    pub fn moved(&self, progress: Progress) {
        self.say(Said::Moves(v1::Moves { migrations: vec![progress] }));
    }

    fn say(&self, what: Said) {
        let message = FromAgent { what: Some(what) };
        self.runtime.block_on(self.line.said.send(message)).expect("the line holds");
    }
}
