//! One file per measure.

mod burst;
mod claim;
mod cold;

use std::rc::Rc;

use anyhow::Result;

use crate::Options;
use crate::bed::Bed;
use crate::report::Outcome;

type Measure = fn(&Rc<Bed>, &Options) -> Result<Outcome>;

/// All, in the order in which they are run and documented.
pub const ALL: [(&str, Measure); 3] = [("claim", claim::measure), ("cold", cold::measure), ("burst", burst::measure)];
