//! Recorded migration streams as text: pairs of hexadecimal digits, `#` for comments to the end of the line, and
//! `*N`, by which the byte before it occurs N times in all.

/// Shortest run that is written as one.
const RUN: usize = 6;

/// Bytes to a line.
const LINE: usize = 48;

/// The bytes of a recording.
///
/// # Panics
/// When the text is not as described.
pub(crate) fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace()) {
        if let Some(count) = word.strip_prefix('*') {
            let count: usize = count.parse().expect("a number follows *");
            let last = *bytes.last().expect("a byte comes before *");
            bytes.resize(bytes.len() - 1 + count, last);
        } else {
            bytes.extend(
                (0..word.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&word[at..at + 2], 16).expect("a byte")),
            );
        }
    }
    bytes
}

/// The text of a recording.
pub(crate) fn encode(comment: &str, bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = format!("# {comment}\n");
    let mut in_line = 0;
    for run in bytes.chunk_by(|one, other| one == other) {
        if run.len() >= RUN {
            write!(text, "{:02x} *{} ", run[0], run.len()).expect("text takes text");
            in_line += 4;
        } else {
            for byte in run {
                write!(text, "{byte:02x}").expect("text takes text");
            }
            in_line += run.len();
        }
        if in_line >= LINE {
            text.push('\n');
            in_line = 0;
        }
    }
    text + "\n"
}
