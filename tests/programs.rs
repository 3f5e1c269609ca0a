//! Programs of other people's in a container: what Node, glibc, musl and Python make of what they find.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::process::Command;

use support::{Daemon, HostImage, Outcome};
use thaw_client::types::{ExecutionRequest, ExitReason};
use thaw_image::Store;

const MIB: i64 = 1 << 20;

async fn run(daemon: &Daemon, image: &str, argv: &[&str]) -> Outcome {
    let command = argv.iter().map(|word| (*word).to_owned()).collect();
    let request = ExecutionRequest {
        image: Some(image.to_owned()),
        user: "u1".to_owned(),
        command: Some(command),
        ..ExecutionRequest::default()
    };
    daemon.run(&request).await
}

/// A daemon with an image of these programs of this machine.
async fn with(image: HostImage, memory_mib: i64) -> Daemon {
    let mut daemon = Daemon::prepare(|setup| {
        let setup = setup.pool(0).set("image_run.memory_bytes", memory_mib * MIB);
        setup.set("image_run.cpu", 1.0).set("image_run.cpu_burst", 1.0)
    });
    let store = Store::open(&daemon.path("state/images")).unwrap();
    image.import(&store, &daemon.path("."), "host");
    drop(store);
    daemon.launch().await;
    daemon
}

#[tokio::test]
async fn node_collects_before_it_is_killed_and_counts_what_it_has() {
    let daemon = with(HostImage::default().program("/usr/bin/node").file("/etc/hosts", b""), 512).await;
    let node = async |script: &str| run(&daemon, "host", &["/usr/bin/node", "-e", script]).await;

    let script = "const os=require('os'),v8=require('v8');console.log(JSON.stringify([\
                  v8.getHeapStatistics().heap_size_limit>>20,os.totalmem()>>20,os.cpus().length,os.availableParallelism()]))";
    let outcome = node(script).await.exited(0);
    let seen: Vec<u64> = serde_json::from_str(outcome.text()).unwrap();
    assert!((384..480).contains(&seen[0]), "below the limit, and not by half: {seen:?}");
    assert_eq!(seen[1..], [512, 1, 1], "memory and processors");

    // 4 GB of garbage, and 300 MB that live.
    let garbage = "let a;for(let i=0;i<2e3;i++)a=Buffer.alloc(1e6).toString('hex');console.log('done')";
    assert_eq!(node(garbage).await.exited(0).text(), "done\n");
    let alive = "const a=[];for(let i=0;i<300;i++)a.push(new Array(131072).fill(i));console.log(a.length)";
    assert_eq!(node(alive).await.exited(0).text(), "300\n");
    // A leak ends with what V8 says of it, not with a kill that says nothing.
    let leak = node("const a=[];for(;;)a.push(new Array(1e4).fill(a.length))").await;
    assert_eq!(leak.exit.signal, Some(libc::SIGABRT), "{:?}", leak.exit);
    assert_ne!(leak.exit.reason, ExitReason::Oom);
    assert!(leak.errors().contains("heap out of memory"), "{}", leak.errors());

    let own = "const s=require('http').createServer((q,r)=>r.end('ok')).listen(80,'localhost',async()=>{\
               for(const h of ['localhost','127.0.0.1'])try{console.log(await(await fetch('http://'+h+':80')).text())}\
               catch(e){console.log(h,e.cause.code)}s.close()})";
    let outcome = node(own).await.exited(0);
    assert!(outcome.text().contains("ok"), "a server of its own: {}", outcome.text());
    daemon.stop().await;
}

#[tokio::test]
async fn node_asks_for_the_networks_as_often_as_it_likes() {
    // Each time by a netlink socket, of which a container may have few at a time.
    let daemon = with(HostImage::default().program("/usr/bin/node").file("/etc/hosts", b""), 512).await;
    let script =
        "const os=require('os');let n;for(let i=0;i<300;i++)n=os.networkInterfaces();console.log(n.lo[0].address)";
    assert_eq!(run(&daemon, "host", &["/usr/bin/node", "-e", script]).await.exited(0).text(), "127.0.0.1\n");
    let script = "const s=require('dgram').createSocket('udp4');s.bind(0,()=>{s.setRecvBufferSize(1<<20);\
                  console.log(s.getRecvBufferSize()>0);s.close()})";
    assert_eq!(run(&daemon, "host", &["/usr/bin/node", "-e", script]).await.exited(0).text(), "true\n");
    daemon.stop().await;
}

