//! Layouts whose documents and blobs are not what they say.

use super::*;

#[test]
fn an_index_that_is_a_manifest_too() {
    // CVE-2021-41190: two programs would see two images in one document.
    let bench = Bench::new();
    let layers = || [(TAR, tar([file("a", "")]))];
    bench.layout_with(&layers(), |_, index| index["layers"] = json!([]));
    bench.refuses_layout("index and a manifest at once");
    bench.layout_with(&layers(), |_, index| index["config"] = json!({}));
    bench.refuses_layout("index and a manifest at once");
    bench.layout_with(&layers(), |manifest, _| manifest["manifests"] = json!([]));
    bench.refuses_layout("manifest and an index at once");
    // Two keys of one name: which counts depends on the reader.
    bench.layout_with(&layers(), |_, _| {});
    let path = bench.path("layout/index.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"manifests\"", "\"manifests\":[],\"manifests\"", 1)).unwrap();
    assert!(
        bench.ensure().is_ok_and(|image| image.name == "crafted"),
        "the last one counts, as in every parser of ours"
    );
}

#[test]
fn an_index_whose_manifest_is_of_another_kind() {
    let bench = Bench::new();
    let layers = || [(TAR, tar([file("a", "")]))];
    for kind in ["application/vnd.oci.image.layer.v1.tar", "application/json", "text/html"] {
        bench.layout_with(&layers(), |_, index| index["kind"] = json!(kind));
        let path = bench.path("layout/index.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("application/vnd.oci.image.manifest.v1+json", kind)).unwrap();
        bench.refuses_layout("not an image manifest");
    }
    bench.layout_with(&layers(), |manifest, _| {
        manifest["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
    });
    bench.refuses_layout("is no image");
    bench.layout_with(&layers(), |manifest, _| manifest["layers"][0]["mediaType"] = json!("application/zip"));
    bench.refuses_layout("unsupported type application/zip");
    bench.layout_with(&layers(), |manifest, _| manifest["layers"] = json!([]));
    bench.refuses_layout("0 layers and 1 diff ids");
    bench.layout_with(&layers(), |_, index| index["manifests"] = json!([]));
    bench.refuses_layout("has no image for linux/amd64, only nothing");
}

#[test]
fn foreign_layers_that_would_be_fetched_from_elsewhere() {
    // CVE-2020-15157: the credentials of the registry would go to whoever is named.
    let bench = Bench::new();
    let layers = || [(TAR, tar([file("a", "")]))];
    for url in ["http://127.0.0.1/", "https://example.org/layer", "file:///etc/passwd"] {
        bench.layout_with(&layers(), |manifest, _| manifest["layers"][0]["urls"] = json!([url]));
        bench.refuses_layout("fetched from elsewhere");
    }
    for kind in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        bench.layout_with(&layers(), |manifest, _| manifest["layers"][0]["mediaType"] = json!(kind));
        bench.refuses_layout("unsupported type");
    }
}

#[test]
fn digests_that_are_paths() {
    let bench = Bench::new();
    let layers = || [(TAR, tar([file("a", "")]))];
    let climbing = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 4, "digest": "sha256:../../../neighbour/file"});
    bench.layout_with(&layers(), |_, index| index["manifests"] = json!([climbing]));
    bench.refuses_layout("is no lower-case sha256 digest");
    // Also when the layer is in the store already, so that its blob is not needed (found by the fuzzer).
    let other = Bench::new();
    other.unpack(&[tar([file("a", "")])]).unwrap();
    let before = files_in(&other.path("store"));
    let odd = format!("sha257:{}", "0".repeat(64));
    other.layout_with(&layers(), |manifest, _| manifest["layers"][0]["digest"] = json!(odd));
    let error = other.ensure().unwrap_err().to_string();
    assert!(error.contains("is no lower-case sha256 digest"), "{error}");
    assert_eq!(files_in(&other.path("store")), before);
    for digest in ["sha512:00", "sha256:00", "md5:d41d8cd98f00b204e9800998ecf8427e", ""] {
        bench.layout_with(&layers(), |manifest, _| manifest["layers"][0]["digest"] = json!(digest));
        bench.refuses_layout("image layout: ");
    }
}

