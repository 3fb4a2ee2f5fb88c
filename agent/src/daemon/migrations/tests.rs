use std::path::PathBuf;
use std::time::SystemTime;

use engine::migrate::status::Choice;
use engine::process::SessionLimits;

use super::*;
use crate::control::migration::{Migrate, Mode, Shown};
use crate::credentials;
use pki::{Authority, CA_DAYS, Identity, IssueOptions};

/// How often a state is looked at, and how many times, before a test gives up.
const LOOK: (Duration, u32) = (Duration::from_millis(20), 1500);

struct Host {
    folder: tempfile::TempDir,
    config: Config,
    with: With,
    _shows: watch::Sender<Shows>,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let mut authority = Authority::init(&folder.path().join("ca"), CA_DAYS, now).unwrap();
        let name = "host-a".parse().unwrap();
        let hosts = folder.path().join("hosts");
        let issued = authority.issue(&name, &hosts, IssueOptions::default(), now).unwrap();
        let identity = Identity::load(&issued.folder, now).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "state_dir = {:?}\n[vms]\nfolder = {:?}\nvmd = {:?}\nruntime = {:?}\n[[vm]]\nname = \"web\"\nqmp = {:?}\n\
             [limits]\nmigrations = 1",
            path("state"),
            path("vms"),
            path("vmd.sock"),
            path("run"),
            path("web.sock"),
        );
        let (config, _) = Config::parse(&text, None).unwrap();
        let shows = Shows {
            credentials: credentials::of(&identity).unwrap(),
            signer: Arc::new(credentials::signer(&identity)),
        };
        let (sender, shows) = watch::channel(shows);
        let limits = SessionLimits { buffers: 16, dedup_memory: 0, window_bytes: 1 << 20 };
        let with = With {
            process: Process::start(limits, disk::Backend::Plain).unwrap(),
            pools: Arc::default(),
            shows,
            stop: CancellationToken::new(),
        };
        Self { folder, config, with, _shows: sender }
    }

    fn records(&self) -> Records {
        Records::open(&self.config.state).unwrap()
    }

    /// A source's record as an earlier daemon left it. Nobody listens at its address.
    fn leave(&self, migration: SessionId, vm: &str, state: SourceState) -> Record {
        let role = Role::Source {
            state,
            address: "127.0.0.1:1".to_owned(),
            alternates: Vec::new(),
            qmp: self.folder.path().join("web.sock").display().to_string(),
            folder: None,
            process: None,
            fenced: false,
            was_paused: false,
        };
        let mut record = Record::new(migration, vm, "host-b", role);
        self.records().save(&mut record).unwrap();
        record
    }

    fn start(&self) -> (Desk, tokio::task::JoinHandle<()>) {
        let (migrations, desk) = Migrations::open(&self.config, self.with.clone()).unwrap();
        (desk, tokio::spawn(migrations.run()))
    }

    async fn stop(&self, task: tokio::task::JoinHandle<()>) {
        self.with.stop.cancel();
        task.await.unwrap();
    }
}

async fn when(desk: &Desk, id: &str, reached: impl Fn(&Shown) -> bool) -> Shown {
    for _ in 0..LOOK.1 {
        let shown = desk.find(id).await.unwrap();
        if reached(&shown) {
            return shown;
        }
        tokio::time::sleep(LOOK.0).await;
    }
    panic!("migration {id} never came so far: {:?}", desk.find(id).await);
}

