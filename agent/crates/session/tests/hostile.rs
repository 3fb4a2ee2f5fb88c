//! A peer that lies: what decodes is sound by itself, and may still make no sense here. The machines answer with an
//! error, never with a panic, and remember no more than the window allows.

use std::time::Duration;

use novaferry_session::{
    Applied, ExtentSet, Intake, OldExtent, Outcome, Receiver, ReceiverAction, ReceiverTerms, Sender,
    SenderAction, SenderTerms, SessionError,
};
use proptest::prelude::*;
use support::terms::{grant, head};
use volume::{
    ByteLen, ByteRange, CHUNK, ChunkId, ChunkIndex, EXTENT, ExtentIndex, Generation, KeyId, Sequence,
};
use wire::{
    Ack, ChunkEntry, Control, Durable, Encoding, ExtentHead, FRAME_HEADER, Fail, FailCode, Grant, Held,
    Known, Leaves, Need, NeedReason, Offer, PageQuery, PageSums, RangeKind, RangeMark, Run, Seal, Sealed,
};

mod support {
    pub(crate) mod terms;
}

const NOW: Duration = Duration::ZERO;

fn size(extents: u64) -> ByteLen {
    ByteLen(extents * EXTENT)
}

fn sender(extents: u64, grant: Grant) -> Sender {
    let remembered = ExtentSet::new(extents);
    let mut sender =
        Sender::new(NOW, SenderTerms { size: size(extents), grant, remembered, max_work: 4 }).unwrap();
    sender.start();
    sender
}

fn receiver(extents: u64, grant: Grant) -> Receiver {
    Receiver::new(ReceiverTerms { size: size(extents), grant, durable: ExtentSet::new(extents) })
}

fn leaves() -> Grant {
    Grant { leaves: true, ..grant(0, 8) }
}

/// A sender with extent 0 in flight as sequence 0, and extents 1 to 3 being read.
fn streaming(grant: Grant) -> Sender {
    let mut sender = sender(64, grant);
    assert_eq!(sender.poll_action(), Some(SenderAction::FindData(ExtentIndex(0))));
    sender.handle_data(Some(ByteRange { start: 0, end: 64 * EXTENT }));
    for _ in 0..4 {
        assert!(matches!(sender.poll_action(), Some(SenderAction::Scan { .. })));
    }
    sender.handle_scanned(ExtentIndex(0), vec![ChunkId([1; 32]); 16], Outcome::Frame { wire_len: 100 });
    assert_eq!(sender.poll_send(NOW).unwrap().sequence, grant.first_sequence);
    sender
}

fn ack(first: u64, count: u64) -> Control {
    Control::Ack(Ack { runs: vec![Run { first, count }] })
}

fn need(sequence: u64, extent: u64) -> Control {
    let (sequence, extent) = (Sequence(sequence), ExtentIndex(extent));
    Control::Need(Need { sequence, extent, mask: 1, reason: NeedReason::Unknown })
}

fn zeros(sequence: u64, floor: u64, first: u64, count: u64) -> Control {
    let (sequence, floor, first) = (Sequence(sequence), Sequence(floor), ExtentIndex(first));
    Control::Range(RangeMark { kind: RangeKind::Zero, sequence, floor, first, count })
}

fn unknown(first_chunk: u64, chunks: u64) -> Control {
    Control::Leaves(Leaves { first: ChunkIndex(first_chunk), held: Held::Unknown(chunks) })
}

// === towards the sender ===

#[test]
fn acknowledging_what_was_never_sent_is_refused() {
    assert_eq!(
        streaming(grant(0, 8)).handle_control(NOW, ack(0, 2)),
        Err(SessionError::Sequence(Sequence(1)))
    );
    assert_eq!(
        streaming(grant(0, 8)).handle_control(NOW, ack(1, u64::MAX - 1)),
        Err(SessionError::Sequence(Sequence(u64::MAX - 1)))
    );
    assert_eq!(
        streaming(grant(0, 8)).handle_control(NOW, need(1, 0)),
        Err(SessionError::Sequence(Sequence(1)))
    );
}

#[test]
fn refusing_a_frame_under_another_extent_is_refused() {
    assert_eq!(
        streaming(grant(0, 8)).handle_control(NOW, need(0, 1)),
        Err(SessionError::Sequence(Sequence(0)))
    );
}

