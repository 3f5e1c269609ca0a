//! How long unpacking an image takes, beside `umoci unpack` of the same image in gzip and `tar --zstd -x` of its layers.
//!
//! ```text
//! cargo bench --bench unpack [-- [ROUNDS] [IMAGE...]]     # default: 50 openai anthropic google
//! ```
//!
//! IMAGE is a folder of `images/`, built from the cache `${THAWD_CACHE:-~/.cache/thawd}` (and into it). Rounds are
//! interleaved, so that a busy moment of the machine hits all contestants; medians are what to compare.
//!
//! Every image is unpacked in two places. On a tmpfs (`/dev/shm`) nothing has to reach a disk, so what is compared is
//! the work itself. On the disk below `target/` thawd waits until all of it is written (one `syncfs`), because an image
//! that is there must be whole after a power cut. umoci and tar do not, so there they are measured as they are and with
//! a `syncfs` behind them; the latter is the fair comparison. Disks get a fifth of the rounds, at least 5.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use thaw_image::Store;
use thaw_image::build::{BuildOptions, BuildReport, LayerCompression, build};
use thaw_image::progress::Terminal;

/// What is measured, and its name.
type Contestant<'a> = (&'static str, Box<dyn Fn(&Path) + 'a>);

const ZSTD: &str = "thawd, zstd";
const GZIP: &str = "thawd, gzip";
const UMOCI: &str = "umoci unpack, gzip";
const UMOCI_SYNCED: &str = "umoci unpack, gzip; syncfs";
const TAR: &str = "tar --zstd -x";
const TAR_SYNCED: &str = "tar --zstd -x; syncfs";

fn main() {
    // Cargo adds arguments of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).peekable();
    let rounds = arguments.next_if(|first| first.parse::<usize>().is_ok()).map_or(50, |rounds| rounds.parse().unwrap());
    let images: Vec<String> = arguments.collect();
    let images = if images.is_empty() { ["openai", "anthropic", "google"].map(str::to_owned).to_vec() } else { images };
    println!("| image | where | contestant | n | median | least | most | thawd (zstd) takes |");
    println!("|---|---|---|---|---|---|---|---|");
    for image in images {
        let ram = tempfile::tempdir_in("/dev/shm").unwrap();
        measure(&image, ram.path(), "tmpfs", rounds);
        drop(ram);
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        measure(&image, disk.path(), "disk", (rounds / 5).max(5));
    }
}

fn measure(image: &str, work: &Path, place: &str, rounds: usize) {
    let zstd = layout(image, LayerCompression::Zstd, &work.join("zstd"));
    let gzip = layout(image, LayerCompression::Gzip, &work.join("gzip"));
    let thawd = |layout: PathBuf| move |to: &Path| drop(Store::open(to).unwrap().ensure(&layout).unwrap());
    let reference = format!("{}:{image}", gzip.layout.display());
    let umoci = |to: &Path| run(Command::new("umoci").args(["unpack", "--image", &reference]).arg(to));
    let blobs: Vec<PathBuf> =
        zstd.layers.iter().map(|layer| zstd.layout.join("blobs/sha256").join(&layer.digest[7..])).collect();
    let tar = |to: &Path| untar(&blobs, to);
    let synced = |unpack: &dyn Fn(&Path), to: &Path| {
        unpack(to);
        sync(to);
    };
    let mut contestants: Vec<Contestant<'_>> = vec![
        (ZSTD, Box::new(thawd(zstd.layout.clone()))),
        (GZIP, Box::new(thawd(gzip.layout.clone()))),
        (UMOCI, Box::new(&umoci)),
        (TAR, Box::new(&tar)),
    ];
    if place == "disk" {
        contestants.push((UMOCI_SYNCED, Box::new(|to| synced(&umoci, to))));
        contestants.push((TAR_SYNCED, Box::new(|to| synced(&tar, to))));
    }
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); contestants.len()];
    // The first round fills caches and is not counted.
    for round in 0..=rounds {
        for ((_, contestant), times) in contestants.iter().zip(&mut times) {
            let to = work.join("to");
            sync(work);
            let begun = Instant::now();
            contestant(&to);
            let took = begun.elapsed();
            if round > 0 {
                times.push(took);
            }
            fs::remove_dir_all(&to).unwrap();
        }
    }
    times.iter_mut().for_each(|times| times.sort());
    let median = |times: &[Duration]| times[times.len() / 2];
    let ours = median(&times[0]);
    for ((name, _), times) in contestants.iter().zip(&times) {
        println!(
            "| {image} | {place} | {name} | {rounds} | {:.3} s | {:.3} s | {:.3} s | {:.2} of it |",
            median(times).as_secs_f64(),
            times[0].as_secs_f64(),
            times[times.len() - 1].as_secs_f64(),
            ours.as_secs_f64() / median(times).as_secs_f64()
        );
    }
}

fn layout(image: &str, compression: LayerCompression, to: &Path) -> BuildReport {
    let cache = std::env::var_os("THAWD_CACHE")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/thawd"), PathBuf::from);
    let mut options = BuildOptions::new(to, cache.join("build"));
    options.compression = compression;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(image);
    build(&folder, &options, &Terminal::new(image)).unwrap()
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
