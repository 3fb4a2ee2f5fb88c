use proptest::prelude::*;

use super::*;
use crate::recorded::{MULTIFD_CHANNEL, MULTIFD_MAIN, POST_COPY, SINGLE, decode, reads, stated};

const RAM: u32 = 2;

/// A stream under construction, and the pages that are in it.
#[derive(Clone, Default, Debug)]
struct Made {
    bytes: Vec<u8>,
    pages: Vec<(&'static str, u64)>,
    /// The block of the last record.
    current: Option<&'static str>,
}

impl Made {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn name(self, name: &str) -> Self {
        let length = u8::try_from(name.len()).unwrap();
        self.raw(&[length]).raw(name.as_bytes())
    }

    fn be64(self, value: u64) -> Self {
        self.raw(&value.to_be_bytes())
    }

    fn be32(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }

    fn begin() -> Self {
        Self::default().raw(b"QEVM\0\0\0\x03").raw(b"\x07\0\0\0\x0epc-i440fx-10.0")
    }

    fn subsection(self, name: &str) -> Self {
        self.raw(&[5]).name(name).be32(1)
    }

    fn start(self, name: &str, version: u32) -> Self {
        self.raw(&[1]).be32(RAM).name(name).be32(0).be32(version)
    }

    fn part(self) -> Self {
        self.raw(&[2]).be32(RAM)
    }

    /// The end of records, and the footer.
    fn eos(self) -> Self {
        self.be64(0x10).raw(&[0x7e]).be32(RAM)
    }

    fn blocks(self, blocks: &[(&str, u64, &[u64])]) -> Self {
        let total: u64 = blocks.iter().map(|(_, length, _)| length).sum();
        blocks.iter().fold(self.be64(total | 4), |made, (name, length, more)| {
            more.iter().fold(made.name(name).be64(*length), |made, field| made.be64(*field))
        })
    }

    /// Everything up to the first part.
    fn ready() -> Self {
        Self::begin().start("ram", 4).blocks(&[("pc.ram", 1 << 24, &[]), ("pc.bios", 1 << 16, &[])]).eos()
    }

    fn record(mut self, block: &'static str, offset: u64, flag: u64) -> Self {
        if self.current == Some(block) {
            return self.be64(offset | flag | 0x20);
        }
        self.current = Some(block);
        self.be64(offset | flag).name(block)
    }

    fn page(self, block: &'static str, offset: u64) -> Self {
        let mut made = self.record(block, offset, 0x08);
        made.pages.push((block, offset));
        let data = content(block, offset);
        made.raw(&data)
    }

    fn zero(self, block: &'static str, offset: u64) -> Self {
        self.record(block, offset, 0x02).raw(&[0])
    }

    fn delta(self, block: &'static str, offset: u64, length: u16) -> Self {
        let made = self.record(block, offset, 0x40).raw(&[1]).raw(&length.to_be_bytes());
        made.raw(&vec![0x7e; usize::from(length)])
    }

    fn command(self, command: u16, body: &[u8]) -> Self {
        let length = u16::try_from(body.len()).unwrap();
        self.raw(&[8]).raw(&command.to_be_bytes()).raw(&length.to_be_bytes()).raw(body)
    }