#[test]
fn what_was_given_up_may_be_acknowledged_or_refused_late() {
    for answer in [ack(0, 1), need(0, 0)] {
        let mut sender = streaming(grant(0, 8));
        sender.handle_lane_took(1, Sequence(0));
        sender.handle_lane_down(1);
        assert!(sender.is_idle());
        sender.handle_control(NOW, answer).unwrap();
        assert!(!sender.settled().contains(0), "its second sending settles it");
        assert_eq!(
            sender.poll_action(),
            Some(SenderAction::Scan { extent: ExtentIndex(0), old: OldExtent::Unknown, full: false })
        );
    }
}

#[test]
fn what_is_sent_twice_is_not_compared_twice() {
    // The first sending may have replaced what the leaves describe: also in the middle of a long run of them.
    let mut sender = sender(64, leaves());
    sender
        .handle_control(NOW, Control::Leaves(Leaves { first: ChunkIndex(0), held: Held::Zero(64 * 16) }))
        .unwrap();
    assert_eq!(sender.poll_action(), Some(SenderAction::FindData(ExtentIndex(0))));
    sender.handle_data(Some(ByteRange { start: 0, end: 64 * EXTENT }));
    let scan = |old| Some(SenderAction::Scan { extent: ExtentIndex(0), old, full: false });
    assert_eq!(sender.poll_action(), scan(OldExtent::Zero));
    sender.handle_scanned(ExtentIndex(0), vec![ChunkId([1; 32]); 16], Outcome::Frame { wire_len: 1 });
    assert!(sender.poll_send(NOW).is_some());
    sender.handle_lane_took(1, Sequence(0));
    sender.handle_lane_down(1);
    assert_eq!(sender.poll_action(), scan(OldExtent::Unknown));
}

#[test]
fn leaves_continue_without_gap_overlap_or_half_an_extent() {
    for wrong in [unknown(16, 16), unknown(0, 15), unknown(0, 65 * 16), unknown(u64::MAX - 16, 16)] {
        assert_eq!(
            sender(64, leaves()).handle_control(NOW, wrong),
            Err(SessionError::Leaves(ExtentIndex(0)))
        );
    }
    let mut sender = sender(64, leaves());
    sender.handle_control(NOW, unknown(0, 16)).unwrap();
    assert_eq!(sender.handle_control(NOW, unknown(0, 16)), Err(SessionError::Leaves(ExtentIndex(1))));
}

#[test]
fn leaves_too_far_ahead_are_refused() {
    let extents = 1 << 20;
    let mut sender = sender(extents, leaves());
    let mut refused = None;
    for extent in 0..extents {
        let held = Held::Prefixes(vec![[7; 16]; 16]);
        let leaves = Control::Leaves(Leaves { first: ExtentIndex(extent).first_chunk(), held });
        if let Err(error) = sender.handle_control(NOW, leaves) {
            refused = Some((extent, error));
            break;
        }
    }
    assert_eq!(
        refused,
        Some((2 * novaferry_session::receiver::DECLARE_AHEAD, SessionError::Window("leaves ahead")))
    );
}

#[test]
fn leaves_of_a_hole_that_was_skipped_are_forgotten() {
    let extents = 20_000;
    let mut sender = sender(extents, leaves());
    assert_eq!(sender.poll_action(), Some(SenderAction::FindData(ExtentIndex(0))));
    sender.handle_data(Some(ByteRange { start: (extents - 1) * EXTENT, end: extents * EXTENT }));
    for extent in 0..extents {
        let held = Held::Prefixes(vec![[7; 16]; 16]);
        sender
            .handle_control(NOW, Control::Leaves(Leaves { first: ExtentIndex(extent).first_chunk(), held }))
            .unwrap();
    }
    assert!(matches!(sender.poll_action(), Some(SenderAction::Scan { old: OldExtent::Prefixes(_), .. })));
}

