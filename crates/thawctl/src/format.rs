//! `--format`: a table for people, the API's own JSON, or a template of fields as docker's and podman's.

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use serde_json::Value;

use super::fields::Fields;
use super::{CtlError, print};

/// How lists are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Format {
    /// Aligned columns.
    Table,
    /// One JSON array.
    Json,
    /// One JSON object on each line.
    JsonLines,
    /// One line of chosen fields for each item.
    Template(Template),
}

impl Format {
    /// Whether a program reads it as JSON.
    pub(super) fn is_json(&self) -> bool {
        matches!(self, Self::Json | Self::JsonLines)
    }

    /// Prints items; `table` is only made when it is wanted.
    pub(super) fn print(
        &self,
        items: &[Value],
        fields: &Fields,
        table: impl FnOnce() -> Result<String, CtlError>,
    ) -> Result<(), CtlError> {
        Ok(print(&self.text(items, fields, table)?)?)
    }

    /// What [`Self::print`] prints.
    pub(super) fn text(
        &self,
        items: &[Value],
        fields: &Fields,
        table: impl FnOnce() -> Result<String, CtlError>,
    ) -> Result<String, CtlError> {
        match self {
            Self::Table => table(),
            Self::Json => {
                serde_json::to_string_pretty(items).map(|text| text + "\n").map_err(|e| CtlError::Output(e.into()))
            }
            Self::JsonLines => Ok(items.iter().map(|item| format!("{item}\n")).collect()),
            Self::Template(template) => template.render(items, fields),
        }
    }

    /// Refuses a template where there is no list of items.
    pub(super) fn no_template(&self, what: &str) -> Result<(), CtlError> {
        match self {
            Self::Template(_) => Err(CtlError::Usage(format!(
                "`thawctl {what}` has no items for a template: use --format json, or leave --format out"
            ))),
            _ => Ok(()),
        }
    }
}

/// Parses the value of `--format`, and tells completions what it can be.
#[derive(Debug, Clone, Copy)]
pub(super) struct FormatParser;

impl TypedValueParser for FormatParser {
    type Value = Format;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Format, clap::Error> {
        let parse = |text: String| match text.as_str() {
            "table" => Ok(Format::Table),
            "json" => Ok(Format::Json),
            "jsonl" => Ok(Format::JsonLines),
            _ => Template::parse(&text).map(Format::Template),
        };
        StringValueParser::new().try_map(parse).parse_ref(cmd, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(["table", "json", "jsonl"].into_iter().map(PossibleValue::new)))
    }
}

/// Text with fields in double braces: `{{.ID}} {{.State}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// Names on the way to a field; none of them means the whole item.
    Field(Vec<String>),
    /// The same as JSON.
    Json(Vec<String>),
}

impl Template {
    /// Reads it; `\t` and `\n` stand for a tab and a new line, as they come from a shell's single quotes.
    fn parse(text: &str) -> Result<Self, String> {
        if !text.contains("{{") {
            return Err("must be table, json, jsonl, or a template such as '{{.ID}} {{.State}}'".to_owned());
        }
        // docker's word for a template with a heading: the columns of `table` are ours.
        let mut rest = text.strip_prefix("table ").unwrap_or(text);
        let mut parts = Vec::new();
        while let Some((before, after)) = rest.split_once("{{") {
            push_text(&mut parts, before);
            let Some((inside, after)) = after.split_once("}}") else {
                return Err("has `{{` without `}}`".to_owned());
            };
            parts.push(Part::parse(inside.trim())?);
            rest = after;
        }
        push_text(&mut parts, rest);
        Ok(Self(parts))
    }

    fn render(&self, items: &[Value], fields: &Fields) -> Result<String, CtlError> {
        let mut text = String::new();
        for part in &self.0 {
            if let Part::Field(path) | Part::Json(path) = part {
                fields.check(path, items).map_err(|problem| CtlError::Usage(format!("--format: {problem}")))?;
            }
        }
        for item in items {
            for part in &self.0 {
                match part {
                    Part::Text(part) => text.push_str(part),
                    Part::Field(path) => text.push_str(&plain(Fields::find(item, path))),
                    Part::Json(path) => {
                        text.push_str(&Fields::find(item, path).map_or("null".into(), Value::to_string))
                    }
                }
            }
            text.push('\n');
        }
        Ok(text)
    }
}

impl Part {
    fn parse(inside: &str) -> Result<Self, String> {
        let (is_json, path) = match inside.strip_prefix("json ") {
            Some(path) => (true, path.trim()),
            None => (false, inside),
        };
        let names = |path: &str| path.split('.').map(str::to_owned).collect::<Vec<_>>();
        let path = match path.strip_prefix('.') {
            Some("") => Vec::new(),
            Some(path) if path.split('.').all(is_word) => names(path),
            _ => {
                return Err(format!(
                    "has `{{{{{inside}}}}}`: only fields such as `{{{{.State}}}}` and `{{{{json .Labels}}}}` are known here"
                ));
            }
        };
        Ok(if is_json { Self::Json(path) } else { Self::Field(path) })
    }
}

fn is_word(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-".contains(c))
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.replace("\\t", "\t").replace("\\n", "\n")));
    }
}

/// A value as people write it: text without quotes, nothing for what is absent.
pub(super) fn plain(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => super::one_line(text),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use thaw_client::types::Execution;

    fn rendered(template: &str) -> Result<String, String> {
        let items = [json!({ "id": "e-1", "state": "running", "created_at_ms": 7, "labels": { "k": "v" } })];
        let template = Template::parse(template)?;
        template.render(&items, &Fields::of::<Execution>()).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_are_found_by_dockers_names_and_by_the_apis() {
        assert_eq!(rendered("{{.ID}} {{.State}}").unwrap(), "e-1 running\n");
        assert_eq!(rendered("{{ .CreatedAtMs }}\\t{{.created_at_ms}}").unwrap(), "7\t7\n");
        assert_eq!(rendered("{{json .Labels}} {{.Labels.k}}").unwrap(), "{\"k\":\"v\"} v\n");
        assert_eq!(rendered("table {{.Id}}").unwrap(), "e-1\n");
    }

    #[test]
    fn what_is_absent_is_empty_and_what_does_not_exist_is_an_error() {
        assert_eq!(rendered("[{{.Exit.Code}}]").unwrap(), "[]\n");
        let error = rendered("{{.Names}}").unwrap_err();
        assert!(error.contains("`.Names`") && error.contains(".state") && error.contains(".exit"), "{error}");
        assert!(rendered("{{.Exit.Codes}}").unwrap_err().contains(".exit.code"));
    }

    #[test]
    fn what_is_no_template_is_said() {
        assert!(rendered("wide").unwrap_err().contains("jsonl"));
        assert!(rendered("{{.ID").unwrap_err().contains("without `}}`"));
        for bad in ["{{if .ID}}", "{{.ID | upper}}", "{{ID}}", "{{..ID}}"] {
            assert!(rendered(bad).unwrap_err().contains("only fields"), "{bad}");
        }
    }
}
