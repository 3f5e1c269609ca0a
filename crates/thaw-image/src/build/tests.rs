//! Builds of the offline image, and what a build refuses.

use super::recipe::ImageRecipe;
use super::tree::files_below;
use super::*;
use crate::progress::Quiet;

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn options(folder: &Path) -> BuildOptions {
    BuildOptions::new(folder.join("layout"), folder.join("cache"))
}

#[test]
fn the_same_inputs_give_the_same_image_from_empty_caches() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = build(&repository().join("images/test"), &options(one.path()), &Quiet).unwrap();
    let second = build(&repository().join("images/test"), &options(two.path()), &Quiet).unwrap();
    assert_eq!(first.digest, second.digest);
    assert!(!second.layers[0].cached);
    let index = |folder: &Path| fs::read(folder.join("layout/index.json")).unwrap();
    assert_eq!(index(one.path()), index(two.path()));
}

#[test]
fn a_second_build_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = repository().join("images/test");
    let first = build(&manifest, &options(folder.path()), &Quiet).unwrap();
    assert!(!first.unchanged);
    let second = build(&manifest, &options(folder.path()), &Quiet).unwrap();
    assert!(second.unchanged && second.layers.iter().all(|layer| layer.cached));
    assert_eq!(first.digest, second.digest);
}

/// A copy of the test image's folder and the recipes, to be changed.
fn workspace(image: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = repository().join("rootfs");
    for file in files_below(&from).unwrap() {
        let to = folder.path().join("rootfs").join(file.relative);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file.path, to).unwrap();
    }
    let to = folder.path().join("images/test");
    fs::create_dir_all(&to).unwrap();
    fs::write(to.join("image.toml"), image).unwrap();
    folder
}

fn test_image() -> String {
    fs::read_to_string(repository().join("images/test/image.toml")).unwrap()
}

fn build_in(folder: &Path) -> Result<BuildReport, BuildError> {
    build(&folder.join("images/test"), &options(folder), &Quiet)
}

