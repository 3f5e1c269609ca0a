//! Destroys containers that no daemon looks after any more.

use std::path::Path;

use super::{CgroupError, core_files, remove_directory};

/// Name of the keeper's cgroup, beside those of the containers.
pub const KEEPER: &str = "keeper";

/// Kills and removes every container's cgroup below `bases`, of which the first is the v2 core's. Blocks until they are
/// gone. Works without a daemon.
///
/// # Errors
/// A cgroup cannot be listed, killed or removed.
pub fn clear_abandoned(bases: &[&Path]) -> Result<(), CgroupError> {
    clear(bases, |_| false).map(drop)
}

/// Removes the empty `bases`, after moving this process out of the keeper's cgroup in them and removing that.
///
/// # Errors
/// A cgroup cannot be removed because a process is in it.
pub fn leave_nothing(bases: &[&Path]) -> Result<(), CgroupError> {
    let Some(core) = bases.first() else { return Ok(()) };
    // Cgroups with controllers enabled for children accept no process; the root does (cgroups(7), "no internal
    // processes").
    core.ancestors().skip(1).find(|group| std::fs::write(group.join("cgroup.procs"), "0").is_ok());
    remove_directory(&core.join(KEEPER))?;
    bases.iter().rev().try_for_each(|base| remove_directory(base))
}

/// As [`clear_abandoned`], for all cgroups but those that `keep` names. Returns how many there were.
pub fn clear(bases: &[&Path], keep: impl Fn(&str) -> bool) -> Result<usize, CgroupError> {
    let Some(core) = bases.first() else { return Ok(0) };
    let mut ids = Vec::new();
    for base in bases {
        ids.extend(core_files::children(base)?);
    }
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| id != KEEPER && !keep(id));
    // Kill all of them first, then wait for each.
    for path in ids.iter().map(|id| core.join(id)).filter(|path| path.exists()) {
        core_files::kill(&path)?;
    }
    for id in &ids {
        let path = core.join(id);
        if path.exists() {
            core_files::wait_empty(&path)?;
        }
        for base in bases.iter().rev() {
            remove_directory(&base.join(id))?;
        }
    }
    Ok(ids.len())
}
