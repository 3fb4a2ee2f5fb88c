//! What this host's processor is, as far as a guest with `-cpu host` could see.

use std::fmt::Write as _;

/// Model name and a digest of the feature flags, from `/proc/cpuinfo` (proc_cpuinfo(5)). Two hosts with the same text
/// give a guest with `-cpu host` the same processor; microcode is not looked at.
#[must_use]
pub fn host_cpu() -> Option<String> {
    describe(&std::fs::read_to_string("/proc/cpuinfo").ok()?)
}

fn describe(cpuinfo: &str) -> Option<String> {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let mut flags: Vec<&str> = field("flags")?.split_whitespace().collect();
    flags.sort_unstable();
    let mut text = field("model name")?.to_owned();
    let digest = xxhash_rust::xxh3::xxh3_128(flags.join(" ").as_bytes());
    // Writing to a string cannot fail.
    let _infallible = write!(text, " [{digest:032x}]");
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn the_order_of_flags_does_not_matter() {
        let one = describe("model name\t: Some CPU\nflags\t\t: a b c\n").unwrap();
        let other = describe("processor: 0\nmodel name : Some CPU\nflags : c a b\n").unwrap();
        assert_eq!(one, other);
        assert_ne!(describe("model name : Some CPU\nflags : a b\n").unwrap(), one);
        assert_eq!(describe("model name : x\n"), None);
    }
}
