//! Images that come as one file, good and bad.

use super::progress::Quiet;
use super::*;

const CONFIG: &str =
    r#"{"architecture": "amd64", "os": "linux", "config": {"Cmd": ["c"]}, "rootfs": {"type": "layers", "diff_ids": ["#;

/// What `docker save` before version 25 writes, with `tag`; returns the entries, to be spoilt.
pub(super) fn docker_save(layers: &[Vec<u8>], tag: &str) -> Vec<Entry> {
    let ids: Vec<String> = layers.iter().map(|archive| format!("{:?}", sha256(archive))).collect();
    let config = format!("{CONFIG}{}]}}}}", ids.join(","));
    let config_name = format!("{}.json", hex(&sha256(config.as_bytes())));
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}{n}{n}/layer.tar")).collect();
    let manifest = json!([{"Config": config_name, "RepoTags": [tag], "Layers": names}]).to_string();
    let mut entries = vec![file(&config_name, &config)];
    for (name, archive) in names.iter().zip(layers) {
        entries.push(directory(name.split('/').next().unwrap()));
        entries.push(Entry { content: archive.clone(), ..file(name, "") });
    }
    entries.push(file("manifest.json", &manifest));
    entries
}

impl Bench {
    pub(super) fn import(&self, archive: &[u8], name: Option<&str>) -> Result<Image, StoreError> {
        fs::write(self.path("archive.tar"), archive).unwrap();
        self.store().import(&self.path("archive.tar"), name, &Quiet)
    }

    #[track_caller]
    pub(super) fn refuses_import(&self, entries: impl IntoIterator<Item = Entry>, reason: &str) {
        let error = self.import(&tar(entries), None).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        self.assert_untouched();
    }

    /// The layout as an archive.
    pub(super) fn archived(&self) -> Vec<Entry> {
        let layout = self.path("layout");
        let mut entries = Vec::new();
        for path in files_in(&layout) {
            match fs::read(layout.join(&path)) {
                Ok(content) => {
                    // Names of blobs are longer than the field of a header is in this bench.
                    entries.push(pax(&[("path", &path)]));
                    entries.push(Entry { content, ..file("x", "") });
                }
                Err(_) => entries.push(directory(&path)),
            }
        }
        entries
    }
}

#[test]
fn a_layout_folder_and_its_archive_give_the_same_image() {
    let bench = Bench::new();
    bench.layout_with(&[(TAR, tar([file("a", "1")])), (ZSTD, tar([file("b", "2")]))], |_, _| {});
    let from_folder = bench.store().import(&bench.path("layout"), Some("folder"), &Quiet).unwrap();
    let archive = tar(bench.archived());
    let from_archive = bench.import(&archive, None).unwrap();
    assert_eq!((from_archive.name.as_str(), &from_archive.digest), ("crafted", &from_folder.digest));
    assert_eq!(brought(&from_archive.rootfs), ["a", "b"]);
    for kind in [GZIP, ZSTD] {
        let image = bench.import(&compress(kind, &archive), Some("registry:5000/team/app:1")).unwrap();
        assert_eq!((image.name.as_str(), image.digest), ("registry:5000/team/app:1", from_folder.digest.clone()));
    }
    assert_eq!(bench.store().list().unwrap().len(), 3);
    assert!(files_in(&bench.path("store/tmp")).is_empty());
}

#[test]
fn the_output_of_docker_save_is_an_image() {
    let bench = Bench::new();
    let layers = [tar([file("a", "1"), file("b", "1")]), tar([file(".wh.b", ""), file("c", "2")])];
    let image = bench.import(&tar(docker_save(&layers, "debian:12")), None).unwrap();
    assert_eq!((image.name.as_str(), image.config.cmd.as_slice()), ("debian:12", &["c".to_owned()][..]));
    assert_eq!(brought(&image.rootfs), ["a", "c"]);
    // A layer that is compressed, and one that is a link to another's file, as old versions wrote it.
    let mut entries = docker_save(&layers, "debian:12");
    entries[2].content = compress(GZIP, &layers[0]);
    entries[4] = symlink("111/layer.tar", "../000-real/layer.tar");
    entries.push(Entry { content: layers[1].clone(), ..file("000-real/layer.tar", "") });
    let again = bench.import(&tar(entries), Some("other")).unwrap();
    assert_eq!(brought(&again.rootfs), ["a", "c"]);
    assert_eq!(again.layers[0].diff_id, image.layers[0].diff_id, "shared whatever the compression");
}

