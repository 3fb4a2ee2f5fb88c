//! Rust text without its comments and literals, so that a word in prose is not taken for code.

/// The text with every comment, string and character literal replaced by blanks; line breaks stay.
#[must_use]
pub fn code_only(text: &str) -> String {
    let mut rest = text;
    let mut code = String::with_capacity(text.len());
    while let Some(first) = rest.chars().next() {
        let skipped = skipped(rest, code.chars().next_back());
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().map(|one| if one == '\n' { '\n' } else { ' ' }));
            rest = &rest[skipped..];
        }
    }
    code
}

/// Length of the comment or literal at the start of `rest`, 0 if there is none.
fn skipped(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    let in_word = before.is_some_and(|one| one.is_alphanumeric() || one == '_');
    if !in_word && rest.starts_with(['r', 'b', 'c']) {
        return prefixed(rest);
    }
    if rest.starts_with('\'') { character(rest) } else { 0 }
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// A literal with escapes, from its opening quote to its closing one.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, one) in rest.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if one == '\\' {
            escaped = true;
        } else if one == quote {
            return at + 1;
        }
    }
    rest.len()
}

/// `b"…"`, `c"…"`, `b'…'`, and the raw forms with any number of `#`.
fn prefixed(rest: &str) -> usize {
    let letters = rest.len() - rest.trim_start_matches(['r', 'b', 'c']).len();
    if letters > 2 {
        return 0;
    }
    let (prefix, literal) = rest.split_at(letters);
    if !prefix.ends_with('r') {
        return match literal.chars().next() {
            Some(quote @ '"') => letters + quoted(literal, quote),
            Some(quote @ '\'') if prefix == "b" => letters + quoted(literal, quote),
            _ => 0,
        };
    }
    let hashes = literal.len() - literal.trim_start_matches('#').len();
    if !literal[hashes..].starts_with('"') {
        return 0; // a raw identifier, or a word that begins with r
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let opening = hashes + 1;
    let length = literal[opening..].find(&close).map_or(literal.len(), |at| opening + at + close.len());
    letters + length
}

/// A character literal, or 0 for a lifetime or label.
fn character(rest: &str) -> usize {
    let mut following = rest.chars().skip(1);
    match (following.next(), following.next()) {
        (Some('\\'), _) => quoted(rest, '\''),
        (Some(one), Some('\'')) => 2 + one.len_utf8(),
        _ => 0,
    }
}

/// The words (identifiers and keywords) of a code text, with their line, counted from 1.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().flat_map(|(line, text)| {
        text.split(|one: char| !one.is_alphanumeric() && one != '_')
            .filter(|word| !word.is_empty())
            .map(move |word| (line + 1, word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_blanks(text: &str) -> String {
        code_only(text).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_go() {
        assert_eq!(without_blanks("a // unsafe\nb /* x /* y */ unsafe */ c"), "a b c");
        assert_eq!(without_blanks("a /* never closed"), "a");
        assert_eq!(without_blanks("a // never ended"), "a");
    }

    #[test]
    fn literals_go() {
        assert_eq!(
            without_blanks(r#"f("unsafe { \" }", 'u', '"', '\'', b'\'', b"x", c"y") + g"#),
            "f( , , , , , , ) + g"
        );
        assert_eq!(without_blanks("f(r\"\\\", r#\"a \" unsafe\"#, br##\"\"# \"##) + g"), "f( , , ) + g");
        assert_eq!(without_blanks("f(\"never closed"), "f(");
    }

    #[test]
    fn lifetimes_and_raw_identifiers_stay() {
        assert_eq!(
            without_blanks("fn f<'a>(x: &'a str) { 'outer: loop {} }"),
            "fn f<'a>(x: &'a str) { 'outer: loop {} }"
        );
        assert_eq!(without_blanks("r#type + rate + bar\"x\""), "r#type + rate + bar");
    }

    #[test]
    fn lines_keep_their_numbers() {
        let code = code_only("/* one\ntwo */\nunsafe \"\n\" after");
        assert_eq!(words(&code).collect::<Vec<_>>(), [(3, "unsafe"), (4, "after")]);
    }
}
