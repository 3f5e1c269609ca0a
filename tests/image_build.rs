//! Builds of the real images, from the cache `${THAWD_CACHE:-~/.cache/thawd}/build`. What is not there yet is fetched
//! from the Debian and npm registries, about 200 MB once. The tests of pins need nothing but loopback.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "image_build/errors.rs"]
mod errors;
#[path = "image_build/mirror.rs"]
mod mirror;
#[path = "image_build/npm.rs"]
mod npm;
#[path = "image_build/pins.rs"]
mod pins;
#[path = "image_build/registry.rs"]
mod registry;

#[path = "support/programs.rs"]
mod programs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use thaw_image::build::{BuildOptions, BuildReport, LayerCompression, build, lock};
use thaw_image::progress::Terminal;
use thaw_image::{Image, Store};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Layouts and stores of this test program.
fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image_build");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    })
}

fn cache() -> PathBuf {
    let cache = std::env::var_os("THAWD_CACHE")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/thawd"), PathBuf::from);
    std::fs::create_dir_all(cache.join("build")).unwrap();
    cache.join("build")
}

fn build_real(name: &str, layout: &str) -> BuildReport {
    let manifest = repository().join("images").join(name);
    let options = BuildOptions::new(scratch().join(layout).join(name), cache());
    let report = build(&manifest, &options, &Terminal::new(name)).unwrap();
    for layer in &report.layers {
        eprintln!(
            "{name:>10} {:<4} {} {:>6.1} MB unpacked {:>6.1} MB stored{}",
            layer.role,
            &layer.digest[..19],
            layer.unpacked_bytes as f64 / 1e6,
            layer.compressed_bytes as f64 / 1e6,
            if layer.cached { " (cached)" } else { "" }
        );
    }
    let (unpacked, stored) = (report.unpacked_bytes() as f64 / 1e6, report.compressed_bytes() as f64 / 1e6);
    eprintln!("{name:>10} {unpacked:.1} MB unpacked, {stored:.1} MB stored, {:.2?} {:?}", report.elapsed, report.notes);
    report
}

#[test]
fn the_images_are_as_small_as_promised_and_share_their_lower_layers() {
    // The first three are smaller than Docker's were: 683, 444 and 745 MB.
    let slim = [("openai-slim", 330), ("anthropic-slim", 420), ("google-slim", 160)];
    let others = [
        ("anthropic-node-slim", 155),
        ("openai", 570),
        ("anthropic", 660),
        ("google", 280),
        ("anthropic-node", 275),
        ("workspace", 1000),
        ("test", 4),
    ];
    let built = slim.into_iter().chain(others).map(|(name, megabytes)| {
        let report = build_real(name, "sizes");
        assert!(report.unpacked_bytes() <= megabytes * 1_000_000, "{name} is larger than it was");
        (name, report)
    });
    let reports: BTreeMap<&str, BuildReport> = built.collect();
    let layer = |image: &str, role: &str| {
        let layers = &reports[image].layers;
        layers.iter().find(|layer| layer.role == role).unwrap_or_else(|| panic!("{image} has no {role}")).digest.clone()
    };
    for role in ["base", "workspace", "node", "npm"] {
        for image in ["anthropic", "google", "anthropic-node", "workspace"] {
            assert_eq!(layer(image, role), layer("openai", role), "{role} is the same in all");
        }
    }
    for cli in ["openai-slim", "anthropic-slim", "google-slim"] {
        let full = cli.trim_end_matches("-slim");
        assert_eq!(layer(full, cli), layer(cli, "cli"), "with the layer workspace or without");
        assert_eq!(layer("workspace", cli), layer(cli, "cli"), "and in the image of all");
    }
}

