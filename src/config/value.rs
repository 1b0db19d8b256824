//! How a flag's text is read: Go's durations and booleans, whole numbers, sizes in bytes.
//!
//! It knows no flag. An error is the reason alone; the caller puts the flag and the text before it.

use std::time::Duration;

/// Go's `strconv.ParseBool`, which etcd reads its switches with.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A whole number from `min` to `max`.
pub fn whole(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let expected = || format!("expected a whole number from {min} to {max}");
    let number: u64 = text.parse().map_err(|_| expected())?;
    if (min..=max).contains(&number) { Ok(number) } else { Err(expected()) }
}

/// Any whole number that 64 bits hold.
pub fn signed(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "expected a whole number of bytes".to_owned())
}

/// A duration whose unit may be missing: then it is hours.
pub fn hours_or_duration(text: &str) -> Result<Duration, String> {
    let in_hours = if text.parse::<u64>().is_ok() { &format!("{text}h") } else { text };
    read_duration(in_hours).ok_or_else(|| "expected a number of hours, or a duration such as 30m or 12h".to_owned())
}

/// Go's `time.ParseDuration`: a sequence of decimal numbers, each with a unit, such as `1m30s` or `1.5h`; `0` needs none.
/// A negative duration has no meaning for any flag here and is refused.
pub fn duration(text: &str) -> Result<Duration, String> {
    read_duration(text).ok_or_else(|| "expected a duration such as 100ms, 20s, 1m30s or 2h".to_owned())
}

fn read_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanoseconds: u128 = 0;
    // Each turn consumes at least a digit or a point and a unit, so the length of the text bounds the loop.
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(number_end);
        let unit_end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit_end);
        nanoseconds = nanoseconds.checked_add(scaled(number, nanoseconds_of(unit)?)?)?;
        rest = behind;
    }
    // Go keeps a duration in 63 bits of nanoseconds (292 years) and refuses what is longer.
    let nanoseconds = u64::try_from(nanoseconds).ok().filter(|n| *n <= i64::MAX as u64)?;
    Some(Duration::from_nanos(nanoseconds))
}

fn nanoseconds_of(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        // Micro sign and Greek mu, as Go reads both.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        _ => return None,
    })
}

/// `number` times `unit`, the digits behind the point included; what is smaller than a nanosecond is dropped, as in Go.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // No unit is longer than 3.6e12 ns, so digits beyond the fifteenth are below a nanosecond.
    let fraction = &fraction[..fraction.len().min(15)];
    let part = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<u128>().ok()? * unit / 10_u128.pow(u32::try_from(fraction.len()).ok()?)
    };
    whole.checked_mul(unit)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("100ms", 100),
            ("20s", 20_000),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("1.5h", 5_400_000),
            ("+5s", 5_000),
            (".5s", 500),
            ("1.s", 1_000),
            ("1h0m1s", 3_601_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(duration("1us1ns"), Ok(Duration::from_nanos(1_001)));
        assert_eq!(duration("1\u{b5}s"), Ok(Duration::from_micros(1)));
    }

    #[test]
    fn what_go_refuses_as_a_duration_is_refused() {
        let long = "9".repeat(60) + "h";
        for text in
            ["", "5", "-5s", "s", "5x", "1..5s", ".s", "1h30", " 5s", "5 s", "1d", "300000h1ms1y", "\u{661}s", &long]
        {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("2562047h").is_ok());
        assert!(duration("2562048h").is_err(), "longer than 63 bits of nanoseconds");
    }

    #[test]
    fn cut_and_garbled_durations_never_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let letters: Vec<char> = "0123456789.hmsun\u{b5}+-\u{1f600}".chars().collect();
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..state % 24 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                text.push(letters[(state % letters.len() as u64) as usize]);
            }
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Whatever comes back is an answer; only a panic fails.
            let _ = duration(&text);
        }
    }

    #[test]
    fn numbers_outside_their_range_are_refused_with_the_range() {
        assert_eq!(whole("128", 1, 1000), Ok(128));
        for text in ["0", "1001", "-1", "1k", "", "1.0", "99999999999999999999"] {
            assert_eq!(whole(text, 1, 1000), Err("expected a whole number from 1 to 1000".to_owned()), "{text}");
        }
    }

    #[test]
    fn a_duration_without_a_unit_may_be_hours() {
        let hour = Duration::from_secs(3_600);
        for (text, duration) in [("0", Duration::ZERO), ("8", 8 * hour), ("1h", hour), ("90m", hour * 3 / 2)] {
            assert_eq!(hours_or_duration(text), Ok(duration), "{text}");
        }
        for text in ["", "-1", "8 ", "1.5", "2562048", "99999999999999999999"] {
            assert!(hours_or_duration(text).is_err(), "{text}");
        }
        assert_eq!((signed("-1"), signed("0")), (Ok(-1), Ok(0)));
        assert!(signed("8G").is_err() && signed("9223372036854775808").is_err());
    }

    #[test]
    fn switches_are_read_as_go_reads_them() {
        assert_eq!((boolean("T"), boolean("1"), boolean("False")), (Ok(true), Ok(true), Ok(false)));
        assert!(boolean("yes").is_err());
    }
}
