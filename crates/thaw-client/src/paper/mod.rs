//! Man pages and shell completions, made from the command lines as clap knows them and from the sample configuration.
//!
//! Each program writes its own (`thawd paper DIR`, `thawctl paper DIR`; both commands are hidden), so that what is
//! installed fits the program beside it and nothing that can be generated is kept in the repository. `make install` and
//! `make deb` call them.
//!
//! | below DIR | goes to |
//! |---|---|
//! | `man/manN/NAME.N` | `/usr/share/man` |
//! | `bash/NAME` | `/usr/share/bash-completion/completions` |
//! | `zsh/_NAME` | `/usr/share/zsh/vendor-completions` |
//! | `fish/NAME.fish` | `/usr/share/fish/vendor_completions.d` |

mod configuration;
mod man;
mod text;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::{Generator, Shell};

pub use man::Section;
pub use text::{CLIENT, DAEMON};

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct PaperError {
    /// Which file or folder.
    path: PathBuf,
    /// Why.
    source: io::Error,
}

/// What a program's man page says besides what clap knows.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// What it is called.
    pub name: &'static str,
    /// Chapter of the manual: `1` for users' commands, `8` for those of administrators (man(1)).
    pub chapter: &'static str,
    /// Sections of the page of the program itself, after its options.
    pub sections: &'static [Section],
    /// Pages to read on, for the last section of each page, such as `thawd(8)`.
    pub see_also: &'static [&'static str],
}

/// Writes the man pages of a command and of each of its subcommands, and its completions for bash, zsh and fish.
/// Hidden subcommands are in neither.
///
/// # Errors
/// If a file or folder cannot be written.
pub fn write(command: &Command, program: &Program, directory: &Path) -> Result<(), PaperError> {
    let mut command = visible(program.name, command);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        // bash-completion looks for a file that is called like the command, without an ending.
        let file = if shell == Shell::Bash { program.name.to_owned() } else { shell.file_name(program.name) };
        let path = folder(directory, &shell.to_string())?.join(file);
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), program.name, &mut text);
        fs::write(&path, text).map_err(|source| PaperError { path, source })?;
    }
    command = command.disable_help_subcommand(true);
    command.build();
    man::pages(&command, program, &folder(directory, &format!("man/man{}", program.chapter))?)
}

/// Writes thawd.toml(5) from the sample configuration.
///
/// # Errors
/// If the file or its folder cannot be written.
pub fn write_configuration_page(directory: &Path) -> Result<(), PaperError> {
    let path = folder(directory, "man/man5")?.join("thawd.toml.5");
    let mut file = create(&path)?;
    configuration::page(include_str!("../../../../docs/thawd.toml"))
        .to_writer(&mut file)
        .map_err(|source| PaperError { path, source })
}

/// The command without its hidden subcommands, which `clap_complete` would offer and clap cannot remove.
fn visible(name: &'static str, command: &Command) -> Command {
    let copy = Command::new(name)
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(command.is_subcommand_required_set())
        .args(command.get_arguments().cloned())
        .subcommands(command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()).cloned());
    match command.get_about() {
        Some(about) => copy.about(about.clone()),
        None => copy,
    }
}

fn folder(directory: &Path, name: &str) -> Result<PathBuf, PaperError> {
    let path = directory.join(name);
    fs::create_dir_all(&path).map_err(|source| PaperError { path: path.clone(), source })?;
    Ok(path)
}

fn create(path: &Path) -> Result<File, PaperError> {
    File::create(path).map_err(|source| PaperError { path: path.to_owned(), source })
}
