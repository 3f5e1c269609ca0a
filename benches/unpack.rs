//! How long unpacking an image takes, beside `umoci unpack` of the same image in gzip and `tar --zstd -x` of its layers.
//!
//! ```text
//! cargo bench --bench unpack [-- IMAGE [ROUNDS]]        # default: google 7
//! ```
//!
//! IMAGE is a folder of `images/`, built from the cache `${THAWD_CACHE:-~/.cache/thawd}` (and into it). Rounds are
//! interleaved, so that a busy moment of the machine hits all contestants; medians are what to compare. thawd always
//! waits until all is on the disk; the others do not, so they are measured both ways.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use thawd::image::Store;
use thawd::image::build::{BuildOptions, LayerCompression, build};
use thawd::image::progress::Terminal;

/// What is measured, and its name.
type Contestant<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);

fn main() {
    // Cargo adds arguments of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let image = arguments.next().unwrap_or_else(|| "google".to_owned());
    let rounds: usize = arguments.next().map_or(7, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let cache = std::env::var_os("THAWD_CACHE")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/thawd"), PathBuf::from);
    let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let layout = |compression, name: &str| {
        let mut options = BuildOptions::new(work.path().join(name), cache.join("build"));
        options.compression = compression;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(&image);
        build(&folder, &options, &Terminal::new(&image)).unwrap()
    };
    let (zstd, gzip) = (layout(LayerCompression::Zstd, "zstd"), layout(LayerCompression::Gzip, "gzip"));
    println!(
        "{image}: {:.1} MB unpacked, {:.1} MB as zstd, {:.1} MB as gzip, {rounds} rounds",
        zstd.unpacked_bytes() as f64 / 1e6,
        zstd.compressed_bytes() as f64 / 1e6,
        gzip.compressed_bytes() as f64 / 1e6
    );

    let thawd = |layout: PathBuf| move |to: &Path| drop(Store::open(to).unwrap().ensure(&layout).unwrap());
    let umoci = format!("{}:{image}", gzip.layout.display());
    let blobs: Vec<PathBuf> =
        zstd.layers.iter().map(|layer| zstd.layout.join("blobs/sha256").join(&layer.digest[7..])).collect();
    let contestants: [Contestant<'_>; 6] = [
        ("thawd, zstd, on disk", Box::new(thawd(zstd.layout.clone()))),
        ("thawd, gzip, on disk", Box::new(thawd(gzip.layout.clone()))),
        ("umoci unpack, gzip", Box::new(|to| run(Command::new("umoci").args(["unpack", "--image", &umoci]).arg(to)))),
        (
            "umoci unpack, gzip, on disk",
            Box::new(|to| {
                run(Command::new("umoci").args(["unpack", "--image", &umoci]).arg(to));
                sync(to);
            }),
        ),
        ("tar --zstd -x", Box::new(|to| untar(&blobs, to))),
        (
            "tar --zstd -x, on disk",
            Box::new(|to| {
                untar(&blobs, to);
                sync(to);
            }),
        ),
    ];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); contestants.len()];
    for _ in 0..rounds {
        for ((_, contestant), times) in contestants.iter().zip(&mut times) {
            let to = work.path().join("to");
            sync(work.path());
            let begun = Instant::now();
            contestant(&to);
            times.push(begun.elapsed());
            fs::remove_dir_all(&to).unwrap();
        }
    }
    for ((name, _), mut times) in contestants.iter().zip(times) {
        times.sort();
        let (median, least, most) = (times[times.len() / 2], times[0], times[times.len() - 1]);
        println!("{name:<30} median {median:>8.0?}   from {least:>8.0?} to {most:>8.0?}");
    }
}

fn untar(blobs: &[PathBuf], to: &Path) {
    fs::create_dir(to).unwrap();
    for blob in blobs {
        run(Command::new("tar").arg("--zstd").arg("-xf").arg(blob).arg("-C").arg(to));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until the file system of `folder` has written everything.
fn sync(folder: &Path) {
    rustix::fs::syncfs(fs::File::open(folder).unwrap()).unwrap();
}