#[test]
fn archives_of_images_that_mean_harm_are_refused() {
    let bench = Bench::new();
    let save = || docker_save(&[tar([file("a", "")])], "x");
    bench.refuses_import([file("../neighbour/file", "theirs")], "has a `..`");
    bench.refuses_import([pax(&[("path", "/../etc/passwd")]), file("x", "")], "has a `..`");
    bench.refuses_import([file("hello", "")], "is no image: it has neither");
    bench.refuses_import([file("manifest.json", "[]")], "has 0 images");
    bench.refuses_import([file("manifest.json", "{")], "manifest.json: ");
    bench.refuses_import(save().into_iter().chain([file("manifest.json", "[]")]), "is there twice");
    // A layer and a configuration that are links to the neighbour.
    let mut linked = save();
    linked[2] = symlink("000/layer.tar", bench.path("neighbour/file").to_str().unwrap());
    bench.refuses_import(linked, "which is not there");
    let mut linked = save();
    linked[2] = symlink("000/layer.tar", "../../../../etc/passwd");
    bench.refuses_import(linked, "which is not there");
    let mut circle = save();
    circle[2] = symlink("000/layer.tar", "layer.tar");
    bench.refuses_import(circle, "which is not there");
    // Content that is not what the names say.
    let mut spoilt = save();
    spoilt[0].content.push(b' ');
    bench.refuses_import(spoilt, "the archive is damaged");
    let mut spoilt = save();
    spoilt[2].content = tar([file("other", "")]);
    bench.refuses_import(spoilt, "but the configuration says");
    bench.refuses_import(docker_save(&[tar([file("../x", "")])], "x"), "has a `..`");
    bench.refuses_import(docker_save(&[tar([file("a", "")])], "../x"), "image name");
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |manifest, _| manifest["layers"] = json!([]));
    bench.refuses_import(bench.archived(), "0 layers and 1 diff ids");
    let mut cut = tar(save());
    cut.truncate(520);
    let error = bench.import(&cut, None).unwrap_err().to_string();
    assert!(error.contains("unexpected EOF"), "{error}");
    bench.assert_untouched();
}

#[test]
fn archives_of_images_have_limits_too() {
    let limits = Limits { archive_bytes: 64 * 1024, document_bytes: 1024, layers: 2, ..Limits::default() };
    let bench = Bench::with(limits);
    bench.refuses_import([file("a", &"x".repeat(65 * 1024))], "limit of 65536 bytes of archives");
    bench.refuses_import([file("manifest.json", &" ".repeat(1025))], "more than 1024 bytes");
    let layer = || tar([file("a", "")]);
    bench.refuses_import(docker_save(&[layer(), layer(), layer()], "x"), "has 3 layers");
    let bomb = compress(GZIP, &tar([file("a", &"\0".repeat(1 << 20))]));
    let error = bench.import(&bomb, None).unwrap_err().to_string();
    assert!(error.contains("limit of 65536 bytes of archives"), "{error}");
    bench.assert_untouched();
}

#[test]
fn an_archive_has_ten_thousand_files_at_most() {
    let bench = Bench::new();
    let empty = |number: usize| file(&number.to_string(), "");
    bench.refuses_import((0..=10_000).map(empty), "limit of 10000 files in an image archive");
    // One less is read to its end, where no image is found.
    bench.refuses_import((0..10_000).map(empty), "manifest.json");
    bench.assert_untouched();
}
