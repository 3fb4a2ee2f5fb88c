//! Seeds made of the golden frames, so that every fixture of the protocol is a starting point of its fuzz target.

use std::io;
use std::path::Path;

/// One corpus file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seed {
    /// Name of the target.
    pub target: &'static str,
    /// Name of the file.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// A volume size for which golden extent heads pass their check: the tail extent of `extent_raw` has five chunks.
const VOLUME_SIZE: u64 = 7 * volume::EXTENT + 5 * volume::CHUNK;

/// The seeds of all targets of crate `wire`.
///
/// # Errors
/// When a fixture cannot be read, or is not hexadecimal.
pub fn golden() -> io::Result<Vec<Seed>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../agent/crates/wire/golden");
    let prelude = read_hex(&folder.join("prelude.hex"))?;
    let mut seeds = vec![Seed { target: "prelude", name: "golden".to_owned(), bytes: prelude }];
    for entry in std::fs::read_dir(folder.join("v1"))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()).map(str::to_owned) else {
            return Err(io::Error::other(format!("{} is not named in UTF-8", path.display())));
        };
        let bytes = read_hex(&path)?;
        let (header, body) = bytes.split_at(wire::FRAME_HEADER);
        seeds.push(Seed { target: "frame_header", name: name.clone(), bytes: header.to_vec() });
        if header[0] == wire::Tag::Extent as u8 {
            let bytes = [&VOLUME_SIZE.to_le_bytes(), body].concat();
            seeds.push(Seed { target: "extent_head", name, bytes });
        } else {
            seeds.push(Seed { target: "control", name, bytes });
        }
    }
    Ok(seeds)
}

/// Pairs of hexadecimal digits; `#` starts a comment that ends with the line.
fn read_hex(path: &Path) -> io::Result<Vec<u8>> {
    let text = std::fs::read_to_string(path)?;
    let digits: Option<Vec<u8>> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().chars())
        .filter(|character| !character.is_whitespace())
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    match digits {
        Some(digits) if digits.len().is_multiple_of(2) => {
            Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        }
        _ => Err(io::Error::other(format!("{} holds no whole hexadecimal bytes", path.display()))),
    }
}
