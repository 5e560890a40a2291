//! The date for templates that put it into a system prompt, in UTC.

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
            text += &match characters.next()? {
                'Y' => year.to_string(),
                'y' => format!("{:02}", year % 100),
                'm' => format!("{month:02}"),
                'd' => format!("{day:02}"),
                'B' => month_name.to_owned(),
                'b' => month_name.get(..3)?.to_owned(),
                'A' => weekday.to_owned(),
                'a' => weekday.get(..3)?.to_owned(),
                'H' => format!("{:02}", second / 3600),
                'M' => format!("{:02}", second / 60 % 60),
                'S' => format!("{:02}", second % 60),
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
        assert_eq!((format(at(0), "%Q"), format(at(0), "%")), (None, None));
    }
}
