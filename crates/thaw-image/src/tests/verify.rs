//! Damage in the store is found, told, and can be put right.

use std::os::unix::fs::PermissionsExt;

use super::progress::Quiet;
use super::*;

/// Spoils a store of one image with a file, a link and a directory; returns what is said of it.
fn said_after(spoil: impl FnOnce(&Image, &Path)) -> String {
    let bench = Bench::new();
    let archive = tar([file("d/a", "content"), symlink("l", "d/a"), directory("e")]);
    let image = bench.unpack(&[archive]).unwrap();
    let store = bench.store();
    assert_eq!(store.verify(&Quiet).unwrap().damage, []);
    spoil(&image, &bench.path("store/layers").join(hex(&image.layers[0].diff_id)));
    let found = store.verify(&Quiet).unwrap();
    assert_eq!(found.to_rebuild().into_iter().collect::<Vec<_>>(), ["crafted"], "{found:?}");
    assert!(files_in(&bench.path("store/tmp")).is_empty());
    // What it says to do puts it right.
    store.remove("crafted").unwrap();
    bench.ensure().unwrap();
    assert_eq!(bench.store().verify(&Quiet).unwrap().damage, []);
    found.damage.iter().map(|one| format!("{}: {}\n", &one.what[..5], one.reasons.join("; "))).collect()
}

#[test]
fn a_whole_store_is_well_and_counted() {
    let bench = Bench::new();
    bench.unpack(&[tar([file("a", "12345")]), tar([file("b", "678")])]).unwrap();
    let found = bench.store().verify(&Quiet).unwrap();
    assert_eq!((found.images, found.layers, found.files, found.bytes), (1, 2, 2, 8));
}

#[test]
fn a_changed_bit_is_found_and_put_right() {
    // Same length, as a bad disk would do it.
    let said = said_after(|image, _| fs::write(image.rootfs.join("d/a"), "contenu").unwrap());
    assert!(said.starts_with("layer: \"d/a\": has 7 bytes, blake3:"), "{said}");
    let said = said_after(|_, layer| fs::write(layer.join("files/0"), "").unwrap());
    assert!(said.contains("\"d/a\": has 0 bytes"), "{said}");
}

#[test]
fn changed_modes_and_missing_or_additional_files_are_found() {
    let mode = |mode| {
        move |image: &Image, _: &Path| {
            fs::set_permissions(image.rootfs.join("d/a"), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    assert!(said_after(mode(0o4755)).contains("has mode 4755; must be 0644"));
    assert!(said_after(|_, layer| fs::remove_file(layer.join("files/0")).unwrap()).contains("No such file"));
    assert!(said_after(|_, layer| fs::write(layer.join("files/1"), "").unwrap()).contains("has 2 files; must be 1"));
    assert!(
        said_after(|_, layer| fs::remove_file(layer.join("layer.json")).unwrap()).contains("layer.json\": is missing")
    );
    let said = said_after(|_, layer| fs::write(layer.join("contents.jsonl"), "").unwrap());
    assert!(said.contains("contents.jsonl\": was changed"), "{said}");
}

#[test]
fn a_root_file_system_that_is_not_what_its_layers_give_is_found() {
    let said = said_after(|image, _| fs::remove_file(image.rootfs.join("d/a")).unwrap());
    assert_eq!(said, "image: \"d/a\": is missing\n");
    let said = said_after(|image, _| fs::write(image.rootfs.join("e/new"), "").unwrap());
    assert_eq!(said, "image: \"e/new\": is in no layer\n");
    let said = said_after(|image, _| {
        fs::remove_file(image.rootfs.join("l")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", image.rootfs.join("l")).unwrap();
    });
    assert_eq!(said, "image: \"l\": is a link to another place\n");
    let said = said_after(|image, _| {
        fs::remove_file(image.rootfs.join("d/a")).unwrap();
        fs::write(image.rootfs.join("d/a"), "content").unwrap();
    });
    assert_eq!(said, "image: \"d/a\": is not the file of its layer\n");
    let said = said_after(|image, _| {
        fs::set_permissions(image.rootfs.join("e"), fs::Permissions::from_mode(0o777)).unwrap();
    });
    assert_eq!(said, "image: \"e\": has another mode or owner\n");
    let said = said_after(|image, _| {
        fs::remove_dir(image.rootfs.join("e")).unwrap();
        fs::write(image.rootfs.join("e"), "").unwrap();
    });
    assert_eq!(said, "image: \"e\": is of another kind\n");
}
