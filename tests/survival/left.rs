//! What must not be left of anything, while a daemon runs.

use std::collections::BTreeSet;
use std::fs;

use thaw_client::types::{ContainerState, Stage};

use crate::support::{Daemon, eventually, mounts_below, open_files, processes_in_cgroup};

/// The names of the cgroups of containers.
fn cgroups(daemon: &Daemon) -> BTreeSet<String> {
    let directories = daemon.cgroups().into_iter().filter_map(|base| fs::read_dir(base).ok());
    let names = directories.flatten().flatten().filter(|entry| entry.path().is_dir());
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name != "keeper").collect()
}

/// Every cgroup belongs to a container that the daemon knows.
pub async fn no_stranger(daemon: &Daemon) {
    eventually("every cgroup is a known container's", || async {
        let before = cgroups(daemon);
        let known: BTreeSet<String> = daemon.containers().await.into_iter().map(|container| container.id).collect();
        let after = cgroups(daemon);
        // One that was removed meanwhile was known.
        before.intersection(&after).all(|name| known.contains(name)).then_some(())
    })
    .await;
}

/// Nothing runs, and nothing is left of what did. Returns the descriptors of the daemon and of the keeper, but for those
/// of the executions that are kept.
pub async fn nothing_left(daemon: &Daemon) -> (usize, usize) {
    eventually("what nobody was told of ends too", || async {
        let executions = daemon.client.executions().await.unwrap();
        executions.iter().all(|execution| execution.exit.is_some()).then_some(())
    })
    .await;
    let known = eventually("all pools are full, and nothing else is there", || async {
        let pools = daemon.client.pools().await.unwrap();
        let containers = daemon.containers().await;
        let full = pools.iter().all(|pool| pool.warm == pool.target && pool.creating == 0);
        let warm = containers.iter().all(|container| container.state == ContainerState::Warm && container.frozen);
        let wanted: usize = pools.iter().map(|pool| pool.target).sum();
        (full && warm && containers.len() == wanted).then_some(containers)
    })
    .await;
    let ids: BTreeSet<String> = known.iter().map(|container| container.id.clone()).collect();
    assert_eq!(cgroups(daemon), ids, "cgroups");
    // Where a CLI waits, there is more than PID 1.
    let waiting = known.iter().filter(|container| container.stage == Stage::Prestarted);
    let clis = waiting.flat_map(|container| processes_in_cgroup(&container.id)).map(|process| process.pid);
    let family: BTreeSet<i32> = known.iter().filter_map(|container| container.pid).chain(clis).collect();
    let keeper = daemon.keeper().expect("there is a keeper").pid;
    // Children of a daemon that was killed are for this machine's init to reap.
    eventually("nobody else is in the cgroups", || async {
        let all = processes_in_cgroup(daemon.cgroup_name());
        all.iter().all(|process| family.contains(&process.pid) || process.pid == keeper).then_some(())
    })
    .await;
    let mounts = mounts_below(daemon.path("").to_str().unwrap());
    assert!(mounts.is_empty(), "mounts: {mounts:?}");
    let mut files: Vec<_> = fs::read_dir(daemon.path("run")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["keeper.sock", "thawd.sock"], "run directory");
    let kept = daemon.client.executions().await.unwrap().len();
    let beside_output = |pid| open_files(pid).len().checked_sub(3 * kept).expect("each has three files");
    (beside_output(daemon.pid()), beside_output(keeper))
}
