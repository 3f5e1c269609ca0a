//! podman with storage of its own.

use std::io;
use std::path::Path;
use std::process::{Command, Output};

/// Writes podman's configuration into `folder`. Limits that root of a test machine may not raise are left as they are.
pub fn configure_podman(folder: &Path, open_files: u32) {
    std::fs::create_dir_all(folder).unwrap();
    let limits =
        format!("[containers]\ndefault_ulimits = [\"nofile={open_files}:{open_files}\", \"nproc=4096:4096\"]\n");
    std::fs::write(folder.join("containers.conf"), limits).unwrap();
}

/// Calls podman with its storage in `folder`.
///
/// # Errors
/// It is not installed.
pub fn podman(folder: &Path, arguments: &[&str]) -> io::Result<Output> {
    // Without the second hierarchy of a hybrid machine, which crun refuses; only for podman's own eyes.
    // With a /dev/null of its own: this crun gives the one at standard input to the user of the command.
    let script = "umount /sys/fs/cgroup/unified 2> /dev/null; mkdir -p \"$0\" && mount -t tmpfs null \"$0\" && \
        mknod -m 666 \"$0/null\" c 1 3 && mount --bind \"$0/null\" /dev/null && exec podman \"$@\"";
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    Command::new("unshare")
        .args(["-m", "sh", "-c", script, &at("null"), "--root", &at("root"), "--runroot", &at("run")])
        .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"])
        .args(["--runtime", "crun"])
        .args(arguments)
        .env("CONTAINERS_CONF", folder.join("containers.conf"))
        .output()
}
