//! The clock on the wall: templates write the date of the place where the node runs, as transformers does.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A time whose reading in UTC is what clocks show here at `now`. Where the system names no zone, that is UTC.
pub fn local(now: SystemTime) -> SystemTime {
    shifted(now, &TimeZone::system())
}

fn shifted(now: SystemTime, zone: &TimeZone) -> SystemTime {
    // A clock beyond the year 9999 is set wrong, and has no zone.
    let Ok(stamp) = Timestamp::try_from(now) else { return now };
    let seconds = zone.to_offset(stamp).seconds();
    let shift = Duration::from_secs(seconds.unsigned_abs().into());
    let moved = if seconds < 0 { now.checked_sub(shift) } else { now.checked_add(shift) };
    moved.unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_date_is_that_of_the_zone_and_of_its_season() {
        // 2024-07-01 and 2024-01-01, both at 22:30 UTC.
        let (summer, winter) = (1_719_873_000, 1_704_148_200);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let rome = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        assert_eq!(shifted(at(summer), &rome), at(summer + 7200));
        assert_eq!(shifted(at(winter), &rome), at(winter + 3600));
        let honolulu = TimeZone::posix("HST10").unwrap();
        assert_eq!(shifted(at(winter), &honolulu), at(winter - 36_000));
        assert_eq!(shifted(at(winter), &TimeZone::UTC), at(winter));
    }
}
