//! One file per measure.

mod burst;
mod claim;
mod clis;
mod cold;
mod many;
mod memory;
mod stdout;
mod storm;
mod sustained;

use std::rc::Rc;

use anyhow::Result;

use crate::Options;
use crate::bed::Bed;
use crate::report::Outcome;

type Measure = fn(&Rc<Bed>, &Options) -> Result<Outcome>;

/// All, in the order in which they are run and documented.
pub const ALL: [(&str, Measure); 9] = [
    ("claim", claim::measure),
    ("cold", cold::measure),
    ("burst", burst::measure),
    ("sustained", sustained::measure),
    ("storm", storm::measure),
    ("memory", memory::measure),
    ("stdout", stdout::measure),
    ("clis", clis::measure),
    ("many", many::measure),
];

/// The other version that `--against` names, with a bed of its own: it takes turns with this one.
fn other_version(bed: &Bed, options: &Options) -> Result<Option<(String, Bed)>> {
    let Some(folder) = &options.against else { return Ok(None) };
    let version = std::process::Command::new(folder.join("thawd")).arg("--version").output()?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    Ok(Some((format!("{version} of {}", folder.display()), bed.beside(folder.clone())?)))
}