#[tokio::test]
async fn variables_of_the_image_and_the_request_go_before_the_size_of_the_heap() {
    let image = HostImage::default().program("/usr/bin/node").env("NODE_OPTIONS=--max-old-space-size=100");
    let daemon = with(image, 512).await;
    let argv = ["/usr/bin/node", "-p", "v8.getHeapStatistics().heap_size_limit>>20"];
    let limit: u64 = run(&daemon, "host", &argv).await.exited(0).text().trim().parse().unwrap();
    assert!((100..200).contains(&limit), "{limit}");
    daemon.stop().await;
}

#[tokio::test]
async fn glibc_and_its_programs_see_the_limits_and_know_localhost() {
    let image = ["/usr/bin/free", "/usr/bin/nproc", "/usr/bin/getconf", "/usr/bin/getent", "/bin/sh"]
        .into_iter()
        .fold(HostImage::default(), HostImage::program)
        .file("/etc/hosts", b"10.1.2.3 localhost\n")
        .file("/etc/resolv.conf", b"nameserver 10.1.2.3\n");
    let daemon = with(image, 512).await;
    let script = "free -m; nproc; getconf _NPROCESSORS_ONLN; getent ahosts localhost; getent ahosts $HOSTNAME; \
                  getent ahosts example.com || echo none";
    let outcome = run(&daemon, "host", &["/bin/sh", "-c", script]).await.exited(0);
    let lines: Vec<Vec<&str>> = outcome.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1][..2], ["Mem:", "512"], "{}", outcome.text());
    assert_eq!((lines[3][0], lines[4][0]), ("1", "1"), "{}", outcome.text());
    let addresses: Vec<&str> = lines[5..].iter().map(|words| words[0]).collect();
    assert!(addresses.contains(&"127.0.0.1") && !addresses.contains(&"10.1.2.3"), "{}", outcome.text());
    assert_eq!(addresses.last(), Some(&"none"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_log_file_that_leads_to_standard_output_is_one_for_root_and_for_others() {
    // As in the images of nginx and httpd.
    let image = HostImage::default().program("/bin/busybox").program("/bin/sh");
    let daemon = with(image, 64).await;
    let script = "/bin/busybox ln -s /dev/stdout /tmp/access.log; /bin/busybox ln -s /dev/stderr /tmp/error.log; \
                  echo hi >> /tmp/access.log; echo ho > /tmp/error.log; /bin/busybox id -u";
    let outcome = run(&daemon, "host", &["/bin/sh", "-c", script]).await.exited(0);
    assert_eq!((outcome.text(), outcome.errors()), ("hi\n0\n", "ho\n"));
    daemon.stop().await;
}

#[tokio::test]
async fn names_under_musl_fail_at_once() {
    // musl waits for 5 s where glibc sees that nobody listens.
    let scratch = tempfile::tempdir().unwrap();
    let (source, program) = (scratch.path().join("names.c"), scratch.path().join("names"));
    let code = r#"
        #include <netdb.h>
        #include <stdio.h>
        #include <time.h>
        int main(int count, char **names) {
            for (int i = 1; i < count; i++) {
                struct timespec a, b;
                struct addrinfo *found = 0;
                clock_gettime(CLOCK_MONOTONIC, &a);
                int failed = getaddrinfo(names[i], "80", 0, &found) != 0;
                clock_gettime(CLOCK_MONOTONIC, &b);
                printf("%d %ld\n", failed, (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000);
            }
        }"#;
    std::fs::write(&source, code).unwrap();
    let built = Command::new("musl-gcc").args(["-static", "-o"]).arg(&program).arg(&source).status();
    assert!(built.expect("tests/deps installs it").success());
    let program = std::fs::read(program).unwrap();
    let image = HostImage::default().file("/names", &program).file("/etc/hosts", b"").file("/etc/resolv.conf", b"");
    let daemon = with(image, 64).await;
    let outcome = run(&daemon, "host", &["/names", "localhost", "example.com", "a.b.c.example"]).await.exited(0);
    let results: Vec<Vec<u64>> =
        outcome.text().lines().map(|line| line.split(' ').map(|word| word.parse().unwrap()).collect()).collect();
    assert_eq!(results.iter().map(|result| result[0]).collect::<Vec<_>>(), [0, 1, 1], "{}", outcome.text());
    assert!(results.iter().all(|result| result[1] < 200), "milliseconds: {}", outcome.text());
    daemon.stop().await;
}

#[tokio::test]
async fn python_counts_the_processors_that_it_may_use() {
    let version = Command::new("/usr/bin/python3").args(["-c", "import os; print(os.__file__)"]).output().unwrap();
    let library = String::from_utf8(version.stdout).unwrap().trim().trim_end_matches("/os.py").to_owned();
    let image = ["", "/encodings", "/collections", "/re"]
        .into_iter()
        .fold(HostImage::default().program("/usr/bin/python3"), |image, part| {
            image.folder(&format!("{library}{part}"))
        });
    let daemon = with(image, 128).await;
    let script = "import os; print(os.cpu_count(), len(os.sched_getaffinity(0)))";
    let outcome = run(&daemon, "host", &["/usr/bin/python3", "-S", "-c", script]).await.exited(0);
    assert_eq!(outcome.text(), "1 1\n");
    daemon.stop().await;
}

/// A Go program that tells its number of processors; nothing more goes into the image.
const GO: &str = "package main\n\nimport (\n\t\"fmt\"\n\t\"runtime\"\n)\n\n\
                  func main() { fmt.Println(runtime.NumCPU(), runtime.GOMAXPROCS(0)) }\n";

#[tokio::test]
#[ignore = "needs Go: make test-runtimes"]
async fn go_counts_the_processors_that_it_may_use() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("main.go"), GO).unwrap();
    let built = Command::new("go")
        .args(["build", "-o", "tell", "main.go"])
        .current_dir(folder.path())
        .envs([("CGO_ENABLED", "0"), ("GO111MODULE", "off"), ("HOME", "/nowhere")])
        .env("GOCACHE", folder.path().join("cache"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let program = std::fs::read(folder.path().join("tell")).unwrap();
    let daemon = with(HostImage::default().file("/tell", &program), 128).await;
    assert_eq!(run(&daemon, "host", &["/tell"]).await.exited(0).text(), "1 1\n");
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "needs Java: make test-runtimes"]
async fn java_counts_the_processors_that_it_may_use() {
    let java = std::fs::canonicalize("/usr/bin/java").unwrap();
    let home = java.parent().unwrap().parent().unwrap();
    let under = |part: &str| home.join(part).to_str().unwrap().to_owned();
    // Programs and libraries; what the Debian package links to in /etc has to be there as well.
    let mut image = HostImage::default().program(java.to_str().unwrap());
    for part in ["lib", "lib/server", "conf", "conf/security"] {
        image = image.folder(&under(part));
    }
    for library in std::fs::read_dir(under("lib")).unwrap().map(|entry| entry.unwrap().path()) {
        if library.extension().is_some_and(|extension| extension == "so") {
            image = image.program(library.to_str().unwrap());
        }
    }
    let daemon = with(image.program(&under("lib/server/libjvm.so")), 512).await;
    let outcome = run(&daemon, "host", &[java.to_str().unwrap(), "-XshowSettings:system", "-version"]).await.exited(0);
    let told = format!("{}{}", outcome.text(), outcome.errors());
    let processors = told.lines().find(|line| line.contains("Effective CPU Count"));
    // A JVM that finds no control group it knows tells the number with its version alone.
    match processors {
        Some(line) => assert!(line.ends_with(": 1"), "{told}"),
        None => assert!(told.contains("No metrics available"), "{told}"),
    }
    let flags = run(&daemon, "host", &[java.to_str().unwrap(), "-XX:+PrintFlagsFinal", "-version"]).await.exited(0);
    let flag = |name: &str| {
        let line = flags.text().lines().find(|line| line.split_whitespace().nth(1) == Some(name)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {name}: {}", flags.text()))
    };
    // One processor, so it takes the collector for one.
    assert!(flag("UseSerialGC").contains("= true"), "{}", flag("UseSerialGC"));
    daemon.stop().await;
}
