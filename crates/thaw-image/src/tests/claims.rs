//! What an image says about itself gives it nothing: content has to be there, with its digest, before it is shared.

use super::progress::Quiet;
use super::*;

const SECRET: &str = "the content of somebody else's image";

/// A store with an image that has a secret file.
fn with_secret() -> (Bench, Vec<u8>, Image) {
    let bench = Bench::new();
    let archive = tar([file("secret", SECRET)]);
    bench.layout_with(&[(GZIP, archive.clone())], |_, _| {});
    bench.rename("theirs");
    let image = bench.ensure().unwrap();
    (bench, archive, image)
}

/// Tries every way to bring in what is in the layout.
#[track_caller]
fn refused_in_every_way(bench: &Bench, reason: &str) {
    let before = files_in(&bench.path("store"));
    let check = |how: &str, result: Result<Image, StoreError>| {
        let error = match result {
            Ok(image) => panic!("{how}: has {:?}", brought(&image.rootfs)),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(reason), "{how}: {error:?} does not say {reason:?}");
        assert_eq!(files_in(&bench.path("store")), before, "{how}: left in the store");
    };
    check("as the daemon does", bench.ensure());
    check("a folder", bench.store().import(&bench.path("layout"), Some("mine"), &Quiet));
    let archive = tar(bench.archived());
    check("an archive", bench.import(&archive, Some("mine")));
    check("a compressed archive", bench.import(&compress(ZSTD, &archive), Some("mine")));
}

#[test]
fn a_layer_that_is_only_named_is_not_given() {
    let (bench, archive, image) = with_secret();
    let blob = bench.path("layout/blobs/sha256").join(hex(&image.layers[0].digest));
    let spoilt = |blob: &[u8]| {
        // The configuration names the diff id of the other's layer.
        bench.layout_of_blob(GZIP, blob);
        bench.with_diff_id(&sha256(&archive));
    };
    // Garbage, plain and as an archive; something else that is well made.
    spoilt(b"garbage");
    refused_in_every_way(&bench, "but the configuration says");
    let other = tar([file("other", "")]);
    for kind in [TAR, GZIP, ZSTD] {
        spoilt(&compress(kind, &other));
        refused_in_every_way(&bench, "but the configuration says");
    }
    spoilt(&compress(GZIP, &archive)[..20]);
    refused_in_every_way(&bench, "archive");
    // The right blob by name, which is not there, is of another length, or is spoilt.
    let right = |spoil: &dyn Fn(&Path)| {
        bench.layout_with(&[(GZIP, archive.clone())], |_, _| {});
        spoil(&blob);
    };
    right(&|blob| fs::remove_file(blob).unwrap());
    refused_in_every_way(&bench, "No such file");
    right(&|blob| fs::write(blob, "short").unwrap());
    refused_in_every_way(&bench, "must have");
    right(&|blob| {
        let mut bytes = fs::read(blob).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(blob, bytes).unwrap();
    });
    refused_in_every_way(&bench, "the layout is damaged");
}

#[test]
fn a_blob_that_is_there_under_the_name_of_another_is_not_enough() {
    let (bench, archive, _) = with_secret();
    // A valid blob whose digest is that of something else.
    let digest = sha256(b"something else");
    bench.layout_with(&[(GZIP, archive.clone())], |manifest, _| {
        let layer = compress(GZIP, &archive);
        fs::write(bench.path("layout/blobs/sha256").join(hex(&digest)), &layer).unwrap();
        manifest["layers"][0]["digest"] = json!(digest);
    });
    refused_in_every_way(&bench, "the layout is damaged");
    // The same blob twice, whose second diff id is the other's.
    let own = tar([file("own", "")]);
    bench.layout_with(&[(TAR, own), (TAR, archive)], |manifest, _| {
        manifest["layers"][1] = manifest["layers"][0].clone();
    });
    refused_in_every_way(&bench, "but the configuration says");
}

