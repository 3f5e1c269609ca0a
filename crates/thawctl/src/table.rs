//! Aligned columns as docker writes them, and numbers for people.

use std::io::{self, IsTerminal};

use rustix::termios::tcgetwinsize;
use tabled::builder::Builder;
use tabled::settings::peaker::Priority;
use tabled::settings::{Padding, Style, Width};

use super::one_line;

/// Lines with aligned columns under their names; cells hold no control characters, empty ones show `-`. On a terminal
/// the widest columns are cut until a line fits; elsewhere nothing is.
pub(super) fn table<const N: usize>(columns: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    fitted(columns, rows, width())
}

fn fitted<const N: usize>(
    columns: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    width: Option<usize>,
) -> String {
    let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { one_line(&cell) };
    let records: Vec<[String; N]> =
        std::iter::once(columns.map(str::to_owned)).chain(rows.into_iter().map(|row| row.map(shown))).collect();
    let kept = width.map_or(N, |width| kept(&records, width));
    let mut builder = Builder::default();
    for record in records {
        builder.push_record(record.into_iter().take(kept));
    }
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    if let Some(width) = width {
        // Two blanks stand behind the last column, which are not printed.
        table.with(Width::truncate(width + 2).suffix("…").priority(Priority::max(true)));
    }
    let lines = table.to_string();
    lines.lines().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

/// How many columns, from the left, there is room for when each shows something of its cells.
fn kept<const N: usize>(records: &[[String; N]], width: usize) -> usize {
    let mut needed = 0;
    for column in 0..N {
        let widest = records.iter().map(|record| record[column].chars().count()).max().unwrap_or_default();
        needed += widest.min(LEAST) + 2;
        if needed > width + 2 {
            return column.max(1);
        }
    }
    N
}

/// Fewest characters that a column is cut to; with less room the last columns are left out.
const LEAST: usize = 8;

/// How wide a line can be: what COLUMNS says, as for ps(1), else what the terminal says; no limit elsewhere.
fn width() -> Option<usize> {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let of_terminal = || {
        let stdout = io::stdout();
        // A terminal that does not know its size says 0.
        let size = if stdout.is_terminal() { tcgetwinsize(&stdout).ok() } else { None };
        size.map(|size| usize::from(size.ws_col))
    };
    said.or_else(of_terminal).filter(|columns| *columns > 0)
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
        assert_eq!(text, "ID       NAME\na        x y\nlong-id  -\n");
        assert_eq!(table(["ID"], []), "ID\n");
    }

    #[test]
    fn the_widest_column_is_cut_where_a_line_has_to_fit() {
        let row = ["e-01".to_owned(), "sh -c 'a long command that goes on'".to_owned(), "now".to_owned()];
        let text = fitted(["ID", "COMMAND", "AGE"], [row.clone()], Some(30));
        assert!(text.lines().all(|line| line.chars().count() <= 30), "{text}");
        assert!(text.contains("e-01  sh -c 'a long") && text.contains("…") && text.contains("now"), "{text}");
        let narrow = fitted(["ID", "COMMAND", "AGE"], [row.clone()], Some(15));
        assert_eq!(narrow, "ID    COMMAND\ne-01  sh -c 'a…\n", "what does not fit at all is left out");
        assert!(fitted(["ID", "COMMAND", "AGE"], [row], None).contains("goes on'  now"));
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
