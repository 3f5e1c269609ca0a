//! The `User` of an image's configuration with the image's own `/etc/passwd` and `/etc/group`: three texts, with a NUL
//! byte between them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (user, passwd, groups) = (part(), part(), part());
    thaw_image::fuzz_account(user, passwd, groups);
});
