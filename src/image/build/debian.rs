//! Files of Debian packages, pinned by a committed lock file; no script of a package is ever run.
//!
//! mmdebstrap only fetches and checks signatures. Packages are kept in the cache by their hash, so what was built
//! once can be built again when the mirror has dropped these versions.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use tar::EntryType;

use super::recipe::{Debian, glob};
use super::tree::{Node, Source, Tree};
use super::{BuildError, BuildOptions, run, write_whole};
use crate::image::digest::{HashingReader, hex};
use crate::image::progress::Progress;

/// `rootfs/BASE.lock`: the packages that files of a base come from.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    suite: String,
    #[serde(rename = "package")]
    packages: Vec<Package>,
}

/// One package, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    name: String,
    version: String,
    architecture: String,
    /// Of the `.deb` file, lower-case hex.
    sha256: String,
}

const HEAD: &str =
    "# The Debian packages that files of this base come from, exactly. Written by `thawctl image lock`.\n\n";

/// Where the lock of a recipe is.
pub(super) fn lock_path(recipe: &Path) -> PathBuf {
    recipe.with_extension("lock")
}

/// The lock file as it is.
pub(super) fn lock_bytes(path: &Path) -> Result<Vec<u8>, BuildError> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(BuildError::Lock { path: path.to_owned(), reason: "is missing".to_owned() })
        }
        other => other.map_err(|error| BuildError::io(path, error)),
    }
}

fn read_lock(path: &Path, recipe: &Debian) -> Result<Lock, BuildError> {
    let lock = |reason: String| BuildError::Lock { path: path.to_owned(), reason };
    let found: Lock =
        toml::from_slice(&lock_bytes(path)?).map_err(|error| lock(error.to_string().trim_end().to_owned()))?;
    if found.suite != recipe.suite {
        return Err(lock(format!("is of {}, and the recipe wants {}", found.suite, recipe.suite)));
    }
    Ok(found)
}

