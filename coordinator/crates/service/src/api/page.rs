//! Lists in pages: `{items, next}`, and `?after=&limit=` to go on.

use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Problem;

/// Items on a page, unless asked otherwise, and at most.
const PAGE: u32 = 100;
const MOST_PAGE: u32 = 1000;

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    items: Vec<T>,
    /// Give it as `after` for the next page; none on the last.
    next: Option<String>,
}

/// How many items are asked for.
pub(super) fn most(limit: Option<u32>) -> Result<u32, Problem> {
    let most = limit.unwrap_or(PAGE);
    if !(1..=MOST_PAGE).contains(&most) {
        return Err(Problem::invalid(format!("limit must be 1 to {MOST_PAGE}")));
    }
    Ok(most)
}

/// A cursor that no page of ours gave.
pub(super) fn no_cursor() -> Problem {
    Problem::invalid("`after` is what an earlier page gave as `next`")
}

/// A position of the form `TIME-ID`.
pub(super) fn position(text: &str) -> Result<(i64, String), Problem> {
    // A negative time is none of ours.
    let parsed = text.split_once('-').and_then(|(time, id)| Some((time.parse().ok()?, id.to_owned())));
    parsed.ok_or_else(no_cursor)
}

impl<T> Page<T> {
    /// Of one item more than belongs on it, if there are so many: then there is a next one.
    pub(super) fn of(mut items: Vec<T>, most: u32, cursor: impl FnOnce(&T) -> String) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let more = items.len() > most;
        items.truncate(most);
        let next = items.last().filter(|_| more).map(cursor);
        Self { items, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_that_is_not_the_last_has_a_next_one() {
        let page = |count: u32, most| Page::of((0..count).collect(), most, u32::to_string);
        assert_eq!((page(3, 3).items.len(), page(3, 3).next), (3, None));
        assert_eq!((page(4, 3).items, page(4, 3).next), (vec![0, 1, 2], Some("2".to_owned())));
        assert_eq!((page(0, 3).items.len(), page(0, 3).next), (0, None));
    }
}
