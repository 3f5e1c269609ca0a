//! Tries a manifest's `[prestart]` with the real CLI: starts it in an unpacked image as the daemon would, waits until it
//! is quiet, stops it for a while, claims it, and tells what was asked of the network before the claim and how long the
//! first request took after it.
//!
//! Needs root (mounts, chroot), `unshare` and `nsenter`, and an upstream such as `offline-upstream`. Run it in a network
//! namespace of its own, with `lo` up, to be sure that the recorded proxy is the only way out.
//!
//! `prestart --rootfs DIR --provider providers/openai.toml --upstream 127.0.0.1:8080 --env OPENAI_API_KEY=sk-test`
#![allow(clippy::print_stdout, missing_docs)]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use thaw_client::types::Secret;
use thawd::provider::{
    Provider,
    prestart::{Action, Driver, LateRequest, Plan},
};

#[derive(Debug, Parser)]
struct Args {
    /// Unpacked image.
    #[arg(long)]
    rootfs: PathBuf,
    /// Manifest.
    #[arg(long)]
    provider: PathBuf,
    /// Upstream behind the name `upstream.test`.
    #[arg(long)]
    upstream: SocketAddr,
    /// Credential variable, NAME=VALUE.
    #[arg(long)]
    env: Vec<String>,
    /// Credential file, NAME=PATH.
    #[arg(long)]
    file: Vec<String>,
    #[arg(long)]
    model: Option<String>,
    #[arg(long)]
    effort: Option<String>,
    #[arg(long, default_value = "What is 3*67?")]
    prompt: String,
    /// How long it waits before it is stopped, seconds.
    #[arg(long, default_value_t = 1.0)]
    idle: f64,
    /// How long it is stopped before it is claimed, seconds.
    #[arg(long, default_value_t = 1.0)]
    stopped: f64,
    /// Print what goes to and fro; credentials among it.
    #[arg(long)]
    verbose: bool,
}

/// When each connection was asked for, and its first line.
type Asked = Arc<Mutex<Vec<(Instant, String)>>>;

/// A proxy that connects everything to the upstream, and remembers.
fn proxy(upstream: SocketAddr) -> Result<(SocketAddr, Asked)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, asked) = (listener.local_addr()?, Asked::default());
    let record = asked.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let record = record.clone();
            std::thread::spawn(move || forward(client, upstream, &record));
        }
    });
    Ok((address, asked))
}

fn forward(mut client: TcpStream, upstream: SocketAddr, asked: &Asked) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut head = vec![0; 64 * 1024];
    let length = client.read(&mut head)?;
    let line = String::from_utf8_lossy(&head[..length]).lines().next().unwrap_or_default().to_owned();
    asked.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), line.clone()));
    if !line.contains("upstream.test") {
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
    }
    let mut server = TcpStream::connect(upstream)?;
    server.set_nodelay(true)?;
    if line.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    } else {
        server.write_all(&head[..length])?;
    }
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        to.shutdown(std::net::Shutdown::Both)
    });
    std::io::copy(&mut client, &mut server).map(|_| ())
}

/// The image read-only, home and `/tmp` writable, uid 1000. The mount point of the credentials exists.
const ENTER: &str = r#"
set -e; root=$1 home=$2 dir=$3; shift 3
mount --make-rprivate /; mount --rbind "$root" /mnt; mount -o remount,ro,bind /mnt; mount -t proc proc /mnt/proc
mount -t tmpfs -o size=100m,uid=1000,gid=1000,mode=700 tmpfs "/mnt$home"; mount -t tmpfs -o mode=1777 tmpfs /mnt/tmp
mount --rbind /dev /mnt/dev; mkdir -m 700 "/mnt$home/$dir"; chown 1000:1000 "/mnt$home/$dir"
exec chroot --userspec=1000:1000 --groups= /mnt /bin/sh -c 'cd "$1"; shift; exec "$@"' sh "$home" "$@"
"#;

fn spawn(args: &Args, provider: &Provider, plan: &Plan, proxy: SocketAddr) -> Result<Child> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]);
    command.arg(&args.rootfs).args([&provider.home, &provider.credentials.dir]).args(&plan.argv);
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", &provider.home).env("USER", "runtime").env("LANG", "C.UTF-8").env("TMPDIR", "/tmp");
    command.envs(plan.env.iter().map(|(name, value)| (name, value)));
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env(name, format!("http://{proxy}"));
    }
    command.env("NODE_USE_ENV_PROXY", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().context("cannot run unshare; util-linux has it")
}

/// The process that `unshare` forked: PID 1 of the namespace, which has become the CLI.
fn inner(child: &Child) -> Result<String> {
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    Ok(std::fs::read_to_string(&path)?.trim().to_owned())
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status()?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

fn pairs(list: &[String], read: impl Fn(&str) -> Result<String>) -> Result<BTreeMap<String, Secret>> {
    let pair = |item: &String| -> Result<(String, Secret)> {
        let (name, value) = item.split_once('=').context("wanted NAME=VALUE")?;
        Ok((name.to_owned(), Secret::new(read(value)?)))
    };
    list.iter().map(pair).collect()
}

/// Its memory, MiB: proportional set and the anonymous part of it.
fn memory(pid: &str) -> Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Ok((field("Pss:").unwrap_or(0) / 1024, field("Pss_Anon:").unwrap_or(0) / 1024))
}

