//! The recordings of real migrations, for unit tests. `tests/migration.rs` made them and says how.

#[path = "../tests/support/recorded.rs"]
mod text;

pub(crate) const SINGLE: &str = include_str!("../tests/recorded/single.hex");
pub(crate) const POST_COPY: &str = include_str!("../tests/recorded/post_copy.hex");
pub(crate) const MULTIFD_MAIN: &str = include_str!("../tests/recorded/multifd_main.hex");
pub(crate) const MULTIFD_CHANNEL: &str = include_str!("../tests/recorded/multifd_channel.hex");

pub(crate) use text::decode;

/// Cuts `bytes` into reads of these sizes, over and over.
pub(crate) fn reads<'a>(mut bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().copied().cycle();
    std::iter::from_fn(move || {
        let size = sizes.next().unwrap_or(bytes.len()).clamp(1, bytes.len().max(1));
        let (read, rest) = bytes.split_at_checked(size)?;
        bytes = rest;
        Some(read)
    })
}

/// The number before `what` in a recording's comment.
pub(crate) fn stated(text: &str, what: &str) -> usize {
    let words: Vec<_> = text.lines().next().unwrap_or_default().split(what).collect();
    let number = words[0].split_whitespace().next_back().expect("a number");
    number.parse().expect("a number")
}

#[test]
fn text_is_read_back() {
    let bytes = [&[1, 2, 3][..], &[0; 5], &[7; 6], &[0; 4096], &[9; 100], b"abcabc"].concat();
    assert_eq!(decode(&text::encode("all kinds of runs", &bytes)), bytes);
}
