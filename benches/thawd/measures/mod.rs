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