#[test]
fn a_sender_without_acknowledgements_stops_reading() {
    // Same and zero in turn: nothing to send, and no two runs to join.
    let extents = 30_000;
    let mut sender = sender(extents, leaves());
    let held = Held::Zero(extents * 16);
    sender.handle_control(NOW, Control::Leaves(Leaves { first: ChunkIndex(0), held })).unwrap();
    let mut read = 0;
    while let Some(action) = sender.poll_action() {
        match action {
            SenderAction::FindData(_) => {
                sender.handle_data(Some(ByteRange { start: 0, end: extents * EXTENT }));
            }
            SenderAction::Scan { extent, .. } => {
                read += 1;
                let outcome = if read % 2 == 0 { Outcome::Same } else { Outcome::Zero };
                sender.handle_scanned(extent, vec![ChunkId::ZERO; 16], outcome);
            }
            other => panic!("unexpected: {other:?}"),
        }
        while sender.poll_transmit(NOW).is_some() {}
    }
    assert!(read < 5000, "{read} extents were read for a window of 8");
    // The same for a hole over what is settled here and there.
    let mut remembered = ExtentSet::new(extents);
    (0..extents).step_by(2).for_each(|extent| assert!(remembered.insert(extent)));
    let runs: Vec<Run> = remembered.runs().collect();
    let resumed = Grant { resumed: true, ..grant(0, 8) };
    let terms = SenderTerms { size: size(extents), grant: resumed, remembered, max_work: 4 };
    let mut sender = Sender::new(NOW, terms).unwrap();
    for part in runs.chunks(wire::control::MAX_RUNS) {
        let last = part.last() == runs.last();
        sender.handle_control(NOW, Control::Durable(Durable { runs: part.to_vec(), last })).unwrap();
    }
    assert_eq!(sender.poll_action(), Some(SenderAction::FindData(ExtentIndex(1))));
    sender.handle_data(None);
    assert!(memory(&sender) < 150_000);
    let mut marks = 0;
    let mut sequence = 0;
    while !sender.settled().is_full() {
        while let Some(action) = sender.poll_action() {
            assert!(matches!(action, SenderAction::Settled(_)));
        }
        while let Some(frame) = sender.poll_transmit(NOW) {
            assert!(matches!(frame, Control::Range(RangeMark { count: 1, .. })));
            marks += 1;
        }
        sender.handle_control(NOW, ack(sequence, 1)).unwrap();
        sequence += 1;
    }
    assert_eq!(marks, extents / 2);
}

#[test]
fn page_sums_for_nothing_are_refused() {
    let sums = |extent, mask: u16| {
        let sums = vec![0; 16 * mask.count_ones() as usize];
        Control::PageSums(PageSums { extent: ExtentIndex(extent), mask, sums })
    };
    let asked = || {
        let mut sender = streaming(grant(0, 8));
        sender.handle_scanned(ExtentIndex(1), vec![ChunkId([1; 32]); 16], Outcome::Query(2));
        sender
    };
    // In flight, being read, never touched, past the end; then the right one with other chunks, and twice.
    for wrong in [sums(0, 2), sums(2, 2), sums(9, 2), sums(u64::MAX, 2), sums(1, 3)] {
        assert!(matches!(asked().handle_control(NOW, wrong), Err(SessionError::Unexpected(_))));
    }
    let mut sender = asked();
    sender.handle_control(NOW, sums(1, 2)).unwrap();
    assert!(matches!(sender.handle_control(NOW, sums(1, 2)), Err(SessionError::Unexpected(_))));
}

#[test]
fn durable_extents_past_the_end_are_refused() {
    let durable = |first, count| Control::Durable(Durable { runs: vec![Run { first, count }], last: true });
    let resumed = || Grant { resumed: true, ..grant(0, 8) };
    for wrong in [durable(0, 65), durable(64, 1), durable(u64::MAX - 1, 1)] {
        assert_eq!(sender(64, resumed()).handle_control(NOW, wrong), Err(SessionError::PastEnd));
    }
    sender(64, resumed()).handle_control(NOW, durable(0, 64)).unwrap();
}

#[test]
fn a_grant_under_which_nothing_can_be_sent_is_refused() {
    for wrong in [grant(0, 0), grant(u64::MAX, 8)] {
        let terms = SenderTerms { size: size(1), grant: wrong, remembered: ExtentSet::new(1), max_work: 1 };
        assert!(matches!(Sender::new(NOW, terms), Err(SessionError::Grant(_))));
    }
    // A window of no bytes still lets one frame through at a time.
    streaming(Grant { window_bytes: 0, ..grant(5, u32::MAX) });
}

