//! Points in time as the API writes them: RFC 3339 in UTC with milliseconds, `2026-11-30T02:15:00.123Z`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// A point in time, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, format = DateTime)]
pub struct Timestamp(u64);

/// The last millisecond of the year 9999, the last that RFC 3339 can write.
const LAST: u64 = 253_402_300_799_999;

impl Timestamp {
    /// Now; the beginning of 1970 if the clock stands before that.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// From milliseconds since the beginning of 1970. What lies behind the year 9999 is taken for its end.
    pub fn from_unix_ms(ms: u64) -> Self {
        Self(ms.min(LAST))
    }

    /// Milliseconds since the beginning of 1970.
    pub fn unix_ms(self) -> u64 {
        self.0
    }

    /// So much earlier.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No time up to the year 9999 is out of its range.
        let time = i64::try_from(self.0).ok().and_then(DateTime::from_timestamp_millis).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

/// What is no point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time is written as RFC 3339 has it: 2026-11-30T02:15:00Z or 2026-11-30T03:15:00.5+01:00")]
pub struct NoTime;

impl FromStr for Timestamp {
    type Err = NoTime;

    fn from_str(text: &str) -> Result<Self, NoTime> {
        let time = DateTime::parse_from_rfc3339(text).map_err(|_| NoTime)?;
        // What lies before 1970 is taken for its beginning.
        Ok(Self::from_unix_ms(u64::try_from(time.timestamp_millis()).unwrap_or(0)))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_in_one_way_and_read_in_all() {
        let time = Timestamp::from_unix_ms(1_796_004_900_123);
        assert_eq!(time.to_string(), "2026-11-30T02:15:00.123Z");
        for text in ["2026-11-30T02:15:00.123Z", "2026-11-30T03:15:00.123+01:00", "2026-11-30t02:15:00.123456z"] {
            assert_eq!(text.parse(), Ok(time), "{text}");
        }
        for bad in ["", "2026-11-30", "2026-11-30T02:15:00", "2026-13-01T00:00:00Z", "10m"] {
            assert_eq!(bad.parse::<Timestamp>(), Err(NoTime), "{bad}");
        }
        assert_eq!("1969-12-31T23:59:59Z".parse(), Ok(Timestamp::from_unix_ms(0)));
        assert_eq!(Timestamp::from_unix_ms(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), time);
        assert_eq!(time.before(Duration::from_secs(1)).to_string(), "2026-11-30T02:14:59.123Z");
    }
}
