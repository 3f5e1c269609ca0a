//! What belongs to thawd on this machine: configuration, programs, directories, ids, units.

use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::{Check, Host, Status};
use thaw_client::config::{Config, DEFAULT_PATH};

/// Free space that an image needs while it is unpacked, with reserve: the largest of ours has 0.6 GB unpacked.
const SPACE: u64 = 2 << 30;
/// Files that a few images have, with reserve.
const FILES: u64 = 200_000;
/// First systemd with what the units use (systemd.exec(5), systemd.resource-control(5)).
const SYSTEMD: u32 = 252;
/// The cgroup that the units give to containers.
const UNIT_CGROUP: &str = "/sys/fs/cgroup/system.slice/thawd-containers.service";

pub(super) fn checks(host: &Host) -> Vec<Check> {
    let loaded = configuration(host);
    let config = loaded.as_ref().ok().cloned().unwrap_or_default();
    let programs = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.to_path_buf()));
    vec![
        configuration_check(host, &loaded),
        init_program(host, &config, programs.as_deref()),
        manifests(host, &config),
        state_directory(host, &config),
        ids(host, &config),
        group(host, &config),
        resolver(host),
        systemd(host),
        delegation(host),
    ]
}

fn configuration(host: &Host) -> Result<Config, String> {
    let path = host.path(DEFAULT_PATH);
    if path.exists() { Config::load(&path).map_err(|error| error.to_string()) } else { Ok(Config::default()) }
}

fn configuration_check(host: &Host, loaded: &Result<Config, String>) -> Check {
    let (status, found) = match loaded {
        Ok(_) if host.path(DEFAULT_PATH).exists() => (Status::Ok, DEFAULT_PATH.to_owned()),
        Ok(_) => (Status::Ok, format!("no {DEFAULT_PATH}: built-in defaults")),
        Err(error) => (Status::Fail, error.replace('\n', "; ")),
    };
    Check::new("configuration", status, found, "Correct the key that is named; thawd --check-config checks it again.")
}

fn init_program(host: &Host, config: &Config, beside: Option<&Path>) -> Check {
    let candidates = match &config.paths.init_program {
        Some(program) => vec![program.clone()],
        None => ["/usr/bin", "/usr/local/bin"]
            .into_iter()
            .map(Path::new)
            .chain(beside)
            .map(|folder| folder.join("thaw-init"))
            .collect(),
    };
    let found = candidates.iter().find(|program| host.path(&program.to_string_lossy()).is_file());
    let (status, text) = match found {
        Some(program) => (Status::Ok, program.display().to_string()),
        None => (Status::Fail, format!("no {}", candidates[0].display())),
    };
    let fix = "Install the package again, or set `paths.init_program` to where thaw-init is.";
    Check::new("thaw-init", status, text, fix)
}

fn manifests(host: &Host, config: &Config) -> Check {
    let directory = &config.paths.providers_dir;
    let entries = std::fs::read_dir(host.path(&directory.to_string_lossy()));
    let count = entries.map_or(0, |entries| {
        entries.flatten().filter(|entry| entry.path().extension().is_some_and(|name| name == "toml")).count()
    });
    let status = if count > 0 { Status::Ok } else { Status::Warn };
    let fix = "Install the package again, or set `paths.providers_dir` to where the manifests of providers are.";
    Check::new("provider manifests", status, format!("{count} in {}", directory.display()), fix)
}

/// The file system that images are unpacked to, and run from.
fn state_directory(host: &Host, config: &Config) -> Check {
    let path = &config.paths.state_dir;
    // Before the first start it does not exist; its place decides.
    let existing = path.ancestors().find(|path| host.path(&path.to_string_lossy()).exists()).unwrap_or(path);
    let fix = "Put `paths.state_dir` on a writable file system without noexec, with 2 GiB and 200,000 files to spare.";
    let (status, found) = match statvfs(host.path(&existing.to_string_lossy())) {
        Err(errno) => (Status::Fail, format!("{}: {}", existing.display(), std::io::Error::from(errno))),
        Ok(fs) => {
            let (bytes, files) = (fs.f_bavail * fs.f_frsize, fs.f_favail);
            let found = format!("{}: {} MiB free", existing.display(), bytes >> 20);
            if fs.f_flag.contains(StatVfsMountFlags::RDONLY) {
                (Status::Fail, format!("{found}, read-only"))
            } else if fs.f_flag.contains(StatVfsMountFlags::NOEXEC) {
                (Status::Fail, format!("{found}, mounted noexec: no program of an image could run"))
            } else if bytes < SPACE {
                (Status::Warn, found)
            // File systems that make inodes as they need them say 0 of 0.
            } else if fs.f_files > 0 && files < FILES {
                (Status::Warn, format!("{found}, {files} files"))
            } else {
                (Status::Ok, found)
            }
        }
    };
    Check::new("state directory", status, found, fix)
}

