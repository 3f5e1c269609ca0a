//! Selects the files of Debian packages that go into a base.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use tar::EntryType;

use super::super::BuildError;
use super::super::recipe::{Debian, glob};
use super::super::tree::{Node, Source, Tree};

/// Files of the recipe found so far.
pub(super) struct Kept<'a> {
    recipe: &'a Debian,
    unused: Vec<&'a String>,
    /// For each concatenated file, its parts by path.
    parts: Vec<BTreeMap<String, Vec<u8>>>,
}

impl<'a> Kept<'a> {
    pub(super) fn new(recipe: &'a Debian) -> Self {
        let parts = vec![BTreeMap::new(); recipe.concatenate.len()];
        Kept { recipe, unused: recipe.keep.iter().collect(), parts }
    }

    /// Whether anything of the recipe was found.
    pub(super) fn is_something(&self) -> bool {
        self.unused.len() < self.recipe.keep.len() || self.parts.iter().any(|part| !part.is_empty())
    }

    /// Adds the wanted files of one package.
    pub(super) fn add(&mut self, package: &Path, tree: &mut Tree) -> Result<(), BuildError> {
        let fail = |error| BuildError::io(package, error);
        let mut child = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    BuildError::Missing { what: "dpkg-deb".to_owned(), package: "dpkg".to_owned() }
                }
                _ => fail(error),
            })?;
        let stdout = child.stdout.take().ok_or_else(|| fail(std::io::ErrorKind::BrokenPipe.into()))?;
        let result = self.add_archive(package, stdout, tree);
        // The program writes a few lines, which fit into the pipe.
        let output = child.wait_with_output().map_err(fail)?;
        match result {
            // Reading ended early, so the writer failed too; the first error counts.
            Err(refused @ BuildError::Path { .. }) => Err(refused),
            _ if !output.status.success() => Err(BuildError::program("dpkg-deb", output.status, &output.stderr)),
            other => other,
        }
    }

    fn add_archive(&mut self, package: &Path, archive: impl Read, tree: &mut Tree) -> Result<(), BuildError> {
        let fail = |error| BuildError::io(package, error);
        let mut reader = tar::Archive::new(archive);
        for entry in reader.entries().map_err(fail)? {
            let mut entry = entry.map_err(fail)?;
            let name = entry.path().map_err(fail)?.to_string_lossy().into_owned();
            let path = format!("/{}", name.trim_start_matches("./").trim_end_matches('/'));
            let keep = self.recipe.kept_by(&path);
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
                // Another name of a file in the same package.
                (EntryType::Link, Some(target)) => {
                    Node::Symlink { target: format!("/{}", target.trim_start_matches("./")) }
                }
                (EntryType::Directory, _) => continue,
                _ => return Err(BuildError::Path { path, reason: "kept, but neither file nor link".to_owned() }),
            };
            self.unused.retain(|pattern| *pattern != keep);
            tree.insert(&path, node)?;
        }
        // Also read the padding after the end, so that the writer does not fail.
        std::io::copy(&mut reader.into_inner(), &mut std::io::sink()).map(drop).map_err(fail)
    }

    /// Writes the concatenated files; fails for entries of the recipe that match nothing.
    pub(super) fn finish(mut self, tree: &mut Tree) -> Result<(), BuildError> {
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

/// OpenSSL's hash of a certificate's subject (openssl-x509(1), `-subject_hash`).
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
    // Dropping the pipe ends the program's input. A certificate fits into a pipe, so this does not block.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(certificate).map_err(fail)?;
    }
    let output = child.wait_with_output().map_err(fail)?;
    if !output.status.success() {
        return Err(BuildError::program("openssl", output.status, &output.stderr));
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
}
