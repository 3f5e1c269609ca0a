//! Roots to write to: what fits, what is refused, and what is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use thaw_client::types::{Problem, Sandbox};
use thaw_os::disk::{self, DiskError};

use super::{created, problem, run, usual, wanted};
use crate::support::{Daemon, Setup, eventually};

/// The smallest that there is.
pub const SMALL: &str = r#"{"storage":{"size_bytes":33554432}}"#;

/// What one of those takes from the disk.
const SMALL_IMAGE: i64 = 42 << 20;

pub fn image(daemon: &Daemon, sandbox: &Sandbox) -> PathBuf {
    daemon.path("state/storage").join(format!("{}.img", sandbox.id))
}

/// Files of this daemon that loop devices have.
pub fn attached(daemon: &Daemon) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir("/sys/block").unwrap() {
        if let Ok(file) = fs::read_to_string(entry.unwrap().path().join("loop/backing_file")) {
            files.insert(file.trim().to_owned());
        }
    }
    files.retain(|file| file.contains(daemon.path("").to_str().unwrap()));
    files
}

pub async fn nothing_attached(daemon: &Daemon) {
    eventually("no loop device has a file of this daemon", || async { attached(daemon).is_empty().then_some(()) })
        .await;
}

fn small(setup: Setup) -> Setup {
    usual(setup).set("storage.default_bytes", 32 << 20)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_can_be_written_to_its_limit_and_never_the_image() {
    let daemon = Daemon::start(small).await;
    let sandbox = created(&daemon, r#"{"storage":{}}"#).await;
    assert_eq!(sandbox.storage.unwrap().size_bytes, Some(32 << 20), "the usual size");
    let found = run(
        &daemon,
        &sandbox,
        "cd; stat -c %u:%g:%a . /workspace / /etc; grep ' / ' /proc/mounts | cut -d' ' -f3,4 | cut -d, -f1-3; \
         echo x > file; mkdir -p a/b; mv a c; ln -s file link; mkfifo fifo; echo y >> /etc/passwd; df -Pk / | tail -1",
    )
    .await;
    let lines: Vec<_> = found.text().lines().collect();
    assert_eq!(lines[..5], ["1000:1000:700", "1000:1000:755", "0:0:755", "0:0:755", "overlay rw,nosuid,nodev"]);
    assert!(found.errors().contains("/etc/passwd: Permission denied"), "{}", found.errors());
    let kilobytes: u64 = lines[5].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((32 << 10..40 << 10).contains(&kilobytes), "df shows the limit: {}", lines[5]);
    // Its space was taken at once, so that the host cannot run out of it later.
    let taken = fs::metadata(image(&daemon, &sandbox)).unwrap();
    assert_eq!(taken.len() as i64, SMALL_IMAGE);
    assert!(std::os::unix::fs::MetadataExt::blocks(&taken) * 512 >= taken.len());

    let full = run(
        &daemon,
        &sandbox,
        "cd; dd if=/dev/zero of=big bs=64k 2>&1; sync; stat -c %s big; mkdir more 2>&1; rm big; echo again > big && cat big",
    )
    .await;
    assert!(full.text().contains("No space left on device"), "{}", full.text());
    let size = full.text().lines().find_map(|line| line.parse::<u64>().ok()).unwrap();
    assert!((32 << 20..38 << 20).contains(&size), "{size}");
    assert!(full.text().ends_with("again\n"), "{}", full.text());
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    assert!(!image(&daemon, &sandbox).exists(), "its space is free again");
    nothing_attached(&daemon).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_files_is_limited_too() {
    let daemon = Daemon::start(|setup| small(setup).set("storage.bytes_per_inode", 1 << 20)).await;
    let sandbox = created(&daemon, r#"{"storage":{}}"#).await;
    let made = run(
        &daemon,
        &sandbox,
        "mkdir ~/f; cd ~/f; i=0; while true > $i; do i=$((i+1)); done 2> ../why; cat ../why; echo $i; ls | wc -l; \
         rm -r ~/f; : > ~/again && echo again",
    )
    .await;
    let lines: Vec<_> = made.text().lines().collect();
    let count: u64 = lines[lines.len() - 3].parse().unwrap();
    // 16,384 at least, less what ext4 and the root have.
    assert!((16_000..16_384).contains(&count), "{count}");
    assert_eq!(lines[lines.len() - 1], "again");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn space_is_admitted_and_what_has_none_makes_nothing() {
    let pool = SMALL_IMAGE * 2 + (1 << 20);
    let daemon = Daemon::start(|setup| {
        small(setup).set("storage.pool_bytes", pool).set("storage.max_bytes", 64 << 20).set("sandbox.max_per_user", 5)
    })
    .await;
    let first = created(&daemon, SMALL).await;
    let _second = created(&daemon, SMALL).await;
    let refused: Problem = problem(daemon.client.create_sandbox::<Sandbox>(&wanted(SMALL), None).await);
    assert_eq!((refused.status, refused.code.as_str(), refused.retryable), (507, "storage_full", false));
    assert!(
        refused.detail.contains("1 MiB of the 85 MiB for all are left (`storage.pool_bytes`)"),
        "{}",
        refused.detail
    );
    for (size, why) in [(33_554_431_u64, "33554432 to 67108864"), ((64 << 20) + 1, "storage.max_bytes")] {
        let request = wanted(&format!(r#"{{"storage":{{"size_bytes":{size}}}}}"#));
        let refused = problem(daemon.client.create_sandbox::<Sandbox>(&request, None).await);
        assert_eq!((refused.status, refused.code.as_str()), (400, "invalid_field"));
        assert!(
            refused.detail.starts_with("`storage.size_bytes`") && refused.detail.contains(why),
            "{}",
            refused.detail
        );
    }
    assert_eq!(super::all(&daemon).await.len(), 2, "nothing was made");
    assert_eq!(attached(&daemon).len(), 2);
    daemon.client.delete_sandbox(&first.id).await.unwrap();
    created(&daemon, SMALL).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_keeps_its_reserve() {
    let daemon = Daemon::start(|setup| small(setup).set("storage.reserve_bytes", 1_i64 << 52)).await;
    let refused = problem(daemon.client.create_sandbox::<Sandbox>(&wanted(SMALL), None).await);
    assert_eq!((refused.status, refused.code.as_str()), (507, "storage_full"));
    assert!(refused.detail.contains("storage.reserve_bytes"), "{}", refused.detail);
    assert!(super::all(&daemon).await.is_empty() && attached(&daemon).is_empty());
    daemon.stop().await;
}

/// A file system of its own for images, unmounted in the end.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_host_changes_nothing_inside() {
    let mut daemon = Daemon::prepare(|setup| small(setup).set("storage.reserve_bytes", 0));
    let place = daemon.path("state/storage");
    fs::create_dir_all(&place).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &place, "tmpfs", flags, Some(c"size=64m,mode=700")).unwrap();
    let mounted = Small(place.clone());
    daemon.launch().await;
    let sandbox = created(&daemon, SMALL).await;
    let refused = problem(daemon.client.create_sandbox::<Sandbox>(&wanted(SMALL), None).await);
    assert_eq!((refused.status, refused.code.as_str()), (507, "storage_full"), "{}", refused.detail);
    // Whoever else fills the disk.
    let filled = fs::write(place.join("others"), vec![1; 64 << 20]);
    assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    let written = run(
        &daemon,
        &sandbox,
        "cd; dd if=/dev/urandom of=big bs=1M count=30 2> /dev/null && sync big && sha256sum < big > sum && sync sum && \
         sha256sum < big | cmp - sum && echo whole",
    )
    .await;
    assert_eq!(written.text(), "whole\n", "{}", written.errors());
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    nothing_attached(&daemon).await;
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
    drop(mounted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_never_attached_twice() {
    let mut daemon = Daemon::start(small).await;
    let sandbox = created(&daemon, SMALL).await;
    let image = image(&daemon, &sandbox);
    assert_eq!(attached(&daemon).len(), 1);
    let twice = |path| disk::attach(path, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(twice(&image), DiskError::Busy(_)));
    // The kernel keeps others away, not the daemon.
    daemon.kill();
    assert!(matches!(twice(&image), DiskError::Busy(_)));
    daemon.launch().await;
    assert_eq!(run(&daemon, &sandbox, "echo x > ~/x && cat ~/x").await.text(), "x\n");
    assert_eq!(attached(&daemon).len(), 1);
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    nothing_attached(&daemon).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_without_storage_has_none_unless_the_operator_says_so() {
    let daemon = Daemon::start(|setup| small(setup).set("sandbox.storage_bytes", 32 << 20)).await;
    let sandbox = created(&daemon, r#"{"name":"dev"}"#).await;
    assert_eq!(sandbox.storage.unwrap().size_bytes, Some(32 << 20));
    let same = daemon.http("PUT /v1/users/u1/sandboxes/dev", &[], br#"{"template":"test"}"#).await;
    assert_eq!((same.status, same.json()["id"].as_str()), (200, Some(&*sandbox.id)));
    let other = br#"{"template":"test","storage":{"size_bytes":34000000}}"#;
    let other = daemon.http("PUT /v1/users/u1/sandboxes/dev", &[], other).await;
    assert_eq!(other.status, 409);
    assert!(other.text().contains("`storage` is of 33554432 bytes, not of 34000000 bytes"), "{}", other.text());
    daemon.stop().await;

    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    assert_eq!(sandbox.storage, None);
    let refused = problem(daemon.client.stop_sandbox::<Sandbox>(&sandbox.id).await);
    assert_eq!((refused.status, refused.code.as_str()), (409, "sandbox_without_storage"));
    let late = wanted(r#"{"lifecycle":{"stop_after_s":5}}"#);
    let refused = problem(daemon.client.create_sandbox::<Sandbox>(&late, None).await);
    assert!(refused.detail.starts_with("`lifecycle.stop_after_s` goes with `storage`"), "{}", refused.detail);
    daemon.stop().await;
}