#[test]
fn a_manifest_without_its_blobs_is_no_image() {
    let (bench, _, image) = with_secret();
    bench.rename("mine");
    // The very manifest of the other's image, which may be public, and nothing else of it.
    fs::remove_file(bench.path("layout/blobs/sha256").join(hex(&image.layers[0].digest))).unwrap();
    refused_in_every_way(&bench, "No such file");
    // Under the name that it has it gives nothing new to the daemon; imported it has to be whole.
    bench.rename("theirs");
    assert_eq!(bench.ensure().unwrap(), image);
    let error = bench.store().import(&bench.path("layout"), None, &Quiet).unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn a_layer_that_an_image_has_twice_is_there_twice() {
    // The first brings the files; the second only names them.
    let bench = Bench::new();
    let archive = tar([file("a", "")]);
    bench.layout_with(&[(TAR, archive.clone()), (GZIP, archive.clone())], |_, _| {});
    fs::write(bench.path("layout/blobs/sha256").join(hex(&sha256(&compress(GZIP, &archive)))), "x").unwrap();
    bench.refuses_layout("must have");
    let garbage = compress(GZIP, b"garbage");
    bench.layout_with(&[(TAR, archive.clone()), (GZIP, archive)], |manifest, _| {
        manifest["layers"][1] = bench.descriptor(GZIP, &garbage);
    });
    bench.refuses_layout("but the configuration says");
}

#[test]
fn the_output_of_docker_save_has_to_bring_what_it_names() {
    let (bench, archive, _) = with_secret();
    let before = files_in(&bench.path("store"));
    for content in [b"garbage".to_vec(), tar([file("other", "")]), compress(GZIP, &tar([file("other", "")]))] {
        let mut entries = import::docker_save(std::slice::from_ref(&archive), "mine:1");
        entries[2].content = content;
        let error = bench.import(&tar(entries), None).unwrap_err().to_string();
        assert!(error.contains("but the configuration says"), "{error}");
    }
    let mut entries = import::docker_save(std::slice::from_ref(&archive), "mine:1");
    entries.remove(2);
    let error = bench.import(&tar(entries), None).unwrap_err().to_string();
    assert!(error.contains("which is not there"), "{error}");
    assert_eq!(files_in(&bench.path("store")), before);
}

#[test]
fn who_has_the_layer_shares_it_whatever_it_is_packed_in() {
    use std::os::unix::fs::MetadataExt;
    let (bench, archive, image) = with_secret();
    for (number, kind) in [TAR, GZIP, ZSTD, TAR, ZSTD].into_iter().enumerate() {
        bench.layout_with(&[(kind, archive.clone()), (TAR, tar([file("own", &number.to_string())]))], |_, _| {});
        bench.rename(&format!("mine-{number}"));
        let mine = bench.ensure().unwrap();
        assert_eq!(mine.layers[0].diff_id, image.layers[0].diff_id);
        let inode = |image: &Image| fs::metadata(image.rootfs.join("secret")).unwrap().ino();
        assert_eq!(inode(&mine), inode(&image), "one file");
    }
    // Which blobs were looked into is known: each is unpacked once.
    let record = bench.path("store/layers").join(hex(&image.layers[0].diff_id)).join("layer.json");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["blobs"].as_array().unwrap().len(), 3);
    assert_eq!(bench.store().verify(&Quiet).unwrap().damage, []);
}

#[test]
fn so_many_blobs_of_a_layer_are_remembered() {
    let (bench, archive, image) = with_secret();
    let mut blob = compress(GZIP, &archive);
    for number in 0..18 {
        // One more empty member each time.
        blob.extend(compress(GZIP, b""));
        bench.layout_of_blob(GZIP, &blob);
        bench.with_diff_id(&sha256(&archive));
        bench.rename(&format!("mine-{number}"));
        bench.ensure().unwrap();
    }
    let record = bench.path("store/layers").join(hex(&image.layers[0].diff_id)).join("layer.json");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["blobs"].as_array().unwrap().len(), 16);
    // One that is not among them is looked into as before.
    let other = compress(GZIP, &tar([file("other", "")]));
    bench.layout_of_blob(GZIP, &other);
    bench.with_diff_id(&sha256(&archive));
    refused_in_every_way(&bench, "but the configuration says");
}
