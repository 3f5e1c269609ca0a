//! Containers that nobody looks after any more.

use std::path::Path;

use super::{CgroupError, core_files, remove_directory};

/// Name of the cgroup, among those of the containers, of the process that holds them together.
pub const KEEPER: &str = "keeper";

/// Kills and removes every container's cgroup below `bases`, of which the first is the v2 core's; blocks until they are
/// gone. Needs no daemon.
///
/// # Errors
/// A cgroup that cannot be listed, killed or removed.
pub fn clear_abandoned(bases: &[&Path]) -> Result<(), CgroupError> {
    clear(bases, |_| false).map(drop)
}

/// Removes the empty `bases` themselves, and first the keeper's cgroup in them, which this process is in: it steps out.
///
/// # Errors
/// A cgroup that cannot be removed: somebody else is in it.
pub fn leave_nothing(bases: &[&Path]) -> Result<(), CgroupError> {
    let Some(core) = bases.first() else { return Ok(()) };
    // One that hands controllers down takes nobody in; the root does (cgroups(7), "no internal processes").
    core.ancestors().skip(1).find(|group| std::fs::write(group.join("cgroup.procs"), "0").is_ok());
    remove_directory(&core.join(KEEPER))?;
    bases.iter().rev().try_for_each(|base| remove_directory(base))
}

/// Does as [`clear_abandoned`] to all but those that `keep` names. Returns how many there were.
pub fn clear(bases: &[&Path], keep: impl Fn(&str) -> bool) -> Result<usize, CgroupError> {
    let Some(core) = bases.first() else { return Ok(0) };
    let mut ids = Vec::new();
    for base in bases {
        ids.extend(core_files::children(base)?);
    }
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| id != KEEPER && !keep(id));
    // All at once, and then one after the other waited for.
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