/// Adds the files that the recipe keeps, of exactly the locked packages.
pub(super) fn add(
    recipe: &Debian,
    lock: &Path,
    mut tree: Tree,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Tree, BuildError> {
    let locked = read_lock(lock, recipe)?;
    let pool = options.cache_dir.join("debian");
    let path_of = |package: &Package| pool.join(format!("{}.deb", package.sha256));
    let missing: Vec<&Package> =
        locked.packages.iter().filter(|package| !is_whole(package, &path_of(package))).collect();
    if !missing.is_empty() {
        let pinned = locked.packages.iter().map(|package| format!("{}={}", package.name, package.version));
        fetch(recipe, pinned, &pool, options, progress).map_err(|error| gone(error, lock))?;
    }
    let mut kept = Kept::new(recipe);
    for package in &locked.packages {
        if !is_whole(package, &path_of(package)) {
            let reason = format!("pins {} {} with another hash than the mirror's", package.name, package.version);
            return Err(BuildError::Lock { path: lock.to_owned(), reason });
        }
        kept.add(&path_of(package), &mut tree)?;
    }
    kept.finish(&mut tree)?;
    Ok(tree)
}

/// Asks the mirror for the newest packages of the suite and writes the lock anew. Returns what changed, one line each.
pub(super) fn renew_lock(
    recipe: &Debian,
    lock: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Vec<String>, BuildError> {
    let pool = options.cache_dir.join("debian");
    let fetched = fetch(recipe, recipe.packages.iter().cloned(), &pool, options, progress)?;
    let mut packages = Vec::new();
    for package in fetched {
        // Most dependencies are for scripts that are not run: those that give no file are not worth pinning.
        let before = Kept::new(recipe);
        let mut kept = Kept::new(recipe);
        kept.add(&pool.join(format!("{}.deb", package.sha256)), &mut Tree::default())?;
        if kept.unused.len() < before.unused.len() || kept.parts.iter().any(|part| !part.is_empty()) {
            packages.push(package);
        }
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    let before = read_lock(lock, recipe).map_or_else(|_| Vec::new(), |lock| lock.packages);
    let changes = changes(&before, &packages);
    let text = toml::to_string(&Lock { suite: recipe.suite.clone(), packages })
        .map_err(|error| BuildError::Lock { path: lock.to_owned(), reason: error.to_string() })?;
    write_whole(lock, format!("{HEAD}{text}").as_bytes())?;
    Ok(changes)
}

fn changes(before: &[Package], after: &[Package]) -> Vec<String> {
    let version = |packages: &[Package], name: &str| {
        packages.iter().find(|package| package.name == name).map_or("nothing".to_owned(), |found| found.version.clone())
    };
    let names: std::collections::BTreeSet<&str> = before.iter().chain(after).map(|one| one.name.as_str()).collect();
    let change = |name: &&str| {
        let (was, is) = (version(before, name), version(after, name));
        (was != is).then(|| format!("{name}: {was} -> {is}"))
    };
    names.iter().filter_map(change).collect()
}

/// The version that was pinned is not on the mirror: says what that means.
fn gone(error: BuildError, lock: &Path) -> BuildError {
    match &error {
        BuildError::Program { stderr, .. }
            if stderr.contains("was not found") || stderr.contains("no installation candidate") =>
        {
            let line = stderr.lines().find(|line| line.starts_with("E: ")).unwrap_or_default();
            let reason = format!(
                "pins a package that the mirror no longer has, as happens after updates ({line}); give the address of \
                 a snapshot with --debian-mirror to build what is pinned"
            );
            BuildError::Lock { path: lock.to_owned(), reason }
        }
        _ => error,
    }
}

fn is_whole(package: &Package, path: &Path) -> bool {
    sha256_of(path).is_ok_and(|found| found == package.sha256)
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let (_, digest) = HashingReader::new(fs::File::open(path)?, u64::MAX).finish()?;
    Ok(hex(&digest).to_owned())
}

/// Fetches packages (`NAME` or `NAME=VERSION`) and what they depend on into the pool; returns them.
fn fetch(
    recipe: &Debian,
    packages: impl Iterator<Item = String>,
    pool: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Vec<Package>, BuildError> {
    let pool = std::path::absolute(pool).map_err(|error| BuildError::io(pool, error))?;
    let work = pool.join("work");
    if work.exists() {
        fs::remove_dir_all(&work).map_err(|error| BuildError::io(&work, error))?;
    }
    fs::create_dir_all(&work).map_err(|error| BuildError::io(&work, error))?;
    progress.started(&format!("fetching Debian {}", recipe.suite), None);
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=extract", "--format=null", "--quiet"]);
    command.arg(format!("--include={}", packages.collect::<Vec<_>>().join(",")));
    // The name of the folder goes by the environment: the hook is read by a shell.
    command.env("THAWD_POOL", &work);
    command.arg(r#"--extract-hook=cp "$1"/var/cache/apt/archives/*.deb "$THAWD_POOL"/"#);
    command.arg(&recipe.suite).arg("/dev/null").args(&options.debian_mirror);
    let result = run("mmdebstrap", "mmdebstrap", &mut command);
    progress.finished(if result.is_ok() { "fetched, signatures checked" } else { "failed" });
    result?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&work).map_err(|error| BuildError::io(&work, error))? {
        let path = entry.map_err(|error| BuildError::io(&work, error))?.path();
        let mut show = Command::new("dpkg-deb");
        show.args(["--show", "--showformat=${Package} ${Version} ${Architecture}"]).arg(&path);
        let text = String::from_utf8_lossy(&run("dpkg-deb", "dpkg", &mut show)?).into_owned();
        let [name, version, architecture] = text.split(' ').collect::<Vec<_>>()[..] else {
            return Err(BuildError::Path { path: path.display().to_string(), reason: "is no package".to_owned() });
        };
        let sha256 = sha256_of(&path).map_err(|error| BuildError::io(&path, error))?;
        let to = pool.join(format!("{sha256}.deb"));
        fs::rename(&path, &to).map_err(|error| BuildError::io(&to, error))?;
        found.push(Package { name: name.into(), version: version.into(), architecture: architecture.into(), sha256 });
    }
    fs::remove_dir_all(&work).map_err(|error| BuildError::io(&work, error))?;
    Ok(found)
}

/// What of the recipe's wishes was found so far.
struct Kept<'a> {
    recipe: &'a Debian,
    unused: Vec<&'a String>,
    /// For each file made of others, the parts by path.
    parts: Vec<BTreeMap<String, Vec<u8>>>,
}

impl<'a> Kept<'a> {
    fn new(recipe: &'a Debian) -> Self {
        let parts = vec![BTreeMap::new(); recipe.concatenate.len()];
        Kept { recipe, unused: recipe.keep.iter().collect(), parts }
    }

    /// Adds what is wanted of one package.
    fn add(&mut self, package: &Path, tree: &mut Tree) -> Result<(), BuildError> {
        let fail = |error| BuildError::io(package, error);
        let mut child = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    BuildError::Missing { what: "dpkg-deb".to_owned(), package: "dpkg".to_owned() }
                }
                _ => fail(error),
            })?;
        let stdout = child.stdout.take().ok_or_else(|| fail(std::io::ErrorKind::BrokenPipe.into()))?;
        let result = self.add_archive(package, stdout, tree);
        let status = child.wait().map_err(fail)?;
        result?;
        if status.success() {
            return Ok(());
        }
        Err(BuildError::Program { program: "dpkg-deb", status, stderr: package.display().to_string() })
    }

    fn add_archive(&mut self, package: &Path, archive: impl Read, tree: &mut Tree) -> Result<(), BuildError> {
        let fail = |error| BuildError::io(package, error);
        let mut reader = tar::Archive::new(archive);
        for entry in reader.entries().map_err(fail)? {
            let mut entry = entry.map_err(fail)?;
            let name = entry.path().map_err(fail)?.to_string_lossy().into_owned();
            let path = format!("/{}", name.trim_start_matches("./").trim_end_matches('/'));
            let keep = self.recipe.keep.iter().find(|pattern| glob(pattern, &path));
            let wanted = self.recipe.concatenate.iter().map(|concatenate| glob(&concatenate.from, &path));
            let wanted: Vec<_> = wanted.collect();
            if keep.is_none() && !wanted.contains(&true) {
                continue;
            }
            let header = entry.header().clone();
            let link = entry.link_name().map_err(fail)?.map(|target| target.to_string_lossy().into_owned());
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(fail)?;
            for (parts, _) in self.parts.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted) {
                parts.insert(path.clone(), bytes.clone());
            }
            let Some(keep) = keep else { continue };
            let node = match (header.entry_type(), link) {
                (EntryType::Regular, _) => {
                    Node::File { mode: header.mode().map_err(fail)? & 0o777, source: Source::Bytes(bytes) }
                }
                (EntryType::Symlink, Some(target)) => Node::Symlink { target },
                (EntryType::Directory, _) => continue,
                _ => return Err(BuildError::Path { path, reason: "kept, but neither file nor link".to_owned() }),
            };
            self.unused.retain(|pattern| *pattern != keep);
            tree.insert(&path, node)?;
        }
        // The padding after the end, so that the writer is not cut off.
        std::io::copy(&mut reader.into_inner(), &mut std::io::sink()).map(drop).map_err(fail)
    }

    /// Writes the files that are made of others, and complains of wishes that nothing fulfilled.
    fn finish(mut self, tree: &mut Tree) -> Result<(), BuildError> {
        for (wanted, found) in self.recipe.concatenate.iter().zip(self.parts) {
            if found.is_empty() {
                self.unused.push(&wanted.from);
            }
            if let Some(folder) = &wanted.hashed {
                hashed(folder, found.values(), tree)?;
            }
            let mut bytes = Vec::new();
            for part in found.into_values() {
                bytes.extend_from_slice(&part);
                if bytes.last() != Some(&b'\n') {
                    bytes.push(b'\n');
                }
            }
            tree.insert(&wanted.to, Node::File { mode: 0o644, source: Source::Bytes(bytes) })?;
        }
        match self.unused.first() {
            None => Ok(()),
            Some(pattern) => Err(BuildError::Path {
                path: (*pattern).clone(),
                reason: "no file of the locked Debian packages matches; renew the lock with `thawctl image lock`"
                    .to_owned(),
            }),
        }
    }
}

