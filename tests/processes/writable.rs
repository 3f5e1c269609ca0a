//! Roots with a writable layer, and volumes: made by the spawner, with nobody above it who asks for them yet.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thaw_os::cgroup::{Cgroup, CgroupError};
use thaw_os::spawner::{CreateRequest, Descriptors, Mount, Source, Spawned, SpawnerError};
use thawd::container::{Doing, Isolation, Native, Sandbox};

use crate::house::{Address, Ended, House, Run, run, script};

/// As thawd does it, with a layer or volumes besides.
#[derive(Debug)]
struct Besides {
    native: Native,
    layer: Option<PathBuf>,
    volumes: Vec<Mount>,
}

impl Isolation for Besides {
    fn create(
        &self,
        mut request: CreateRequest,
        mut descriptors: Descriptors,
    ) -> Doing<'_, Result<Spawned, SpawnerError>> {
        request.root.writable = self.layer.is_some();
        descriptors.layer = self.layer.as_ref().map(|layer| File::open(layer).unwrap().into());
        request.mounts.extend(self.volumes.iter().cloned());
        self.native.create(request, descriptors)
    }

    fn freeze<'a>(&'a self, cgroup: &'a Cgroup) -> Doing<'a, Result<(), CgroupError>> {
        self.native.freeze(cgroup)
    }

    fn kill(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        self.native.kill(cgroup)
    }
}

fn with_layer(layer: &Path) -> impl FnOnce(Native) -> Arc<dyn Isolation> {
    let layer = Some(layer.to_owned());
    |native| Arc::new(Besides { native, layer, volumes: Vec::new() })
}

/// Runs a script as root of the container.
async fn as_root(sandbox: &Sandbox, text: &str) -> Ended {
    let mut command = script(text);
    (command.user, command.group) = (0, 0);
    Run::start(sandbox, &command).await.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_root_is_there_the_next_time_and_never_in_the_image() {
    let (dir, address) = Address::new();
    let layer = dir.path().join("layer");
    for folder in ["upper", "work"] {
        fs::create_dir_all(layer.join(folder)).unwrap();
        // That of the root.
        fs::set_permissions(layer.join(folder), Permissions::from_mode(0o755)).unwrap();
    }
    let house = House::open_with(&address, with_layer(&layer));
    let image = house.template.root.image.clone();
    let before = fs::read_to_string(image.join("etc/passwd")).unwrap();
    let sandbox = house.sandbox("s-1").await;
    let written = as_root(
        &sandbox,
        "set -e; echo mine > /etc/passwd; mkdir /opt/new; echo x > /opt/new/file; rm /etc/group; chmod 711 /usr/bin/busybox; \
         mkdir /opt/theirs; chmod 777 /opt/theirs; grep ' / ' /proc/self/mounts | cut -d' ' -f3,4 | cut -d, -f1-3; \
         ! mknod /opt/gone c 0 0; ! mknod /opt/null c 1 3",
    )
    .await;
    assert_eq!((written.code(), written.stdout.trim()), (0, "overlay rw,nosuid,nodev"), "{written:?}");
    let theirs = run(&sandbox, "echo y > /opt/theirs/file; echo z > /etc/passwd").await;
    assert!(theirs.stderr.contains("/etc/passwd: Permission denied"), "{theirs:?}");

    // Nothing of it is in the image, and ids on the disk are those inside.
    assert_eq!(fs::read_to_string(image.join("etc/passwd")).unwrap(), before);
    assert!(image.join("etc/group").exists() && !image.join("opt/new").exists());
    assert_eq!(fs::metadata(image.join("usr/bin/busybox")).unwrap().mode() & 0o777, 0o755);
    let upper = layer.join("upper");
    for (file, owner) in [("etc/passwd", 0), ("opt/new/file", 0), ("usr/bin/busybox", 0), ("opt/theirs/file", 1000)] {
        let found = fs::metadata(upper.join(file)).unwrap();
        assert_eq!((found.uid(), found.gid()), (owner, owner), "{file}");
    }
    let gone = fs::symlink_metadata(upper.join("etc/group")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0, "a whiteout");

    // The next container, with other ids of the host.
    let ids = |sandbox: &Sandbox| fs::read_to_string(format!("/proc/{}/uid_map", house.init_of(sandbox))).unwrap();
    let ids_before = ids(&sandbox);
    let taken = house.containers.lease().unwrap();
    drop(sandbox);
    house.leases(1).await;
    let other = house.containers.lease().unwrap();
    let sandbox = house.sandbox("s-2").await;
    assert_ne!(ids(&sandbox), ids_before);
    let found = as_root(
        &sandbox,
        "cat /etc/passwd /opt/new/file; stat -c %u:%g /opt/theirs/file; ls /etc/group 2>&1; echo more >> /opt/new/file",
    )
    .await;
    let lines: Vec<_> = found.stdout.lines().collect();
    assert_eq!(lines[..3], ["mine", "x", "1000:1000"], "{found:?}");
    assert!(lines[3].contains("No such file"), "{found:?}");
    assert_eq!(fs::read_to_string(upper.join("opt/new/file")).unwrap(), "x\nmore\n");
    drop((sandbox, taken, other));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_none_is_said_so() {
    let (dir, address) = Address::new();
    let layer = dir.path().join("layer");
    fs::create_dir_all(layer.join("upper")).unwrap();
    let house = House::open_with(&address, with_layer(&layer));
    let lease = house.containers.lease().unwrap();
    let error = house.containers.create(house.template.clone(), lease).await.unwrap_err().to_string();
    assert!(error.contains("put a writable layer over") && error.contains("its directory work"), "{error}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_has_the_ids_that_are_on_the_disk() {
    let (dir, address) = Address::new();
    let volumes = ["rw", "ro"].map(|name| dir.path().join(name));
    for volume in &volumes {
        fs::create_dir(volume).unwrap();
        fs::write(volume.join("file"), "theirs\n").unwrap();
        fs::set_permissions(volume.join("file"), Permissions::from_mode(0o600)).unwrap();
        for path in [volume.clone(), volume.join("file")] {
            chown(path, Some(1000), Some(1000)).unwrap();
        }
    }
    let volume = |at: &str, path: &Path, read_only| Mount {
        at: at.to_owned(),
        source: Source::Volume { path: path.to_owned(), read_only },
    };
    let mounts = vec![volume("/workspace", &volumes[0], false), volume("/opt", &volumes[1], true)];
    let house = House::open_with(&address, |native| Arc::new(Besides { native, layer: None, volumes: mounts }));
    let sandbox = house.sandbox("s-1").await;
    let text = "cd /workspace; stat -c '%u:%g' file; cat file /opt/file; echo ours > new; touch /opt/new 2>&1; \
                grep -E ' /(workspace|opt) ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1-3";
    let ended = run(&sandbox, text).await;
    let seen: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(seen[..3], ["1000:1000", "theirs", "theirs"], "{ended:?}");
    assert!(seen[3].contains("Read-only file system"), "{ended:?}");
    assert_eq!(seen[4..], ["rw,nosuid,nodev", "ro,nosuid,nodev"], "{ended:?}");
    let made = fs::metadata(volumes[0].join("new")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.len()), (1000, 1000, 5));
    drop(sandbox);
    house.close().await;
}
