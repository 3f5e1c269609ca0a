//! Commands in images of the store, without a provider.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use support::{Daemon, Outcome, mounts_below};
use thaw_client::types::{ClaimPath, Credentials, ExecutionRequest, ExitReason};
use thaw_image::Store;
use thaw_image::progress::Quiet;

fn request(image: &str, script: &str) -> ExecutionRequest {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    ExecutionRequest {
        image: Some(image.to_owned()),
        user: "u1".to_owned(),
        command: Some(command),
        ..ExecutionRequest::default()
    }
}

async fn refused(daemon: &Daemon, request: &ExecutionRequest) -> (String, String) {
    match daemon.client.create(request).await.unwrap_err() {
        thaw_client::client::ClientError::Problem(problem) => (problem.code.clone(), problem.detail.clone()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_image_runs_with_its_own_configuration() {
    // The provider's pool unpacks the image; the run then takes it from the store.
    let daemon = Daemon::start(|setup| setup.pool(1).set("image_run.memory_bytes", 64 << 20)).await;
    let script =
        "id -u; id -g; pwd; echo $HOME; touch $HOME/x /tmp/x && echo writable; touch /x 2>&1; grep -c . /proc/net/dev";
    let outcome: Outcome = daemon.run(&request("test", script)).await;
    assert_eq!(outcome.started.path, ClaimPath::Cold);
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..5], ["1000", "1000", "/home/runtime", "/home/runtime", "writable"], "{text}");
    assert!(lines[5].contains("Read-only file system"), "{text}");
    assert_eq!(lines[6], "3", "two lines of heading and lo: {text}");
    assert!(outcome.exit.success);

    let outcome = daemon.run(&request("test", "dd if=/dev/zero of=/dev/null bs=200M count=1")).await;
    assert_eq!(outcome.exit.reason, ExitReason::Oom, "{:?}", outcome.exit);
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_by_name() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let (code, detail) = refused(&daemon, &request("nothing", "true")).await;
    assert!(code == "unknown_image" && detail.contains("thawctl image"), "{code}: {detail}");
    let (code, _) = refused(&daemon, &request("../../etc", "true")).await;
    assert_eq!(code, "invalid_image");
    let both = ExecutionRequest { provider: "test".to_owned(), ..request("test", "true") };
    assert_eq!(refused(&daemon, &both).await.0, "provider_or_image");
    let neither = ExecutionRequest { image: None, ..request("test", "true") };
    assert_eq!(refused(&daemon, &neither).await.0, "provider_or_image");
    let secret = ExecutionRequest { credentials: Some(Credentials::default()), ..request("test", "true") };
    assert_eq!(refused(&daemon, &secret).await.0, "only_with_provider");
    daemon.stop().await;
}

/// Writes what `docker save` would of an image with busybox, these links, and this user.
fn crafted(to: &Path, links: &[(&str, &str)], user: &str) {
    crafted_in(to, links, user, "");
}

/// The same with a working directory.
fn crafted_in(to: &Path, links: &[(&str, &str)], user: &str, workdir: &str) {
    crafted_with(to, links, user, workdir, &[]);
}

/// The same with files: path, mode, group, content.
fn crafted_with(to: &Path, links: &[(&str, &str)], user: &str, workdir: &str, files: &[(&str, u32, u64, &str)]) {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let busybox = fs::read("/bin/busybox").unwrap();
    header.set_size(busybox.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    layer.append_data(&mut header, "bin/busybox", busybox.as_slice()).unwrap();
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Directory);
    // A link to nothing stands for something that the image does not have.
    let linked = |name: &str| links.iter().any(|(link, _)| *link == name);
    let links: Vec<_> = links.iter().filter(|(_, target)| !target.is_empty()).collect();
    for folder in ["dev", "proc", "sys", "tmp", "run", "etc", "home"].iter().filter(|name| !linked(name)) {
        layer.append_data(&mut header, folder, std::io::empty()).unwrap();
    }
    header.set_entry_type(tar::EntryType::Symlink);
    for (link, target) in &links {
        layer.append_link(&mut header, link, target).unwrap();
    }
    header.set_entry_type(tar::EntryType::Regular);
    for (path, mode, group, content) in files {
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_gid(*group);
        layer.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    header.set_gid(0);
    let layer = layer.into_inner().unwrap();
    let hex: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {"User": user, "Env": ["A=b c"], "WorkingDir": workdir},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{hex}")]}});
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["x"], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(fs::File::create(to).unwrap());
    header.set_entry_type(tar::EntryType::Regular);
    for (name, content) in [
        ("layer.tar", layer),
        ("config.json", config.to_string().into_bytes()),
        ("manifest.json", manifest.to_string().into_bytes()),
    ] {
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    archive.finish().unwrap();
}

/// Runs a script in an image; what it printed, or why it could not be started.
async fn tried(daemon: &Daemon, image: &str, script: &str) -> Result<String, String> {
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecutionRequest { command: Some(command), ..request(image, "") };
    match daemon.client.execute_stream(&request).await {
        Ok(stream) => Ok(String::from_utf8_lossy(&Outcome::of(stream).await.stdout).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn links_in_the_place_of_mounts_lead_nowhere_on_the_host() {
    // CVE-2026-41579, CVE-2026-47766, CVE-2025-24965: what the runtime mounts, makes or reads for a container ends up on
    // the host, since the image has a link there.
    let mut daemon = Daemon::prepare(|setup| setup.pool(1));
    let victim = daemon.path("victim");
    for name in ["shm", "pts", "mqueue", "self"] {
        fs::create_dir_all(victim.join(name)).unwrap();
    }
    for name in ["null", "passwd", "group", "hosts", "resolv.conf", "hostname"] {
        fs::write(victim.join(name), "app:x:0:0::/:/bin/sh\n").unwrap();
    }
    let before = seen(&victim);
    let store = Store::open(&daemon.path("state/images")).unwrap();
    let host = victim.to_str().unwrap();
    let climbing = format!("../../../../../..{host}");
    let (null, passwd) = (format!("{host}/null"), format!("{host}/passwd"));
    for (number, (links, user)) in [
        (vec![], "1000"),
        (vec![("dev", host)], "1000"),
        (vec![("dev", climbing.as_str())], "1000"),
        (vec![("dev/null", null.as_str())], "1000"),
        (vec![("proc", host)], "1000"),
        (vec![("tmp", host)], "1000"),
        (vec![("etc", host)], "1000"),
        (vec![("etc/passwd", passwd.as_str())], "app"),
        (vec![("dev", "/proc/self/root"), ("proc", host)], "1000"),
    ]
    .iter()
    .enumerate()
    {
        let archive = daemon.path("image.tar");
        crafted(&archive, links, user);
        store.import(&archive, Some(&format!("crafted-{number}")), &Quiet).unwrap();
    }
    drop(store);
    daemon.launch().await;
    let script = "id -u; echo $A; echo x > /dev/null; for f in /dev/shm /tmp /etc /dev; do echo theirs > $f/planted; done; \
                  echo theirs >> /etc/passwd";
    for number in 0..9 {
        let result = tried(&daemon, &format!("crafted-{number}"), script).await;
        eprintln!("{number}: {result:?}");
        match number {
            0 => assert_eq!(result.as_deref(), Ok("1000\nb c\n")),
            7 => assert!(result.unwrap_err().contains("which its /etc/passwd does not know")),
            // A link within the image is no harm: whether it can be started is its own affair.
            _ => assert!(result.is_err() || result.as_deref() == Ok("1000\nb c\n"), "{number}: {result:?}"),
        }
        assert_eq!(seen(&victim), before, "{number}");
        assert_eq!(mounts_below(host), Vec::<String>::new(), "{number}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_link_in_the_place_of_what_is_mounted_on_is_refused_for_good() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(0));
    let store = Store::open(&daemon.path("state/images")).unwrap();
    for place in ["proc", "dev", "tmp"] {
        let archive = daemon.path("image.tar");
        crafted(&archive, &[(place, "home")], "1000");
        store.import(&archive, Some(&format!("link-{place}")), &Quiet).unwrap();
    }
    drop(store);
    daemon.launch().await;
    for place in ["proc", "dev", "tmp"] {
        let body = serde_json::to_vec(&request(&format!("link-{place}"), "true")).unwrap();
        let problem = daemon.http("POST /v1/executions", &[], &body).await.problem();
        let seen = (problem.status, problem.code.as_str(), problem.retryable);
        assert_eq!(seen, (400, "invalid_image", false), "{place}: {}", problem.detail);
        assert!(problem.detail.contains(&format!("/{place},")), "{}", problem.detail);
    }
    assert!(daemon.containers().await.is_empty(), "none was created");
    daemon.stop().await;
}

/// An entry of a layer: path, mode, owner, and content (`None` for a directory).
type Entry<'a> = (&'a str, u32, u64, Option<&'a str>);

/// Busybox and nothing else, except these entries.
fn scratch(to: &Path, entries: &[Entry<'_>], config: &serde_json::Value) {
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, owner: u64, content: Option<&[u8]>| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1);
        header.set_size(content.map_or(0, |content| content.len() as u64));
        let kind = if content.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory };
        header.set_entry_type(kind);
        // As the crate would not write it: with a leading slash, or nothing but one.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        layer.append(&header, content.unwrap_or_default()).unwrap();
    };
    add("bin/busybox", 0o755, 0, Some(&fs::read("/bin/busybox").unwrap()));
    for (path, mode, owner, content) in entries {
        add(path, *mode, *owner, content.map(str::as_bytes));
    }
    let layer = layer.into_inner().unwrap();
    let hex: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"diff_ids": [format!("sha256:{hex}")]}});
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["x"], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(fs::File::create(to).unwrap());
    for (name, content) in [
        ("layer.tar", layer),
        ("config.json", config.to_string().into_bytes()),
        ("manifest.json", manifest.to_string().into_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    archive.finish().unwrap();
}

/// A daemon with these images, by number.
async fn with_images(images: &[(&[Entry<'_>], serde_json::Value)]) -> Daemon {
    let mut daemon = Daemon::prepare(|setup| setup.pool(0));
    let store = Store::open(&daemon.path("state/images")).unwrap();
    for (number, (entries, config)) in images.iter().enumerate() {
        let archive = daemon.path("image.tar");
        scratch(&archive, entries, config);
        store.import(&archive, Some(&format!("scratch-{number}")), &Quiet).unwrap();
    }
    drop(store);
    daemon.launch().await;
    daemon
}

const PASSWD: Option<&str> = Some("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n");

#[tokio::test]
async fn an_image_of_one_program_runs() {
    // As ko, Bazel and whoever builds FROM scratch make them; the second one's names begin with a slash.
    let none = serde_json::Value::Null;
    let slashed: &[_] = &[("/", 0o755, 0, None), ("/app/", 0o755, 0, None), ("/app/run", 0o644, 0, Some("content"))];
    let daemon = with_images(&[(&[], none.clone()), (slashed, none)]).await;
    let script = "cd /; /bin/busybox ls -d bin dev proc tmp; echo x > /tmp/x && /bin/busybox cat /proc/self/comm /tmp/x; \
                  echo y > /dev/null; pwd";
    assert_eq!(tried(&daemon, "scratch-0", script).await.unwrap(), "bin\ndev\nproc\ntmp\nbusybox\nx\n/\n");
    assert_eq!(tried(&daemon, "scratch-1", "/bin/busybox cat /app/run").await.unwrap(), "content");
    daemon.stop().await;
}

#[tokio::test]
async fn home_and_working_directory_are_what_the_image_says() {
    let accounts: &[_] = &[("etc", 0o755, 0, None), ("etc/passwd", 0o644, 0, PASSWD), ("home/app", 0o755, 1000, None)];
    let nowhere: &[_] = &[("etc", 0o755, 0, None), ("etc/passwd", 0o644, 0, PASSWD)];
    // The program is where the user's home is.
    let passwd = Some("app:x:1000:1000::/srv:/bin/sh\n");
    let server: &[_] = &[
        ("etc", 0o755, 0, None),
        ("etc/passwd", 0o644, 0, passwd),
        ("srv", 0o755, 1000, None),
        ("srv/f", 0o644, 0, Some("f")),
    ];
    let user = |more: serde_json::Value| {
        let mut config = serde_json::json!({"User": "app"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let images = [
        (accounts, user(serde_json::json!({"Env": ["HOME=/tmp/h"]}))),
        (accounts, user(serde_json::json!({"Env": ["HOME="]}))),
        (accounts, user(serde_json::json!({}))),
        (nowhere, user(serde_json::json!({}))),
        (nowhere, serde_json::json!({"User": "4242", "WorkingDir": "made/for"})),
        (nowhere, serde_json::json!({})),
        (&[], serde_json::json!({})),
        (server, user(serde_json::json!({"WorkingDir": "/srv"}))),
    ];
    let daemon = with_images(&images).await;
    let script = "echo \"$HOME\"; pwd; /bin/busybox touch ~/x 2> /dev/null && echo writable; /bin/busybox ls";
    for (number, expected) in [
        "/tmp/h\n/\n",
        "\n/\n",
        "/home/app\n/\nwritable\n",
        "/home/app\n/\n",
        "/made/for\n/made/for\n",
        "/root\n/\n",
        "/\n/\n",
        "/srv\n/srv\nf\n",
    ]
    .iter()
    .enumerate()
    {
        let said = tried(&daemon, &format!("scratch-{number}"), script).await.unwrap();
        assert!(said.starts_with(expected), "{number}: {said:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_root_that_keeps_its_user_out_is_named_with_its_mode() {
    let root = |mode, owner| vec![("./", mode, owner, None)];
    let user = |user: &str| serde_json::json!({"User": user});
    let (private, open, owned) = (root(0o700, 12345), root(0o711, 12345), root(0o700, 1000));
    let images = [(&private[..], user("1000")), (&private, user("")), (&open, user("1000")), (&owned, user("1000"))];
    let daemon = with_images(&images).await;
    for (number, user) in [(0, "user 1000"), (1, "user 0")] {
        let (code, detail) = refused(&daemon, &request(&format!("scratch-{number}"), "true")).await;
        assert!(code == "invalid_image" && detail.contains("its directory / has mode 0700"), "{code}: {detail}");
        assert!(detail.contains(user), "{detail}");
    }
    for number in [2, 3] {
        assert_eq!(tried(&daemon, &format!("scratch-{number}"), "echo in").await.unwrap(), "in\n", "{number}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_provider_whose_image_does_not_know_its_user_is_named_at_the_start() {
    let home: Entry<'_> = ("home/runtime", 0o755, 1000, None);
    let someone = Some("someone:x:1000:1000::/home/runtime:/bin/sh\n");
    let named: &[_] = &[home, ("etc", 0o755, 0, None), ("etc/passwd", 0o644, 0, someone)];
    let closed: &[_] = &[home, ("./", 0o750, 0, None)];
    for (entries, user) in [(&[home][..], Some("1000")), (named, Some("someone")), (closed, None)] {
        let mut daemon = Daemon::prepare(|setup| setup.pool(1).provider("image", "foreign"));
        let archive = daemon.path("image.tar");
        scratch(&archive, entries, &serde_json::json!({"Env": ["USER=runtime"]}));
        let store = Store::open(&daemon.path("state/images")).unwrap();
        store.import(&archive, Some("foreign"), &Quiet).unwrap();
        if let Some(user) = user {
            daemon.launch().await;
            let run = support::command(["/bin/busybox", "sh", "-c", "echo $USER; /bin/busybox id -un 2>&1"]);
            let said = daemon.run(&run).await.text().to_owned();
            assert!(said.starts_with(&format!("{user}\n")), "{said}");
            assert_eq!(said.ends_with("someone\n"), user == "someone", "{said}");
        } else {
            daemon.spawn(&[]);
            support::eventually("the pool says why", || async {
                daemon.log().contains("its directory / has mode 0750").then_some(())
            })
            .await;
        }
        let warned = daemon.log().contains("no user of this number");
        assert_eq!(warned, user == Some("1000"), "{}", daemon.log());
        daemon.stop().await;
    }
}

#[tokio::test]
async fn images_that_were_run_can_be_pruned_and_removed() {
    let daemon = with_images(&[]).await;
    let store = Store::open(&daemon.path("state/images")).unwrap();
    let archive = daemon.path("image.tar");
    // The provider's pool may hold its own image, and so it shall.
    let provided =
        || store.look("test").map_or_else(|_| "none".to_owned(), |image| image.digest.replace("sha256:", ""));
    let held = || {
        let provided = provided();
        let files = support::open_files(daemon.pid());
        files.iter().filter(|path| path.ends_with("image.json") && !path.contains(&provided)).count()
    };
    let stored = || {
        let provided = provided();
        let folders = fs::read_dir(daemon.path("state/images/images")).unwrap();
        folders.filter(|folder| folder.as_ref().unwrap().file_name().to_str() != Some(&provided)).count()
    };
    for number in 0..20 {
        scratch(&archive, &[("number", 0o644, 0, Some(&*number.to_string()))], &serde_json::Value::Null);
        store.import(&archive, Some("built"), &Quiet).unwrap();
        assert_eq!(tried(&daemon, "built", "/bin/busybox cat /number").await.unwrap(), number.to_string());
    }
    // Looking at them is no use of them either.
    assert_eq!(daemon.http("GET /v1/images", &[], b"").await.status, 200);
    assert_eq!(daemon.http("GET /v1/providers", &[], b"").await.status, 200);
    support::eventually("no image is held", || async { (held() == 0).then_some(()) }).await;
    support::eventually("all but the last are pruned", || async {
        store.prune().unwrap();
        (stored() == 1).then_some(())
    })
    .await;
    // One that runs is in use until it has ended.
    let command = ["/bin/busybox", "sleep", "600"].map(str::to_owned).to_vec();
    let run = ExecutionRequest { command: Some(command), ..request("built", "") };
    let mut stream = daemon.client.execute_stream(&run).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let error = store.remove("built").unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    daemon.client.cancel(stream.execution().unwrap()).await.unwrap();
    while stream.next().await.is_some() {}
    support::eventually("the image can be removed", || async { store.remove("built").ok() }).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_working_directory_that_is_a_descriptor_leads_nowhere() {
    // CVE-2024-21626: a directory of the host that is open during start-up, by way of /proc/self/fd.
    let mut daemon = Daemon::prepare(|setup| setup.pool(0));
    let store = Store::open(&daemon.path("state/images")).unwrap();
    let numbers = 0..16;
    let mut places: Vec<String> = numbers.map(|number| format!("/proc/self/fd/{number}")).collect();
    let others = ["/proc/self/fd/5/../../..", "/proc/1/root", "/proc/1/cwd", "/proc/self/exe", "/proc/self/cwd/../.."];
    places.extend(others.map(str::to_owned));
    for (number, place) in places.iter().enumerate() {
        let archive = daemon.path("image.tar");
        crafted_in(&archive, &[], "1000", place);
        store.import(&archive, Some(&format!("cwd-{number}")), &Quiet).unwrap();
    }
    drop(store);
    daemon.launch().await;
    for (number, place) in places.iter().enumerate() {
        let command = ["/bin/busybox", "sh", "-c", "/bin/busybox ls"].map(str::to_owned).to_vec();
        let run = ExecutionRequest { command: Some(command), ..request(&format!("cwd-{number}"), "") };
        let outcome = daemon.run(&run).await;
        if place.ends_with("cwd/../..") {
            // That is a directory, the container's own root.
            assert!(
                outcome.text().contains("bin\ndev\netc\n") && !outcome.text().contains("var"),
                "{}",
                outcome.text()
            );
        } else {
            assert_eq!((outcome.exit.code, outcome.text()), (Some(126), ""), "{place}: {:?}", outcome.exit);
        }
    }
    daemon.stop().await;
}

/// Names, sizes and times of what a folder has.
fn seen(folder: &Path) -> Vec<(String, u64, i64)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = fs::symlink_metadata(entry.path()).unwrap();
            let inside =
                if metadata.is_dir() { fs::read_dir(entry.path()).unwrap().count() as u64 } else { metadata.len() };
            (entry.file_name().into_string().unwrap(), inside, metadata.mtime_nsec())
        })
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn starting_from_a_stored_image_copies_no_file() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let store = Store::open(&daemon.path("state/images")).unwrap();
    let image = store.look("test").unwrap();
    let busybox = fs::metadata(image.rootfs.join("usr/bin/busybox")).unwrap();
    let mut seen = Vec::new();
    // In a pooled container and in one that is made for the run: the file of the layer itself, on a file system of
    // the container's own.
    for request in
        [support::shell("stat -c '%i %h' /usr/bin/busybox"), request("test", "stat -c '%i %h' /usr/bin/busybox")]
    {
        let outcome = daemon.run(&request).await;
        seen.push(String::from_utf8_lossy(&outcome.stdout).trim().to_owned());
    }
    // One name in the layer, one in the image, and not one more for the containers.
    let expected = format!("{} {}", busybox.ino(), busybox.nlink());
    assert_eq!(seen, [expected.clone(), expected]);
    assert_eq!(busybox.nlink(), 2);
    daemon.stop().await;
}

#[tokio::test]
async fn a_user_of_an_image_has_its_groups_there() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(0));
    let store = Store::open(&daemon.path("state/images")).unwrap();
    let files = [
        ("etc/passwd", 0o644, 0, "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home:/bin/sh\n"),
        ("etc/group", 0o644, 0, "root:x:0:\napp:x:1000:\naudio:x:29:other,app\nvideo:x:44:other\n"),
        ("f", 0o640, 29, "heard\n"),
    ];
    let cases = [
        ("app", "1000 29\nheard\n"),
        ("1000", "1000 29\nheard\n"),
        ("app:app", "1000\n"),
        ("app:video", "44\n"),
        ("7", "0\n"),
    ];
    for (number, (user, _)) in cases.iter().enumerate() {
        let archive = daemon.path("image.tar");
        crafted_with(&archive, &[], user, "", &files);
        store.import(&archive, Some(&format!("groups-{number}")), &Quiet).unwrap();
    }
    drop(store);
    daemon.launch().await;
    for (number, (user, expected)) in cases.iter().enumerate() {
        let script = "/bin/busybox id -G; /bin/busybox cat /f";
        let seen = tried(&daemon, &format!("groups-{number}"), script).await;
        assert_eq!(seen.as_deref(), Ok(*expected), "{user}");
    }
    daemon.stop().await;
}