/// Adds certificates under the names by which OpenSSL looks for the one that it needs (`SSL_CERT_DIR`,
/// openssl-rehash(1)): the hash of the subject, and a number for those with the same.
fn hashed<'a>(
    folder: &str,
    certificates: impl Iterator<Item = &'a Vec<u8>>,
    tree: &mut Tree,
) -> Result<(), BuildError> {
    let mut counts = BTreeMap::<String, usize>::new();
    for certificate in certificates {
        let hash = subject_hash(certificate)?;
        let count = counts.entry(hash.clone()).or_default();
        let path = format!("{}/{hash}.{count}", folder.trim_end_matches('/'));
        *count += 1;
        tree.insert(&path, Node::File { mode: 0o644, source: Source::Bytes(certificate.clone()) })?;
    }
    Ok(())
}

/// OpenSSL's own hash of a certificate's subject (openssl-x509(1), `-subject_hash`).
fn subject_hash(certificate: &[u8]) -> Result<String, BuildError> {
    let fail = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            BuildError::Missing { what: "openssl".to_owned(), package: "openssl".to_owned() }
        }
        _ => BuildError::io(Path::new("openssl"), error),
    };
    let mut child = Command::new("openssl")
        .args(["x509", "-noout", "-subject_hash"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    // Dropped at once, which ends its input. A certificate fits into a pipe, so this does not wait.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(certificate).map_err(fail)?;
    }
    let output = child.wait_with_output().map_err(fail)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BuildError::Program { program: "openssl", status: output.status, stderr });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ISRG Root X2, which Debian has as /etc/ssl/certs/0b9bc432.0.
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIICGzCCAaGgAwIBAgIQQdKd0XLq7qeAwSxs6S+HUjAKBggqhkjOPQQDAzBPMQsw
CQYDVQQGEwJVUzEpMCcGA1UEChMgSW50ZXJuZXQgU2VjdXJpdHkgUmVzZWFyY2gg
R3JvdXAxFTATBgNVBAMTDElTUkcgUm9vdCBYMjAeFw0yMDA5MDQwMDAwMDBaFw00
MDA5MTcxNjAwMDBaME8xCzAJBgNVBAYTAlVTMSkwJwYDVQQKEyBJbnRlcm5ldCBT
ZWN1cml0eSBSZXNlYXJjaCBHcm91cDEVMBMGA1UEAxMMSVNSRyBSb290IFgyMHYw
EAYHKoZIzj0CAQYFK4EEACIDYgAEzZvVn4CDCuwJSvMWSj5cz3es3mcFDR0HttwW
+1qLFNvicWDEukWVEYmO6gbf9yoWHKS5xcUy4APgHoIYOIvXRdgKam7mAHf7AlF9
ItgKbppbd9/w+kHsOdx1ymgHDB/qo0IwQDAOBgNVHQ8BAf8EBAMCAQYwDwYDVR0T
AQH/BAUwAwEB/zAdBgNVHQ4EFgQUfEKWrt5LSDv6kviejM9ti6lyN5UwCgYIKoZI
zj0EAwMDaAAwZQIwe3lORlCEwkSHRhtFcP9Ymd70/aTSVaYgLXTWNLxBo1BfASdW
tL4ndQavEi51mI38AjEAi/V3bNTIZargCyzuFJ0nN6T5U6VR5CmD1/iQMVtCnwr1
/q4AaOeMSQ+2b1tbFfLn
-----END CERTIFICATE-----
";

    #[test]
    fn certificates_have_the_names_that_openssl_looks_for() {
        let mut tree = Tree::default();
        let certificate = CERTIFICATE.as_bytes().to_vec();
        hashed("/etc/ssl/certs/", [&certificate, &certificate].into_iter(), &mut tree).unwrap();
        let files = tree.iter().filter(|(_, node)| matches!(node, Node::File { .. })).map(|(path, _)| path.as_str());
        assert_eq!(files.collect::<Vec<_>>(), ["etc/ssl/certs/0b9bc432.0", "etc/ssl/certs/0b9bc432.1"]);
        let error = hashed("/c", [&b"no certificate".to_vec()].into_iter(), &mut tree).unwrap_err();
        assert!(error.to_string().contains("openssl"), "{error}");
    }

    #[test]
    fn changes_are_told_by_version() {
        let package = |name: &str, version: &str| Package {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: "all".to_owned(),
            sha256: String::new(),
        };
        let (before, after) =
            ([package("a", "1"), package("b", "1")], [package("a", "1"), package("b", "2"), package("c", "3")]);
        assert_eq!(changes(&before, &after), ["b: 1 -> 2", "c: nothing -> 3"]);
    }

    #[test]
    fn a_version_that_the_mirror_dropped_is_explained() {
        use std::os::unix::process::ExitStatusExt;
        let status = std::process::ExitStatus::from_raw(256);
        let stderr = "E: Version '1' for 'libc6' was not found\nE: setup failed".to_owned();
        let error =
            gone(BuildError::Program { program: "mmdebstrap", status, stderr }, Path::new("rootfs/debian.lock"));
        let text = error.to_string();
        assert!(text.starts_with("rootfs/debian.lock: pins a package that the mirror no longer has"), "{text}");
        assert!(
            text.contains("for 'libc6' was not found") && text.ends_with("renew it with `thawctl image lock`"),
            "{text}"
        );
    }
}