    fn packaged(self, length: u32) -> Self {
        self.command(7, &length.to_be_bytes()).raw(&vec![4; length as usize])
    }
}

fn content(block: &str, offset: u64) -> [u8; PAGE] {
    let mut data = [block.as_bytes()[3]; PAGE];
    data[..8].copy_from_slice(&offset.to_be_bytes());
    data
}

/// All tokens of a stream that arrives in such reads, and why it became literal.
fn tokens_of(mut tokeniser: Tokeniser, bytes: &[u8], sizes: &[usize]) -> (Vec<Token>, Option<Reason>) {
    let mut tokens = Vec::new();
    for (at, read) in reads(bytes, sizes).enumerate() {
        if at % 2 == 0 {
            tokeniser.push(read);
        } else {
            let mut read = read;
            while !read.is_empty() {
                let mut room = tokeniser.input();
                let (now, later) = read.split_at(read.len().min(room.remaining_mut()));
                room.put_slice(now);
                read = later;
            }
        }
        while let Some(token) = tokeniser.next_token() {
            tokens.push(token);
        }
    }
    let reason = tokeniser.literal_because().cloned();
    tokens.extend(tokeniser.finish());
    (tokens, reason)
}

fn tokens(bytes: &[u8], sizes: &[usize]) -> (Vec<Token>, Option<Reason>) {
    tokens_of(Tokeniser::new(), bytes, sizes)
}

fn rebuilt(tokens: &[Token]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for token in tokens {
        rebuild(token, &mut bytes);
    }
    bytes
}

/// Checks the tokens against what was made, and returns why it became literal.
#[track_caller]
fn check(made: &Made, sizes: &[usize]) -> Option<Reason> {
    let (tokens, reason) = tokens(&made.bytes, sizes);
    assert_eq!(rebuilt(&tokens), made.bytes);
    let pages = tokens.iter().filter_map(|token| match token {
        Token::Page(page) => {
            let name = std::str::from_utf8(page.block.name()).unwrap();
            assert_eq!(page.data[..], content(name, page.offset), "{page:?}");
            Some((name, page.offset))
        }
        Token::Literal(bytes) => {
            assert!(!bytes.is_empty());
            None
        }
    });
    assert_eq!(pages.collect::<Vec<_>>(), made.pages);
    reason
}

#[test]
fn all_kinds_of_sections_and_records() {
    let made = Made::begin()
        .subsection("configuration/capabilities")
        .be32(2)
        .name("x-ignore-shared")
        .name("something")
        .subsection("configuration/target-page-bits")
        .be32(12)
        .subsection("configuration/uuid")
        .raw(&[9; 16])
        .command(1, &[])
        .command(2, &7_u32.to_be_bytes())
        .command(3, &[0; 16])
        .start("ram", 4)
        .blocks(&[("pc.ram", 1 << 24, &[]), ("pc.bios", 1 << 16, &[])])
        .be64(0x200)
        .eos()
        .part()
        .page("pc.ram", 0)
        .zero("pc.ram", 0x1000)
        .page("pc.ram", 0x2000)
        .page("pc.bios", 0xf000)
        .delta("pc.bios", 0, 0)
        .delta("pc.ram", 0x3000, 4096)
        .be64(0x200)
        .eos()
        // The block lasts beyond the section.
        .part()
        .page("pc.ram", 0x4000)
        .eos()
        .packaged(70_000)
        .command(6, &[1; 300])
        .part()
        .zero("pc.bios", 0x1000)
        .page("pc.bios", 0x2000)
        .eos()
        .raw(&[3])
        .be32(RAM)
        .page("pc.ram", 0xff_f000)
        .eos();
    for sizes in [&[][..], &[1], &[7, 4096], &[100_000]] {
        assert_eq!(check(&made, sizes), None, "nothing is unknown before the end");
        assert_eq!(check(&made.clone().raw(&[0]), sizes), Some(Reason::End));
    }
    let device = made.raw(&[4]).be32(5).name("timer").be32(0).be32(2).raw(&[1; 5000]).page("pc.ram", 0);
    let (tokens, reason) = tokens(&device.bytes, &[]);
    assert_eq!(rebuilt(&tokens), device.bytes);
    let reason = reason.unwrap();
    assert_eq!(reason, Reason::Content(Bytes::from_static(b"timer")));
    assert!(reason.is_expected());
    assert_eq!(tokens.iter().filter(|token| matches!(token, Token::Page(_))).count(), device.pages.len() - 1);
}

#[test]
fn blocks_keep_their_numbers() {
    let made = Made::ready().part().page("pc.bios", 0).page("pc.ram", 0).eos();
    let (tokens, _) = tokens(&made.bytes, &[]);
    let blocks: Vec<_> = tokens
        .iter()
        .filter_map(|token| match token {
            Token::Page(page) => Some((page.block.index(), page.block.name())),
            Token::Literal(_) => None,
        })
        .collect();
    assert_eq!(blocks, [(1, &b"pc.bios"[..]), (0, &b"pc.ram"[..])]);
    let Token::Page(page) = &tokens[1] else { panic!("{tokens:?}") };
    assert_eq!(format!("{:?}", page.block), "1 pc.bios");
}

#[test]
fn fields_that_capabilities_add_to_blocks() {
    let lists: [&[(&str, u64, &[u64])]; 4] = [
        &[("pc.ram", 1 << 24, &[]), ("pc.bios", 1 << 16, &[4096])],
        &[("pc.ram", 1 << 24, &[2 << 20]), ("pc.bios", 1 << 16, &[])],
        &[("pc.ram", 1 << 24, &[0]), ("pc.bios", 1 << 16, &[0xfffc_0000])],
        &[("pc.ram", 1 << 24, &[1 << 30, 0]), ("pc.bios", 1 << 16, &[4096, 1 << 32])],
    ];
    for list in lists {
        let made = Made::begin().start("ram", 4).blocks(list).eos().part().page("pc.bios", 0x1000).eos();
        for sizes in [&[][..], &[1], &[13]] {
            assert_eq!(check(&made, sizes), None, "{list:?}");
        }
    }
}

#[test]
fn what_is_not_known_is_literal_for_good() {
    let started = || Made::begin().start("ram", 4);
    let part = || Made::ready().part();
    let content = |name: &'static str| Reason::Content(Bytes::from_static(name.as_bytes()));
    let many: Vec<String> = (0..=MAX_BLOCKS).map(|number| format!("block{number}")).collect();
    let many: Vec<(&str, u64, &[u64])> = many.iter().map(|name| (name.as_str(), 4096, &[][..])).collect();
    let cases = [
        ("version", Made::default().raw(b"QEVM\0\0\0\x02"), Reason::Magic),
        ("machine", Made::default().raw(b"QEVM\0\0\0\x03\x07").be32(257), Reason::Configuration),
        (
            "mapped-ram",
            Made::begin().subsection("configuration/capabilities").be32(1).name("mapped-ram"),
            Reason::Configuration,
        ),
        (
            "capabilities",
            Made::begin().subsection("configuration/capabilities").be32(65),
            Reason::Configuration,
        ),
        (
            "large pages",
            Made::begin().subsection("configuration/target-page-bits").be32(14),
            Reason::Configuration,
        ),
        ("subsection", Made::begin().subsection("configuration/new"), Reason::Configuration),
        ("second configuration", Made::ready().raw(&[7]).be32(0), Reason::Section(7)),
        ("section type", Made::ready().raw(&[9]), Reason::Section(9)),
        ("bitmap", Made::begin().start("dirty-bitmap", 1), content("dirty-bitmap")),
        ("ram version", Made::begin().start("ram", 5), Reason::Section(1)),
        ("second ram", Made::ready().start("ram", 4), Reason::Section(1)),
        ("part of another", Made::ready().raw(&[2]).be32(9), Reason::Section(2)),
        ("part before start", Made::begin().part(), Reason::Section(2)),
        ("footer of another", Made::ready().raw(&[0x7e]).be32(9), Reason::Section(0x7e)),
        ("COLO", Made::ready().command(8, &[]), Reason::Command(8)),
        ("command 0", Made::ready().command(0, &[]), Reason::Command(0)),
        ("command 12", Made::ready().command(12, &[]), Reason::Command(12)),
        ("package", Made::ready().command(7, &[0; 5]), Reason::Command(7)),
        ("block too long", started().be64(0x1004).name("pc.ram").be64(0x2000), Reason::Blocks),
        ("same block", started().blocks(&[("a", 4096, &[]), ("a", 4096, &[])]), Reason::Blocks),
        ("unnamed block", started().be64(0x1004).name("").be64(0x1000), Reason::Blocks),
        ("three fields", started().blocks(&[("a", 4096, &[0, 0, 0]), ("b", 4096, &[])]), Reason::Blocks),
        ("blocks", started().blocks(&many), Reason::Blocks),
        ("second list", part().be64(4), Reason::Record(4)),
        ("no flag", part().be64(0x1000), Reason::Record(0x1000)),
        ("hook", part().be64(0x80), Reason::Record(0x80)),
        ("compressed", part().be64(0x1100), Reason::Record(0x1100)),
        ("two flags", part().be64(0x100a), Reason::Record(0x100a)),
        ("end elsewhere", part().be64(0x1010), Reason::Record(0x1010)),
        ("end continued", part().be64(0x30), Reason::Record(0x30)),
        ("flush elsewhere", part().be64(0x1200), Reason::Record(0x1200)),
        ("no block yet", part().be64(0x28), Reason::UnknownBlock),
        ("unknown block", part().be64(0x08).name("vga.vram"), Reason::UnknownBlock),
        ("beyond the block", part().be64(0x1_0008).name("pc.bios"), Reason::Offset(0x1_0000)),
        ("encoding", part().be64(0x40).name("pc.ram").raw(&[2, 0, 0]), Reason::Record(0x40)),
        ("delta", part().be64(0x40).name("pc.ram").raw(&[1, 0x10, 1]), Reason::Record(0x40)),
    ];
    for (name, made, expected) in cases {
        let mut made = made.raw(&[0; 16]);
        assert_eq!(check(&made, &[1]).as_ref(), Some(&expected), "{name}");
        // What follows may look fine, but nobody can tell.
        made.current = None;
        let more = Made { pages: Vec::new(), ..made }.eos().part().page("pc.ram", 0).eos();
        let (tokens, reason) = tokens(&more.bytes, &[]);
        assert_eq!(reason.as_ref(), Some(&expected), "{name}");
        assert!(tokens.iter().all(|token| matches!(token, Token::Literal(_))), "{name}");
        assert_eq!(rebuilt(&tokens), more.bytes, "{name}");
        assert!(!expected.to_string().is_empty());
    }
}

#[test]
fn nothing_literal_is_held_back() {
    let mut tokeniser = Tokeniser::new();
    let mut next = |bytes: &[u8]| {
        tokeniser.push(bytes);
        let mut literal = 0;
        while let Some(token) = tokeniser.next_token() {
            let Token::Literal(bytes) = token else { return (literal, true) };
            literal += bytes.len();
        }
        (literal, false)
    };
    let ready = Made::ready();
    assert_eq!(next(&ready.bytes), (ready.bytes.len(), false));
    let zero = Made::default().part().zero("pc.ram", 0);
    assert_eq!(next(&zero.bytes), (zero.bytes.len(), false));
    let page = Made { current: Some("pc.ram"), ..Made::default() }.page("pc.ram", 0x1000);
    assert_eq!(next(&page.bytes[..1000]), (8, false), "the head does not wait for its page");
    assert_eq!(next(&page.bytes[1000..4103]), (0, false));
    assert_eq!(next(&page.bytes[4103..]), (0, true));
    let end = Made::default().eos();
    assert_eq!(next(&end.bytes), (end.bytes.len(), false));
    let package = Made::default().packaged(1 << 20);
    assert_eq!(next(&package.bytes[..9]), (9, false));
    assert_eq!(next(&package.bytes[9..500]), (491, false), "a body is passed on as it comes");
    assert_eq!(next(&package.bytes[500..]), (package.bytes.len() - 500, false));
    let device = Made::default().raw(&[4]).be32(5).name("timer").be32(0).be32(2);
    assert_eq!(next(&device.bytes), (device.bytes.len(), false));
    assert_eq!(next(&[1]), (1, false));
}

#[test]
fn what_was_known_comes_before_the_rest() {
    let known = Made::ready();
    let bytes = known.clone().raw(&[9, 9, 9]).bytes;
    let (tokens, _) = tokens(&bytes, &[]);
    let lengths: Vec<_> = tokens
        .iter()
        .map(|token| match token {
            Token::Literal(bytes) => bytes.len(),
            Token::Page(_) => 0,
        })
        .collect();
    assert_eq!(lengths, [known.bytes.len(), 3]);
}

#[test]
fn post_copy_resumes_on_another_connection() {
    let first = Made::ready().part().page("pc.ram", 0).page("pc.ram", 0x1000);
    let mut tokeniser = Tokeniser::new();
    // The link breaks within a page.
    tokeniser.push(&first.bytes[..first.bytes.len() - 9]);
    while tokeniser.next_token().is_some() {}
    let second = Made::default()
        .command(10, b"\x06pc.ram")
        .command(9, &[])
        .part()
        .page("pc.ram", 0x1000)
        .eos()
        .raw(&[3])
        .be32(RAM)
        .eos()
        .raw(&[0]);
    let (tokens, reason) = tokens_of(tokeniser.resumed(), &second.bytes, &[]);
    assert_eq!(rebuilt(&tokens), second.bytes);
    assert_eq!(reason, Some(Reason::End));
    assert_eq!(tokens.iter().filter(|token| matches!(token, Token::Page(_))).count(), 1);
    // There is no block to continue with.
    let (_, reason) = tokens_of(tokeniser.resumed(), &Made::default().part().be64(0x28).bytes, &[]);
    assert_eq!(reason, Some(Reason::UnknownBlock));
    // What was passed through stays so.
    tokeniser.push(&[0; 5000]);
    while tokeniser.next_token().is_some() {}
    let (_, reason) = tokens_of(tokeniser.resumed(), &second.bytes, &[]);
    assert_eq!(reason.as_ref(), tokeniser.literal_because());
    assert!(reason.is_some());
}

#[test]
fn kinds_of_connections() {
    let cases: [(&[u8], Option<Kind>); 9] = [
        (b"", None),
        (b"QEV", None),
        (b"QEVM", Some(Kind::Main)),
        (b"QEVM\0\0\0\x03", Some(Kind::Main)),
        (b"\x11\x22\x33", None),
        (b"\x11\x22\x33\x44\0\0\0\x01", Some(Kind::Multifd)),
        (b"\x16\x03\x01", Some(Kind::Unknown)),
        (b"QEVN", Some(Kind::Unknown)),
        (b"\x11\x22\x33\x45", Some(Kind::Unknown)),
    ];
    for (first, expected) in cases {
        assert_eq!(detect(first), expected, "{}", first.escape_ascii());
    }
    assert_eq!(detect(&decode(SINGLE)), Some(Kind::Main));
    assert_eq!(detect(&decode(MULTIFD_MAIN)), Some(Kind::Main));
    assert_eq!(detect(&decode(MULTIFD_CHANNEL)), Some(Kind::Multifd));
}

#[test]
fn recorded_streams_are_recognised() {
    for (text, end) in [(SINGLE, None), (POST_COPY, Some(Reason::End)), (MULTIFD_MAIN, None)] {
        let bytes = decode(text);
        for sizes in [&[][..], &[1], &[4096], &[17, 100_000]] {
            let (tokens, reason) = tokens(&bytes, sizes);
            assert_eq!(rebuilt(&tokens), bytes);
            let reason = reason.expect("the recordings end behind what is known");
            assert!(reason.is_expected() && end.as_ref().is_none_or(|end| *end == reason), "{reason}");
            let pages = tokens.iter().filter(|token| matches!(token, Token::Page(_))).count();
            assert_eq!(pages, stated(text, "pages"));
        }
    }
}

/// What a part may hold.
#[derive(Clone, Copy, Debug)]
enum Record {
    Page(bool, u64),
    Zero(bool, u64),
    Delta(bool, u64, u16),
    Flush,
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        4 => (any::<bool>(), 0_u64..16).prop_map(|(bios, page)| Record::Page(bios, page << 12)),
        4 => (any::<bool>(), 0_u64..16).prop_map(|(bios, page)| Record::Zero(bios, page << 12)),
        2 => (any::<bool>(), 0_u64..16, 0_u16..=4096)
            .prop_map(|(bios, page, length)| Record::Delta(bios, page << 12, length)),
        1 => Just(Record::Flush),
    ]
}

