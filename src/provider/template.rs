//! Placeholders in arguments and variables, and patterns for models.

/// Replaces `{name}` by the value of that name. Inserted values are not searched again, so a prompt that contains
/// `{model}` stays as it is. Unknown names stay too: validation has refused them before.
pub(super) fn render(template: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let value = name_at_start(rest).and_then(|name| values.iter().find(|(known, _)| *known == name));
        match value {
            Some((name, value)) => {
                out.push_str(value);
                rest = &rest[name.len() + 2..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// The names of all placeholders in `template`. Braces around anything but `[a-z_]+` are plain text, such as JSON.
pub(super) fn names(template: &str) -> impl Iterator<Item = &str> {
    template.match_indices('{').filter_map(|(at, _)| name_at_start(&template[at..]))
}

fn name_at_start(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix('{')?.split_once('}')?;
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_name.then_some(name)
}

/// Whether `text` matches `pattern`, where `*` stands for zero or more characters.
pub fn matches(pattern: &str, text: &str) -> bool {
    let Some((prefix, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(prefix) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let suffix = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(at) = text.find(piece) else { return false };
        text = &text[at + piece.len()..];
    }
    text.ends_with(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_put_in_once() {
        let values = [("model", "m{prompt}"), ("prompt", "{model}")];
        assert_eq!(render("-p={prompt}", &values), "-p={model}");
        assert_eq!(render("{model}/{prompt}", &values), "m{prompt}/{model}");
        assert_eq!(render(r#"{"a": {"b": 1}} {effort} {"#, &values), r#"{"a": {"b": 1}} {effort} {"#);
        assert_eq!(render("{{model}}", &values), "{m{prompt}}");
    }

    #[test]
    fn names_are_found() {
        assert_eq!(names("a{b}c{d_e}{\"f\":{g}}{H}{}").collect::<Vec<_>>(), ["b", "d_e", "g"]);
    }

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("gpt-5", "gpt-5", true),
            ("gpt-5", "gpt-5-codex", false),
            ("gpt-*", "gpt-5-codex", true),
            ("*opus*", "claude-opus-4-5", true),
            ("*opus*", "opus", true),
            ("*opus*", "sonnet", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("ab*ba", "aba", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
