//! What thawd needs of the control groups: v2 for freezing and killing, and the controllers in v2 or v1.

use super::{Check, Host, Status, kernel};

/// Controllers that carry the limits of a container.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// Files of a cgroup that thawd freezes and ends containers with.
const FILES: [&str; 2] = ["cgroup.freeze", "cgroup.kill"];

/// Where cgroups are mounted.
#[derive(Debug, Default)]
struct Mounts {
    /// Mount point of cgroup v2.
    v2: Option<String>,
    /// Options and mount point of each v1 hierarchy.
    v1: Vec<(String, String)>,
}

pub(super) fn checks(host: &Host, release: &str) -> Vec<Check> {
    let mounts = parse_mounts(&host.read("/proc/self/mountinfo").unwrap_or_default());
    let mut checks = vec![layout(&mounts), files(host, &mounts, release), peak(&mounts, release)];
    checks.extend(CONTROLLERS.map(|name| controller(host, &mounts, name)));
    checks
}

/// Reads `/proc/self/mountinfo`: field 5 is the mount point; after ` - ` come type, source and options (proc(5)).
fn parse_mounts(mountinfo: &str) -> Mounts {
    let mut mounts = Mounts::default();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(point) = before.split(' ').nth(4) else { continue };
        let mut after = after.split(' ');
        match (after.next(), after.nth(1)) {
            // Only below /sys/fs/cgroup, and the first one counts: others are views, such as those in containers.
            (Some("cgroup2"), _) if point.starts_with("/sys/fs/cgroup") => {
                mounts.v2.get_or_insert_with(|| point.to_owned());
            }
            (Some("cgroup"), Some(options)) => mounts.v1.push((options.to_owned(), point.to_owned())),
            _ => {}
        }
    }
    mounts
}

fn layout(mounts: &Mounts) -> Check {
    let (status, found) = match (&mounts.v2, mounts.v1.is_empty()) {
        (Some(point), true) => (Status::Ok, format!("v2 at {point}")),
        (Some(point), false) => (Status::Ok, format!("hybrid: v1 controllers, v2 at {point}")),
        (None, true) => (Status::Fail, "no cgroups mounted".to_owned()),
        (None, false) => (Status::Fail, "only cgroup v1".to_owned()),
    };
    let fix = "Boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup/unified.";
    Check::new("cgroup v2", status, found, fix)
}

/// The root cgroup lacks these files, so they are looked for in our own cgroup, else in any one below the root; where
/// there is none yet, the kernel's version tells.
fn files(host: &Host, mounts: &Mounts, release: &str) -> Check {
    let (status, found) = match mounts.v2.as_ref().map(|point| (point, sample_cgroup(host, point))) {
        None => (Status::Fail, "no cgroup v2".to_owned()),
        Some((_, None)) => (kernel::version(release).status, format!("no cgroup to look at; kernel {release}")),
        Some((_, Some(cgroup))) => {
            let missing: Vec<_> =
                FILES.into_iter().filter(|file| !host.path(&format!("{cgroup}/{file}")).exists()).collect();
            if missing.is_empty() {
                (Status::Ok, FILES.join(", "))
            } else {
                (Status::Fail, format!("{cgroup} lacks {}", missing.join(", ")))
            }
        }
    };
    Check::new("cgroup freeze and kill", status, found, "Use a kernel of 5.14 or later with CONFIG_CGROUPS.")
}

/// Only for what is told of executions: nothing breaks without it.
fn peak(mounts: &Mounts, release: &str) -> Check {
    let (status, found) = match kernel::parse_release(release) {
        _ if !mounts.v1.is_empty() => (Status::Ok, "v1 has it"),
        Some(version) if version >= (6, 12) => (Status::Ok, "from the claim on"),
        Some(version) if version >= (5, 19) => (Status::Ok, "the container's creation included, before Linux 6.12"),
        _ => (Status::Warn, "not in this kernel: what is charged at the end stands for it"),
    };
    Check::new("memory peak of executions", status, found, "Use a kernel of 5.19 or later, best of 6.12 or later.")
}

