//! Pages of commands: what clap knows, then what only people know.

use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::{PaperError, Program, create};

/// A section of a man page: its heading, and paragraphs with what they are about in front.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Such as `FILES`.
    pub heading: &'static str,
    /// A path, a variable, a code; and one or more sentences, in which `words` are set bold.
    pub entries: &'static [(&'static str, &'static str)],
}

/// Writes the page of a command, and those of its subcommands as `COMMAND-SUBCOMMAND`. The command has been built.
pub(super) fn pages(command: &Command, program: &Program, folder: &Path) -> Result<(), PaperError> {
    one(command, program, program.sections, folder)?;
    command.get_subcommands().try_for_each(|subcommand| subpages(subcommand, program, folder))
}

fn subpages(command: &Command, program: &Program, folder: &Path) -> Result<(), PaperError> {
    one(command, program, &[], folder)?;
    command.get_subcommands().try_for_each(|subcommand| subpages(subcommand, program, folder))
}

fn one(command: &Command, program: &Program, sections: &[Section], folder: &Path) -> Result<(), PaperError> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let page = Man::new(command.clone())
        .title(name.to_uppercase())
        .section(program.chapter)
        // None, so that the same source gives the same page; the crate would drop an empty argument.
        .date("\"\"")
        .source(concat!("thawd ", env!("CARGO_PKG_VERSION")))
        .manual("thawd");
    let path = folder.join(page.get_filename());
    let mut file = create(&path)?;
    let mut render = || {
        page.render_title(&mut file)?;
        page.render_name_section(&mut file)?;
        page.render_synopsis_section(&mut file)?;
        page.render_description_section(&mut file)?;
        page.render_options_section(&mut file)?;
        if command.has_subcommands() {
            page.render_subcommands_section(&mut file)?;
        }
        rest(command, program, sections).to_writer(&mut file)
    };
    render().map_err(|source| PaperError { path: path.clone(), source })
}

fn rest(command: &Command, program: &Program, sections: &[Section]) -> Roff {
    let mut roff = Roff::new();
    if let Some(after) = command.get_after_help() {
        roff.control("SH", ["NOTES"]);
        roff.text(inlines(&after.to_string()));
    }
    for section in sections {
        roff.control("SH", [section.heading]);
        for (what, text) in section.entries {
            roff.control("TP", []).text([bold(*what)]).text(inlines(text));
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(program.see_also.join(", "))]);
    roff
}

/// Text with what stands in backticks in bold.
pub(super) fn inlines(text: &str) -> Vec<Inline> {
    let part = |(place, part): (usize, &str)| if place % 2 == 1 { bold(part) } else { roman(part) };
    text.split('`').enumerate().filter(|(_, part)| !part.is_empty()).map(part).collect()
}