#[test]
fn time_before_the_first_frame_does_not_count_as_a_stall() {
    let mut sender = sender(64, grant(0, 8));
    let late = NOW + 10 * novaferry_session::sender::STALL;
    assert_eq!(sender.poll_action(), Some(SenderAction::FindData(ExtentIndex(0))));
    sender.handle_data(None);
    assert!(matches!(sender.poll_transmit(late), Some(Control::Range(_))));
    sender.handle_timeout(late).unwrap();
    let at = sender.poll_timeout().unwrap();
    assert!(matches!(sender.handle_timeout(at), Err(SessionError::Peer { .. })));
}

#[test]
fn a_drained_sender_starts_nothing_new() {
    let mut sender = streaming(grant(0, 8));
    sender.handle_scanned(ExtentIndex(1), vec![ChunkId([1; 32]); 16], Outcome::Frame { wire_len: 1 });
    sender.handle_scanned(ExtentIndex(2), vec![ChunkId::ZERO; 16], Outcome::Zero);
    sender.drain();
    assert_eq!(sender.poll_send(NOW), None);
    assert_eq!(sender.poll_transmit(NOW), None);
    assert_eq!(sender.poll_action(), None);
    sender.handle_control(NOW, ack(0, 1)).unwrap();
    assert!(sender.is_idle() && sender.settled().contains(0));
}

// === towards the receiver ===

#[test]
fn sequences_beyond_the_span_are_refused() {
    // A window of 8 frames remembers 32 sequences.
    let mut receiver = receiver(64, grant(100, 8));
    assert_eq!(receiver.handle_extent(&head(131, 100, 0)), Ok(Intake::Kept));
    for (sequence, floor) in [(132, 100), (132, 0), (u64::MAX - 1, 100), (u64::MAX, u64::MAX)] {
        let refused = Err(SessionError::Sequence(Sequence(sequence)));
        assert_eq!(receiver.handle_extent(&head(sequence, floor, 1)), refused);
        let refused = Err(SessionError::Sequence(Sequence(sequence)));
        assert_eq!(receiver.handle_control(NOW, zeros(sequence, floor, 1, 1)), refused);
    }
    assert_eq!(receiver.handle_extent(&head(99, 0, 1)), Ok(Intake::Dropped));
}

#[test]
fn the_floor_may_rise_to_the_last_number_but_one() {
    let mut receiver = receiver(64, grant(0, 8));
    let last = u64::MAX - 1;
    receiver.handle_control(NOW, zeros(last, last, 0, 64)).unwrap();
    assert!(matches!(receiver.poll_action(NOW), Some(ReceiverAction::ApplyRange { .. })));
    receiver.handle_range_applied(NOW, Sequence(last));
}

#[test]
fn one_sequence_names_one_write() {
    let reused = Err(SessionError::Reused(Sequence(7)));
    let mut receiver = receiver(64, grant(0, 8));
    assert_eq!(receiver.handle_extent(&head(7, 0, 3)), Ok(Intake::Kept));
    assert_eq!(receiver.handle_extent(&head(7, 0, 3)), Ok(Intake::Dropped));
    assert_eq!(receiver.handle_extent(&head(7, 0, 4)), reused);
    assert_eq!(receiver.handle_control(NOW, zeros(7, 0, 3, 1)), Err(SessionError::Reused(Sequence(7))));
    receiver.handle_control(NOW, zeros(8, 0, 5, 2)).unwrap();
    receiver.handle_control(NOW, zeros(8, 0, 5, 2)).unwrap();
    let reused = Err(SessionError::Reused(Sequence(8)));
    assert_eq!(receiver.handle_control(NOW, zeros(8, 0, 5, 3)), reused);
    assert_eq!(receiver.handle_extent(&head(8, 0, 9)), Err(SessionError::Reused(Sequence(8))));
}

#[test]
fn places_past_the_end_are_refused() {
    let mut receiver = receiver(64, leaves());
    assert!(matches!(receiver.handle_extent(&head(0, 0, 64)), Err(SessionError::Frame(_))));
    for mark in [zeros(0, 0, 0, 65), zeros(0, 0, 64, 1), zeros(0, 0, 1, u64::MAX - 1)] {
        assert_eq!(receiver.handle_control(NOW, mark), Err(SessionError::PastEnd));
    }
    let query = |extent| Control::PageQuery(PageQuery { extent: ExtentIndex(extent), mask: 1 });
    for wrong in [query(64), query(u64::MAX)] {
        assert_eq!(receiver.handle_control(NOW, wrong), Err(SessionError::PastEnd));
    }
    // The volume ends after one chunk of its last extent.
    let cut = ByteLen(EXTENT + CHUNK);
    let terms = ReceiverTerms { size: cut, grant: leaves(), durable: ExtentSet::new(2) };
    let query = Control::PageQuery(PageQuery { extent: ExtentIndex(1), mask: 2 });
    assert_eq!(Receiver::new(terms).handle_control(NOW, query), Err(SessionError::PastEnd));
}

