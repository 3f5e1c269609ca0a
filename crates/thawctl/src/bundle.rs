//! `thawctl bundle`: an image of the store as an OCI bundle, which crun, runc and others start with what thawd gives a
//! container.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use thaw_client::config::Config;
use thaw_image::{Account, Image, account, open_plain, writable_home};
use thaw_os::cgroup::{CPU_PERIOD_US, Limits};
use thaw_os::spawner::{
    Bundle, CreateRequest, Ephemeral, IDS_PER_CONTAINER, Machine, Mount, OciSpecError, ProcessLimits, Program, Root,
    Source, TextFile, Users, oci_spec,
};

use super::CtlError;
use super::daemon_config::daemon_config;
use super::image_store::StoreArgs;

/// Host name in a bundle.
const HOST_NAME: &str = "bundle";
/// Search path of images that name none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Lowest and highest id that a range may have, as for `container.id_start`.
const ID_MIN: u32 = 65_536;
const ID_END: u32 = 1 << 31;

/// Arguments of `bundle`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the image, as `thawctl image ls` shows it
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Folder of the bundle; it is made
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// First of the host's 65536 user and group ids that are the container's [default: `container.id_start`]
    #[arg(long, value_name = "ID")]
    id_base: Option<u32>,
    /// What runs after the image's entrypoint, in the place of its own command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub(super) enum BundleError {
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is neither file, directory nor link", .0.display())]
    Kind(PathBuf),
    #[error("image {image:?} wants to run as {wanted:?}, {problem}")]
    User { image: String, wanted: String, problem: String },
    #[error("--id-base {0}: the range must begin at {ID_MIN} or above and end below {ID_END}")]
    IdBase(u32),
    #[error("image {0:?} names no command; give one after --")]
    NoCommand(String),
    #[error("only root can give files to the ids of a container: use sudo")]
    NotRoot,
    #[error("the configuration: {0}")]
    Spec(#[from] OciSpecError),
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> BundleError + 'a {
    move |source| BundleError::File { what, path: path.to_owned(), source }
}

/// The 65,536 ids from here on are nobody's on the host, as those of the daemon's containers.
fn check_ids(id_base: u32) -> Result<(), BundleError> {
    let end = id_base.checked_add(IDS_PER_CONTAINER);
    match id_base >= ID_MIN && end.is_some_and(|end| end <= ID_END) {
        true => Ok(()),
        false => Err(BundleError::IdBase(id_base)),
    }
}

/// Writes the bundle.
pub(super) fn bundle(args: &Args) -> Result<(), CtlError> {
    let config = daemon_config()?;
    let image = args.store.open()?.get(&args.image)?;
    let user = account(&image.rootfs, &image.config.user).map_err(|problem| BundleError::User {
        image: args.image.clone(),
        wanted: image.config.user.clone(),
        problem: problem.to_string(),
    })?;
    let id_base = args.id_base.unwrap_or(config.container.id_start);
    check_ids(id_base)?;
    let command = if args.command.is_empty() { &image.config.cmd } else { &args.command };
    let argv: Vec<String> = image.config.entrypoint.iter().chain(command).cloned().collect();
    if argv.is_empty() {
        return Err(BundleError::NoCommand(args.image.clone()).into());
    }
    if rustix::process::geteuid().as_raw() != 0 {
        return Err(BundleError::NotRoot.into());
    }
    let directory = &args.directory;
    DirBuilder::new().mode(0o755).create(directory).map_err(failed("make", directory))?;
    Copy { id_base, links: BTreeMap::new() }.tree(&image.rootfs, &directory.join("rootfs"))?;

    let request = request(&config, &image, &user, id_base);
    places(&directory.join("rootfs"), &request)?;
    let bundle = Bundle {
        limits: Limits {
            memory_bytes: config.image_run.memory_bytes,
            cpu: config.image_run.cpu,
            cpu_burst: Some(config.image_run.cpu_burst),
            cpu_period_us: CPU_PERIOD_US,
        },
        pids: config.image_run.pids_max,
        program: Program { argv, env: environment(&image, &user), cwd: cwd(&image), groups: user.groups.clone() },
        rootfs: PathBuf::from("rootfs"),
        files: files(directory, &image, &request)?,
        request: &request,
    };
    let spec = oci_spec(&bundle).map_err(BundleError::from)?;
    let json = serde_json::to_string_pretty(&spec).map_err(io::Error::from)?;
    let path = directory.join("config.json");
    fs::write(&path, json).map_err(failed("write", &path))?;
    Ok(())
}

fn cwd(image: &Image) -> String {
    match image.config.workdir.starts_with('/') {
        true => image.config.workdir.clone(),
        false => format!("/{}", image.config.workdir),
    }
}

