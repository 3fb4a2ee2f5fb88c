//! When a link may be used.

use jiff::{Timestamp, ToSpan as _};

use super::{Link, Window};

const DAY: u16 = 24 * 60;
const WEEK: u16 = 7 * DAY;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// The first day of 1970, a Thursday, as minutes after a Monday.
const EPOCH: i64 = 3 * DAY as i64;

impl Window {
    /// Whether it is one.
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.from < self.to && self.to <= WEEK
    }
}

/// The minute of the week, from Monday 00:00 UTC.
fn minute(at: Timestamp) -> u16 {
    let minutes = (at.as_second().div_euclid(60) + EPOCH).rem_euclid(i64::from(WEEK));
    u16::try_from(minutes).unwrap_or(0) // below WEEK
}

/// The beginning of the minute that comes so many after this one.
fn later(at: Timestamp, minutes: u16) -> Option<Timestamp> {
    let begin = at.as_second().div_euclid(60) * 60;
    Timestamp::from_second(begin).ok()?.checked_add(i64::from(minutes).minutes()).ok()
}

impl Link {
    fn is_open_in(&self, minute: u16) -> bool {
        self.schedule.is_empty()
            || self.schedule.iter().any(|window| (window.from..window.to).contains(&minute))
    }

    /// Whether it may be used then.
    #[must_use]
    pub fn is_open(&self, at: Timestamp) -> bool {
        self.is_open_in(minute(at))
    }

    /// When it may be used next: at once if it is open. None at the end of time.
    #[must_use]
    pub fn opens(&self, at: Timestamp) -> Option<Timestamp> {
        let now = minute(at);
        if self.is_open_in(now) {
            return Some(at);
        }
        let waits = self.schedule.iter().map(|window| (window.from + WEEK - now) % WEEK);
        later(at, waits.min()?)
    }

    /// When it may not be used any more: at once if it is closed. None if it is always open.
    #[must_use]
    pub fn closes(&self, at: Timestamp) -> Option<Timestamp> {
        let now = minute(at);
        if !self.is_open_in(now) {
            return Some(at);
        }
        // Windows may touch, overlap, and go on over the end of the week: it closes where one ends and none goes on.
        let ends = self.schedule.iter().map(|window| window.to % WEEK).filter(|end| !self.is_open_in(*end));
        let waits = ends.map(|end| (end + WEEK - now) % WEEK);
        later(at, waits.min()?)
    }
}

/// A text that is no schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "write days and hours in UTC, such as \"Mon-Fri 20:00-06:00\" or \"Sat 00:00-24:00, Sun 08:00-12:00\""
)]
pub struct InvalidSchedule;

/// Reads a schedule: `DAY[-DAY] HH:MM-HH:MM`, several with commas between; UTC. An end that is not after its beginning is of
/// the next day.
///
/// # Errors
/// [`InvalidSchedule`].
pub fn schedule(text: &str) -> Result<Vec<Window>, InvalidSchedule> {
    let mut windows = Vec::new();
    for part in text.split(',') {
        let (days, hours) = part.trim().split_once(' ').ok_or(InvalidSchedule)?;
        let (first, last) = days.split_once('-').unwrap_or((days, days));
        let (first, last) = (day(first)?, day(last)?);
        let (from, to) = hours.trim().split_once('-').ok_or(InvalidSchedule)?;
        let (from, to) = (time(from)?, time(to)?);
        if from == DAY {
            return Err(InvalidSchedule);
        }
        let length = if to > from { to - from } else { to + DAY - from };
        let days = (last + 7 - first) % 7;
        for nth in 0..=days {
            let from = (first + nth) % 7 * DAY + from;
            let to = from + length;
            if to <= WEEK {
                windows.push(Window { from, to });
            } else {
                windows.extend([Window { from, to: WEEK }, Window { from: 0, to: to - WEEK }]);
            }
        }
    }
    windows.sort_by_key(|window| (window.from, window.to));
    windows.dedup();
    Ok(windows)
}

fn day(text: &str) -> Result<u16, InvalidSchedule> {
    let nth = DAYS.iter().position(|day| day.eq_ignore_ascii_case(text)).ok_or(InvalidSchedule)?;
    u16::try_from(nth).map_err(|_large| InvalidSchedule)
}

/// Minutes of the day, up to 24:00.
fn time(text: &str) -> Result<u16, InvalidSchedule> {
    let (hours, minutes) = text.trim().split_once(':').ok_or(InvalidSchedule)?;
    let two = |text: &str| match text.len() {
        2 if text.bytes().all(|c| c.is_ascii_digit()) => text.parse::<u16>().map_err(|_no| InvalidSchedule),
        _ => Err(InvalidSchedule),
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    let time = hours * 60 + minutes;
    if minutes < 60 && time <= DAY { Ok(time) } else { Err(InvalidSchedule) }
}