#[test]
fn a_seal_before_the_end_is_refused() {
    let seal = |size| Control::Seal(Seal { root: [0; 32], size });
    let early = receiver(64, grant(0, 8)).handle_control(NOW, seal(size(64)));
    assert_eq!(early, Err(SessionError::EarlySeal { missing: 64 }));
    let other = receiver(0, grant(0, 8)).handle_control(NOW, seal(ByteLen(1)));
    assert_eq!(other, Err(SessionError::EarlySeal { missing: 0 }));
    receiver(0, grant(0, 8)).handle_control(NOW, seal(ByteLen(0))).unwrap();
}

#[test]
fn a_flood_of_queries_is_refused() {
    let mut receiver = receiver(64, leaves());
    let query = || Control::PageQuery(PageQuery { extent: ExtentIndex(0), mask: 1 });
    let refused = (0..5000).find_map(|_| receiver.handle_control(NOW, query()).err());
    assert_eq!(refused, Some(SessionError::Window("page queries")));
}

/// What a machine remembers, measured by what it prints.
fn memory(machine: &impl std::fmt::Debug) -> usize {
    format!("{machine:?}").len()
}

#[test]
fn what_is_durable_is_announced_in_parts() {
    let extents = 1 << 20;
    let mut durable = ExtentSet::new(extents);
    (0..extents).step_by(2).for_each(|extent| assert!(durable.insert(extent)));
    let grant = Grant { resumed: true, ..grant(0, 8) };
    let mut receiver = Receiver::new(ReceiverTerms { size: size(extents), grant, durable: durable.clone() });
    let mut announced = ExtentSet::new(extents);
    while let Some(frame) = receiver.poll_transmit() {
        let Some(Control::Durable(part)) = decoded(&frame) else { panic!("unexpected: {frame:?}") };
        part.runs.iter().for_each(|run| announced.insert_run(run.first, run.count));
        assert_eq!(part.last, announced == durable);
    }
    assert_eq!(announced, durable);
}

#[test]
fn repeated_and_outdated_frames_are_not_remembered() {
    let mut receiver = receiver(64, grant(0, 8));
    assert_eq!(receiver.handle_extent(&head(31, 0, 0)), Ok(Intake::Kept));
    assert!(receiver.poll_action(NOW).is_some());
    for sequence in 0..31 {
        assert_eq!(receiver.handle_extent(&head(sequence, 0, 0)), Ok(Intake::Dropped));
    }
    let before = memory(&receiver);
    for round in 0..10_000 {
        assert_eq!(receiver.handle_extent(&head(round % 32, 0, 0)), Ok(Intake::Dropped));
    }
    assert_eq!(memory(&receiver), before);
}

#[test]
fn a_long_session_is_not_remembered() {
    let mut receiver = receiver(64, grant(0, 8));
    let mut bound = 0;
    for sequence in 0..20_000_u64 {
        let floor = sequence.saturating_sub(7);
        if sequence % 3 == 0 {
            receiver.handle_control(NOW, zeros(sequence, floor, sequence % 60, sequence % 4 + 1)).unwrap();
        } else {
            let _ = receiver.handle_extent(&head(sequence, floor, sequence * 7 % 64)).unwrap();
        }
        run(&mut receiver, NOW + Duration::from_secs(sequence));
        if sequence == 2000 {
            bound = 2 * memory(&receiver);
        }
    }
    assert!(memory(&receiver) < bound, "it grows");
    assert!(receiver.is_idle());
}

