//! `thawctl bundle`: crun and runc start what thawd's own containers are, but for what `docs/bundle.md` lists.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command as Program, Stdio};

use base64::Engine;
use thawd::container::Command;

use crate::house::{Address, House, Run, script};
use crate::support::{self, Value, programs};

/// What a container prints about itself.
const PROBE: &str = r#"
echo "ids $(id)"; echo "umask $(umask)"; echo "files $(ulimit -n) $(ulimit -Hn)"
grep -E '^(Cap...|NoNewPrivs|Seccomp|Groups):' /proc/self/status
grep -E '^Max (core|open)' /proc/self/limits
echo "oom $(cat /proc/self/oom_score_adj)"
echo "uids $(awk '{print $1, $3}' /proc/self/uid_map)"; echo "gids $(awk '{print $1, $3}' /proc/self/gid_map)"
echo "interfaces $(awk 'NR > 2 {print $1}' /proc/net/dev)"
for name in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/core/somaxconn net/ipv4/tcp_rmem; do
  echo "setting $name $(cat /proc/sys/$name)"
done
echo "devices $(ls /dev | sort | tr '\n' ' ')"; echo "terminals $(ls /dev/pts)"
for path in / /etc /dev /proc /tmp /dev/shm "$HOME"; do touch $path/probe 2> /dev/null && echo "writable $path"; done
for file in sys/kernel/hostname sysrq-trigger irq/default_smp_affinity; do
  [ -e /proc/$file ] && { (echo 1 > /proc/$file) 2> /dev/null && echo "wrote $file" || echo "read-only $file"; }
done
for name in kcore keys timer_list interrupts; do [ -e /proc/$name ] && echo "masked $name $(head -c 1 /proc/$name | wc -c)"; done
echo "owner $(stat -c '%u:%g %a' /usr/bin/busybox)"; echo "home $HOME $(stat -c '%u:%g %a' $HOME)"
df -k /tmp | awk 'NR == 2 {print "size", $2}'
for pid in 1 $(ls /proc | grep '^[0-9]*$'); do [ -e /proc/$pid ] && echo "sees $(stat -c %u /proc/$pid)"; done | sort -u
sed 's/bundle/NAME/; s/c-[0-9a-z]*/NAME/' /etc/hosts /etc/hostname
awk '{print "mount", $2}' /proc/self/mounts | sort -u
for option in nosuid nodev noexec ro; do
  echo "$option $(awk -v o=$option '$2 ~ "^/(tmp|dev|dev/shm|dev/pts|proc|home/runtime)$" {last[$2] = $4} \
    END {for (at in last) if (("," last[at] ",") ~ ("," o ",")) print at}' /proc/self/mounts | sort | tr '\n' ' ')"
done
"#;

/// Mounts of thawd's own containers alone: what they say of the machine.
const OWN_MOUNTS: [&str; 5] = ["/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys", "/sys/fs/cgroup"];

/// Devices, which are mounts of their own where a runtime binds the host's.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Runs a runtime, whatever control groups the host has: crun refuses hosts where v1 controllers lie beside v2, and takes
/// them for v1 where it does not see the latter.
const START: &str = "if [ -e /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi; exec \"$@\"";

fn n(number: i32) -> Value {
    number.into()
}