#[tokio::test]
async fn what_was_left_is_taken_up_and_obeys() {
    let host = Host::new();
    let doubtful = SessionId([0xab; 16]);
    host.leave(doubtful, "web", SourceState::InDoubt);
    host.leave(SessionId([0xac; 16]), "old", SourceState::RolledBack("cancelled".to_owned()));
    let heard = SessionId([0xad; 16]);
    host.leave(heard, "gone", SourceState::Finalised);
    host.records().keep_receipts(heard, "[]\n").unwrap();
    let unheard = SessionId([0xae; 16]);
    host.leave(unheard, "going", SourceState::Finalised);
    let (desk, task) = host.start();

    let over = |id: SessionId| {
        let desk = desk.clone();
        async move { desk.find(&id.to_string()).await.unwrap().over }
    };
    assert!(!over(doubtful).await);
    assert!(over(heard).await);
    assert!(!over(unheard).await, "the destination was never told");
    assert_eq!(desk.list().await.unwrap().len(), 4);
    let ambiguous = desk.find("a").await.unwrap_err();
    assert!(ambiguous.contains("begins several migrations"), "{ambiguous}");
    assert!(desk.find("b").await.unwrap_err().contains("no migration b here"));
    assert!(desk.find("../x").await.unwrap_err().contains("hexadecimal digits"));

    let refused = desk.command("ab", Command::Cancel).await.unwrap_err();
    assert!(refused.contains("migration resolve abababab --keep source --other-side-is-off"), "{refused}");
    let refused = desk.command("ab", Command::Finalise).await.unwrap_err();
    assert!(refused.contains("not known to run"), "{refused}");
    let refused = desk.command("ac", Command::Cancel).await.unwrap_err();
    assert_eq!(refused, "migration acacacac is over (rolled-back)");

    // Its QEMU is gone, so what can be had is the truth that it runs nowhere.
    assert_eq!(desk.command("ab", Command::Resolve(Choice::Source)).await.unwrap(), doubtful.to_string());
    let ended = when(&desk, "ab", |shown| shown.over).await;
    assert_eq!(ended.status.record.state_name(), "stopped");
    let recorded = host.records().load(doubtful).unwrap().unwrap();
    assert_eq!(recorded.state_name(), "stopped");
    host.stop(task).await;
}

#[tokio::test]
async fn one_migration_of_a_vm_at_a_time() {
    let host = Host::new();
    let first = SessionId([0xab; 16]);
    host.leave(first, "web", SourceState::InDoubt);
    let (mut migrations, desk) = Migrations::open(&host.config, host.with.clone()).unwrap();
    migrations.resume();
    let second = host.leave(SessionId([0xcd; 16]), "web", SourceState::Preparing);
    let job = job::of_record(SessionId([0xcd; 16]), &second).unwrap();
    let refused = migrations.start(job, second).unwrap_err();
    assert!(refused.starts_with(&format!("migration {first} of VM web is not over (in-doubt)")), "{refused}");

    // Those that wait for somebody leave their place to others; those that move data do not.
    let third = host.leave(SessionId([0xef; 16]), "db", SourceState::Preparing);
    let job = job::of_record(SessionId([0xef; 16]), &third).unwrap();
    migrations.start(job, third).unwrap();
    let fourth = host.leave(SessionId([0x12; 16]), "mail", SourceState::Preparing);
    let job = job::of_record(SessionId([0x12; 16]), &fourth).unwrap();
    let refused = migrations.start(job, fourth).unwrap_err();
    assert!(refused.starts_with("1 migrations run here; wait"), "{refused}");
    drop(migrations);
    assert!(desk.list().await.unwrap_err().contains("the daemon is stopping"));
}

#[tokio::test]
async fn only_hosts_that_are_allowed_may_begin() {
    let mut host = Host::new();
    host.config.migrate_in.allow = vec!["host-b".parse().unwrap()];
    let (away, came) = (SessionId([1; 16]), SessionId([2; 16]));
    host.leave(away, "web", SourceState::InDoubt);
    let state = DestinationState::Burned("cancelled".to_owned());
    let mut record = Record::new(came, "db", "host-c", Role::Destination { state, disks: Vec::new() });
    host.records().save(&mut record).unwrap();
    let (migrations, _desk) = Migrations::open(&host.config, host.with.clone()).unwrap();
    let admit = |migration, peer: &str| migrations.admit(migration, peer).map_err(|(code, _)| code);
    let fresh = SessionId([3; 16]);
    assert_eq!(admit(fresh, "host-b"), Ok(None));
    assert_eq!(admit(fresh, "host-c"), Err(FailCode::NotAuthorised));
    assert_eq!(admit(away, "host-b"), Err(FailCode::NotAuthorised));
    assert_eq!(admit(came, "host-b"), Err(FailCode::NotAuthorised));
    // It may ask about what it began while it was allowed to.
    assert_eq!(admit(came, "host-c"), Ok(Some(record)));
}

