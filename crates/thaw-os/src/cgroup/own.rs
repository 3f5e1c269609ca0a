//! Memory limit of this process, by its own control groups.

use std::fs;
use std::path::Path;

use super::detect::Layout;

/// Value from which on a v1 limit means "no limit": the kernel reports the largest multiple of a page.
const NONE: u64 = 1 << 60;

/// Most memory that this process, together with all processes in its control groups, may use, bytes; `None` for no
/// limit.
pub fn own_memory_limit(layout: &Layout) -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit(layout, &own)
}

fn limit(layout: &Layout, own: &str) -> Option<u64> {
    let (mount, controller, file) = match layout {
        Layout::V2 { root } => (root, "", "memory.max"),
        Layout::Hybrid { memory, .. } => (memory, "memory", "memory.limit_in_bytes"),
    };
    // Fields: hierarchy, controllers, path (cgroups(7)).
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        controllers.split(',').any(|name| name == controller).then(|| fields.next())?
    })?;
    least(mount, path, file)
}

/// The lowest limit of a control group and its ancestors.
fn least(mount: &Path, path: &str, file: &str) -> Option<u64> {
    let own = mount.join(path.trim_start_matches('/'));
    let groups = own.ancestors().take_while(|group| group.starts_with(mount));
    let limits = groups.filter_map(|group| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok());
    limits.filter(|limit| *limit < NONE).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_all_limits_above_counts() {
        let mount = tempfile::tempdir().unwrap();
        let group = mount.path().join("a/b");
        fs::create_dir_all(&group).unwrap();
        let own = "4:cpu,cpuacct:/x\n3:memory:/a/b\n0::/a/b\n";
        let v2 = Layout::V2 { root: mount.path().to_owned() };
        assert_eq!(limit(&v2, own), None);
        fs::write(group.join("memory.max"), "max\n").unwrap();
        fs::write(mount.path().join("a/memory.max"), "2000\n").unwrap();
        assert_eq!(limit(&v2, own), Some(2000));
        fs::write(group.join("memory.max"), "1000\n").unwrap();
        assert_eq!(limit(&v2, own), Some(1000));
        let place = mount.path().to_owned();
        let hybrid = Layout::Hybrid { unified: "/u".into(), memory: place, cpu: "/c".into(), pids: "/p".into() };
        fs::write(group.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(limit(&hybrid, own), None);
        fs::write(mount.path().join("memory.limit_in_bytes"), "3000\n").unwrap();
        assert_eq!(limit(&hybrid, own), Some(3000));
        assert_eq!(limit(&hybrid, "0::/\n"), None);
    }
}