fn stream() -> impl Strategy<Value = Made> {
    proptest::collection::vec((proptest::collection::vec(record(), 0..8), 0_u32..5000), 0..5).prop_map(
        |parts| {
            parts.iter().fold(Made::ready(), |made, (records, packaged)| {
                let made = records.iter().fold(made.part(), |made, record| {
                    let block = |bios| if bios { "pc.bios" } else { "pc.ram" };
                    match *record {
                        Record::Page(bios, offset) => made.page(block(bios), offset),
                        Record::Zero(bios, offset) => made.zero(block(bios), offset),
                        Record::Delta(bios, offset, length) => made.delta(block(bios), offset, length),
                        Record::Flush => made.be64(0x200),
                    }
                });
                made.eos().packaged(*packaged)
            })
        },
    )
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![1_usize..50, 1_usize..10_000], 0..6)
}

proptest! {
    #[test]
    fn any_bytes_come_out_as_they_went_in(
        ready in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        sizes in sizes(),
    ) {
        let bytes = if ready { Made::ready().part().raw(&bytes).bytes } else { bytes };
        let (tokens, _) = tokens(&bytes, &sizes);
        prop_assert_eq!(rebuilt(&tokens), bytes);
    }

    #[test]
    fn pages_are_recognised_in_any_reads(made in stream(), sizes in sizes()) {
        prop_assert_eq!(check(&made, &sizes), None);
    }

    #[test]
    fn damage_and_cuts_lose_nothing(
        made in stream(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        sizes in sizes(),
    ) {
        let mut bytes = made.bytes;
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let (tokens, _) = tokens(&bytes, &sizes);
        prop_assert_eq!(rebuilt(&tokens), bytes);
    }
}
