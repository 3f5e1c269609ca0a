//! Failures of mmdebstrap, apt, npm and dpkg-deb: one line that names the package and the cause.

use std::fs;
use std::process::Command;

use thaw_image::build::{BuildError, BuildOptions, build, lock};
use thaw_image::progress::Quiet;

use super::mirror::{Mirror, run};
use super::pins::Place;

/// The text of an error, which must be one line.
fn one_line(error: &BuildError) -> String {
    let text = error.to_string();
    assert!(text.lines().count() == 1 && text.len() < 500, "{text}");
    text
}

fn with_mirror(place: &Place, line: String) -> BuildOptions {
    let mut options = place.options("second");
    options.debian_mirror = Some(line);
    options
}

#[test]
fn an_unknown_package_is_named() {
    let place = Place::new();
    let recipe = place.path("rootfs/tiny.toml");
    let text = fs::read_to_string(&recipe).unwrap().replace("[\"tool\"]", "[\"tool\", \"nosuch\"]");
    fs::write(&recipe, text).unwrap();
    let error = lock(&place.manifest(), false, &place.options("second"), &Quiet).unwrap_err();
    assert!(one_line(&error).ends_with(": nosuch: the mirror has no package of this name"), "{error}");
}

#[test]
fn a_mirror_that_cannot_be_reached_is_named() {
    let place = Place::new();
    let options = with_mirror(&place, "deb [trusted=yes] http://127.0.0.1:1/debian trixie main".to_owned());
    for result in [
        build(&place.manifest(), &options, &Quiet).map(drop),
        lock(&place.manifest(), false, &options, &Quiet).map(drop),
    ] {
        let error = result.unwrap_err();
        let text = one_line(&error);
        assert!(text.contains(": cannot fetch http://127.0.0.1:1/debian/dists/trixie/InRelease: "), "{text}");
        assert!(text.contains("Connection refused"), "{text}");
        assert!(error.raw().unwrap().lines().count() > 2, "the whole is there for who wants it: {error:?}");
    }
    let options = with_mirror(&place, "deb file:///nonexistent trixie main".to_owned());
    let text = one_line(&build(&place.manifest(), &options, &Quiet).unwrap_err());
    assert!(text.contains("the mirror file:/nonexistent trixie Release does not have a Release file"), "{text}");
}

#[test]
fn a_signature_that_is_not_good_is_said_and_nothing_is_taken() {
    let (place, other) = (Place::new(), Mirror::new());
    place.mirror.add("lib", "1.1", "", "/usr/lib/lib.so", "lib 1.1");
    place.mirror.remove("lib", "1.0");
    // Signed, but by somebody else.
    let key = |mirror: &Mirror| mirror.line().split(['[', ']']).nth(1).unwrap().to_owned();
    let line = place.mirror.line().replace(&key(&place.mirror), &key(&other));
    let text = one_line(&build(&place.manifest(), &with_mirror(&place, line), &Quiet).unwrap_err());
    assert!(text.contains("the signature of http://127.0.0.1:") && text.contains("NO_PUBKEY"), "{text}");
    // Signed by the right one, and changed since.
    let signed = place.mirror.file("dists/trixie/InRelease");
    fs::write(&signed, fs::read_to_string(&signed).unwrap().replace("Suite: stable", "Suite: unstable")).unwrap();
    let text = one_line(&place.build("second").unwrap_err());
    assert!(text.contains("the signature of http://127.0.0.1:") && text.contains("BADSIG"), "{text}");
    assert!(!fs::exists(place.path("second/debian/instead")).unwrap());
}

/// Unmounted when dropped.
struct Small(std::path::PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_said() {
    let place = Place::new();
    place.mirror.add("lib", "1.1", "", "/usr/lib/lib.so", &"x".repeat(4 << 20));
    place.mirror.add("tool", "1.1", "lib (>= 1.1)", "/usr/bin/tool", &noise(4 << 20));
    let small = Small(place.path("small"));
    fs::create_dir(&small.0).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small.0));
    let text = one_line(&lock(&place.manifest(), false, &place.options("small"), &Quiet).unwrap_err());
    assert!(text.contains("no space left on the device"), "{text}");
    let left: Vec<_> = fs::read_dir(small.0.join("debian")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.contains(&"work".into()), "{left:?}");
}

/// Text that does not become smaller.
fn noise(length: usize) -> String {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b' ' + u8::try_from(state >> 57).unwrap() % 90)
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn a_package_that_is_broken_is_said_by_dpkg_deb_s_own_words() {
    let place = Place::new();
    let broken = place.mirror.file("pool/tool_1.0_amd64.deb");
    fs::write(&broken, "no package, and long enough to see that").unwrap();
    place.mirror.sign();
    let error = lock(&place.manifest(), false, &place.options("second"), &Quiet).unwrap_err();
    let text = one_line(&error);
    assert!(text.starts_with("dpkg-deb failed (") && text.contains("is not a Debian format archive"), "{text}");
}

#[test]
fn thawctl_prints_one_line_and_the_whole_only_when_asked() {
    let place = Place::new();
    let (manifest, cache) = (place.manifest(), place.path("second"));
    fs::create_dir(&cache).unwrap();
    let arguments = ["build", manifest.to_str().unwrap(), "--cache", cache.to_str().unwrap(), "--output"];
    let layout = place.path("layout");
    let mirror = ["--debian-mirror", "deb [trusted=yes] http://127.0.0.1:1/debian trixie main"];
    let arguments = [&arguments[..], &[layout.to_str().unwrap()], &mirror].concat();
    let of_thawctl = |output: &std::process::Output| -> Vec<String> {
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        text.lines().filter(|line| line.starts_with("thawctl: ")).map(str::to_owned).collect()
    };
    let short = of_thawctl(&place.thawctl(&arguments));
    assert!(matches!(&short[..], [one] if one.contains("the image was not built: mmdebstrap failed")), "{short:?}");
    let long = of_thawctl(&place.thawctl(&[&arguments[..], &["--verbose"]].concat()));
    assert!(long.len() > 2 && long.last() == short.last(), "{long:?}");
    assert!(long.iter().any(|line| line.starts_with("thawctl: E: Failed to fetch")), "{long:?}");

    let mut without = Command::new(crate::programs::thawctl());
    let output = without.arg("image").args(&arguments).env("PATH", "/nonexistent").output().unwrap();
    let missing = "thawctl: the image was not built: mmdebstrap is not installed: run `apt-get install mmdebstrap`";
    assert_eq!(of_thawctl(&output), [missing]);
}
