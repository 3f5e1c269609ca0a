//! Detects which of the two supported cgroup layouts this host has.

use std::fs;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One v2 hierarchy with all controllers.
    V2 {
        /// Its mount point.
        root: PathBuf,
    },
    /// v1 controllers beside a v2 hierarchy that has only the core.
    Hybrid {
        /// Mount point of the v2 hierarchy.
        unified: PathBuf,
        /// Mount point of the v1 memory controller.
        memory: PathBuf,
        /// Mount point of the v1 cpu controller.
        cpu: PathBuf,
        /// Mount point of the v1 pids controller.
        pids: PathBuf,
    },
}

impl Layout {
    /// Reads this process's mount table.
    ///
    /// # Errors
    /// Neither layout is complete; the message says what is missing and how to get it.
    pub fn detect() -> Result<Self, CgroupError> {
        let table = Path::new("/proc/self/mountinfo");
        let content = fs::read_to_string(table).map_err(CgroupError::io("read", table))?;
        let layout = Self::from_mountinfo(&content)?;
        let core = layout.core();
        // The root cgroup has no cgroup.kill, so check for the feature in a child.
        if !core.join("cgroup.procs").exists() {
            return Err(CgroupError::Unsupported(format!("{} is not a cgroup v2 mount", core.display())));
        }
        Ok(layout)
    }

    /// Mount point of the v2 hierarchy.
    pub fn core(&self) -> &Path {
        match self {
            Self::V2 { root } => root,
            Self::Hybrid { unified, .. } => unified,
        }
    }

    /// Whether the v2 hierarchy has the controllers, and so limits and accounting.
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// Name of the layout for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::V2 { .. } => "v2",
            Self::Hybrid { .. } => "hybrid",
        }
    }

    fn from_mountinfo(content: &str) -> Result<Self, CgroupError> {
        let mut unified = None;
        let mut v1: Vec<(PathBuf, Vec<String>)> = Vec::new();
        for line in content.lines() {
            // proc_pid_mountinfo(5): fields before " - " include the mount point, after it type, source, options.
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ');
            let (Some(root), Some(point)) = (left.nth(3), left.next()) else { continue };
            let mut right = right.split(' ');
            let (Some(kind), Some(options)) = (right.next(), right.nth(1)) else { continue };
            if root != "/" && kind == "cgroup" {
                continue;
            }
            match kind {
                "cgroup2" if unified.is_none() => unified = Some(PathBuf::from(point)),
                "cgroup" => v1.push((PathBuf::from(point), options.split(',').map(str::to_owned).collect())),
                _ => {}
            }
        }
        let Some(unified) = unified else {
            return Err(CgroupError::Unsupported(
                "no cgroup v2 mount was found; boot with systemd.unified_cgroup_hierarchy=1, or mount it: \
                 mount -t cgroup2 none /sys/fs/cgroup"
                    .to_owned(),
            ));
        };
        let find = |controller: &str| {
            v1.iter()
                .find(|(_, options)| options.iter().any(|option| option == controller))
                .map(|(path, _)| path.clone())
        };
        let Some(memory) = find("memory") else { return Ok(Self::V2 { root: unified }) };
        let missing = |controller: &'static str| CgroupError::MissingController {
            controller,
            place: "as a cgroup v1 mount beside memory".to_owned(),
            fix: format!("mount it: mount -t cgroup -o {controller} none /sys/fs/cgroup/{controller}"),
        };
        Ok(Self::Hybrid {
            unified,
            memory,
            cpu: find("cpu").ok_or_else(|| missing("cpu"))?,
            pids: find("pids").ok_or_else(|| missing("pids"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::Layout;

    const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn pure_v2_is_found() {
        let layout = Layout::from_mountinfo(V2).unwrap();
        assert_eq!(layout, Layout::V2 { root: PathBuf::from("/sys/fs/cgroup") });
    }

    #[test]
    fn hybrid_with_comounted_controllers_is_found() {
        let Layout::Hybrid { unified, cpu, .. } = Layout::from_mountinfo(HYBRID).unwrap() else { panic!("not hybrid") };
        assert_eq!(unified, PathBuf::from("/sys/fs/cgroup/unified"));
        assert_eq!(cpu, PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn a_missing_controller_is_named_with_its_fix() {
        let without = HYBRID.lines().filter(|line| !line.contains("pids")).collect::<Vec<_>>().join("\n");
        let error = Layout::from_mountinfo(&without).unwrap_err().to_string();
        assert!(error.contains("`pids`") && error.contains("mount -t cgroup"), "{error}");
        let error = Layout::from_mountinfo("").unwrap_err().to_string();
        assert!(error.contains("cgroup v2"), "{error}");
    }
}
