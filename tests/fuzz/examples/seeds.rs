//! Writes the seeds that come from the golden frames of `wire` and from our own encoders: `cargo run -p novaferry-fuzz --example seeds`.
//! Run it after adding a fixture; the replay test says when it was forgotten.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for seed in novaferry_fuzz::seeds::golden()?.into_iter().chain(novaferry_fuzz::seeds::made()) {
        let folder = corpus.join(seed.target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(seed.name), seed.bytes)?;
    }
    Ok(())
}