fn sample_cgroup(host: &Host, point: &str) -> Option<String> {
    let own = host.read("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    // Outside of our cgroup namespace the path starts with `/..` and cannot be looked up.
    if own != "/" && !own.starts_with("/..") && host.path(&format!("{point}{own}")).is_dir() {
        return Some(format!("{point}{own}"));
    }
    let entries = std::fs::read_dir(host.path(point)).ok()?;
    let mut folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.next().map(|folder| format!("{point}/{}", folder.file_name().to_string_lossy()))
}

fn controller(host: &Host, mounts: &Mounts, name: &str) -> Check {
    let in_v2 = mounts.v2.as_ref().filter(|point| {
        let controllers = host.read(&format!("{point}/cgroup.controllers")).unwrap_or_default();
        controllers.split_whitespace().any(|controller| controller == name)
    });
    let in_v1 = mounts.v1.iter().find(|(options, _)| options.split(',').any(|option| option == name));
    let (status, found) = match (in_v2, in_v1) {
        (Some(point), _) => (Status::Ok, format!("v2 at {point}")),
        (None, Some((_, point))) => (Status::Ok, format!("v1 at {point}")),
        (None, None) => (Status::Fail, "in neither v2 nor v1".to_owned()),
    };
    let fix = match name {
        "memory" => "Boot with cgroup_enable=memory, and without cgroup_disable=memory.",
        "cpu" => "Use a kernel built with CONFIG_CFS_BANDWIDTH, booted without cgroup_disable=cpu.",
        _ => "Use a kernel built with CONFIG_CGROUP_PIDS, booted without cgroup_disable=pids.",
    };
    Check::new(&format!("cgroup controller {name}"), status, found, fix)
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    const PURE: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
31 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    fn by_name<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn pure_v2_is_enough() {
        let (_dir, host) = host(&[
            ("/proc/self/mountinfo", PURE),
            ("/proc/self/cgroup", "0::/init.scope\n"),
            ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
            ("/sys/fs/cgroup/init.scope/cgroup.freeze", "0"),
            ("/sys/fs/cgroup/init.scope/cgroup.kill", ""),
        ]);
        let checks = checks(&host, "6.1.0");
        assert!(checks.iter().all(|check| check.status == Status::Ok), "{checks:#?}");
    }

    #[test]
    fn hybrid_names_the_one_controller_that_is_missing() {
        let (_dir, host) = host(&[
            ("/proc/self/mountinfo", HYBRID),
            ("/proc/self/cgroup", "4:memory:/\n0::/\n"),
            ("/sys/fs/cgroup/unified/cgroup.controllers", "\n"),
            ("/sys/fs/cgroup/unified/other/cgroup.freeze", "0"),
        ]);
        let checks = checks(&host, "6.1.0");
        assert_eq!(by_name(&checks, "cgroup v2").found, "hybrid: v1 controllers, v2 at /sys/fs/cgroup/unified");
        assert_eq!(by_name(&checks, "cgroup controller cpu").found, "v1 at /sys/fs/cgroup/cpu");
        assert_eq!(by_name(&checks, "cgroup controller memory").status, Status::Ok);
        assert_eq!(by_name(&checks, "cgroup controller pids").status, Status::Fail);
        assert_eq!(by_name(&checks, "cgroup freeze and kill").found, "/sys/fs/cgroup/unified/other lacks cgroup.kill");
    }

    #[test]
    fn v1_alone_and_nothing_at_all_fail() {
        let v1: String = HYBRID.lines().take(3).flat_map(|line| [line, "\n"]).collect();
        let (_dir, only_v1) = host(&[("/proc/self/mountinfo", &v1)]);
        assert_eq!(by_name(&checks(&only_v1, "6.1.0"), "cgroup v2").found, "only cgroup v1");
        let (_dir, nothing) = host(&[]);
        let checks = checks(&nothing, "6.1.0");
        assert!(checks.iter().all(|check| check.status == Status::Fail || check.name.starts_with("memory peak")));
    }

    #[test]
    fn below_an_unused_v2_root_the_kernel_version_tells() {
        let (_dir, host) = host(&[("/proc/self/mountinfo", PURE), ("/sys/fs/cgroup/cgroup.controllers", "memory")]);
        assert_eq!(by_name(&checks(&host, "6.1.0"), "cgroup freeze and kill").status, Status::Ok);
        assert_eq!(by_name(&checks(&host, "5.10.0"), "cgroup freeze and kill").status, Status::Fail);
    }
}
