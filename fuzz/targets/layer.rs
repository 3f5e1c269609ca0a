//! Layers: reading archives and putting them together, in memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is writable");
    thaw_image::fuzzing::layers(data, folder.path());
});
