//! Builds of the real images. The CLI images need the Debian and npm registries (or a filled cache), so they are
//! ignored by default: `cargo test --test image_build -- --ignored --test-threads=1`.
//!
//! `THAWD_TEST_IMAGES` names a folder for the layouts and `THAWD_TEST_CACHE` one for the cache; both default to
//! `target/test-images`, so that a second run is quick.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use thawd::image::build::{BuildOptions, BuildReport, build};
use thawd::image::progress::Terminal;
use thawd::image::{Image, Store};

fn folder(variable: &str, default: &str) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::var_os(variable).map_or_else(|| repository.join("target/test-images").join(default), PathBuf::from)
}

fn build_real(name: &str) -> BuildReport {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name);
    let layout = folder("THAWD_TEST_IMAGES", "layouts").join(name);
    let cache = folder("THAWD_TEST_CACHE", "cache");
    std::fs::create_dir_all(&layout).unwrap();
    let report = build(&manifest, &BuildOptions::new(layout, cache), &Terminal::new(name)).unwrap();
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
fn the_test_image_builds_offline_and_small() {
    let report = build_real("test");
    assert_eq!(report.name, "test");
    assert!(report.unpacked_bytes() < 4_000_000, "{}", report.unpacked_bytes());
}

#[test]
#[ignore = "renews package-lock.json from the npm registry"]
fn lock_all() {
    for name in ["openai", "anthropic", "google"] {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name);
        let options = BuildOptions::new("unused", folder("THAWD_TEST_CACHE", "cache"));
        thawd::image::build::lock(&manifest, &options, &Terminal::new(name)).unwrap();
    }
}

#[test]
#[ignore = "needs the Debian and npm registries or a filled cache"]
fn the_cli_images_build() {
    for (name, most_megabytes) in [("openai", 300), ("anthropic", 140), ("google", 145)] {
        let report = build_real(name);
        assert!(report.unpacked_bytes() < most_megabytes * 1_000_000, "{name} is larger than it was");
    }
}

#[test]
#[ignore = "needs the Debian and npm registries or a filled cache, and bubblewrap"]
fn the_clis_start_from_their_read_only_root() {
    let folder_of_store = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::open(folder_of_store.path()).unwrap();
    for (name, command, version) in [
        ("test", "id", "uid=1000(runtime) gid=1000(runtime)"),
        ("openai", "codex --version", "codex-cli 0.169.0"),
        ("anthropic", "claude --version", "2.1.112 (Claude Code)"),
        ("google", "gemini --version", "0.61.0"),
        ("google", "node --version", "v22.23.3"),
    ] {
        let layout = build_real(name).layout;
        let begun = Instant::now();
        let image = store.ensure(&layout).unwrap();
        eprintln!("{name:>10} {:.1} MB unpacked in {:.2?}", image.unpacked_bytes as f64 / 1e6, begun.elapsed());
        let begun = Instant::now();
        let (ok, said) = run_in(&image, command);
        eprintln!("{name:>10} {command}: {} in {:.2?}", said.trim(), begun.elapsed());
        assert!(ok && said.starts_with(version), "{name}: {said}");
    }
}

/// Runs a command as the image says, the way a container does: read-only root, fresh HOME and /tmp, no network.
fn run_in(image: &Image, command: &str) -> (bool, String) {
    let mut bwrap = Command::new("bwrap");
    bwrap.env_clear().arg("--ro-bind").arg(&image.rootfs).arg("/");
    bwrap.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/home/runtime"]);
    bwrap.args(["--unshare-all", "--die-with-parent", "--uid", "1000", "--gid", "1000"]);
    bwrap.args(["--chdir", &image.config.workdir]);
    for (name, value) in &image.config.env {
        bwrap.args(["--setenv", name, value]);
    }
    let output = bwrap.args(command.split(' ')).output().expect("bwrap runs: apt-get install bubblewrap");
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}