#[test]
fn files_of_the_folder_go_into_the_image_and_change_its_digest() {
    let folder = workspace(&test_image());
    let before = build_in(folder.path()).unwrap();
    let file = folder.path().join("images/test/files/etc/example/settings.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "{}").unwrap();
    let after = build_in(folder.path()).unwrap();
    assert_ne!(before.digest, after.digest);
    assert!(after.layers[0].cached && !after.layers[1].cached);
    let blobs = fs::read_dir(folder.path().join("layout/blobs/sha256")).unwrap().count();
    assert_eq!(blobs, 4, "two layers, a config and a manifest; the old ones are gone");
}

#[test]
fn unknown_keys_are_refused_by_name() {
    let folder = workspace(&test_image().replace("workdir", "workdirectory"));
    let error = build_in(folder.path()).unwrap_err().to_string();
    assert!(error.contains("workdirectory") && error.contains("image.toml"), "{error}");
}

#[test]
fn a_missing_program_names_its_package() {
    let folder = workspace(&test_image());
    let recipe = folder.path().join("rootfs/busybox.toml");
    fs::write(&recipe, fs::read_to_string(&recipe).unwrap().replace("/bin/busybox\", p", "/nonexistent\", p")).unwrap();
    let error = build_in(folder.path()).unwrap_err().to_string();
    assert_eq!(error, "/nonexistent is not installed: run `apt-get install busybox-static`");
}

#[test]
fn a_program_that_is_not_installed_names_its_package_and_one_that_fails_says_why() {
    let error = run("mmdebstrap", "mmdebstrap", &mut Command::new("/nonexistent/mmdebstrap")).unwrap_err();
    assert_eq!(error.to_string(), "mmdebstrap is not installed: run `apt-get install mmdebstrap`");
    let error = run("npm", "npm", Command::new("sh").args(["-c", "echo no such version >&2; exit 3"])).unwrap_err();
    assert_eq!(error.to_string(), "npm failed (exit status: 3): no such version");
}

#[test]
fn a_folder_that_is_no_layout_is_left_alone() {
    let folder = workspace(&test_image());
    let precious = folder.path().join("layout/precious");
    fs::create_dir_all(precious.parent().unwrap()).unwrap();
    fs::write(&precious, "mine").unwrap();
    assert!(matches!(build_in(folder.path()), Err(BuildError::NotALayout { .. })));
    assert!(precious.exists());
}

#[test]
fn files_through_a_link_of_the_base_are_refused() {
    let folder = workspace(&test_image());
    fs::create_dir_all(folder.path().join("images/test/files/bin")).unwrap();
    fs::write(folder.path().join("images/test/files/bin/tool"), "").unwrap();
    let error = build_in(folder.path()).unwrap_err().to_string();
    assert!(error.contains("/bin is a link to usr/bin"), "{error}");
}

#[test]
fn a_lock_file_that_pins_something_else_is_refused() {
    let image = test_image()
        .replace("[env]", "[npm]\n\"left\" = \"1.0.0\"\n\n[[copy]]\nfrom = \"left\"\nto = \"/opt/left\"\n\n[env]");
    let folder = workspace(&image);
    let error = build_in(folder.path()).unwrap_err().to_string();
    assert!(error.contains("package-lock.json: is missing"), "{error}");
    let lock = r#"{"packages": {"": {"dependencies": {"right": "1.0.0"}}}}"#;
    fs::write(folder.path().join("images/test/package-lock.json"), lock).unwrap();
    let error = build_in(folder.path()).unwrap_err().to_string();
    assert!(error.contains("pins other packages") && error.contains("thawctl image lock"), "{error}");
}

/// Runs the entrypoint of a manifest with the shell of this machine.
fn entrypoint_says(manifest: &str, env: &[(&str, &str)]) -> (i32, String) {
    let (recipe, _): (ImageRecipe, _) = {
        let folder = workspace(manifest);
        recipe::read(&folder.path().join("images/test/image.toml")).unwrap()
    };
    let script = entrypoint::script(recipe.entrypoint.as_ref().unwrap()).unwrap();
    let output = Command::new("/bin/sh")
        .args(["-c", &script, "entrypoint", "echo", "ran it"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn the_entrypoint_asks_for_a_credential_and_then_becomes_the_command() {
    let manifest = format!("{}credentials = {{ env = [\"A_KEY\"], files = [\".a/auth.json\"] }}\n", test_image());
    let (code, text) = entrypoint_says(&manifest, &[]);
    assert_eq!((code, text.as_str()), (78, "entrypoint: no credential: give one of A_KEY, ~/.a/auth.json\n"));
    assert_eq!(entrypoint_says(&manifest, &[("A_KEY", "secret")]), (0, "ran it\n".to_owned()));
    assert_eq!(entrypoint_says(&test_image(), &[]), (0, "ran it\n".to_owned()));
}

#[test]
fn the_entrypoint_idles_in_a_warm_pool_and_ends_when_told_to() {
    let (recipe, _): (ImageRecipe, _) = recipe::read(&repository().join("images/test/image.toml")).unwrap();
    let script = entrypoint::script(recipe.entrypoint.as_ref().unwrap()).unwrap();
    let begun = Instant::now();
    let output = Command::new("timeout")
        .args(["1", "/bin/sh", "-c", &script, "entrypoint", "echo", "ran it"])
        .env("WARM_POOL", "true")
        .output()
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1) && output.stdout.is_empty(), "{output:?}");
    assert_eq!(output.status.code(), Some(124), "ended by the timeout, and at once");
}

#[test]
fn the_entrypoint_cannot_be_made_to_run_something_else() {
    let manifest = test_image().replace("\"WARM_POOL\"", "\"X:-}\\\"; reboot\"");
    let (recipe, _): (ImageRecipe, _) = {
        let folder = workspace(&manifest);
        recipe::read(&folder.path().join("images/test/image.toml")).unwrap()
    };
    assert!(entrypoint::script(recipe.entrypoint.as_ref().unwrap()).is_err());
}

/// The configuration of the image in a layout.
fn config_of(layout: &Path) -> serde_json::Value {
    let json = |path: &Path| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
    let blob = |digest: &serde_json::Value| {
        json(&layout.join("blobs/sha256").join(digest.as_str().unwrap().trim_start_matches("sha256:")))
    };
    let index = json(&layout.join("index.json"));
    blob(&blob(&index["manifests"][0]["digest"])["config"]["digest"])
}

#[test]
fn an_image_has_the_layers_of_what_it_includes_and_the_last_word_on_the_environment() {
    let folder = workspace(&test_image());
    let part = folder.path().join("images/part");
    fs::create_dir_all(part.join("files/etc/part")).unwrap();
    fs::write(part.join("files/etc/part/settings"), "x").unwrap();
    let named = test_image().replace("name = \"test\"", "name = \"part\"");
    fs::write(part.join("image.toml"), format!("{named}\n[links]\n\"/etc/part/link\" = \"settings\"\n")).unwrap();
    let with_env = |name: &str, env: &str| {
        let path = folder.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        let (before, after) = text.split_once("[env]\n").unwrap_or((&text, ""));
        fs::write(path, format!("{before}\n[env]\n{env}\n{after}")).unwrap();
    };
    with_env("images/part/image.toml", "OF_PART = \"1\"\nBOTH = \"part\"\nLAYER = \"part\"");
    let above = folder.path().join("rootfs/above.toml");
    fs::write(&above, "[host.files]\n\"/usr/bin/tool\" = { from = \"/bin/busybox\", package = \"busybox-static\" }\n")
        .unwrap();
    with_env("rootfs/above.toml", "ABOVE = \"1\"\nLAYER = \"above\"");
    let alone = BuildOptions::new(folder.path().join("part"), folder.path().join("cache"));
    let alone = build(&part, &alone, &Quiet).unwrap();

    let head = "name = \"test\"\ndescription = \"all\"\nbase = \"busybox\"\nuser = \"runtime\"\nworkdir = \"/\"\n";
    let image = |more: &str| fs::write(folder.path().join("images/test/image.toml"), format!("{head}{more}")).unwrap();
    image("layers = [\"above\"]\nincludes = [\"part\"]\n[env]\nBOTH = \"own\"\n");
    let whole = build_in(folder.path()).unwrap();
    let roles: Vec<&str> = whole.layers.iter().map(|layer| layer.role.as_str()).collect();
    assert_eq!(roles, ["base", "above", "part"]);
    assert_eq!(whole.layers[2].digest, alone.layers[1].digest, "the same layer");
    let config = config_of(&folder.path().join("layout"));
    let env = config["config"]["Env"].as_array().unwrap();
    for wanted in ["ABOVE=1", "OF_PART=1", "BOTH=own", "LAYER=part"] {
        assert!(env.iter().any(|one| one == wanted), "{wanted}: {env:?}");
    }
    assert_eq!(config["config"]["Entrypoint"][0], entrypoint::PATH, "what starts is the part's");

    // What cannot be put together is refused, with the file and the reason.
    let refused = |more: &str| {
        image(more);
        build_in(folder.path()).unwrap_err().to_string()
    };
    assert!(refused("layers = [\"none\"]\n").contains("rootfs/none.toml"));
    assert!(refused("includes = [\"none\"]\n").contains("none/image.toml"));
    assert!(refused("includes = [\"../x\"]\n").contains("is no name"));
    assert!(refused("").contains("needs an [entrypoint]"));
    // Also in a circle.
    let includes = |name: &str| head.replace("\"test\"", "\"part\"") + &format!("includes = [\"{name}\"]\n");
    fs::write(part.join("image.toml"), includes("test")).unwrap();
    assert!(refused("includes = [\"part\"]\n").contains("is included by test and includes others itself"));
    let third = folder.path().join("images/third");
    fs::create_dir_all(&third).unwrap();
    fs::write(third.join("image.toml"), head.replace("\"test\"", "\"third\"")).unwrap();
    fs::write(part.join("image.toml"), includes("third")).unwrap();
    assert!(refused("includes = [\"part\"]\n").contains("part/image.toml: is included by test"));
}