/// Plays a driver that does everything at once.
fn run(receiver: &mut Receiver, now: Duration) -> usize {
    let mut outputs = 0;
    loop {
        while let Some(action) = receiver.poll_action(now) {
            outputs += 1;
            match action {
                ReceiverAction::Apply(sequence) if sequence.0 % 5 == 4 => {
                    let applied = Applied::Needs { mask: 1, reason: NeedReason::Mismatch };
                    receiver.handle_applied(now, sequence, applied, 0);
                }
                ReceiverAction::Apply(sequence) => {
                    let ids = vec![ChunkId::ZERO; 16];
                    receiver.handle_applied(now, sequence, Applied::Written(ids), 1);
                }
                ReceiverAction::ApplyRange { sequence, .. } => receiver.handle_range_applied(now, sequence),
                ReceiverAction::Declare { count, .. } => {
                    receiver.handle_declared(vec![Held::Unknown(count * 16)]);
                }
                ReceiverAction::Sums(query) => {
                    let sums = vec![0; 16 * query.mask.count_ones() as usize];
                    receiver.handle_sums(PageSums { extent: query.extent, mask: query.mask, sums });
                }
                ReceiverAction::Commit(_) => receiver.handle_committed(now),
                ReceiverAction::Finish(_) => {
                    receiver.handle_sealed(Sealed { cpu_micros: 0, receipt: Vec::new() });
                }
                ReceiverAction::Discard(_) => {}
            }
        }
        match receiver.poll_transmit() {
            Some(frame) => {
                outputs += 1;
                assert!(decoded(&frame).is_some(), "{frame:?} does not decode");
            }
            None => return outputs,
        }
    }
}

// === anything that decodes ===

/// What arrives at the other end of the wire, if it gets there.
fn decoded(frame: &Control) -> Option<Control> {
    let bytes = frame.encode();
    Control::decode(frame.tag(), &bytes[FRAME_HEADER..]).ok()
}

/// Mostly small, sometimes huge.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 0_u64..12,
        4 => 0_u64..200,
        1 => prop::sample::select(vec![u64::MAX, u64::MAX - 1, u64::MAX / 2, 1 << 60, 1 << 32, 1 << 20]),
        1 => any::<u64>(),
    ]
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    prop::collection::vec((number(), number()), 0..4).prop_map(|mut parts| {
        parts.sort_unstable();
        parts.into_iter().map(|(first, count)| Run { first, count }).collect()
    })
}

fn held() -> impl Strategy<Value = Held> {
    prop_oneof![
        number().prop_map(|extents| Held::Zero(extents.wrapping_mul(16))),
        number().prop_map(Held::Unknown),
        (0_usize..4).prop_map(|extents| Held::Prefixes(vec![[1; 16]; 16 * extents])),
    ]
}

fn control() -> impl Strategy<Value = Control> {
    prop_oneof![
        2 => (runs(), any::<bool>()).prop_map(|(runs, last)| Control::Durable(Durable { runs, last })),
        3 => (number(), held())
            .prop_map(|(extent, held)| Control::Leaves(Leaves { first: ExtentIndex(extent).first_chunk(), held })),
        1 => Just(Control::Known(Known { tags: vec![1, 2], last: true })),
        3 => (number(), any::<u16>())
            .prop_map(|(extent, mask)| Control::PageQuery(PageQuery { extent: ExtentIndex(extent), mask })),
        3 => (number(), any::<u16>()).prop_map(|(extent, mask)| {
            let sums = vec![1; 16 * mask.count_ones() as usize];
            Control::PageSums(PageSums { extent: ExtentIndex(extent), mask, sums })
        }),
        8 => (number(), number(), number(), number(), any::<bool>()).prop_map(|(sequence, floor, first, count, same)| {
            let kind = if same { RangeKind::Same } else { RangeKind::Zero };
            let (sequence, floor, first) = (Sequence(sequence), Sequence(floor.min(sequence)), ExtentIndex(first));
            Control::Range(RangeMark { kind, sequence, floor, first, count })
        }),
        5 => runs().prop_map(|runs| Control::Ack(Ack { runs })),
        4 => (number(), number()).prop_map(|(sequence, extent)| need(sequence, extent)),
        1 => number().prop_map(|size| Control::Seal(Seal { root: [1; 32], size: ByteLen(size.wrapping_mul(EXTENT)) })),
        1 => Just(Control::Sealed(Sealed { cpu_micros: 0, receipt: Vec::new() })),
        1 => Just(Control::Fail(Fail { code: FailCode::Internal, detail: String::new() })),
        1 => Just(Control::Drain),
        1 => any::<u64>().prop_map(Control::Ping),
        1 => Just(Control::Grant(grant(0, 8))),
        1 => Just(Control::Offer(Offer {
            size: ByteLen(1),
            remembered_key: KeyId([0; 16]),
            generation: Generation(1),
        })),
    ]
}

