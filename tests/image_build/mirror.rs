//! A Debian mirror with packages that the test makes, signed with a key that it makes, on loopback.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files below a folder over HTTP, for as long as the test program runs. Returns the address.
pub fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            std::thread::spawn(move || answer(&stream, &folder));
        }
    });
    address
}

fn answer(stream: &TcpStream, folder: &Path) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    // apt sends several requests without waiting for answers.
    while let Some(line) = lines.next() {
        let path =
            line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').replace("%2b", "+").replace("%2f", "/");
        while lines.next().is_some_and(|header| !header.is_empty()) {}
        // npm asks for the list of a package by its name, below which are its archives.
        let list = folder.join(format!("{path}.json"));
        let (status, body) = match fs::read(folder.join(&path)).or_else(|_| fs::read(list)) {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        if (&*stream).write_all(&[head.as_bytes(), &body].concat()).is_err() {
            return;
        }
    }
}

/// A mirror with one suite, trixie. Dropped, the folder is removed.
pub struct Mirror {
    folder: tempfile::TempDir,
    address: String,
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

impl Mirror {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // apt checks signatures as a user of its own.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(folder.path().join("www/pool")).unwrap();
        fs::create_dir(folder.path().join("gnupg")).unwrap();
        let mirror = Mirror { address: serve(folder.path().join("www")), folder };
        mirror.new_key();
        mirror.sign();
        mirror
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet", "--yes", "--pinentry-mode=loopback", "--passphrase="]);
        gpg.arg("--homedir").arg(self.path("gnupg"));
        gpg
    }

    fn new_key(&self) {
        fs::set_permissions(self.path("gnupg"), fs::Permissions::from_mode(0o700)).unwrap();
        run(self.gpg().args(["--quick-generate-key", "mirror@example.invalid", "ed25519", "sign", "never"]));
        run(self.gpg().arg("--output").arg(self.path("key.gpg")).arg("--export"));
    }

    /// Its line in a `sources.list`.
    pub fn line(&self) -> String {
        format!("deb [signed-by={}] {} trixie main", self.path("key.gpg").display(), self.address)
    }

    /// Puts a package there that has one file.
    pub fn add(&self, name: &str, version: &str, depends: &str, file: &str, content: &str) {
        let tree = self.path("tree");
        let _ = fs::remove_dir_all(&tree);
        let to = tree.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, content).unwrap();
        fs::create_dir(tree.join("DEBIAN")).unwrap();
        let depends = if depends.is_empty() { String::new() } else { format!("Depends: {depends}\n") };
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Test <test@example.invalid>\n\
             {depends}Description: made by a test\n"
        );
        fs::write(tree.join("DEBIAN/control"), control).unwrap();
        let deb = self.path(&format!("www/pool/{name}_{version}_amd64.deb"));
        let mut build = Command::new("dpkg-deb");
        build.args(["--root-owner-group", "--build", "-Zgzip"]).arg(&tree).arg(deb).env("SOURCE_DATE_EPOCH", "0");
        run(&mut build);
        self.sign();
    }

    /// Takes a package away, as a mirror does when there is a newer one.
    pub fn remove(&self, name: &str, version: &str) {
        fs::remove_file(self.path(&format!("www/pool/{name}_{version}_amd64.deb"))).unwrap();
        self.sign();
    }

    /// A file of the mirror, to be spoiled.
    pub fn file(&self, below: &str) -> PathBuf {
        self.path("www").join(below)
    }

    /// Writes the lists anew, and signs them.
    pub fn sign(&self) {
        let mut list = String::new();
        let mut names: Vec<_> =
            fs::read_dir(self.path("www/pool")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let deb = self.path("www/pool").join(&name);
            // What is said of a package that is none is its file's name.
            let control = match Command::new("dpkg-deb").arg("--field").arg(&deb).output().unwrap() {
                output if output.status.success() => String::from_utf8(output.stdout).unwrap(),
                _ => {
                    let parts: Vec<_> = name.to_str().unwrap().split('_').collect();
                    format!("Package: {}\nVersion: {}\nArchitecture: amd64\n", parts[0], parts[1])
                }
            };
            let size = fs::metadata(&deb).unwrap().len();
            list += &control;
            list += &format!("Filename: pool/{}\nSize: {size}\nSHA256: {}\n\n", name.display(), sha256(&deb));
        }
        let suite = self.path("www/dists/trixie");
        let packages = suite.join("main/binary-amd64/Packages");
        fs::create_dir_all(packages.parent().unwrap()).unwrap();
        fs::write(&packages, &list).unwrap();
        let date = String::from_utf8(run(Command::new("date").arg("--utc").arg("--rfc-email"))).unwrap();
        let release = format!(
            "Suite: stable\nCodename: trixie\nDate: {date}Architectures: amd64\nComponents: main\nSHA256:\n {} {} \
             main/binary-amd64/Packages\n",
            sha256(&packages),
            list.len()
        );
        fs::write(self.path("Release"), release).unwrap();
        run(self.gpg().arg("--output").arg(suite.join("InRelease")).arg("--clearsign").arg(self.path("Release")));
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // gpg leaves an agent behind, which ends with its folder, but not at once.
        let _ = Command::new("gpgconf").arg("--homedir").arg(self.path("gnupg")).args(["--kill", "all"]).status();
    }
}

fn sha256(path: &Path) -> String {
    let said = String::from_utf8(run(Command::new("sha256sum").arg(path))).unwrap();
    said.split(' ').next().unwrap().to_owned()
}