#[test]
fn gzip_layers_have_the_same_content() {
    let manifest = repository().join("images/test");
    let digests = [LayerCompression::Zstd, LayerCompression::Gzip].map(|compression| {
        let mut options = BuildOptions::new(scratch().join(format!("{compression:?}")), cache());
        options.compression = compression;
        let report = build(&manifest, &options, &Terminal::new("test")).unwrap();
        let store = Store::open(&scratch().join(format!("store-{compression:?}"))).unwrap();
        let image = store.ensure(&report.layout).unwrap();
        image.layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>()
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_lock_that_is_renewed_pins_what_the_manifest_names() {
    let folder = scratch().join("lock");
    let copy = |from: &str| {
        let status = Command::new("cp").arg("-r").arg(repository().join(from)).arg(folder.join(from)).status();
        assert!(status.unwrap().success());
    };
    std::fs::create_dir_all(folder.join("images")).unwrap();
    copy("rootfs");
    copy("images/google-slim");
    for file in ["rootfs/debian.lock", "images/google-slim/package-lock.json"] {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
    let options = BuildOptions::new(folder.join("layout"), cache());
    let manifest = folder.join("images/google-slim");
    let error = build(&manifest, &options, &Terminal::new("google")).unwrap_err().to_string();
    assert!(error.contains("debian.lock: is missing; renew it with `thawctl image lock`"), "{error}");
    let changes = lock(&manifest, false, &options, &Terminal::new("google")).unwrap();
    assert!(changes.iter().any(|change| change.starts_with("libc6: nothing -> 2.41-")), "{changes:?}");
    let text = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    assert!(text("images/google-slim/package-lock.json").contains("\"node_modules/@google/gemini-cli\""));
    assert!(text("rootfs/debian.lock").contains("name = \"libstdc++6\""));
    assert!(!text("rootfs/debian.lock").contains("name = \"openssl\""), "it gives no file");
    // What was pinned just now can be built, without asking the mirror again.
    let report = build(&manifest, &options, &Terminal::new("google")).unwrap();
    assert!(report.layers.iter().all(|layer| !layer.digest.is_empty()));
    let wrong = text("rootfs/debian.lock").replace("sha256 = \"", "sha256 = \"0");
    std::fs::write(folder.join("rootfs/debian.lock"), wrong).unwrap();
    let error = build(&manifest, &options, &Terminal::new("google")).unwrap_err().to_string();
    assert!(error.contains("with another hash than the mirror's"), "{error}");
}

#[test]
fn the_clis_start_from_their_read_only_root() {
    let store = Store::open(&scratch().join("store")).unwrap();
    for (name, command, version) in [
        ("test", "id", "uid=1000(runtime) gid=1000(runtime)"),
        ("openai", "codex --version", "codex-cli 0.171.0"),
        ("anthropic", "claude --version", "2.1.332 (Claude Code)"),
        ("anthropic-node", "claude --version", "2.1.112 (Claude Code)"),
        ("google", "gemini --version", "0.61.0"),
        ("google", "node --version", "v26.12.1"),
        ("google", "npm --version", "12.2.2"),
        ("workspace", "git --version", "git version 2."),
        ("workspace", "curl --version", "curl 8."),
        ("workspace", "python --version", "Python 3."),
        ("workspace", "sh -c 'nc -h 2>&1; true'", "OpenBSD netcat"),
        ("workspace", EVERY_LIBRARY, "all found"),
    ] {
        let layout = build_real(name, "starts").layout;
        let begun = Instant::now();
        let image = store.ensure(&layout).unwrap();
        eprintln!("{name:>10} {:.1} MB unpacked in {:.2?}", image.unpacked_bytes as f64 / 1e6, begun.elapsed());
        let begun = Instant::now();
        let (ok, said) = run_in(&image, command);
        eprintln!("{name:>10} {command}: {} in {:.2?}", said.trim(), begun.elapsed());
        assert!(ok && said.starts_with(version), "{name}: {said}");
    }
    assert_eq!(store.verify(&thaw_image::progress::Quiet).unwrap().damage, [], "running changed nothing");
}

/// Lists the programs and libraries of which the loader misses a library.
const EVERY_LIBRARY: &str = r#"sh -c '
    { find /usr /opt -type f -perm -100; find /usr -type f -name "*.so*"; } > /tmp/files
    while read -r file; do
        [ "$(head -c 4 "$file" | tr -d "\177\0")" = ELF ] || continue
        /lib64/ld-linux-x86-64.so.2 --list "$file" 2> /dev/null | grep -q "not found" && echo "$file misses a library"
    done < /tmp/files
    echo all found'"#;

/// Puts the root together in namespaces that end with the command: read-only, fresh HOME and /tmp, no network.
const RUN: &str = r#"
root=$1; shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o uid=1000,gid=1000 tmpfs "$root/home/runtime"
exec chroot --userspec=1000:1000 "$root" "$@"
"#;

/// Runs a command as the image says, the way a container does.
fn run_in(image: &Image, command: &str) -> (bool, String) {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-euc", RUN, "sh"]).arg(&image.rootfs);
    unshare.args(["/usr/bin/env", "-i"]);
    unshare.args(image.config.env.iter().map(|(name, value)| format!("{name}={value}")));
    unshare.args(["/bin/sh", "-c", &format!("cd {} && exec {command}", image.config.workdir)]);
    let output = unshare.output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}
