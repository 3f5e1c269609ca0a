//! A daemon, and containers in which programs of this folder run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use thaw_client::types::{Container, Event, ExecutionRequest};
use thaw_image::Store;

use crate::support::{ContainerCgroup, Daemon, HostImage, Outcome, PATIENCE};

/// Name of the image with the three programs.
const IMAGE: &str = "neighbours";

/// The daemon, and a pool of the provider `test` for claims.
pub struct Bed {
    pub daemon: Daemon,
    /// The programs of this folder, built.
    pub programs: Vec<PathBuf>,
}

/// A program that runs in a container of its own.
pub struct Running {
    pub execution: String,
    pub container: Container,
    pub cgroup: ContainerCgroup,
}

impl Bed {
    /// `memory_mib` and half a processor for each container.
    pub async fn start(memory_mib: i64) -> Self {
        let mut daemon = Daemon::prepare(|setup| {
            let setup = setup.pool(4).set("image_run.memory_bytes", memory_mib << 20);
            let setup = setup.set("image_run.timeout_seconds", 600).set("execution.max_timeout_ms", 600_000);
            let setup = setup.set("container.ephemeral_bytes", 128 << 20).set("container.ephemeral_inodes", 200_000);
            setup.set("image_run.cpu", 0.5).set("image_run.cpu_burst", 0.5)
        });
        let store = Store::open(&daemon.path("state/images")).unwrap();
        let mut image = HostImage::default();
        let names = ["probe", "storm", "victim"];
        let programs: Vec<_> = names.iter().map(|name| built(name, &daemon.path("."))).collect();
        for (name, program) in names.iter().zip(&programs) {
            image = image.file(&format!("/{name}"), &std::fs::read(program).unwrap());
        }
        image.import(&store, &daemon.path("."), IMAGE);
        drop(store);
        daemon.launch().await;
        daemon.settled().await;
        Self { daemon, programs }
    }

    fn request(argv: &[&str], env: &[(&str, &str)]) -> ExecutionRequest {
        ExecutionRequest {
            image: Some(IMAGE.to_owned()),
            user: "u1".to_owned(),
            command: Some(argv.iter().map(|word| (*word).to_owned()).collect()),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            background: true,
            ..ExecutionRequest::default()
        }
    }

    /// Runs a program to its end.
    pub async fn run(&self, argv: &[&str]) -> Outcome {
        self.daemon.run(&Self::request(argv, &[])).await
    }

    /// Starts a program in a container of its own.
    pub async fn begin(&self, argv: &[&str], env: &[(&str, &str)]) -> Running {
        let execution = self.daemon.client.create(&Self::request(argv, env)).await.unwrap();
        let container = self.daemon.container(execution.container.as_ref().unwrap()).await;
        let cgroup = ContainerCgroup::of(&container);
        Running { execution: execution.id, container, cgroup }
    }

    /// The first line that it writes; none if it ends without.
    pub async fn first_line(&self, running: &Running) -> Option<String> {
        let mut events = self.daemon.client.events(&running.execution, None).await.unwrap();
        let mut text = String::new();
        let read = async {
            while let Some(event) = events.next().await {
                if let Event::Stdout(output) = event.unwrap().1 {
                    text += &output.data;
                }
                if let Some((line, _)) = text.split_once('\n') {
                    return Some(line.to_owned());
                }
            }
            None
        };
        tokio::time::timeout(PATIENCE * 2, read).await.expect("it says something")
    }

    /// Ends it, and waits until nothing is left of it.
    pub async fn end(&self, running: Running) {
        // It may have been killed already.
        let _ = self.daemon.client.cancel(&running.execution).await;
        self.daemon.gone(&running.container).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Ends everything.
    pub async fn stop(self) {
        self.daemon.stop().await;
    }
}

/// A program of this folder, built for this machine and for any image.
fn built(name: &str, scratch: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/neighbours/{name}.c"));
    let program = scratch.join(format!("{name}.built"));
    let mut compiler = Command::new("gcc");
    let status = compiler.args(["-static", "-O1", "-pthread", "-o"]).arg(&program).arg(source).status();
    assert!(status.expect("tests/deps installs gcc").success());
    program
}

/// The names of the kinds that a program knows.
pub async fn kinds(bed: &Bed, program: &str) -> Vec<String> {
    bed.run(&[program]).await.exited(0).text().lines().map(str::to_owned).collect()
}

/// What the kernel and processes of the host use, caches that it can take back left out, bytes.
pub fn host_used() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<i64>().unwrap()
    };
    (kib("MemTotal") - kib("MemFree") - kib("Buffers") - (kib("Cached") - kib("Shmem"))) * 1024
}
