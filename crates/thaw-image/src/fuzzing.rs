//! What the fuzz targets in `fuzz/` call; not part of the product.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::digest::{hex, is_sha256, sha256};
use super::layout::Layout;
use super::progress::Quiet;
use super::unpack::{self, Composer, Contents, Limits, Used};

/// Small, so that inputs reach them.
fn limits() -> Limits {
    Limits {
        unpacked_bytes: 64 << 10,
        archive_bytes: 1 << 20,
        entries: 64,
        path_bytes: 8 << 10,
        depth: 6,
        layers: 4,
        document_bytes: 64 << 10,
    }
}

/// Applies one or two layers made from `data` in the empty folder `folder`, which must be on a fast file system:
/// the first byte says whether header checksums are put right and the second how many blocks the first layer has.
///
/// # Panics
/// If something outside the root changed, or the root has what no image may bring.
pub fn layers(data: &[u8], folder: &Path) {
    let [fix, first, rest @ ..] = data else { return };
    let mut rest = rest.to_vec();
    if fix & 1 == 0 {
        fix_checksums(&mut rest);
    }
    let end = (usize::from(*first) * 512).min(rest.len());
    let limits = limits();
    let outside = folder.join("outside");
    fs::write(&outside, "mine").expect("the folder is writable");
    let root = folder.join("root");
    fs::create_dir(&root).expect("the folder is empty");
    let mut composer = Composer::new(File::open(&root).expect("it was made above").into(), &limits).expect("so too");
    let mut used = Used::default();
    for (number, archive) in [&rest[..end], &rest[end..]].into_iter().enumerate() {
        let files = folder.join(format!("files-{number}"));
        fs::create_dir(&files).expect("the folder is empty");
        let list = folder.join(format!("list-{number}"));
        let open = || File::open(&files).expect("it was made above");
        let list_file = File::create(&list).expect("the folder is writable");
        let Ok(layer) = unpack::unpack(archive, open().into(), list_file, &used, &limits, &Quiet) else { break };
        used.add(&layer.used, &limits).expect("the reader has counted the same");
        let mut contents = Contents::open(&list).expect("it was written above");
        if composer.layer(|| contents.next(), open().as_fd()).is_err() {
            break;
        }
        assert_eq!(contents.finish().expect("it can be read"), layer.contents);
    }
    assert_eq!(fs::read_to_string(&outside).expect("it is still there"), "mine");
    assert!(fs::read_dir(folder).expect("it is still there").count() <= 6, "a file outside the root");
    let mut bytes = 0;
    check(&root, 0, &limits, &mut bytes);
}

fn check(folder: &Path, depth: usize, limits: &Limits, bytes: &mut u64) {
    assert!(depth <= limits.depth, "too deep");
    for entry in fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        let found = fs::symlink_metadata(&path).expect("it is there");
        if found.is_symlink() {
            continue;
        }
        assert!(found.is_dir() || found.is_file(), "a device or pipe");
        assert_eq!(found.permissions().mode() & 0o6000, 0, "setuid or setgid");
        if found.is_dir() {
            check(&path, depth + 1, limits, bytes);
        }
    }
}

/// Makes every block that is in the place of a header one that a reader takes for a header.
fn fix_checksums(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..at + 512) {
        if block.iter().all(|b| *b == 0) {
            at += 512;
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = String::from_utf8_lossy(&block[124..136]).into_owned();
        let size = usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).unwrap_or(0).min(archive.len());
        at += 512 + size.next_multiple_of(512);
    }
}

/// Reads a layout made from `data` in the empty folder `folder`: index, manifest and configuration, with zero bytes
/// between them. `@M` and `@C` stand for the digests of the latter two and `@N` and `@S` for their sizes.
///
/// # Panics
/// If a layout is taken whose layers are not named by digests.
pub fn documents(data: &[u8], folder: &Path) {
    let mut parts = data.splitn(3, |b| *b == 0).map(|part| String::from_utf8_lossy(part).into_owned());
    let mut next = || parts.next().unwrap_or_default();
    let (index, manifest, config) = (next(), next(), next());
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the folder is writable");
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("the folder is writable");
    let blob = |text: &str| {
        let digest = sha256(text.as_bytes());
        write(&format!("blobs/sha256/{}", hex(&digest)), text);
        digest
    };
    let manifest = manifest.replace("@C", &blob(&config)).replace("@S", &config.len().to_string());
    let index = index.replace("@M", &blob(&manifest)).replace("@N", &manifest.len().to_string());
    write("index.json", &index);
    write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let limits = limits();
    let Ok(layout) = Layout::open(folder, &limits) else { return };
    assert!(is_sha256(&layout.manifest_digest));
    let Ok(image) = layout.image(&limits) else { return };
    assert!(image.layers.len() <= limits.layers);
    assert!(image.layers.iter().all(|layer| is_sha256(&layer.digest) && is_sha256(&layer.diff_id)));
    let _ = super::ImageConfig::from(&image.config);
}