fn extent() -> impl Strategy<Value = ExtentHead> {
    (number(), number(), number(), 1_usize..17, any::<u16>()).prop_map(
        |(sequence, floor, extent, chunks, mask)| {
            let entry =
                if mask % 4 == 1 { ChunkEntry::Pages(ChunkId([1; 32]), mask) } else { ChunkEntry::Zero };
            let chunks = if mask % 8 < 6 { 16 } else { chunks };
            let plain_len = entry.payload_len(CHUNK) * chunks as u64;
            let plain_len = u32::try_from(plain_len).unwrap();
            ExtentHead {
                sequence: Sequence(sequence),
                floor: Sequence(floor.min(sequence)),
                extent: ExtentIndex(extent),
                encoding: Encoding::Raw,
                wire_len: plain_len,
                plain_len,
                chunks: vec![entry; chunks],
            }
        },
    )
}

#[derive(Clone, Debug)]
enum Input {
    Control(Control),
    Extent(ExtentHead),
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![2 => control().prop_map(Input::Control), 1 => extent().prop_map(Input::Extent)]
}

fn granted() -> impl Strategy<Value = Grant> {
    (any::<[bool; 3]>(), 1_u32..9, number()).prop_map(|([resumed, leaves, known], frames, window_bytes)| {
        Grant { resumed, leaves, known, window_bytes, ..grant(0, frames) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(3000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_receiver_survives_anything(
        grant in granted(),
        extents in 0_u64..20,
        at_once in any::<bool>(),
        inputs in prop::collection::vec(input(), 0..80),
    ) {
        let mut receiver = receiver(extents, grant);
        let mut now = NOW;
        let mut fed = 0;
        for input in inputs {
            now += Duration::from_millis(20);
            let result = match input {
                Input::Control(frame) => match decoded(&frame) {
                    Some(frame) => receiver.handle_control(now, frame),
                    None => continue,
                },
                Input::Extent(head) => match ExtentHead::decode(&head.encode()[FRAME_HEADER..]) {
                    Ok(head) => receiver.handle_extent(&head).map(|_| ()),
                    Err(_) => continue,
                },
            };
            fed += 1;
            // A session is over with its first error. Here it goes on, as long as nothing panics.
            drop(result);
            if at_once {
                prop_assert!(run(&mut receiver, now) <= 200, "too much follows from one frame");
            }
        }
        run(&mut receiver, now);
        prop_assert!(memory(&receiver) < 20_000 + 400 * fed);
    }

    #[test]
    fn the_sender_survives_anything(
        grant in granted(),
        extents in 0_u64..20,
        choices in prop::collection::vec((control(), 0_u8..8), 0..80),
    ) {
        let mut sender = sender(extents, grant);
        let mut now = NOW;
        for (frame, choice) in choices {
            now += Duration::from_millis(20);
            if let Some(frame) = decoded(&frame) {
                drop(sender.handle_control(now, frame));
            }
            while let Some(action) = sender.poll_action() {
                match action {
                    SenderAction::FindData(extent) => {
                        let range = ByteRange { start: extent.offset().0, end: extents * EXTENT };
                        sender.handle_data((choice > 1).then_some(range));
                    }
                    SenderAction::Scan { extent, .. } | SenderAction::Encode(PageSums { extent, .. }) => {
                        let outcome = match choice {
                            0 => Outcome::Zero,
                            1 if grant.leaves => Outcome::Same,
                            2 if grant.leaves => Outcome::Query(1),
                            _ => Outcome::Frame { wire_len: u32::from(choice) * 1000 },
                        };
                        sender.handle_scanned(extent, vec![ChunkId([1; 32]); 16], outcome);
                    }
                    SenderAction::Finish => sender.handle_root(now, [1; 32]),
                    SenderAction::Learn(_) | SenderAction::Settled(_) | SenderAction::Done(_) => {}
                }
            }
            while let Some(frame) = sender.poll_transmit(now) {
                prop_assert!(decoded(&frame).is_some(), "{:?} does not decode", frame);
            }
            while let Some(dispatch) = sender.poll_send(now) {
                sender.handle_lane_took(choice % 3, dispatch.sequence);
            }
            if choice == 7 {
                sender.handle_lane_down(1);
            }
        }
        prop_assert!(memory(&sender) as u64 <= 20_000 + extents * 4000);
    }
}
