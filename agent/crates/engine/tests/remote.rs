//! Pushes and pulls between two hosts over real tunnels on loopback, and what may go wrong.

#[path = "support/authority.rs"]
mod authority;
#[path = "support/hosts.rs"]
mod hosts;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use std::sync::atomic::Ordering;

use authority::Authority;
use hosts::{Host, context, dialler, dialler_as, raw, remote};
use novaferry_engine::EngineError;
use novaferry_engine::transfer::{Context, Dialler, LocalTarget, Summary, pull, push};
use tunnel::TransportChoice;
use volume::conformance::Dice;
use wire::{FailCode, Mode};

struct Pair {
    folder: tempfile::TempDir,
    authority: Authority,
    host: Option<Host>,
    quota: Option<u64>,
}

impl Pair {
    fn new() -> Self {
        Self::with_quota(None)
    }

    fn with_quota(quota: Option<u64>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let any = "127.0.0.1:0".parse().unwrap();
        let host = Some(Host::start(&authority, folder.path(), any, quota));
        Self { folder, authority, host, quota }
    }

    fn host(&self) -> &Host {
        self.host.as_ref().unwrap()
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    fn in_pool(&self, name: &str) -> PathBuf {
        self.folder.path().join("pool").join(name)
    }

    fn sidecar(&self, name: &str) -> PathBuf {
        self.folder.path().join("pool/.novaferry/volumes").join(name)
    }

    fn context(&self, mode: Mode) -> Context {
        context(self.folder.path(), mode)
    }

    fn dialler(&self, transport: TransportChoice) -> Dialler {
        dialler(&self.authority, self.host().address, transport)
    }

    async fn push_with(&self, context: &Context, name: &str) -> Result<Summary, EngineError> {
        push(context, &raw(self.source()), &self.dialler(TransportChoice::Quic), &remote(name)).await
    }

    async fn push(&self, mode: Mode, name: &str) -> Result<Summary, EngineError> {
        self.push_with(&self.context(mode), name).await
    }

    /// Pushes to `disk` beside the test, which can watch the context and break things meanwhile.
    fn start_push(&self, context: &Context) -> tokio::task::JoinHandle<Result<Summary, EngineError>> {
        let (context, source) = (context.clone(), raw(self.source()));
        let dialler = self.dialler(TransportChoice::Quic);
        tokio::spawn(async move { push(&context, &source, &dialler, &remote("disk")).await })
    }

    /// Kills the host and starts it again over the same folders.
    async fn restart(&mut self) {
        let host = self.host.take().unwrap();
        let address = host.address;
        host.kill().await;
        self.host = Some(Host::start(&self.authority, self.folder.path(), address, self.quota));
    }

    fn assert_equal(&self, name: &str) {
        assert!(
            std::fs::read(self.source()).unwrap() == std::fs::read(self.in_pool(name)).unwrap(),
            "{name} differs from the source"
        );
    }
}

fn random(path: &Path, size: usize, seed: u64) {
    let mut bytes = vec![0; size];
    Dice::new(seed).fill(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Waits until so many bytes are settled.
async fn settled(context: &Context, bytes: u64) {
    while context.progress.settled.load(Ordering::Relaxed) < bytes {
        tokio::task::yield_now().await;
    }
}

fn code(result: Result<Summary, EngineError>) -> FailCode {
    let error = result.expect_err("it is refused");
    assert!(error.to_string().len() > 20, "says what to do: {error}");
    error.peer_code().unwrap_or_else(|| error.fail_code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_pushed_and_sealed_over_both_transports() {
    let pair = Pair::new();
    random(&pair.source(), (9 << 20) + 777, 1);
    for (name, transport) in [("by-quic", TransportChoice::Quic), ("by-tcp", TransportChoice::Tcp)] {
        let context = pair.context(Mode::Create);
        let summary =
            push(&context, &raw(pair.source()), &pair.dialler(transport), &remote(name)).await.unwrap();
        pair.assert_equal(name);
        assert_eq!(summary.receipt.body.volume, format!("fast/{name}"));
        assert_eq!(summary.receipt.body.owner, "a");
        assert!(summary.receipt.is_signed());
        assert!(!pair.sidecar(name).join("data").exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_connections_share_the_work() {
    let pair = Pair::new();
    random(&pair.source(), 24 << 20, 2);
    for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
        let mut dialler = pair.dialler(transport);
        dialler.options.connections = 3;
        let name = format!("three-by-{transport:?}").to_lowercase();
        push(&pair.context(Mode::Create), &raw(pair.source()), &dialler, &remote(&name)).await.unwrap();
        pair.assert_equal(&name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_receiver_resumes_where_its_journal_ends() {
    let mut pair = Pair::new();
    let size: u64 = 200 << 20;
    random(&pair.source(), usize::try_from(size).unwrap(), 3);
    let context = pair.context(Mode::Create);
    let pushed = pair.start_push(&context);
    settled(&context, 40 << 20).await;
    pair.restart().await;
    let error = pushed.await.unwrap().expect_err("the tunnel was lost");
    assert!(error.is_resumable(), "{error:?}");
    assert!(!pair.in_pool("disk").exists(), "an unsealed volume is invisible");
    let before = context.progress.snapshot();

    let context = pair.context(Mode::Create);
    let summary = pair.push_with(&context, "disk").await.unwrap();
    pair.assert_equal("disk");
    assert!(summary.resumed);
    assert!(summary.counters.payload <= size - before.settled + (64 << 20));
    assert!(summary.counters.resent <= 64 << 20, "{} bytes sent again", summary.counters.resent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_sender_drains_and_resumes() {
    let pair = Pair::new();
    random(&pair.source(), 120 << 20, 4);
    let context = pair.context(Mode::Create);
    let pushed = pair.start_push(&context);
    settled(&context, 20 << 20).await;
    context.stop.cancel();
    let error = pushed.await.unwrap().expect_err("it was stopped");
    assert!(matches!(error, EngineError::Interrupted), "{error:?}");
    let before = context.progress.snapshot();
    let summary = pair.push(Mode::Create, "disk").await.unwrap();
    pair.assert_equal("disk");
    // Drained: what was sent was acknowledged, so nothing is sent twice.
    assert_eq!(summary.counters.resent, 0);
    assert_eq!(summary.counters.payload + before.payload, 120 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_with_a_damaged_tail_is_cut_and_the_rest_sent_again() {
    let mut pair = Pair::new();
    random(&pair.source(), 100 << 20, 5);
    let context = pair.context(Mode::Create);
    let pushed = pair.start_push(&context);
    settled(&context, 40 << 20).await;
    let host = pair.host.take().unwrap();
    let address = host.address;
    host.kill().await;
    pushed.await.unwrap().expect_err("the tunnel was lost");
    let journal = File::options().write(true).read(true).open(pair.sidecar("disk").join("journal")).unwrap();
    let len = journal.metadata().unwrap().len();
    journal.write_all_at(&[0xff; 100], len / 2).unwrap();
    pair.host = Some(Host::start(&pair.authority, pair.folder.path(), address, None));
    pair.push(Mode::Create, "disk").await.unwrap();
    pair.assert_equal("disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_volume_is_served_from_the_owners_sealed_ones() {
    let pair = Pair::new();
    random(&pair.source(), 16 << 20, 6);
    pair.push(Mode::Create, "first").await.unwrap();
    // The same content, moved by one chunk, with something new in front.
    let old = std::fs::read(pair.source()).unwrap();
    let mut new = vec![0; 65_536];
    Dice::new(7).fill(&mut new);
    new.extend_from_slice(&old);
    std::fs::write(pair.source(), &new).unwrap();
    let summary = pair.push(Mode::Create, "second").await.unwrap();
    pair.assert_equal("second");
    assert_eq!(summary.counters.payload, 65_536);
    assert_eq!(summary.counters.dedup, 16 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_to_content_that_changed_is_answered_by_send_it() {
    let pair = Pair::new();
    random(&pair.source(), 8 << 20, 8);
    pair.push(Mode::Create, "first").await.unwrap();
    // The sealed volume is used and written to, so that its leaf table is wrong in places.
    let file = File::options().write(true).open(pair.in_pool("first")).unwrap();
    for chunk in [0, 5, 77] {
        file.write_all_at(b"changed by a guest", chunk * 65_536).unwrap();
    }
    drop(file);
    let summary = pair.push(Mode::Create, "second").await.unwrap();
    pair.assert_equal("second");
    assert!(summary.counters.payload >= 3 * 65_536, "{}", summary.counters.payload);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resync_over_the_network_sends_changed_pages() {
    let pair = Pair::new();
    random(&pair.source(), 32 << 20, 9);
    pair.push(Mode::Create, "disk").await.unwrap();
    for mode in [Mode::ResyncTrusted, Mode::ResyncFull] {
        let unchanged = pair.push(mode, "disk").await.unwrap();
        assert_eq!(unchanged.counters.payload, 0, "{mode:?}");
        let file = File::options().write(true).open(pair.source()).unwrap();
        let mut dice = Dice::new(10);
        let mut page = [0; 4096];
        for _ in 0..80 {
            dice.fill(&mut page);
            file.write_all_at(&page, dice.below(8192) * 4096).unwrap();
        }
        drop(file);
        let summary = pair.push(mode, "disk").await.unwrap();
        pair.assert_equal("disk");
        assert!(summary.counters.payload <= 80 * 4096, "{mode:?}: {}", summary.counters.payload);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_resync_resumes_and_stays_invisible_meanwhile() {
    let mut pair = Pair::new();
    let size = 150 << 20;
    random(&pair.source(), size, 11);
    pair.push(Mode::Create, "disk").await.unwrap();
    random(&pair.source(), size, 12);
    let context = pair.context(Mode::ResyncTrusted);
    let pushed = pair.start_push(&context);
    settled(&context, 20 << 20).await;
    pair.restart().await;
    pushed.await.unwrap().expect_err("the tunnel was lost");
    assert!(!pair.in_pool("disk").exists(), "an inconsistent volume is invisible");
    let pulled = pull(
        &pair.context(Mode::Create),
        &pair.dialler(TransportChoice::Quic),
        &remote("disk"),
        &target(&pair),
    )
    .await;
    assert_eq!(code(pulled), FailCode::NotFound);
    pair.push(Mode::ResyncTrusted, "disk").await.unwrap();
    pair.assert_equal("disk");
}

fn target(pair: &Pair) -> LocalTarget {
    LocalTarget {
        volume: raw(pair.folder.path().join("pulled")),
        owner: "local".to_owned(),
        receiver: "a".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_pulled() {
    let pair = Pair::new();
    random(&pair.source(), (20 << 20) + 5, 13);
    pair.push(Mode::Create, "disk").await.unwrap();
    let summary = pull(
        &pair.context(Mode::Create),
        &pair.dialler(TransportChoice::Quic),
        &remote("disk"),
        &target(&pair),
    )
    .await
    .unwrap();
    assert!(
        std::fs::read(pair.source()).unwrap() == std::fs::read(pair.folder.path().join("pulled")).unwrap()
    );
    assert_eq!(summary.receipt.body.size, (20 << 20) + 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_names_quotas_and_modes_are_kept() {
    let pair = Pair::with_quota(Some(10 << 20));
    random(&pair.source(), 6 << 20, 14);
    pair.push(Mode::Create, "disk").await.unwrap();
    assert_eq!(code(pair.push(Mode::Create, "disk").await), FailCode::Exists);
    assert_eq!(code(pair.push(Mode::Create, "second").await), FailCode::Quota);
    for bad in ["../x", "a/b", ".novaferry", "", "UPPER"] {
        assert_eq!(code(pair.push(Mode::Create, bad).await), FailCode::BadName, "{bad:?}");
    }
    let strange = dialler_as(&pair.authority, "stranger", pair.host().address, TransportChoice::Quic);
    let context = pair.context(Mode::ResyncFull);
    let result = push(&context, &raw(pair.source()), &strange, &remote("disk")).await;
    assert_eq!(code(result), FailCode::NotAuthorised);
    let other = dialler_as(&pair.authority, "c", pair.host().address, TransportChoice::Quic);
    let result = push(&pair.context(Mode::ResyncFull), &raw(pair.source()), &other, &remote("disk")).await;
    assert_eq!(code(result), FailCode::NotOwner);
    let nowhere = novaferry_engine::transfer::RemoteVolume { pool: "slow".to_owned(), name: "x".to_owned() };
    let result = push(
        &pair.context(Mode::Create),
        &raw(pair.source()),
        &pair.dialler(TransportChoice::Quic),
        &nowhere,
    )
    .await;
    assert_eq!(code(result), FailCode::NotFound);
    pair.assert_equal("disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_changes_gets_no_receipt() {
    let pair = Pair::new();
    random(&pair.source(), 60 << 20, 15);
    let context = pair.context(Mode::Create);
    let pushed = pair.start_push(&context);
    settled(&context, 1 << 20).await;
    // Only the times: content that was read already may have changed and been changed back.
    let file = File::options().write(true).open(pair.source()).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    let error = pushed.await.unwrap().expect_err("a changed source fails the copy");
    assert_eq!(error.fail_code(), FailCode::SourceChanged, "{error}");
    assert!(!pair.in_pool("disk").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_slept_through_a_newer_session_is_refused() {
    let pair = Pair::new();
    random(&pair.source(), 80 << 20, 16);
    let first = pair.context(Mode::Create);
    let pushed = pair.start_push(&first);
    settled(&first, 1 << 20).await;
    first.cancel.cancel();
    pushed.await.unwrap().expect_err("it was cancelled");
    // Another process of the same owner, with its own memory, writes the volume.
    let mut second = pair.context(Mode::Create);
    second.options.state = pair.folder.path().join("other-state");
    pair.push_with(&second, "disk").await.unwrap();
    let sleeper = pair.context(Mode::ResyncFull);
    assert_eq!(code(pair.push_with(&sleeper, "disk").await), FailCode::StaleGeneration);
    pair.assert_equal("disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_session_ends_on_both_sides() {
    let pair = Pair::new();
    random(&pair.source(), 100 << 20, 17);
    let context = pair.context(Mode::Create);
    let pushed = pair.start_push(&context);
    settled(&context, 1 << 20).await;
    let listed = pair.host().registry.list();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].peer.as_str(), listed[0].volume.as_str()), ("a", "fast/disk"));
    assert!(pair.host().registry.cancel(listed[0].session));
    assert_eq!(code(pushed.await.unwrap()), FailCode::Cancelled);
    while !pair.host().registry.list().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!pair.host().registry.cancel(listed[0].session));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readback_is_in_the_receipt() {
    let pair = Pair::new();
    random(&pair.source(), 5 << 20, 18);
    let mut context = pair.context(Mode::Create);
    context.options.readback = true;
    context.options.level = reduce::Mode::Fixed(3);
    let summary = pair.push_with(&context, "disk").await.unwrap();
    assert_eq!(summary.receipt.body.verified, receipt::Verified::Readback);
    pair.assert_equal("disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_receiver_makes_durable_what_it_has_and_says_so() {
    let mut pair = Pair::new();
    random(&pair.source(), 120 << 20, 19);
    let context = pair.context(Mode::Create);
    let pushed = pair.start_push(&context);
    settled(&context, 20 << 20).await;
    let host = pair.host.take().unwrap();
    let address = host.address;
    host.stop().await;
    let error = pushed.await.unwrap().expect_err("the receiver went away");
    assert!(error.is_resumable(), "{error:?}");
    pair.host = Some(Host::start(&pair.authority, pair.folder.path(), address, None));
    let summary = pair.push(Mode::Create, "disk").await.unwrap();
    pair.assert_equal("disk");
    assert!(summary.resumed);
}

/// Pushes until so much is settled, then cancels.
async fn begin(pair: &Pair, mode: Mode, bytes: u64) {
    let context = pair.context(mode);
    let pushed = pair.start_push(&context);
    settled(&context, bytes).await;
    context.cancel.cancel();
    pushed.await.unwrap().expect_err("it was cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_changed_between_attempts_is_read_again() {
    let pair = Pair::new();
    random(&pair.source(), 80 << 20, 20);
    begin(&pair, Mode::Create, 30 << 20).await;
    let file = File::options().write(true).open(pair.source()).unwrap();
    for extent in 0..80 {
        file.write_all_at(b"written between the attempts", extent << 20).unwrap();
    }
    drop(file);
    let summary = pair.push(Mode::Create, "disk").await.unwrap();
    pair.assert_equal("disk");
    assert!(summary.counters.same > 0 || summary.counters.payload > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_without_its_data_is_not_believed() {
    let pair = Pair::new();
    random(&pair.source(), 80 << 20, 21);
    begin(&pair, Mode::Create, 30 << 20).await;
    std::fs::remove_file(pair.sidecar("disk").join("data")).unwrap();
    pair.push(Mode::Create, "disk").await.unwrap();
    pair.assert_equal("disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_resync_leaves_the_volume_where_it_is() {
    let pair = Pair::new();
    random(&pair.source(), 4 << 20, 22);
    pair.push(Mode::Create, "disk").await.unwrap();
    let used = File::options().write(true).open(pair.in_pool("disk")).unwrap();
    assert_eq!(code(pair.push(Mode::ResyncFull, "disk").await), FailCode::Busy);
    assert!(pair.in_pool("disk").exists(), "it is in use, and stays visible and sealed");
    drop(used);
    pair.push(Mode::ResyncTrusted, "disk").await.unwrap();
    pair.assert_equal("disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_in_the_pool_leads_nowhere() {
    let pair = Pair::new();
    random(&pair.source(), 4 << 20, 23);
    pair.push(Mode::Create, "disk").await.unwrap();
    let outside = pair.folder.path().join("outside");
    std::fs::write(&outside, b"precious").unwrap();
    std::fs::remove_file(pair.in_pool("disk")).unwrap();
    std::os::unix::fs::symlink(&outside, pair.in_pool("disk")).unwrap();
    pair.push(Mode::ResyncFull, "disk").await.expect_err("links are refused");
    let pulled = pull(
        &pair.context(Mode::Create),
        &pair.dialler(TransportChoice::Quic),
        &remote("disk"),
        &target(&pair),
    )
    .await;
    pulled.expect_err("links are refused");
    assert_eq!(std::fs::read(&outside).unwrap(), b"precious");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_volume_whose_receipt_was_lost_is_sealed_once() {
    let pair = Pair::new();
    random(&pair.source(), 8 << 20, 24);
    // The process dies after the volume was sealed and before the receipt was kept.
    let context = pair.context(Mode::Create);
    let first = novaferry_engine::transfer::push_and_keep(
        &context,
        &raw(pair.source()),
        &pair.dialler(TransportChoice::Quic),
        &remote("disk"),
        |_| Err(EngineError::Interrupted),
    )
    .await;
    first.expect_err("it was not kept");
    let again = pair.push(Mode::Create, "disk").await.unwrap();
    assert_eq!(again.receipt.body.generation, 1, "the first receipt, not a new one");
    assert_eq!(again.counters.payload, 0);
    pair.assert_equal("disk");
}
