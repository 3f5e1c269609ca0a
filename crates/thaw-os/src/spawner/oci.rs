//! A container as an OCI runtime is told of it: the `config.json` from which crun, runc and others start the same container.
//!
//! `docs/bundle.md` lists what the specification cannot say: owners of the root that are mapped, one tmpfs whose limit all
//! writable places share, credentials that come later, system calls that look unknown by their number.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::filesystem::{MASKED, READ_ONLY, SETTINGS, TERMINALS};
use super::parts::{CreateRequest, Source};
use super::server::{IDS_PER_CONTAINER, OOM_SCORE_ADJ};
use super::{allowed, confine, oci_filter};
use crate::cgroup::Limits;

/// The version of the specification that everything in it is of.
const VERSION: &str = "1.0.2";

/// What runs in a container that an OCI runtime starts: there it is the first process.
#[derive(Debug, Clone)]
pub struct Program {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// Supplementary groups of the container's user.
    pub groups: Vec<u32>,
}

/// A container with one program in it.
#[derive(Debug, Clone)]
pub struct Bundle<'a> {
    /// What it consists of.
    pub request: &'a CreateRequest,
    /// Its limits while it serves.
    pub limits: Limits,
    /// Most processes and threads.
    pub pids: u32,
    /// What runs in it.
    pub program: Program,
    /// Its root file system, whose owners are the host ids that the container's are mapped to.
    pub rootfs: PathBuf,
    /// Where each of the request's `files` lies on the host, and where it is to be seen.
    pub files: Vec<(PathBuf, String)>,
}

type Result<T> = std::result::Result<T, OciSpecError>;

/// The configuration.
///
/// # Errors
/// A part of it is none that the specification allows.
pub fn spec(bundle: &Bundle<'_>) -> Result<Spec> {
    let request = bundle.request;
    // Runtimes set those of the network namespace only, not those of the user namespace.
    let sysctl: HashMap<_, _> = SETTINGS
        .into_iter()
        .filter(|(name, _)| name.starts_with("net/"))
        .map(|(name, value)| (name.replace('/', "."), String::from_utf8_lossy(value).into_owned()))
        .collect();
    let linux = LinuxBuilder::default()
        .uid_mappings(ids(request)?)
        .gid_mappings(ids(request)?)
        .namespaces(namespaces()?)
        .resources(resources(bundle)?)
        .sysctl(sysctl)
        .seccomp(oci_filter::seccomp(&allowed::entries().map_err(|error| OciSpecError::Other(error.to_string()))?)?)
        .masked_paths(MASKED.map(|name| format!("/proc/{name}")).to_vec())
        .readonly_paths(READ_ONLY.map(|name| format!("/proc/{name}")).to_vec())
        .build()?;
    SpecBuilder::default()
        .version(VERSION)
        .root(RootBuilder::default().path(bundle.rootfs.clone()).readonly(!request.root.writable).build()?)
        .hostname(request.host_name.clone())
        .mounts(mounts(bundle)?)
        .process(process(bundle)?)
        .linux(linux)
        .build()
}

fn ids(request: &CreateRequest) -> Result<Vec<LinuxIdMapping>> {
    let mapping = LinuxIdMappingBuilder::default()
        .container_id(0u32)
        .host_id(request.users.id_base)
        .size(IDS_PER_CONTAINER)
        .build()?;
    Ok(vec![mapping])
}

fn namespaces() -> Result<Vec<LinuxNamespace>> {
    [
        LinuxNamespaceType::User,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
    .collect()
}

fn resources(bundle: &Bundle<'_>) -> Result<LinuxResources> {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let memory = signed(bundle.limits.memory_bytes);
    LinuxResourcesBuilder::default()
        // The sum of memory and swap: no swap.
        .memory(LinuxMemoryBuilder::default().limit(memory).swap(memory).build()?)
        .cpu(
            LinuxCpuBuilder::default()
                .quota(signed(bundle.limits.quota_us()))
                .period(bundle.limits.cpu_period_us)
                .build()?,
        )
        .pids(LinuxPidsBuilder::default().limit(i64::from(bundle.pids)).build()?)
        .build()
}

fn rlimits(request: &CreateRequest) -> Result<Vec<PosixRlimit>> {
    [(PosixRlimitType::RlimitNofile, request.limits.open_files), (PosixRlimitType::RlimitCore, confine::CORE_BYTES)]
        .into_iter()
        .map(|(kind, value)| PosixRlimitBuilder::default().typ(kind).soft(value).hard(value).build())
        .collect()
}

fn process(bundle: &Bundle<'_>) -> Result<Process> {
    let Bundle { request, program, .. } = bundle;
    // The primary group is in the list too, as thaw-init has it.
    let groups: Vec<u32> = std::iter::once(request.users.group).chain(program.groups.iter().copied()).collect();
    let user = UserBuilder::default()
        .uid(request.users.user)
        .gid(request.users.group)
        .umask(0o022u32)
        .additional_gids(groups)
        .build()?;
    let none = LinuxCapabilitiesBuilder::default()
        .bounding(Capabilities::new())
        .effective(Capabilities::new())
        .permitted(Capabilities::new())
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()?;
    ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(program.argv.clone())
        .env(program.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>())
        .cwd(program.cwd.clone())
        .capabilities(none)
        .rlimits(rlimits(request)?)
        .no_new_privileges(true)
        .oom_score_adj(OOM_SCORE_ADJ)
        .build()
}

fn mount(at: &str, kind: &str, source: &Path, options: &[&str]) -> Result<Mount> {
    MountBuilder::default()
        .destination(at)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
}

fn mounts(bundle: &Bundle<'_>) -> Result<Vec<Mount>> {
    let request = bundle.request;
    let new = |at: &str, kind: &str, options: &[&str]| mount(at, kind, Path::new(kind), options);
    let terminals = format!("max={TERMINALS}");
    let mut mounts = vec![
        new("/proc", "proc", &["nosuid", "nodev", "noexec", "hidepid=invisible"])?,
        new("/dev", "tmpfs", &["ro", "nosuid", "noexec", "mode=0755", "size=65536", "nr_inodes=64"])?,
        new("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", &terminals])?,
    ];
    let (size, inodes) =
        (format!("size={}", request.ephemeral.bytes), format!("nr_inodes={}", request.ephemeral.inodes));
    for part in &request.mounts {
        mounts.push(match &part.source {
            Source::Ephemeral { mode, owner: (user, group), .. } => {
                let own = [format!("mode={mode:04o}"), format!("uid={user}"), format!("gid={group}")];
                new(&part.at, "tmpfs", &["nosuid", "nodev", &own[0], &own[1], &own[2], &size, &inodes])?
            }
            Source::Credentials { owner: (user, group), bytes } => {
                let own = [format!("uid={user}"), format!("gid={group}"), format!("size={bytes}")];
                new(&part.at, "tmpfs", &["nosuid", "nodev", "mode=0700", &own[0], &own[1], &own[2]])?
            }
            Source::Volume { path, read_only } => {
                let access = if *read_only { "ro" } else { "rw" };
                let mut volume = mount(&part.at, "bind", path, &["bind", "nosuid", "nodev", access])?;
                volume.set_uid_mappings(Some(ids(request)?));
                volume.set_gid_mappings(Some(ids(request)?));
                volume
            }
        });
    }
    for (from, at) in &bundle.files {
        mounts.push(mount(at, "bind", from, &["bind", "ro", "nosuid", "nodev", "noexec"])?);
    }
    Ok(mounts)
}
