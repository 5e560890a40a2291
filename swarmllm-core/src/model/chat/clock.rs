//! Local time for templates that write the date into a system prompt, as in transformers.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// Directives that mean the same in Python's `strftime` and in jiff's; a `-` after the `%` drops the padding.
const DIRECTIVES: &str = "%aAbBdeFHIjmMpSTyY";
/// Longest format, in bytes. The result has at most six times as many.
const MAX_FORMAT: usize = 1024;

/// Local time at `now`, in the zone that the system or `TZ` names; UTC where neither does.
pub fn local(now: SystemTime) -> DateTime {
    local_in(now, &TimeZone::system())
}

fn local_in(now: SystemTime, zone: &TimeZone) -> DateTime {
    // A clock beyond the year 9999 is set wrong; any date will do.
    Timestamp::try_from(now).map_or(DateTime::MAX, |stamp| zone.to_datetime(stamp))
}

/// `now` as `format` writes it; `None` for a directive outside [`DIRECTIVES`] and for a format longer than
/// [`MAX_FORMAT`].
pub fn format(now: DateTime, format: &str) -> Option<String> {
    let mut rest = Some(format).filter(|format| format.len() <= MAX_FORMAT)?;
    while let Some((_, directive)) = rest.split_once('%') {
        let mut characters = directive.strip_prefix('-').unwrap_or(directive).chars();
        characters.next().filter(|name| DIRECTIVES.contains(*name))?;
        rest = characters.as_str();
    }
    strtime::format(format, now).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let written = |seconds, text| format(local_in(at(seconds), &TimeZone::UTC), text);
        assert_eq!(written(0, "%A %d %B %Y %H:%M:%S"), Some("Thursday 01 January 1970 00:00:00".into()));
        assert_eq!(written(1_709_210_096, "%a %d %b %y, %m%%"), Some("Thu 29 Feb 24, 02%".into()));
        assert_eq!(
            written(1_709_210_096, "%-d.%-m. %e|%j %I %p %F %T"),
            Some("29.2. 29|060 12 PM 2024-02-29 12:34:56".into())
        );
        assert_eq!(written(0, "%-d|%e|%j|%-j|%I %p"), Some("1| 1|001|1|12 AM".into()));
        assert_eq!(written(1_735_603_200, "%j"), Some("366".into()));
    }

    #[test]
    fn an_unknown_directive_and_a_long_format_are_refused() {
        let now = local_in(at(0), &TimeZone::UTC);
        for text in ["%Q", "%", "%-", "%:z", "%5d", "%é", &"%Y".repeat(MAX_FORMAT)] {
            assert_eq!(format(now, text), None, "{text}");
        }
    }

    #[test]
    fn local_time_follows_the_zone_and_its_season() {
        // 2024-07-01 and 2024-01-01, both at 22:30 UTC.
        let (summer, winter) = (1_719_873_000, 1_704_148_200);
        let rome = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let honolulu = TimeZone::posix("HST10").unwrap();
        for (seconds, zone, local) in [
            (summer, &rome, "2024-07-02 00:30:00"),
            (winter, &rome, "2024-01-01 23:30:00"),
            (winter, &honolulu, "2024-01-01 12:30:00"),
            (winter, &TimeZone::UTC, "2024-01-01 22:30:00"),
        ] {
            assert_eq!(format(local_in(at(seconds), zone), "%F %T").as_deref(), Some(local));
        }
    }
}