/// System calls of which the filter allows some.
fn calls() -> support::Program {
    let mut program = support::Program::default();
    let path = || Value::Data(b"/\0".to_vec());
    for (number, arguments) in [
        (libc::SYS_unshare, vec![n(libc::CLONE_NEWUSER)]),
        (libc::SYS_ptrace, vec![n(0), n(0), n(0), n(0)]),
        (libc::SYS_keyctl, vec![n(0), n(-3), n(0)]),
        (libc::SYS_bpf, vec![n(0), n(0), n(0)]),
        (libc::SYS_clone3, vec![n(0), n(0)]),
        (libc::SYS_socket, vec![n(libc::AF_UNIX), n(libc::SOCK_STREAM), n(0)]),
        (libc::SYS_socket, vec![n(libc::AF_INET), n(libc::SOCK_STREAM | libc::SOCK_CLOEXEC), n(0)]),
        (libc::SYS_socket, vec![n(libc::AF_VSOCK), n(libc::SOCK_STREAM), n(0)]),
        (libc::SYS_socket, vec![n(libc::AF_NETLINK), n(libc::SOCK_RAW), n(0)]),
        (libc::SYS_socket, vec![n(libc::AF_NETLINK), n(libc::SOCK_RAW), n(12)]),
        (libc::SYS_ioctl, vec![n(-1), Value::Number(libc::TIOCGWINSZ), n(0)]),
        (libc::SYS_fcntl, vec![n(0), n(libc::F_GETFD)]),
        (libc::SYS_personality, vec![n(-1)]),
        (libc::SYS_personality, vec![n(0x0040_0000)]),
        (libc::SYS_mount, vec![path(), path(), path(), n(0), n(0)]),
        (libc::SYS_io_uring_setup, vec![n(1), n(0)]),
        (libc::SYS_clone, vec![n(libc::CLONE_NEWNET), n(0), n(0), n(0), n(0)]),
        (libc::SYS_setgroups, vec![n(0), n(0)]),
        (libc::SYS_prlimit64, vec![n(0), n(libc::RLIMIT_CORE as i32), Value::Data(vec![0xff; 16]), n(0)]),
    ] {
        program.call(number, &arguments);
    }
    program
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

/// Runs a bundle to its end.
fn start(runtime: &str, bundle: &Path, root: &Path) -> String {
    let id = format!("thawd-test-{}-{runtime}", std::process::id());
    let output = Program::new("unshare")
        .args(["--mount", "sh", "-c", START, "sh", runtime, "--root"])
        .arg(root.join(runtime))
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(&id)
        // A pipe: this crun gives the file at its standard input to the user of the command, /dev/null of the host too.
        .stdin(Stdio::piped())
        .output()
        .unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{runtime}: {} {errors}\n{text}", output.status);
    text.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn other_runtimes_start_the_same_container() {
    let (dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let program = calls();
    let file = base64::engine::general_purpose::STANDARD.encode(program.elf());
    let probe = format!(
        "{PROBE}\necho {file} | base64 -d > /tmp/program; chmod 700 /tmp/program; /tmp/program | xxd -p -c 8 | \
         awk '{{print \"call\", NR, $1}}'"
    );
    let mut command: Command = script(&probe);
    command.env.push(("HOME".to_owned(), "/home/runtime".to_owned()));
    let ended = Run::start(&sandbox, &command).await.ended().await;
    let mut ours = lines(&ended.stdout);
    assert!(ours.len() > 60 && ours.iter().any(|line| line.starts_with("call 19 ")), "{ended:?}");
    ours.retain(|line| !OWN_MOUNTS.iter().any(|own| line == &format!("mount {own}")));

    let config = dir.path().join("thawd.toml");
    std::fs::write(&config, "[container]\nopen_files = 512\nephemeral_bytes = 67108864\nephemeral_inodes = 4096\n")
        .unwrap();
    // Runtimes look for the files of a bundle as root of the container.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let bundle = dir.path().join("bundle");
    let made = Program::new(programs::thawctl())
        .env("THAWD_CONFIG", &config)
        .arg("bundle")
        .args(["test".as_ref(), bundle.as_os_str(), "--store".as_ref(), dir.path().join("images").as_os_str()])
        .args(["--", "sh", "-c", &probe])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for runtime in ["crun", "runc"] {
        // runc makes a link /dev/core, which leads to what is masked; both bind the host's devices.
        let theirs = start(runtime, &bundle, dir.path());
        let theirs = theirs.lines().filter(|line| !DEVICES.iter().any(|name| *line == format!("mount /dev/{name}")));
        let theirs: BTreeSet<_> = theirs
            .map(|line| match line.strip_prefix("devices ") {
                Some(names) => format!("devices {}", names.replace("core ", "")),
                None => line.to_owned(),
            })
            .collect();
        let only_ours: Vec<_> = ours.difference(&theirs).collect();
        let only_theirs: Vec<_> = theirs.difference(&ours).collect();
        assert!(
            only_ours.is_empty() && only_theirs.is_empty(),
            "{runtime}: {only_theirs:#?} instead of {only_ours:#?}"
        );
    }
    drop(sandbox);
    house.close().await;
}