fn main() -> Result<()> {
    let args = Args::parse();
    let provider: Provider = toml::from_str(&std::fs::read_to_string(&args.provider)?)?;
    provider.validate()?;
    let base_url = format!("http://upstream.test:{}", args.upstream.port());
    // A pool holds the default model; that of the request comes late, or is refused.
    let plan = provider.prestart(None, Some(&base_url))?.context("the manifest has no [prestart]")?;
    let (proxy, asked) = proxy(args.upstream)?;
    let asked = || asked.lock().unwrap_or_else(PoisonError::into_inner).clone();

    let start = Instant::now();
    let mut child = spawn(&args, &provider, &plan, proxy)?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let (send, output) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = stdout.read(&mut buffer) {
            if send.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let quiet = plan.quiet;
    let mut driver = Driver::new(Arc::new(plan));
    let show = |arrow: &str, bytes: &[u8]| {
        if args.verbose {
            println!("{:8.3} {arrow} {}", start.elapsed().as_secs_f64(), String::from_utf8_lossy(bytes).trim_end());
        }
    };
    let first = driver.start();
    show(">>", &first);
    stdin.write_all(&first)?;
    while !driver.is_ready() {
        let bytes = output.recv_timeout(driver.plan().ready_timeout).context("it did not get ready")?;
        show("<<", &bytes);
        for action in driver.on_stdout(&bytes) {
            match action {
                Action::Write(input) => {
                    show(">>", &input);
                    stdin.write_all(&input)?;
                }
                Action::Ready => println!("ready after {:.0} ms", start.elapsed().as_secs_f64() * 1e3),
                other => bail!("{other:?}"),
            }
        }
    }
    while let Ok(bytes) = output.recv_timeout(quiet) {
        show("<<", &bytes);
        driver.on_stdout(&bytes);
    }
    std::thread::sleep(Duration::from_secs_f64(args.idle));
    let pid = inner(&child)?;
    let (pss, anonymous) = memory(&pid)?;
    println!("waits with {pss} MiB, {anonymous} of them anonymous");
    run("kill", &["-STOP", &pid])?;
    std::thread::sleep(Duration::from_secs_f64(args.stopped));
    println!("asked of the network before the claim: {:?}", asked());

    let none = BTreeMap::new();
    let files = pairs(&args.file, |path| Ok(std::fs::read_to_string(path)?))?;
    let variables = pairs(&args.env, |value| Ok(value.to_owned()))?;
    let model = args.model.clone().unwrap_or_else(|| driver.plan().model.clone());
    let request = LateRequest {
        prompt: &args.prompt,
        model: &model,
        effort: args.effort.as_deref(),
        cwd: None,
        files: &files,
        variables: &variables,
        env: &none,
        now: SystemTime::now(),
    };
    let claimed = Instant::now();
    driver.can_take(&request)?;
    if driver.plan().mounts_files(&request) {
        let directory = format!("/mnt{}/{}", provider.home, provider.credentials.dir);
        for (name, content) in &files {
            let script = "mount -t tmpfs -o size=16m,mode=700,uid=1000,gid=1000 tmpfs \"$1\"; umask 77; cat > \"$1/$2\"; chown 1000:1000 \"$1/$2\"";
            let mut shell = Command::new("nsenter")
                .args(["--mount", "--target", &pid, "sh", "-c", script, "sh", &directory, name])
                .stdin(Stdio::piped())
                .spawn()?;
            shell.stdin.take().context("no stdin")?.write_all(content.expose().as_bytes())?;
            ensure!(shell.wait()?.success(), "cannot mount the credential file");
        }
        println!("files mounted after {:.1} ms (by a shell; not counted)", claimed.elapsed().as_secs_f64() * 1e3);
    }
    let claimed = Instant::now();
    let input = driver.claim(&request)?;
    show(">>", &input);
    stdin.write_all(&input)?;
    run("kill", &["-CONT", &pid])?;
    let since = |at: Instant| at.duration_since(claimed).as_secs_f64() * 1e3;
    let mut text = String::new();
    let mut dialogue = driver.into_dialogue();
    let end = loop {
        let Ok(bytes) = output.recv_timeout(Duration::from_secs(30)) else { break dialogue.finish() };
        show("<<", &bytes);
        let mut over = None;
        for action in dialogue.on_stdout(&bytes) {
            match action {
                Action::Write(input) => {
                    show(">>", &input);
                    stdin.write_all(&input)?;
                }
                Action::Delta(delta) => {
                    if text.is_empty() {
                        println!("first piece after {:.1} ms", since(Instant::now()));
                    }
                    text.push_str(&delta);
                }
                Action::Done(verdict) => over = Some(verdict),
                Action::Failed(reason) => bail!(reason),
                Action::Ready => {}
            }
        }
        if let Some(verdict) = over {
            println!("done after {:.1} ms, wants renewal: {}", since(Instant::now()), dialogue.wants_renewal());
            break verdict;
        }
    };
    for (at, line) in asked() {
        println!("{:8.1} ms {line}", since(at));
    }
    println!("{text:?} {end:?}");
    child.kill()?;
    child.wait()?;
    Ok(())
}