/// As the daemon has it for runs of images, but for the proxy, which a bundle has not.
fn environment(image: &Image, user: &Account) -> Vec<(String, String)> {
    let nowhere = || if user.uid == 0 { "/".to_owned() } else { cwd(image) };
    let home = user.home.clone().unwrap_or_else(nowhere);
    let mut env = BTreeMap::from([("HOME".to_owned(), home), ("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    env.extend(image.config.env.iter().cloned());
    env.into_iter().collect()
}

/// What a container of this image consists of.
fn request(config: &Config, image: &Image, user: &Account, id_base: u32) -> CreateRequest {
    let users = Users { id_base, user: user.uid, group: user.gid };
    let home = user.home.as_deref().filter(|home| writable_home(&image.rootfs, home, &cwd(image)));
    CreateRequest {
        id: HOST_NAME.to_owned(),
        host_name: HOST_NAME.to_owned(),
        root: Root { image: image.rootfs.clone(), empty: image.empty.clone(), ..Root::default() },
        mount_point: PathBuf::new(),
        users,
        mounts: Mount::usual(&users, home, None),
        files: TextFile::usual(HOST_NAME),
        ephemeral: Ephemeral { bytes: config.container.ephemeral_bytes, inodes: config.container.ephemeral_inodes },
        limits: ProcessLimits { open_files: config.container.open_files },
        machine: Machine { memory_bytes: config.image_run.memory_bytes, cpus: 0, sees_cgroup: false },
        proxy_port: config.egress.port,
        cgroups: Vec::new(),
    }
}

/// Writes the files of `/etc` that the image has too, which are to be covered.
fn files(directory: &Path, image: &Image, request: &CreateRequest) -> Result<Vec<(PathBuf, String)>, BundleError> {
    let mut files = Vec::new();
    for TextFile { path: inside, content } in &request.files {
        let relative = inside.trim_start_matches('/');
        if !fs::symlink_metadata(image.rootfs.join(relative)).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let path = directory.join(relative.replace('/', "-"));
        fs::write(&path, content).map_err(failed("write", &path))?;
        let path = fs::canonicalize(&path).map_err(failed("find", &path))?;
        files.push((path, inside.clone()));
    }
    Ok(files)
}

/// Gives the directories that something new is mounted on the mode which that is to have: runc before 1.2 keeps theirs.
fn places(rootfs: &Path, request: &CreateRequest) -> Result<(), BundleError> {
    for Mount { at, source } in &request.mounts {
        let Source::Ephemeral { mode, .. } = source else { continue };
        // What is no plain directory in the image is for the runtime to refuse.
        let Ok(place) = open_plain(rootfs, at.trim_start_matches('/')) else { continue };
        // The descriptor is of a path only; its name in /proc leads to the directory itself.
        let name = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
        fs::set_permissions(name, fs::Permissions::from_mode(*mode))
            .map_err(failed("change the mode of", Path::new(at)))?;
    }
    Ok(())
}

/// Copies a root file system, whose owners become those that the container's ids are mapped to.
struct Copy {
    id_base: u32,
    /// Files with several names: device and inode, and the first copy.
    links: BTreeMap<(u64, u64), PathBuf>,
}

impl Copy {
    fn tree(&mut self, from: &Path, to: &Path) -> Result<(), BundleError> {
        let metadata = fs::symlink_metadata(from).map_err(failed("read", from))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            fs::create_dir(to).map_err(failed("make", to))?;
            for entry in fs::read_dir(from).map_err(failed("read", from))? {
                let name = entry.map_err(failed("read", from))?.file_name();
                self.tree(&from.join(&name), &to.join(&name))?;
            }
        } else if kind.is_symlink() {
            let target = fs::read_link(from).map_err(failed("read", from))?;
            symlink(target, to).map_err(failed("make", to))?;
        } else if kind.is_file() {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&inode) {
                return fs::hard_link(first, to).map_err(failed("link", to));
            }
            fs::copy(from, to).map_err(failed("copy", from))?;
            if metadata.nlink() > 1 {
                self.links.insert(inode, to.to_owned());
            }
        } else {
            return Err(BundleError::Kind(from.to_owned()));
        }
        self.own(to, &metadata)
    }

    fn own(&self, to: &Path, metadata: &Metadata) -> Result<(), BundleError> {
        // Larger ones are nobody's in a container.
        let id = |id: u32| self.id_base + if id < IDS_PER_CONTAINER { id } else { IDS_PER_CONTAINER - 2 };
        lchown(to, Some(id(metadata.uid())), Some(id(metadata.gid()))).map_err(failed("change the owner of", to))?;
        if !metadata.is_symlink() {
            let mode = fs::Permissions::from_mode(metadata.mode() & 0o7777);
            fs::set_permissions(to, mode).map_err(failed("change the mode of", to))?;
        }
        let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps {
            last_access: time(metadata.atime(), metadata.atime_nsec()),
            last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
        };
        rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("change the times of", to)(errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_bundle_are_in_the_range_of_the_daemons() {
        for (id_base, is_fine) in [
            (0, false),
            (ID_MIN - 1, false),
            (ID_MIN, true),
            (ID_END - IDS_PER_CONTAINER, true),
            (ID_END - IDS_PER_CONTAINER + 1, false),
            (u32::MAX, false),
        ] {
            assert_eq!(check_ids(id_base).is_ok(), is_fine, "{id_base}");
        }
    }
}
