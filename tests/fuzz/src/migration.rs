//! Targets of what a migrating QEMU sends. The first byte is the size of the reads in which the rest arrives.

use hypervisor::{multifd, stream};

/// The reads of an input: the first byte says how long they are.
fn reads(data: &[u8]) -> Option<(&[u8], std::slice::Chunks<'_, u8>)> {
    let (size, bytes) = data.split_first()?;
    Some((bytes, bytes.chunks(usize::from(*size).max(1))))
}

fn packets<'a>(reads: impl Iterator<Item = &'a [u8]>) -> (Vec<multifd::Token>, Option<multifd::Reason>) {
    let mut tokeniser = multifd::Tokeniser::new();
    let mut tokens = Vec::new();
    for read in reads {
        tokeniser.push(read);
        tokens.extend(std::iter::from_fn(|| tokeniser.next_token()));
    }
    let reason = tokeniser.literal_because();
    tokens.extend(tokeniser.finish());
    (tokens, reason)
}

/// A multifd channel.
pub fn multifd(data: &[u8]) {
    let Some((bytes, reads)) = reads(data) else { return };
    let understood = |tokens: Vec<multifd::Token>| -> Vec<multifd::Token> {
        tokens.into_iter().filter(|token| !matches!(token, multifd::Token::Literal(_))).collect()
    };
    let (tokens, reason) = packets(reads);
    let mut rebuilt = Vec::new();
    for token in &tokens {
        multifd::rebuild(token, &mut rebuilt);
    }
    assert!(rebuilt == bytes, "the tokens are what came in");
    for token in tokens.iter().skip_while(|token| !matches!(token, multifd::Token::Literal(_))) {
        assert!(matches!(token, multifd::Token::Literal(_)), "literal for good");
    }
    for token in &tokens {
        let multifd::Token::Packet(packet) = token else { continue };
        let (normal, zero) = (packet.normal_offsets(), packet.zero_offsets());
        assert!(normal.len() + zero.len() <= multifd::MAX_PAGES);
        assert_eq!(packet.pages().len(), normal.len() * multifd::PAGE, "each page has its content");
        assert!(normal.chain(zero).all(|offset| offset % multifd::PAGE as u64 == 0));
        assert!(packet.block().len() < 256);
    }
    let (whole, reason_of_whole) = packets([bytes].into_iter());
    assert_eq!(reason, reason_of_whole, "reads do not matter");
    assert!(understood(tokens) == understood(whole), "reads do not matter");
}

fn sections<'a>(reads: impl Iterator<Item = &'a [u8]>) -> (Vec<stream::Token>, Option<stream::Reason>) {
    let mut tokeniser = stream::Tokeniser::new();
    let mut tokens = Vec::new();
    for read in reads {
        tokeniser.push(read);
        tokens.extend(std::iter::from_fn(|| tokeniser.next_token()));
    }
    let reason = tokeniser.literal_because().cloned();
    tokens.extend(tokeniser.finish());
    (tokens, reason)
}

/// A main channel.
pub fn migration_stream(data: &[u8]) {
    let Some((bytes, reads)) = reads(data) else { return };
    let pages = |tokens: Vec<stream::Token>| -> Vec<stream::Page> {
        tokens
            .into_iter()
            .filter_map(|token| match token {
                stream::Token::Page(page) => Some(page),
                stream::Token::Literal(_) => None,
            })
            .collect()
    };
    let (tokens, reason) = sections(reads);
    let mut rebuilt = Vec::new();
    for token in &tokens {
        stream::rebuild(token, &mut rebuilt);
    }
    assert!(rebuilt == bytes, "the tokens are what came in");
    if bytes.len() >= 4 && stream::detect(bytes) != Some(stream::Kind::Main) {
        assert_eq!(reason, Some(stream::Reason::Magic), "no main channel");
    }
    let (whole, reason_of_whole) = sections([bytes].into_iter());
    assert_eq!(reason, reason_of_whole, "reads do not matter");
    let pages_found = pages(tokens);
    for page in &pages_found {
        assert_eq!(page.data.len(), stream::PAGE);
        assert!(page.offset % stream::PAGE as u64 == 0 && !page.block.name().is_empty());
        assert!(usize::from(page.block.index()) < stream::MAX_BLOCKS);
    }
    assert!(pages_found == pages(whole), "reads do not matter");
}

