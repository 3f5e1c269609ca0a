//! Stack traces in what a failed CLI wrote: one line says how many there were, the rest is noise.

/// The text with runs of a stack's lines folded. Node's begin with `at`, indented (Error.captureStackTrace).
pub(super) fn stacks(text: &str) -> String {
    let mut folded = String::new();
    let mut frames = 0;
    for line in text.lines().map(Some).chain([None]) {
        if line.is_some_and(is_frame) {
            frames += 1;
            continue;
        }
        if frames > 0 {
            folded.push_str(&format!("    … {frames} lines of a stack, which --raw shows\n"));
            frames = 0;
        }
        if let Some(line) = line {
            folded.push_str(line);
            folded.push('\n');
        }
    }
    folded
}

/// `    at Client.fetch (file:///usr/lib/cli.js:1:2)`, `    at async main (node:internal/x:3:4)`, `    at <anonymous>`.
fn is_frame(line: &str) -> bool {
    let frame = line.strip_prefix([' ', '\t']).map(str::trim_start).and_then(|line| line.strip_prefix("at "));
    frame.is_some_and(|frame| frame.ends_with(')') || frame.contains(':') || frame.ends_with('>'))
}

#[cfg(test)]
mod tests {
    use super::stacks;

    #[test]
    fn frames_are_counted_and_everything_else_stays() {
        let text = "Error: 401\n    at f (file:///a.js:1:2)\n    at async g (node:internal/b:3:4)\n    at <anonymous>\n\
                    at home\n  at the end of the day\nbye";
        let expected =
            "Error: 401\n    … 3 lines of a stack, which --raw shows\nat home\n  at the end of the day\nbye\n";
        assert_eq!(stacks(text), expected);
        assert_eq!(stacks(""), "");
        assert_eq!(stacks("    at f (a.js:1:2)"), "    … 1 lines of a stack, which --raw shows\n");
    }
}
