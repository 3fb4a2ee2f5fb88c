//! Every control frame in every state of both machines: what is taken, and how the rest is refused.

use std::time::Duration;

use novaferry_session::{
    Applied, ExtentSet, Outcome, Receiver, ReceiverAction, ReceiverTerms, Sender, SenderAction, SenderTerms,
    SessionError,
};
use support::terms::{grant, head};
use volume::{
    ByteLen, ByteRange, ChunkId, ChunkIndex, EXTENT, ExtentIndex, Generation, KeyId, Sequence, SessionId,
};
use wire::{
    Ack, Call, ChannelHello, ChannelKind, Control, Direction, Durable, Fail, FailCode, Grant, Held, Known,
    LaneClass, LaneHello, Leaves, Migrate, Mode, Need, NeedReason, Offer, Open, PageQuery, PageSums,
    RangeKind, RangeMark, Run, Seal, Sealed, Tag, VolumeFormat,
};

mod support {
    pub(crate) mod terms;
}

const NOW: Duration = Duration::ZERO;
const EXTENTS: u64 = 3;
const SIZE: ByteLen = ByteLen(EXTENTS * EXTENT);

/// A sound frame of each tag. `declared` extents are described already.
fn frame(tag: Tag, declared: u64) -> Control {
    let runs = vec![Run { first: 0, count: 1 }];
    match tag {
        Tag::Open => Control::Open(Open {
            session: SessionId([1; 16]),
            direction: Direction::Push,
            mode: Mode::Create,
            format: VolumeFormat::Raw,
            readback: false,
            lanes: 1,
            pool: "pool".to_owned(),
            name: "name".to_owned(),
        }),
        Tag::Offer => {
            Control::Offer(Offer { size: SIZE, remembered_key: KeyId([0; 16]), generation: Generation(0) })
        }
        Tag::Grant => Control::Grant(grant(0, 8)),
        Tag::Durable => Control::Durable(Durable { runs, last: false }),
        Tag::Leaves => Control::Leaves(Leaves { first: ChunkIndex(declared * 16), held: Held::Unknown(16) }),
        Tag::Known => Control::Known(Known { tags: vec![1], last: false }),
        Tag::PageQuery => Control::PageQuery(PageQuery { extent: ExtentIndex(1), mask: 1 }),
        Tag::PageSums => Control::PageSums(PageSums { extent: ExtentIndex(1), mask: 1, sums: vec![0; 16] }),
        Tag::Range => Control::Range(RangeMark {
            kind: RangeKind::Zero,
            sequence: Sequence(3),
            floor: Sequence(0),
            first: ExtentIndex(1),
            count: 1,
        }),
        Tag::Ack => Control::Ack(Ack { runs }),
        Tag::Need => Control::Need(Need {
            sequence: Sequence(0),
            extent: ExtentIndex(0),
            mask: 1,
            reason: NeedReason::Unknown,
        }),
        Tag::Seal => Control::Seal(Seal { root: [0; 32], size: SIZE }),
        Tag::Sealed => Control::Sealed(Sealed { cpu_micros: 0, receipt: vec![1] }),
        Tag::Fail => Control::Fail(Fail { code: FailCode::NoSpace, detail: "full".to_owned() }),
        Tag::Drain => Control::Drain,
        Tag::Ping => Control::Ping(1),
        Tag::Pong => Control::Pong(1),
        Tag::LaneHello => Control::LaneHello(LaneHello {
            session: SessionId([1; 16]),
            generation: Generation(1),
            lane: 1,
            class: LaneClass::Data,
        }),
        Tag::Migrate => Control::Migrate(Migrate { migration: SessionId([1; 16]) }),
        Tag::Call => Control::Call(Call { migration: SessionId([1; 16]) }),
        Tag::Message => Control::Message(vec![1]),
        Tag::ChannelHello => Control::ChannelHello(ChannelHello {
            migration: SessionId([1; 16]),
            generation: Generation(1),
            channel: 1,
            kind: ChannelKind::Ram,
        }),
        Tag::Extent => unreachable!("no control frame"),
    }
}

fn cell(result: Result<(), SessionError>) -> &'static str {
    match result {
        Ok(()) => "ok",
        Err(SessionError::Unexpected(_)) => "turn",
        Err(SessionError::Peer { .. }) => "peer",
        Err(SessionError::Drained) => "drain",
        Err(SessionError::EarlySeal { .. }) => "early",
        Err(error) => panic!("no cell for {error:?}"),
    }
}

