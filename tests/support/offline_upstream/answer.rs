//! What to answer: arithmetic for a product, otherwise a sentence about the prompt; and how to cut it into tokens.

/// The answer to `prompt`: the value of its last product, or a sentence that repeats its beginning.
pub fn answer(prompt: &str) -> String {
    match last_product(prompt) {
        Some((a, b)) => match a.checked_mul(b) {
            Some(product) => product.to_string(),
            None => format!("{a} times {b} is too large for me."),
        },
        None => {
            let first_line = prompt.trim().lines().next().unwrap_or_default();
            let start: String = first_line.chars().take(80).collect();
            format!("You said: {start}")
        }
    }
}

/// Cuts an answer into the pieces that are streamed: numbers two digits at a time, sentences by words.
/// Joined, the pieces are the answer.
pub fn tokens(answer: &str) -> Vec<String> {
    if answer.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return answer.as_bytes().chunks(2).map(|pair| pair.iter().map(|&b| b as char).collect()).collect();
    }
    answer.split_inclusive(' ').map(str::to_owned).collect()
}

/// The operands of the last `A*B`, `A×B` or `A x B` in `text`.
fn last_product(text: &str) -> Option<(i128, i128)> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = None;
    for (at, &c) in chars.iter().enumerate() {
        let Some(left) = number_ending_at(&chars, skip_spaces_back(&chars, at)) else { continue };
        let after = skip_spaces(&chars, at + 1);
        let Some(right) = number_starting_at(&chars, after) else { continue };
        // A bare x needs a space on both sides: `0x10` is not a product.
        let spaced = after > at + 1 && at > 0 && chars[at - 1] == ' ';
        if matches!(c, '*' | '×') || (matches!(c, 'x' | 'X') && spaced) {
            found = Some((left, right));
        }
    }
    found
}

fn skip_spaces(chars: &[char], mut at: usize) -> usize {
    while chars.get(at) == Some(&' ') {
        at += 1;
    }
    at
}

/// Index after the last character before `end` that is not a space.
fn skip_spaces_back(chars: &[char], mut end: usize) -> usize {
    while end > 0 && chars[end - 1] == ' ' {
        end -= 1;
    }
    end
}

fn number_ending_at(chars: &[char], end: usize) -> Option<i128> {
    let mut start = end;
    while start > 0 && chars[start - 1].is_ascii_digit() {
        start -= 1;
    }
    // A minus belongs to the number unless something that can be subtracted from comes before it.
    let signed = start > 0 && chars[start - 1] == '-' && !(start > 1 && chars[start - 2].is_alphanumeric());
    parse(&chars[start..end], signed)
}

fn number_starting_at(chars: &[char], start: usize) -> Option<i128> {
    let signed = chars.get(start) == Some(&'-');
    let first = start + usize::from(signed);
    let digits = chars.get(first..)?.iter().take_while(|c| c.is_ascii_digit()).count();
    parse(&chars[first..first + digits], signed)
}

fn parse(digits: &[char], negative: bool) -> Option<i128> {
    let value: i128 = digits.iter().collect::<String>().parse().ok()?;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_computed() {
        for (prompt, expected) in [
            ("3*67", "201"),
            ("What is 3 * 67? Only the number.", "201"),
            ("12×12", "144"),
            ("6 x 7 please", "42"),
            ("first 2*3, then 4*5", "20"),
            ("-3*67", "-201"),
            ("3*-67", "-201"),
            ("0*5", "0"),
            ("99999999999*99999999999", "9999999999800000000001"),
        ] {
            assert_eq!(answer(prompt), expected, "{prompt}");
        }
    }

    #[test]
    fn other_prompts_are_repeated() {
        assert_eq!(answer("hello there\nsecond line"), "You said: hello there");
        assert_eq!(answer("0x10 and a*b"), "You said: 0x10 and a*b");
        assert_eq!(answer(""), "You said: ");
        let huge = "9".repeat(30);
        assert!(answer(&format!("{huge}*{huge}")).contains("too large"));
        let unreadable = "9".repeat(60);
        assert!(answer(&format!("{unreadable}*2")).starts_with("You said: "));
    }

    #[test]
    fn tokens_join_to_the_answer() {
        assert_eq!(tokens("201"), ["20", "1"]);
        assert_eq!(tokens("7"), ["7"]);
        assert_eq!(tokens("You said: é"), ["You ", "said: ", "é"]);
        for text in ["201", "You said: hello  there", "-201", ""] {
            assert_eq!(tokens(text).concat(), text);
        }
    }
}
