//! The date for templates that put it into a system prompt.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
/// Longest result, in bytes.
const MAX_FORMATTED: usize = 1024;

/// `strftime` with the directives that templates use; `None` for others.
pub fn format(now: SystemTime, format: &str) -> Option<String> {
    let seconds = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let (days, second) = (seconds / DAY, seconds % DAY);
    let (year, month, day) = date(days)?;
    let name = |names: &[&'static str], at: u64| names.get(usize::try_from(at).ok()?).copied();
    let month_name = name(&MONTHS, month - 1)?;
    let weekday = name(&WEEKDAYS, days % 7)?;
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
        } else {
            // A dash leaves out zeros in front.
            let bare = characters.as_str().starts_with('-');
            let directive = if bare { characters.nth(1)? } else { characters.next()? };
            let (hour, of_year) = (second / 3600, days - days_before(year)?);
            let half = if hour % 12 == 0 { 12 } else { hour % 12 };
            let number = |value: u64, width: usize| if bare { value.to_string() } else { format!("{value:0width$}") };
            text += &match directive {
                'Y' => year.to_string(),
                'y' => number(year % 100, 2),
                'm' => number(month, 2),
                'd' => number(day, 2),
                'e' if !bare => format!("{day:2}"),
                'j' => number(of_year + 1, 3),
                'F' if !bare => format!("{year}-{month:02}-{day:02}"),
                'T' if !bare => format!("{hour:02}:{:02}:{:02}", second / 60 % 60, second % 60),
                'I' => number(half, 2),
                'p' if !bare => if hour < 12 { "AM" } else { "PM" }.to_owned(),
                'B' => month_name.to_owned(),
                'b' => month_name.get(..3)?.to_owned(),
                'A' => weekday.to_owned(),
                'a' => weekday.get(..3)?.to_owned(),
                'H' => number(hour, 2),
                'M' => number(second / 60 % 60, 2),
                'S' => number(second % 60, 2),
                '%' => "%".to_owned(),
                _ => return None,
            };
        }
        if text.len() > MAX_FORMATTED {
            return None;
        }
    }
    Some(text)
}

/// Days from 1970 to the first of a year.
fn days_before(year: u64) -> Option<u64> {
    let years = year.checked_sub(1)?;
    let leap_days = |years: u64| years / 4 - years / 100 + years / 400;
    Some((year.checked_sub(1970)?) * 365 + leap_days(years) - leap_days(1969))
}

/// Year, month and day, `days` after 1970-01-01.
fn date(mut days: u64) -> Option<(u64, u64, u64)> {
    // A clock beyond the year 9999 is set wrong.
    for year in 1970..10_000 {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        for (month, length) in (1..).zip(lengths) {
            if days < length {
                return Some((year, month, days + 1));
            }
            days -= length;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(format(at(0), "%A %d %B %Y %H:%M:%S"), Some("Thursday 01 January 1970 00:00:00".into()));
        assert_eq!(format(at(1_709_210_096), "%a %d %b %y, %m%%"), Some("Thu 29 Feb 24, 02%".into()));
        assert_eq!(
            format(at(1_709_210_096), "%-d.%-m. %e|%j %I %p %F %T"),
            Some("29.2. 29|060 12 PM 2024-02-29 12:34:56".into())
        );
        assert_eq!(format(at(0), "%-d|%e|%j|%-j|%I %p"), Some("1| 1|001|1|12 AM".into()));
        assert_eq!(format(at(1_735_603_200), "%j"), Some("366".into()));
        assert_eq!((format(at(0), "%Q"), format(at(0), "%")), (None, None));
    }
}