#[tokio::test]
async fn what_cannot_be_moved_is_said() {
    let host = Host::new();
    let (desk, task) = host.start();
    let vms = desk.list_vms().await.unwrap();
    let web = vms.iter().find(|vm| vm.id == "web").unwrap();
    assert_eq!(web.state, "stopped");
    let refused = |migrate: Migrate| {
        let desk = desk.clone();
        async move { desk.migrate(&migrate).await.unwrap_err() }
    };
    let to = "novaferry://host-b";
    assert!(refused(Migrate::new("mail", to)).await.contains("there is no VM \"mail\" here"));
    assert!(refused(Migrate::new("web", to)).await.contains("the VM does not run"));
    let warm = Migrate { mode: Mode::Warm, ..Migrate::new("web", to) };
    assert!(refused(warm).await.contains("use --mode cold"));
    host.stop(task).await;
}

#[test]
fn what_is_asked_is_checked() {
    use hypervisor::inventory::{Access, Needs, State, Vm};
    let vm = Vm {
        id: "web".to_owned(),
        name: "Web".to_owned(),
        folder: Some(PathBuf::from("/vms/web")),
        process: None,
        state: State::Running,
        access: Access::Live { qmp: "/q".into() },
        config: None,
        needs: Needs::default(),
        findings: Vec::new(),
    };
    let migration = SessionId([1; 16]);
    let to = "novaferry://[::1]:99";
    let good = Migrate { peer: Some("host-b".to_owned()), ..Migrate::new("web", to) };
    let (made, record) = job::of_request(migration, &good, &vm).unwrap();
    let at = Way::At { host: "::1".to_owned(), port: 99 };
    assert_eq!(made.to, std::slice::from_ref(&at));
    assert_eq!(made.options.slots, 65_536);
    // What is written down is enough to find the destination again, and nothing is given up unasked.
    let again = job::of_record(migration, &record).unwrap();
    assert_eq!((again.to, again.options.hold), (vec![at.clone()], true));
    // A destination that dials needs no address, and is remembered as one.
    for (to, ways) in [("", vec![Way::Called]), (to, vec![at, Way::Called])] {
        let asked = Migrate { called: true, to: to.to_owned(), ..good.clone() };
        let (made, record) = job::of_request(migration, &asked, &vm).unwrap();
        assert_eq!((&made.to, &job::of_record(migration, &record).unwrap().to), (&ways, &ways));
    }
    let bad = |change: fn(&mut Migrate), expected: &str| {
        let mut asked = good.clone();
        change(&mut asked);
        let why = job::of_request(migration, &asked, &vm).unwrap_err();
        assert!(why.contains(expected), "{why}");
    };
    for (mode, known) in [(Mode::Live, "live"), (Mode::Warm, "warm")] {
        let (made, _) = job::of_request(migration, &Migrate { mode, ..good.clone() }, &vm).unwrap();
        assert_eq!((made.options.mode.name(), made.qmp.to_str()), (known, Some("/q")));
    }
    let off = Vm { state: State::Stopped, access: Access::Stopped, ..vm.clone() };
    let (made, _) = job::of_request(migration, &Migrate { mode: Mode::Cold, ..good.clone() }, &off).unwrap();
    assert_eq!((made.options.mode.name(), made.process), ("cold", None));
    bad(|asked| asked.mode = Mode::Cold, "cannot be moved cold: the VM runs");
    bad(|asked| asked.to = "host-b".to_owned(), "write novaferry://HOST:PORT");
    bad(|asked| asked.peer = Some("Host B".to_owned()), "not a host name");
    bad(|asked| asked.multifd = 9, "choose 0 to 8");
    bad(|asked| asked.ram_cache = 1 << 50, "write 1MiB to 64GiB");
    bad(|asked| asked.compress = Some(22), "choose -5 to 9");
    bad(|asked| asked.max_downtime_ms = 0, "choose 1 to 2000000 ms");
    bad(|asked| asked.timeout_ms = u64::MAX, "choose 1 to 604800000 ms");
}
