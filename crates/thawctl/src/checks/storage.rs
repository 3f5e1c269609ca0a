//! What sandboxes with storage need: loop devices, ext4, and the programs that make and repair it.

use thaw_os::disk::{E2FSCK, MKFS, find_tool};

use super::{Check, Host, Status};

const INSTALL: &str = "Install e2fsprogs 1.47 or newer; without it, sandboxes with `storage` are refused.";
const DEVICE: &str = "Load the module loop (modprobe loop); without it, sandboxes with `storage` are refused.";
const EXT4: &str = "Load the module ext4 (modprobe ext4); without it, sandboxes with `storage` are refused.";

pub(super) fn checks(host: &Host) -> Vec<Check> {
    vec![programs(find_tool), loop_devices(host), ext4(host)]
}

fn programs(find: impl Fn(&str) -> Option<std::path::PathBuf>) -> Check {
    let missing: Vec<_> = [MKFS, E2FSCK].into_iter().filter(|program| find(program).is_none()).collect();
    let (status, found) = match missing.as_slice() {
        [] => (Status::Ok, format!("{MKFS} and {E2FSCK} are installed")),
        missing => (Status::Warn, format!("{} is not installed", missing.join(" and "))),
    };
    Check::new("programs for storage", status, found, INSTALL)
}

fn loop_devices(host: &Host) -> Check {
    let is_there = host.path("/dev/loop-control").exists();
    let (status, found) = match is_there {
        true => (Status::Ok, "/dev/loop-control is there"),
        false => (Status::Warn, "there is no /dev/loop-control"),
    };
    Check::new("loop devices", status, found, DEVICE)
}

fn ext4(host: &Host) -> Check {
    let known = host.read("/proc/filesystems").unwrap_or_default();
    let (status, found) = match known.split_whitespace().any(|name| name == "ext4") {
        true => (Status::Ok, "the kernel has ext4"),
        // It is loaded when it is needed, where there are modules.
        false => (Status::Warn, "ext4 is not loaded"),
    };
    Check::new("ext4", status, found, EXT4)
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let (_dir, bare) = host(&[("/proc/filesystems", "nodev\tproc\n\txfs\n")]);
        assert_eq!([loop_devices(&bare).status, ext4(&bare).status], [Status::Warn, Status::Warn]);
        let (_dir, full) = host(&[("/proc/filesystems", "nodev\tproc\n\text4\n"), ("/dev/loop-control", "")]);
        assert_eq!([loop_devices(&full).status, ext4(&full).status], [Status::Ok, Status::Ok]);
        let one = programs(|program| (program == MKFS).then(|| "/sbin/mkfs.ext4".into()));
        assert_eq!((one.status, one.found.as_str()), (Status::Warn, "e2fsck is not installed"));
    }
}
