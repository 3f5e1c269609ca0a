//! Escapes foreign text for a log line or a terminal.

use std::borrow::Cow;

/// Makes foreign text safe to put into one log line or terminal message.
///
/// Control characters (line breaks and terminal escapes among them), Unicode line separators and the characters that
/// reorder or hide text are written as `\n`, `\t`, `\r` or `\u{…}`. Everything else, backslashes included, stays.
pub fn escape_control(text: &str) -> Cow<'_, str> {
    if !text.contains(is_deceptive) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_deceptive(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{061c}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_visible() {
        let table = [
            ("plain text, ünïcode and C:\\path", "plain text, ünïcode and C:\\path"),
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\u{0}"),
            ("\x1b[31mred\x1b[0m", "\\u{1b}[31mred\\u{1b}[0m"),
            ("c1 \u{9b}31m del \x7f", "c1 \\u{9b}31m del \\u{7f}"),
            ("\u{202e}gpj.exe\u{2028}next", "\\u{202e}gpj.exe\\u{2028}next"),
        ];
        for (text, safe) in table {
            assert_eq!(escape_control(text), safe);
        }
        assert!(matches!(escape_control("plain"), Cow::Borrowed(_)));
    }
}