/// Ids of containers must be nobody else's.
fn ids(host: &Host, config: &Config) -> Check {
    let first = u64::from(config.container.id_start);
    let end = first + config.container.max as u64 * 65_536;
    let mut taken = Vec::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        for line in host.read(file).unwrap_or_default().lines() {
            // subuid(5): name:start:count
            let mut fields = line.split(':');
            let name = fields.next().unwrap_or_default();
            let (Some(Ok(start)), Some(Ok(count))) =
                (fields.next().map(str::parse::<u64>), fields.next().map(str::parse::<u64>))
            else {
                continue;
            };
            if start < end && start.saturating_add(count) > first {
                taken.push(format!("{file}: {name}"));
            }
        }
    }
    for (file, kind) in [("/etc/passwd", "user"), ("/etc/group", "group")] {
        for line in host.read(file).unwrap_or_default().lines() {
            let id = line.split(':').nth(2).and_then(|id| id.parse::<u64>().ok());
            if id.is_some_and(|id| (first..end).contains(&id)) {
                taken.push(format!("{kind} {}", line.split(':').next().unwrap_or_default()));
            }
        }
    }
    let (status, found) = match taken.is_empty() {
        true => (Status::Ok, format!("{first} to {}", end - 1)),
        false => (Status::Fail, format!("{first} to {}, of which some belong to {}", end - 1, taken.join(", "))),
    };
    Check::new("ids of containers", status, found, "Set `container.id_start` to a range of ids that nobody else has.")
}

fn group(host: &Host, config: &Config) -> Check {
    let name = &config.api.socket_group;
    let groups = host.read("/etc/group").unwrap_or_default();
    let there = groups.lines().any(|line| line.split(':').next() == Some(name));
    let (status, found) = match there {
        true => (Status::Ok, name.clone()),
        false => (Status::Warn, format!("no group {name}: root alone can use the socket")),
    };
    Check::new("group of the socket", status, found, "Make it with systemd-sysusers, or: groupadd --system thawd.")
}

/// The egress proxy asks the host's resolver.
fn resolver(host: &Host) -> Check {
    let servers = host.read("/etc/resolv.conf").unwrap_or_default();
    let servers: Vec<_> = servers.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim).collect();
    let (status, found) = match servers.is_empty() {
        true => (Status::Warn, "no name server in /etc/resolv.conf".to_owned()),
        false => (Status::Ok, servers.join(", ")),
    };
    Check::new("name resolution", status, found, "Name a server in /etc/resolv.conf: containers reach nothing without.")
}

/// Its version is in the name of its library, so nothing has to be run to learn it.
fn systemd(host: &Host) -> Check {
    let name = "systemd";
    let fix = "Use systemd 252 or later for the units, or start thawd by other means.";
    if !host.path("/run/systemd/system").is_dir() {
        return Check::new(name, Status::Ok, "not used here", fix);
    }
    let folders = ["/usr/lib/x86_64-linux-gnu/systemd", "/usr/lib/aarch64-linux-gnu/systemd", "/usr/lib/systemd"];
    let version =
        folders.into_iter().filter_map(|folder| std::fs::read_dir(host.path(folder)).ok()).flatten().flatten();
    let version = version.filter_map(|entry| {
        let file = entry.file_name().into_string().ok()?;
        let digits = file.strip_prefix("libsystemd-shared-")?;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
    });
    let (status, found) = match version.max() {
        Some(version) if version >= SYSTEMD => (Status::Ok, version.to_string()),
        Some(version) => (Status::Warn, version.to_string()),
        None => (Status::Warn, "unknown version".to_owned()),
    };
    Check::new(name, status, found, fix)
}

