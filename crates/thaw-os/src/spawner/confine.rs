//! Confinement of a container: identity, capabilities, system call filter and resource limits.

use std::convert::Infallible;
use std::ffi::CString;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, Gid, Uid};
use seccompiler::BpfProgram;

use super::error::{Result, SetUpError, failed};
use super::parts::CreateRequest;
use super::program;
use crate::kernel;
use thaw_wire::INIT_ID;

/// Capabilities that `thaw-init` keeps, over its own user namespace only: to become the user, to signal commands,
/// and to empty the bounding set of each command. Commands have none.
const KEPT: CapabilitySet =
    CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::KILL).union(CapabilitySet::SETPCAP);

/// Core dumps, bytes. Not 0: that would still start the host's handler where core_pattern is a pipe, and it may store
/// a user's credentials. 1 is the value at which the kernel starts none (fs/coredump.c), and no core is that small.
pub const CORE_BYTES: u64 = 1;

/// Signals that wait to be taken, and timers (`RLIMIT_SIGPENDING`), of one container.
const SIGNALS: u64 = 8192;
/// Messages in POSIX queues (`RLIMIT_MSGQUEUE`), bytes, of one container: the kernel's default.
const MESSAGE_BYTES: u64 = 819_200;
/// Locked memory (`RLIMIT_MEMLOCK`), bytes, of one container: the kernel's default since 5.16.
const LOCKED_BYTES: u64 = 8 << 20;

/// The compiled filter, ready to be installed.
pub struct Confinement {
    filter: BpfProgram,
}

impl Confinement {
    /// Compiles the filter, once for all containers.
    pub fn new() -> Result<Self> {
        Ok(Self { filter: program::program()? })
    }

    /// Becomes root of the new user namespace: until now this process still has the daemon's ids.
    pub fn become_root(&self) -> Result<()> {
        rustix::thread::set_thread_groups(&[]).map_err(failed("drop supplementary groups"))?;
        let (gid, uid) = (Gid::ROOT, Uid::ROOT);
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("set the group"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("set the user"))
    }

    /// Brings `lo` up and opens the socket on which the daemon will serve this container's way out.
    pub fn listen(&self, port: u16) -> Result<OwnedFd> {
        kernel::bring_up_loopback().map_err(failed("bring up lo"))?;
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(failed(format!("listen on 127.0.0.1:{port}")))?;
        Ok(listener.into())
    }

    /// Gives up everything not needed and executes `thaw-init`, with `control` as its standard input, and as its standard
    /// output the descriptor on which commands ask it for what has to be counted, and as its standard error the file by
    /// which it counts their locks.
    pub fn execute(
        &self,
        request: &CreateRequest,
        [control, locks]: [&OwnedFd; 2],
        init: BorrowedFd<'_>,
    ) -> Result<Infallible> {
        limit(Resource::Nofile, request.limits.open_files)?;
        limit(Resource::Core, CORE_BYTES)?;
        for capability in CapabilitySet::all().difference(KEPT).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // EINVAL: a capability that this kernel does not know.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(errno) => return Err(failed(format!("drop {capability:?} from the bounding set"))(errno)),
            }
        }
        // thaw-init is no root, so that its capabilities have to come with it as ambient ones; it empties both sets before
        // it does anything else (CVE-2022-24769).
        let sets = rustix::thread::CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: KEPT };
        rustix::stdio::dup2_stdin(control).map_err(failed("pass the control socket"))?;
        rustix::stdio::dup2_stderr(locks).map_err(failed("pass the file of locks"))?;
        rustix::thread::set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
        // While this process may still search the root, which can be closed to everybody else: `thaw-init` reads there.
        rustix::process::chdir("/proc").map_err(failed("enter /proc"))?;
        become_init()?;
        rustix::thread::set_capabilities(None, sets).map_err(failed("drop capabilities"))?;
        for capability in KEPT.iter() {
            rustix::thread::configure_capability_in_ambient_set(capability, true)
                .map_err(failed(format!("pass {capability:?} on")))?;
        }
        let questions = kernel::install_with_listener(&self.filter)
            .map_err(|source| SetUpError::Shortage { step: "install the system call filter", source })?;
        rustix::stdio::dup2_stdout(&questions).map_err(failed("pass on who answers"))?;
        let cpus = CString::new(request.machine.cpus.to_string()).map_err(failed("name thaw-init"))?;
        kernel::execute(init, &[c"thaw-init", &cpus]).map_err(failed("execute thaw-init"))
    }
}

/// Takes the ids that are nobody's but thaw-init's, and keeps what is permitted.
fn become_init() -> Result<()> {
    rustix::thread::set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
    let (gid, uid) = (Gid::from_raw(INIT_ID), Uid::from_raw(INIT_ID));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("set the group of thaw-init"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("set the user of thaw-init"))
}

/// Sets the core limit of the spawner, and so of everything it clones. Here it may still be raised from 0 to 1.
pub fn forbid_core_dumps() {
    let rlimit = Rlimit { current: Some(CORE_BYTES), maximum: Some(CORE_BYTES) };
    // Without CAP_SYS_RESOURCE a limit of 0 stays, which is as good wherever cores are files.
    let _ = rustix::process::setrlimit(Resource::Core, rlimit);
}

/// Limits what the kernel counts for each user of the host: of the spawner, and so of everything that it clones. Each
/// container is a user of its own ([`kernel::clone_container`]), so that all of its users together have these.
pub fn limit_shares() -> Result<()> {
    limit(Resource::Sigpending, SIGNALS)?;
    limit(Resource::Msgqueue, MESSAGE_BYTES)?;
    limit(Resource::Memlock, LOCKED_BYTES)
}

/// Lowers a limit, hard and soft. Never raises one: that would need a privilege over the host.
fn limit(resource: Resource, value: u64) -> Result<()> {
    let hard = rustix::process::getrlimit(resource).maximum;
    let value = hard.map_or(value, |hard| hard.min(value));
    rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
        .map_err(failed(format!("limit {resource:?} to {value}")))
}

#[cfg(test)]
mod tests {
    use super::KEPT;
    use thaw_wire::KEPT_CAPABILITIES;

    #[test]
    fn thaw_init_drops_from_each_command_what_it_keeps_itself() {
        assert_eq!(KEPT.bits(), KEPT_CAPABILITIES.iter().fold(0, |bits, capability| bits | 1 << capability));
    }
}