#[test]
fn an_image_for_several_platforms_gives_the_one_for_this_machine() {
    let bench = Bench::new();
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |_, _| {});
    let path = bench.path("layout/index.json");
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let ours = &index["manifests"][0];
    let with = |os: &str, arch: &str| {
        let mut one = ours.clone();
        one["platform"] = json!({"os": os, "architecture": arch});
        one
    };
    let inner = json!({"schemaVersion": 2, "manifests": [with("linux", "s390x"), with("linux", "amd64"), with("unknown", "unknown")]});
    let mut outer = bench.descriptor("application/vnd.oci.image.index.v1+json", inner.to_string().as_bytes());
    outer["annotations"] = json!({"org.opencontainers.image.ref.name": "several"});
    fs::write(&path, json!({"schemaVersion": 2, "manifests": [outer]}).to_string()).unwrap();
    assert_eq!(bench.ensure().unwrap().name, "several");
    // Of one that is named twice, and of indexes within indexes up to a limit.
    let both = json!({"schemaVersion": 2, "manifests": [with("linux", "amd64"), with("linux", "amd64")]});
    fs::write(&path, both.to_string()).unwrap();
    assert_eq!(bench.ensure().unwrap().name, "crafted");
    for (levels, taken) in [(4, true), (5, false)] {
        let mut nested = ours.clone();
        nested["annotations"] = Value::Null;
        for level in 0..levels {
            let text = json!({"schemaVersion": 2, "manifests": [nested]}).to_string();
            nested = bench.descriptor("application/vnd.oci.image.index.v1+json", text.as_bytes());
            if level == 1 {
                nested["annotations"] = json!({"org.opencontainers.image.ref.name": "inner"});
            }
        }
        fs::write(&path, json!({"schemaVersion": 2, "manifests": [nested]}).to_string()).unwrap();
        if taken {
            assert_eq!(bench.ensure().unwrap().name, "inner");
        } else {
            assert!(bench.ensure().unwrap_err().to_string().contains("more than 4 indexes within each other"));
        }
    }
}

#[test]
fn an_index_names_so_many_documents_at_most() {
    let bench = Bench::new();
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |_, _| {});
    let path = bench.path("layout/index.json");
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let entries = |count: usize| {
        fs::write(&path, json!({"schemaVersion": 2, "manifests": vec![&index["manifests"][0]; count]}).to_string())
            .unwrap();
    };
    entries(257);
    bench.refuses_layout("names more than 256 documents for this machine");
    entries(256);
    bench.ensure().unwrap();
}

#[test]
fn blobs_that_are_not_what_they_are_called() {
    let bench = Bench::new();
    let archive = tar([file("a", "content")]);
    let spoil = |digest: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = bench.path("layout/blobs/sha256").join(hex(digest));
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
    };
    for kind in [TAR, GZIP, ZSTD] {
        let digest = sha256(&compress(kind, &archive));
        // Right length, wrong content; then the wrong length.
        bench.layout_with(&[(kind, archive.clone())], |_, _| {});
        spoil(&digest, &|bytes| *bytes.last_mut().unwrap() ^= 1);
        bench.refuses_layout("the layout is damaged");
        bench.layout_with(&[(kind, archive.clone())], |_, _| {});
        spoil(&digest, &|bytes| bytes.push(0));
        bench.refuses_layout("the layout is damaged");
    }
    // The configuration and the manifest themselves.
    for marker in ["diff_ids", "\"layers\":["] {
        bench.layout_with(&[(TAR, archive.clone())], |_, _| {});
        for entry in fs::read_dir(bench.path("layout/blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            if text.contains(marker) {
                fs::write(&path, text.replacen("sha256", "sha257", 1)).unwrap();
            }
        }
        bench.refuses_layout("the layout is damaged");
    }
}

#[test]
fn an_archive_that_is_not_the_one_of_the_configuration() {
    let bench = Bench::new();
    let other = bench.descriptor(TAR, &tar([file("b", "")]));
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |manifest, _| {
        bench.blob(&tar([file("b", "")]));
        manifest["layers"] = json!([other]);
    });
    bench.refuses_layout("but the configuration says");
}

#[test]
fn blobs_that_are_links_or_pipes() {
    let bench = Bench::new();
    let archive = tar([file("a", "")]);
    let blob = bench.path("layout/blobs/sha256").join(hex(&sha256(&archive)));
    bench.layout_with(&[(TAR, archive.clone())], |_, _| {});
    let elsewhere = bench.path("elsewhere");
    fs::rename(&blob, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &blob).unwrap();
    bench.refuses_layout("symbolic link");
    fs::remove_file(&blob).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &blob, rustix::fs::Mode::RUSR).unwrap();
    bench.refuses_layout("is not a file");
}

#[test]
fn names_that_are_paths() {
    let bench = Bench::new();
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |_, _| {});
    let path = bench.path("layout/index.json");
    let text = fs::read_to_string(&path).unwrap();
    for name in ["../../neighbour/file", "", ".hidden", "A", "a/../b", "/a"] {
        fs::write(&path, text.replace("\"crafted\"", &json!(name).to_string())).unwrap();
        bench.refuses_layout("image name");
    }
}
