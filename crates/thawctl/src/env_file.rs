//! `--env-file`: the format of docker's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::CtlError;

/// The variables of all files; later ones win.
pub(super) fn read(files: &[PathBuf]) -> Result<BTreeMap<String, String>, CtlError> {
    let mut variables = BTreeMap::new();
    for path in files {
        let text = std::fs::read_to_string(path)
            .map_err(|error| CtlError::Usage(format!("--env-file {}: {error}", path.display())))?;
        parse(&text, path, |name| std::env::var(name).ok(), &mut variables)?;
    }
    Ok(variables)
}

fn parse(
    text: &str,
    path: &Path,
    ours: impl Fn(&str) -> Option<String>,
    variables: &mut BTreeMap<String, String>,
) -> Result<(), CtlError> {
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line.trim_end(), ours(line.trim_end())),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            // Without the line itself: values are not for terminals and logs.
            let place = format!("--env-file {}: line {}", path.display(), number + 1);
            return Err(CtlError::Usage(format!("{place} must be KEY=VALUE, KEY or a # comment")));
        }
        // A name alone that is not set here is not set there, as docker does it.
        if let Some(value) = value {
            variables.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<BTreeMap<String, String>, CtlError> {
        let mut variables = BTreeMap::new();
        let ours = |name: &str| (name == "OURS").then(|| "from here".to_owned());
        parse(text, Path::new("f"), ours, &mut variables).map(|()| variables)
    }

    #[test]
    fn lines_are_read_as_docker_reads_them() {
        let text = "# comment\n\nA=1\n  B=a=b \nC=\nD=\"quoted\"\nOURS\nNOT_SET\nA=2\n";
        let expected = [("A", "2"), ("B", "a=b "), ("C", ""), ("D", "\"quoted\""), ("OURS", "from here")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parsed(text).unwrap(), BTreeMap::from(expected));
    }

    #[test]
    fn a_line_that_is_none_of_these_is_named_by_number() {
        for bad in ["A=1\n=x", "A=1\nexport B=2"] {
            let error = parsed(bad).unwrap_err().to_string();
            assert!(error.contains("f: line 2") && !error.contains("B=2"), "{error}");
        }
    }
}
