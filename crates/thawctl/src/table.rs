//! Aligned columns as docker writes them, and numbers for people.

use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use super::one_line;

/// Lines with aligned columns under their names; cells hold no control characters, empty ones show `-`.
pub(super) fn table<const N: usize>(columns: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut builder = Builder::default();
    builder.push_record(columns);
    for row in rows {
        builder.push_record(row.map(|cell| if cell.is_empty() { "-".to_owned() } else { one_line(&cell) }));
    }
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(0, 3, 0, 0));
    let lines = table.to_string();
    lines.lines().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

/// `12 s`, `5 min`, `3 h`, `2 d`: the time from one moment to another, both Unix milliseconds.
pub(super) fn age(from_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(from_ms) / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `17 B`, `4.2 MiB`: bytes in binary units.
pub(super) fn bytes(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Rounding to a tenth is all that the precision of f64 is needed for.
    let (mut value, mut unit) = (bytes as f64 / 1024.0, "KiB");
    for larger in ["MiB", "GiB", "TiB"] {
        if value >= 1024.0 {
            (value, unit) = (value / 1024.0, larger);
        }
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_hold_one_line() {
        let text = table(["ID", "NAME"], [["a".into(), "x\ny".into()], ["long-id".into(), String::new()]]);
        assert_eq!(text, "ID        NAME\na         x y\nlong-id   -\n");
        assert_eq!(table(["ID"], []), "ID\n");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!([age(0, 59_999), age(0, 60_000), age(0, 7_200_000)], ["59 s", "1 min", "2 h"]);
        assert_eq!([age(0, 200_000_000), age(5, 0)], ["2 d", "0 s"]);
        assert_eq!(
            [bytes(1023), bytes(1536), bytes(256 << 20), bytes(3 << 40)],
            ["1023 B", "1.5 KiB", "256.0 MiB", "3.0 TiB"]
        );
    }
}
