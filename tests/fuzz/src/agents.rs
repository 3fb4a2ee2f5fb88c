//! Targets of what the two agents of a migration say to each other: frames of memory and disks, and messages.

use engine::migrate::disk::frame::{ANSWER, Answer, MAX_WRITE, REQUEST, Request};
use engine::migrate::message::{self, FromDestination, FromSource};
use engine::migrate::ram::frame::{FRAME, Head, Kind, MAX_HEAD, split_mixed};
use reduce::ram::MAX_PACKET;

/// The heads of frames on a migration's channels.
pub fn migration_frames(data: &[u8]) {
    if let Some((bytes, rest)) = data.split_first_chunk::<FRAME>()
        && let Ok(head) = Head::decode(bytes)
    {
        assert_eq!(head.encode(), *bytes, "a head reads back");
        assert!(head.head_wire as usize <= MAX_HEAD && head.body as usize <= MAX_PACKET, "within the caps");
        if head.kind == Kind::Mixed
            && let Ok((lengths, literals)) = split_mixed(rest, usize::from(head.pages))
        {
            assert_eq!(lengths.iter().sum::<usize>(), literals.len(), "the lengths add up");
        }
    }
    if let Some((bytes, _)) = data.split_first_chunk::<REQUEST>()
        && let Ok(request) = Request::decode(bytes, 1 << 40)
    {
        assert_eq!(request.encode(), *bytes, "a request reads back");
        assert!(u64::from(request.wire_len) <= MAX_WRITE, "within the cap");
    }
    if let Some((bytes, _)) = data.split_first_chunk::<ANSWER>()
        && let Ok(answer) = Answer::decode(bytes)
    {
        assert_eq!(answer.encode(), *bytes, "an answer reads back");
    }
}

/// The messages of a migration, a specification among them.
pub fn migration_messages(data: &[u8]) {
    if let Ok(said) = message::decode::<FromSource>(data) {
        if let FromSource::Prepare(prepare) = &said {
            // Whatever it says: it is checked, and an error says what is wrong.
            if let Err(error) = prepare.specification.check() {
                assert!(!error.to_string().is_empty(), "an error says what is wrong");
            }
        }
        let bytes = message::encode(&said).expect("what was read fits a frame");
        assert_eq!(message::decode::<FromSource>(&bytes).as_ref(), Ok(&said), "a message reads back");
    }
    if let Ok(said) = message::decode::<FromDestination>(data) {
        let bytes = message::encode(&said).expect("what was read fits a frame");
        assert_eq!(message::decode::<FromDestination>(&bytes).as_ref(), Ok(&said), "a message reads back");
    }
}
