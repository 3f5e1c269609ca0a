//! The programs of the other packages of this workspace, which cargo puts beside `thawd`.
#![allow(dead_code, reason = "each test uses some of it")]

use std::path::Path;
use std::time::SystemTime;

/// `thawctl`.
pub fn thawctl() -> String {
    program("thawctl", &["thawctl", "thaw-client", "thaw-image"])
}

/// `thaw-unified`.
pub fn unified() -> String {
    program("thaw-unified", &["thaw-unified", "thaw-client"])
}

/// Fails if `thaw-init` is missing or older than its source: `cargo test --test NAME` alone does not build it, and a
/// daemon with yesterday's one fails in strange ways.
pub fn check_init() {
    program("thaw-init", &["thaw-init", "thaw-wire"]);
}

fn program(name: &str, crates: &[&str]) -> String {
    let path = Path::new(env!("CARGO_BIN_EXE_thawd")).with_file_name(name);
    let built = path.metadata().and_then(|metadata| metadata.modified());
    let sources = crates.iter().map(|name| newest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("crates").join(name)));
    let source = sources.max().expect("a program has sources");
    assert!(
        built.is_ok_and(|built| built >= source),
        "{} is missing or older than its source; build it: cargo test --workspace --no-run --test program",
        path.display()
    );
    path.into_os_string().into_string().expect("target/ has a plain name")
}

/// When the newest Rust file below `folder` was written.
fn newest(folder: &Path) -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            newest = newest.max(self::newest(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            newest = newest.max(path.metadata().unwrap().modified().unwrap());
        }
    }
    newest
}