/// The table as text: a line a tag, a column a state.
fn table(columns: &[&str], mut answer: impl FnMut(Tag, &str) -> Result<(), SessionError>) -> String {
    let mut lines = vec![format!("{:<13}{}", "frame", columns.join(" "))];
    for tag in Tag::ALL.iter().copied().filter(|tag| *tag != Tag::Extent) {
        let mut line = format!("{:<13}", format!("{tag:?}"));
        for column in columns {
            line.push_str(&format!("{:<width$}", cell(answer(tag, column)), width = column.len() + 1));
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

// === sender ===

fn sender(state: &str) -> Sender {
    let full = Grant { resumed: state == "resuming", leaves: true, known: true, ..grant(0, 8) };
    let terms = SenderTerms { size: SIZE, grant: full, remembered: ExtentSet::new(EXTENTS), max_work: 4 };
    let mut sender = Sender::new(NOW, terms).unwrap();
    sender.start();
    match state {
        "resuming" => {}
        // Extent 0 is in flight, the sums of extent 1 are asked for.
        "streaming" => {
            for declared in 0..2 {
                sender.handle_control(NOW, frame(Tag::Leaves, declared)).unwrap();
            }
            assert_eq!(sender.poll_action(), Some(SenderAction::FindData(ExtentIndex(0))));
            sender.handle_data(Some(ByteRange { start: 0, end: SIZE.0 }));
            assert!(matches!(sender.poll_action(), Some(SenderAction::Scan { .. })));
            assert!(matches!(sender.poll_action(), Some(SenderAction::Scan { .. })));
            let ids = vec![ChunkId([1; 32]); 16];
            sender.handle_scanned(ExtentIndex(0), ids.clone(), Outcome::Frame { wire_len: 9 });
            sender.handle_scanned(ExtentIndex(1), ids, Outcome::Query(1));
            assert!(matches!(sender.poll_transmit(NOW), Some(Control::PageQuery(_))));
            assert_eq!(sender.poll_send(NOW).unwrap().sequence, Sequence(0));
        }
        _ => {
            // All of it is a hole: settled without any leaves.
            assert_eq!(sender.poll_action(), Some(SenderAction::FindData(ExtentIndex(0))));
            sender.handle_data(None);
            assert!(matches!(sender.poll_transmit(NOW), Some(Control::Range(_))));
            sender.handle_control(NOW, frame(Tag::Ack, 0)).unwrap();
            while sender.poll_action() != Some(SenderAction::Finish) {}
            if state != "finishing" {
                sender.handle_root(NOW, [0; 32]);
                assert!(matches!(sender.poll_transmit(NOW), Some(Control::Seal(_))));
            }
            if state == "done" {
                sender.handle_control(NOW, frame(Tag::Sealed, 0)).unwrap();
                assert!(sender.is_done());
            }
        }
    }
    sender
}

#[test]
fn sender_takes_what_has_its_turn() {
    let columns = ["resuming", "streaming", "finishing", "sealing", "done"];
    let table = table(&columns, |tag, state| {
        let declared = if state == "streaming" { 2 } else { 0 };
        sender(state).handle_control(NOW, frame(tag, declared))
    });
    assert_eq!(
        table,
        "\
frame        resuming streaming finishing sealing done
Open         turn     turn      turn      turn    turn
Offer        turn     turn      turn      turn    turn
Grant        turn     turn      turn      turn    turn
Durable      ok       turn      turn      turn    turn
Leaves       ok       ok        ok        ok      ok
Known        ok       ok        ok        ok      ok
PageQuery    turn     turn      turn      turn    turn
PageSums     turn     ok        turn      turn    turn
Range        turn     turn      turn      turn    turn
Ack          turn     ok        ok        ok      ok
Need         turn     ok        turn      turn    turn
Seal         turn     turn      turn      turn    turn
Sealed       turn     turn      turn      ok      turn
Fail         peer     peer      peer      peer    peer
Drain        drain    drain     drain     drain   drain
Ping         turn     turn      turn      turn    turn
Pong         turn     turn      turn      turn    turn
LaneHello    turn     turn      turn      turn    turn
Migrate      turn     turn      turn      turn    turn
Message      turn     turn      turn      turn    turn
ChannelHello turn     turn      turn      turn    turn
Call         turn     turn      turn      turn    turn"
    );
}

#[test]
fn sender_takes_no_leaves_and_no_tags_that_were_not_granted() {
    let terms =
        SenderTerms { size: SIZE, grant: grant(0, 8), remembered: ExtentSet::new(EXTENTS), max_work: 4 };
    let mut sender = Sender::new(NOW, terms).unwrap();
    for tag in [Tag::Leaves, Tag::Known, Tag::Durable] {
        assert_eq!(sender.handle_control(NOW, frame(tag, 0)), Err(SessionError::Unexpected(tag)));
    }
}

// === receiver ===

fn receiver(state: &str) -> Receiver {
    let leaves = Grant { leaves: true, ..grant(0, 8) };
    let mut receiver =
        Receiver::new(ReceiverTerms { size: SIZE, grant: leaves, durable: ExtentSet::new(EXTENTS) });
    match state {
        "streaming" => return receiver,
        "draining" => {
            receiver.drain();
            return receiver;
        }
        _ => {}
    }
    for extent in 0..EXTENTS {
        let _ = receiver.handle_extent(&head(extent, 0, extent)).unwrap();
        receiver.handle_applied(NOW, Sequence(extent), Applied::Written(vec![ChunkId::ZERO; 16]), 1);
    }
    let later = NOW + novaferry_session::receiver::COMMIT_DELAY;
    while !matches!(receiver.poll_action(later), Some(ReceiverAction::Commit(_))) {}
    receiver.handle_committed(later);
    assert!(matches!(receiver.poll_transmit(), Some(Control::Ack(_))));
    if state != "complete" {
        receiver.handle_control(NOW, frame(Tag::Seal, 0)).unwrap();
    }
    if state == "sealed" {
        receiver.handle_sealed(Sealed { cpu_micros: 0, receipt: vec![1] });
        assert!(receiver.is_sealed());
    }
    receiver
}

const RECEIVER_COLUMNS: [&str; 5] = ["streaming", "draining", "complete", "sealing", "sealed"];

#[test]
fn receiver_takes_what_has_its_turn() {
    let table = table(&RECEIVER_COLUMNS, |tag, state| receiver(state).handle_control(NOW, frame(tag, 0)));
    assert_eq!(
        table,
        "\
frame        streaming draining complete sealing sealed
Open         turn      turn     turn     turn    turn
Offer        turn      turn     turn     turn    turn
Grant        turn      turn     turn     turn    turn
Durable      turn      turn     turn     turn    turn
Leaves       turn      turn     turn     turn    turn
Known        turn      turn     turn     turn    turn
PageQuery    ok        ok       ok       turn    turn
PageSums     turn      turn     turn     turn    turn
Range        ok        ok       ok       turn    turn
Ack          turn      turn     turn     turn    turn
Need         turn      turn     turn     turn    turn
Seal         early     early    ok       turn    turn
Sealed       turn      turn     turn     turn    turn
Fail         peer      peer     peer     peer    peer
Drain        drain     drain    drain    drain   drain
Ping         turn      turn     turn     turn    turn
Pong         turn      turn     turn     turn    turn
LaneHello    turn      turn     turn     turn    turn
Migrate      turn      turn     turn     turn    turn
Message      turn      turn     turn     turn    turn
ChannelHello turn      turn     turn     turn    turn
Call         turn      turn     turn     turn    turn"
    );
}

#[test]
fn receiver_keeps_or_drops_extents_by_state() {
    let mut lines = Vec::new();
    for state in RECEIVER_COLUMNS {
        let mut cells = vec![format!("{state:<10}")];
        // New; a duplicate in the states that have one; older than what is written.
        for head in [head(5, 0, 1), head(1, 0, 1), head(4, 4, 1), head(0, 0, 1)] {
            cells.push(match receiver(state).handle_extent(&head) {
                Ok(intake) => format!("{intake:?}"),
                Err(SessionError::Unexpected(Tag::Extent)) => "turn".to_owned(),
                Err(SessionError::Reused(_)) => "reused".to_owned(),
                Err(error) => panic!("{error:?}"),
            });
        }
        lines.push(cells.join(" "));
    }
    assert_eq!(
        lines.join("\n"),
        "\
streaming  Kept Kept Kept Kept
draining   Dropped Dropped Dropped Dropped
complete   Kept Dropped Kept reused
sealing    turn Dropped turn reused
sealed     turn Dropped turn reused"
    );
}
