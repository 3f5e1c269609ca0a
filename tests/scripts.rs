//! The scripts that look for what was left behind: they report what is thawd's, and nothing that is only called so.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// A container's root, a directory of state, and the table of a machine whose checkout is called `thawd`.
const LEFT: &str = "\
    70 27 0:90 / /run/thawd/root rw,relatime - tmpfs tmpfs rw\n\
    71 27 254:0 /var/lib/x /var/lib/thawd/images ro,relatime - ext4 /dev/vda rw\n";

fn script(program: &mut Command) -> String {
    let done = program.output().unwrap();
    assert!(done.status.success(), "{program:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn a_purge_is_judged_by_thawds_mounts_and_not_by_the_name_of_the_checkout() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("patience"), "1\n").unwrap();
    let mounts = |table: &str| {
        fs::write(directory.path().join("mountinfo"), table).unwrap();
        let text = format!(". {REPOSITORY}/tests/systemd/lib; mounts_of_thawd mountinfo");
        script(Command::new("bash").args(["-euc", &text]).current_dir(directory.path()))
    };
    let shared = "60 27 0:80 / /run/bed rw,relatime - hostfs none rw,/root/thawd/target/systemd-uml/bookworm\n\
                  61 60 0:81 / /run/bed/thawd rw - tmpfs none rw\n";
    assert_eq!(mounts(shared), "");
    assert_eq!(mounts(&format!("{shared}{LEFT}")), LEFT);
}

#[test]
fn units_and_processes_are_judged_by_their_own_names() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("patience"), "1\n").unwrap();
    let found = |function: &str, list: &str| {
        let text = format!(". {REPOSITORY}/tests/systemd/lib; {function} <<< \"$1\"");
        script(Command::new("bash").args(["-euc", &text, "bash", list]).current_dir(directory.path()))
    };
    let others = "run-bed.mount loaded active mounted /srv/thawd\n";
    let own = "thawd.socket loaded active listening The API\n";
    assert_eq!(found("units_of_thawd", others), "");
    assert_eq!(found("units_of_thawd", &format!("{others}{own}")), own);
    let (others, own) = ("    7 bash\n   8 unthawed\n", "   9 thaw-init\n");
    assert_eq!(found("processes_of_thawd", others), "");
    assert_eq!(found("processes_of_thawd", &format!("{others}{own}")), own);
}

#[test]
fn leftovers_are_thawds_and_not_the_place_of_the_checkout() {
    let directory = tempfile::tempdir().unwrap();
    let checkout = directory.path().join("src/thawd");
    fs::create_dir_all(checkout.join("tests")).unwrap();
    let leftovers = checkout.join("tests/leftovers");
    fs::copy(Path::new(REPOSITORY).join("tests/leftovers"), &leftovers).unwrap();
    let mounts = |table: &str| {
        let file = directory.path().join("mountinfo");
        fs::write(&file, table).unwrap();
        let found = script(Command::new("bash").arg(&leftovers).env("MOUNTINFO", &file).env("TMPDIR", "/nowhere"));
        found.lines().filter(|line| line.starts_with("mount")).map(str::to_owned).collect::<Vec<_>>()
    };
    let own = "60 27 254:0 /home/u/thawd /mnt rw - ext4 /dev/vda rw\n\
               61 27 0:41 / /srv rw - overlay overlay rw,lowerdir=/cache/thawd/rootfs\n";
    assert_eq!(mounts(own), Vec::<String>::new(), "what is mounted may be called anything");
    assert_eq!(mounts(&format!("{own}{LEFT}")).len(), 2);
    let below = "62 27 0:42 / /tmp/anything rw - tmpfs tmpfs rw\n";
    assert_eq!(mounts(below).len(), 1, "nothing is to stay mounted below /tmp");
}
