//! The program that an image starts by itself, written from the manifest's `[entrypoint]`.

use std::fmt::Write;

use super::recipe::Entrypoint;

/// Path of the script in the image.
pub(super) const PATH: &str = "/usr/local/bin/entrypoint";

/// Whether there is anything to do before the command.
pub(super) fn is_needed(entrypoint: &Entrypoint) -> bool {
    entrypoint.idle.is_some() || entrypoint.credentials.is_some()
}

/// The script: idles if told so, refuses to start without a credential, otherwise becomes the given command. The error
/// is a sentence about the manifest.
pub(super) fn script(entrypoint: &Entrypoint) -> Result<String, String> {
    let mut script = String::from("#!/bin/sh\n");
    let mut line = |text: &str| script.push_str(&format!("{text}\n"));
    if let Some(idle) = &entrypoint.idle {
        variable(&idle.variable)?;
        plain(&idle.value)?;
        line(&format!("if [ \"${{{}:-}}\" = '{}' ]; then", idle.variable, idle.value));
        line("  # A container of a warm pool: run nothing, wait, and end at once when told to.");
        line("  trap 'exit 0' TERM INT");
        line("  while :; do sleep 86400 & wait $!; done");
        line("fi");
    }
    if let Some(credentials) = &entrypoint.credentials {
        let mut wanted = Vec::new();
        line("found=");
        for name in &credentials.env {
            variable(name)?;
            line(&format!("[ -n \"${{{name}:-}}\" ] && found=yes"));
            wanted.push(name.clone());
        }
        for file in &credentials.files {
            plain(file)?;
            line(&format!("[ -s \"$HOME/{file}\" ] && found=yes"));
            wanted.push(format!("~/{file}"));
        }
        if wanted.is_empty() {
            return Err("entrypoint.credentials names no variable and no file".to_owned());
        }
        line("if [ -z \"$found\" ]; then");
        line(&format!("  echo 'entrypoint: no credential: give one of {}' >&2", wanted.join(", ")));
        line("  exit 78");
        line("fi");
    }
    let _ = writeln!(script, "exec \"$@\"");
    Ok(script)
}

fn variable(name: &str) -> Result<(), String> {
    let good = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if good { Ok(()) } else { Err(format!("{name:?} is no name of an environment variable (A-Z, 0-9, _)")) }
}

fn plain(text: &str) -> Result<(), String> {
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    if good { Ok(()) } else { Err(format!("{text:?} may only have letters, digits and ._-/")) }
}