/// Whether the unit that holds containers was given the controllers, while it runs.
fn delegation(host: &Host) -> Check {
    let controllers = host.read(&format!("{UNIT_CGROUP}/cgroup.controllers"));
    let installed = ["/usr/lib/systemd/system", "/etc/systemd/system"]
        .into_iter()
        .any(|folder| host.path(&format!("{folder}/thawd-containers.service")).is_file());
    let (status, found) = match controllers {
        Ok(list) => {
            let has = |name: &&str| list.split_whitespace().any(|controller| controller == *name);
            let missing: Vec<_> = ["memory", "cpu", "pids"].into_iter().filter(|name| !has(name)).collect();
            match missing.is_empty() {
                true => (Status::Ok, format!("thawd-containers.service has {list}")),
                false => (Status::Fail, format!("thawd-containers.service lacks {}", missing.join(", "))),
            }
        }
        Err(_) if installed => (Status::Warn, "thawd-containers.service does not run".to_owned()),
        Err(_) => (Status::Ok, "no unit for containers: they are made below `cgroup.parent`".to_owned()),
    };
    let fix = "Keep Delegate=yes in thawd-containers.service, and start it with: systemctl start thawd.service.";
    Check::new("cgroup delegation", status, found, fix)
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    #[test]
    fn a_mistake_in_the_configuration_is_named() {
        let (_dir, wrong) = host(&[(DEFAULT_PATH, "[pool]\ntargt = 1\n")]);
        let check = configuration_check(&wrong, &configuration(&wrong));
        assert!(check.status == Status::Fail && check.found.contains("did you mean `target`"), "{check:?}");
        let (_dir, none) = host(&[]);
        assert_eq!(configuration_check(&none, &configuration(&none)).status, Status::Ok);
    }

    #[test]
    fn programs_manifests_and_group_are_looked_for() {
        let (_dir, none) = host(&[]);
        let config = Config::default();
        assert_eq!(init_program(&none, &config, None).status, Status::Fail);
        assert_eq!(manifests(&none, &config).status, Status::Warn);
        assert_eq!(group(&none, &config).status, Status::Warn);
        let (_dir, all) = host(&[
            ("/usr/bin/thaw-init", ""),
            ("/usr/share/thawd/providers/openai.toml", ""),
            ("/etc/group", "root:x:0:\nthawd:x:999:alice\n"),
        ]);
        assert_eq!(init_program(&all, &config, None).found, "/usr/bin/thaw-init");
        assert_eq!(manifests(&all, &config).found, "1 in /usr/share/thawd/providers");
        assert_eq!(group(&all, &config).status, Status::Ok);
    }

    #[test]
    fn ids_that_somebody_else_has_are_found() {
        let config = Config::default();
        let (_dir, free) = host(&[("/etc/subuid", "alice:100000:65536\n"), ("/etc/passwd", "root:x:0:0::/:/bin/sh\n")]);
        assert_eq!(ids(&free, &config).status, Status::Ok);
        let (_dir, taken) =
            host(&[("/etc/subgid", "bob:1879000000:65536\n"), ("/etc/passwd", "x:x:1879048200:1::/:\n")]);
        let check = ids(&taken, &config);
        assert!(check.status == Status::Fail && check.found.ends_with("/etc/subgid: bob, user x"), "{check:?}");
    }

    #[test]
    fn a_state_directory_before_the_first_start_is_judged_by_its_place() {
        let (_dir, empty) = host(&[]);
        let check = state_directory(&empty, &Config::default());
        assert!(check.found.starts_with("/: ") && check.status != Status::Fail, "{check:?}");
    }

    #[test]
    fn systemd_and_its_delegation_are_read_off_files() {
        let (_dir, none) = host(&[]);
        assert_eq!((systemd(&none).status, delegation(&none).status), (Status::Ok, Status::Ok));
        let shared = "/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared";
        let (_dir, old) = host(&[("/run/systemd/system/x", ""), (&format!("{shared}-247.so"), "")]);
        assert_eq!(systemd(&old).status, Status::Warn);
        let controllers = format!("{UNIT_CGROUP}/cgroup.controllers");
        let (_dir, partly) =
            host(&[("/run/systemd/system/x", ""), (&format!("{shared}-257.so"), ""), (&controllers, "cpu memory\n")]);
        assert_eq!((systemd(&partly).status, systemd(&partly).found.as_str()), (Status::Ok, "257"));
        assert!(delegation(&partly).found.ends_with("lacks pids") && delegation(&partly).status == Status::Fail);
        let (_dir, stopped) = host(&[("/usr/lib/systemd/system/thawd-containers.service", "")]);
        assert_eq!(delegation(&stopped).status, Status::Warn);
    }

    #[test]
    fn a_resolver_has_to_be_named() {
        let (_dir, named) = host(&[("/etc/resolv.conf", "# x\nnameserver 192.0.2.1\nnameserver ::1\n")]);
        assert_eq!(resolver(&named).found, "192.0.2.1, ::1");
        let (_dir, none) = host(&[]);
        assert_eq!(resolver(&none).status, Status::Warn);
    }
}