/// A multifd channel: hello, a packet with a page and two zero pages, the end of the round.
pub(crate) fn channel_seed() -> Vec<u8> {
    const BEGIN: [u8; 8] = [0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1];
    let mut bytes = BEGIN.to_vec();
    bytes.resize(multifd::HELLO, 0);
    for (flags, allocated, normal, zero) in [(0_u32, 128_u32, 1_u32, 2_u32), (1, 0, 0, 0)] {
        let start = bytes.len();
        bytes.extend(BEGIN);
        for field in [flags, allocated, normal, normal * 4096, 0, 7, zero] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.resize(start + 64, 0);
        bytes.extend(b"pc.ram");
        bytes.resize(start + 320, 0);
        for offset in [0x1000_u64, 0x2000, 0x3000].iter().take((normal + zero) as usize) {
            bytes.extend(offset.to_be_bytes());
        }
        bytes.resize(start + multifd::HEADER, 0);
        bytes.resize(bytes.len() + normal as usize * multifd::PAGE, 0xa5);
    }
    bytes
}

/// A main channel with every kind of record and section that is known; with `more`, blocks have further fields.
pub(crate) fn stream_seed(more: bool) -> Vec<u8> {
    fn name(bytes: &mut Vec<u8>, name: &str) {
        bytes.push(u8::try_from(name.len()).expect("names are short"));
        bytes.extend(name.as_bytes());
    }
    let mut bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc".to_vec();
    for (part, body) in [
        ("configuration/capabilities", &b"\0\0\0\x01\x0fx-ignore-shared"[..]),
        ("configuration/target-page-bits", b"\0\0\0\x0c"),
        ("configuration/uuid", &[7; 16]),
    ] {
        bytes.push(5);
        name(&mut bytes, part);
        bytes.extend(1_u32.to_be_bytes());
        bytes.extend(body);
    }
    bytes.extend(b"\x08\0\x01\0\0"); // a command
    bytes.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04"); // ram starts
    bytes.extend((0x2_0000_u64 | 4).to_be_bytes());
    for block in ["pc.ram", "pc.bios"] {
        name(&mut bytes, block);
        bytes.extend(0x1_0000_u64.to_be_bytes());
        if more {
            bytes.extend([4096_u64, 1 << 32].map(u64::to_be_bytes).concat());
        }
    }
    let end = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";
    bytes.extend(end);
    bytes.extend(b"\x02\0\0\0\x02"); // a part
    bytes.extend(0x1008_u64.to_be_bytes());
    name(&mut bytes, "pc.ram");
    bytes.resize(bytes.len() + stream::PAGE, 0xa5);
    bytes.extend(0x2022_u64.to_be_bytes()); // the same block's zero page
    bytes.push(0);
    bytes.extend(0x3040_u64.to_be_bytes()); // a delta
    name(&mut bytes, "pc.bios");
    bytes.extend([1, 0, 3, 9, 9, 9]);
    bytes.extend(0x200_u64.to_be_bytes()); // the end of a round
    bytes.extend(end);
    bytes.extend(b"\x08\0\x07\0\x04\0\0\0\x05stuff"); // a package
    bytes.extend(b"\x03\0\0\0\x02"); // ram ends
    bytes.extend(end);
    bytes.extend(b"\x04\0\0\0\x03\x05timer\0\0\0\0\0\0\0\x02state");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_understood() {
        let channel = channel_seed();
        let (tokens, reason) = packets([&channel[..]].into_iter());
        assert_eq!((tokens.len(), reason), (3, None));
        for more in [false, true] {
            let stream = stream_seed(more);
            let (tokens, reason) = sections([&stream[..]].into_iter());
            assert!(matches!(tokens[1], stream::Token::Page(_)), "{tokens:?}");
            assert_eq!(reason, Some(stream::Reason::Content("timer".into())));
        }
    }
}
