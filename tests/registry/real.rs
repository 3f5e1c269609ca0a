//! Debian's `docker-registry`, started on a free port of loopback and ended by its process id.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::digest;

/// `perl -e 'print crypt("correct horse", q{$2b$05$abcdefghijklmnopqrstuu})'`: the registry knows bcrypt only.
const HTPASSWD: &str = "jane:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n";
/// Password of `jane`.
pub const PASSWORD: &str = "correct horse";

/// A registry with a folder of its own.
pub struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl Registry {
    /// One that lets everybody in.
    pub fn open() -> Self {
        Self::start("")
    }

    /// One that lets `jane` in.
    pub fn with_password() -> Self {
        Self::start("auth:\n  htpasswd:\n    realm: test\n    path: FOLDER/htpasswd\n")
    }

    /// One that lets everybody in who believes its certificate authority, which [`Registry::authority`] has.
    pub fn with_tls() -> Self {
        Self::start("  tls:\n    certificate: FOLDER/server.crt\n    key: FOLDER/server.key\n")
    }

    /// The certificate authority of its own, in PEM form.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
        if more.contains("tls:") {
            make_certificates(folder.path());
        }
        // Somebody else may take the port between our look and its start.
        for _ in 0..5 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
            let config = format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
                rootdirectory: FOLDER/data\nhttp:\n  addr: {address}\n{more}"
            );
            let path = folder.path().join("config.yml");
            std::fs::write(&path, config.replace("FOLDER", place)).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&path)
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
                .spawn()
                .expect("docker-registry is missing: run tests/deps");
            let begun = Instant::now();
            while child.try_wait().unwrap().is_none() {
                if TcpStream::connect(&address).is_ok() {
                    return Registry { child, folder, address };
                }
                if begun.elapsed() > Duration::from_secs(30) {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("the registry did not start: {}", std::fs::read_to_string(folder.path().join("log")).unwrap());
    }

    /// Where it keeps the content of a blob.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.folder.path().join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// Puts a document under a name, as a tool of its own would. Returns its digest.
    pub async fn put_manifest(&self, repository: &str, name: &str, media_type: &str, bytes: &[u8]) -> String {
        let http = reqwest::Client::builder();
        let http = http.tls_backend_preconfigured(thaw_client::tls::client_config().unwrap()).build().unwrap();
        let url = format!("http://{}/v2/{repository}/manifests/{name}", self.address);
        let response = http.put(url).header("content-type", media_type).body(bytes.to_vec()).send().await.unwrap();
        let status = response.status();
        assert_eq!(status, 201, "{}", response.text().await.unwrap());
        digest(bytes)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an authority (`ca.crt`) and a server of 127.0.0.1 that it vouches for (`server.crt`, `server.key`).
fn make_certificates(folder: &Path) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(folder).output();
        let output = output.expect("openssl is missing: run tests/deps");
        assert!(output.status.success(), "{output:?}");
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let authority =
        ["req", "-x509", "-days", "2", "-subj", "/CN=thawd test authority", "-keyout", "ca.key", "-out", "ca.crt"];
    openssl(&[&authority[..], &key[..]].concat());
    openssl(&[&["req", "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"], &key[..]].concat());
    std::fs::write(folder.join("extensions"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let sign =
        ["x509", "-req", "-days", "2", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(&[&sign[..], &["-extfile", "extensions", "-out", "server.crt"]].concat());
}

/// Writes a configuration of docker that knows `jane` at `registry`, and returns its folder.
pub fn docker_config(folder: &Path, registry: &str) -> PathBuf {
    let auth = super::basic("jane", PASSWORD);
    let auth = auth.strip_prefix("Basic ").unwrap();
    let config = serde_json::json!({"auths": {registry: {"auth": auth}}});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder.to_owned()
}
