//! Explains a failed creation: which limit of the host an error of the kernel stands for.

use std::fs;
use std::io;

/// `ENOTSUPP` of include/linux/errno.h, which is no error of user space: the kernel has no room for a compiled filter.
const ENOTSUPP: i32 = 524;

/// The error, and which limit of the host it stands for where there is one.
pub fn told(error: &io::Error) -> String {
    match error.raw_os_error().and_then(limit) {
        Some(limit) => format!("{error}: {limit}"),
        None => error.to_string(),
    }
}

/// The limit of the host that an error number stands for, and what to do.
fn limit(errno: i32) -> Option<String> {
    let now = |name: &str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::read_to_string(path).map_or_else(|_| name.to_owned(), |value| format!("{name} = {}", value.trim()))
    };
    Some(match errno {
        libc::EAGAIN => format!(
            "the host has no room for another process; raise {}, {}, or `TasksMax=` of the unit",
            now("kernel.pid_max"),
            now("kernel.threads-max")
        ),
        libc::ENOSPC => {
            let kinds = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"];
            let limits = kinds.map(|kind| now(&format!("user.max_{kind}_namespaces"))).join(", ");
            format!("the host allows no further namespace; raise the lowest of {limits}")
        }
        libc::ENFILE => format!("the host allows no further open file; raise {}", now("fs.file-max")),
        libc::ENOMEM => "the host has no memory left for it".to_owned(),
        ENOTSUPP => {
            format!("the host has no room left for compiled filters; raise {}", now("net.core.bpf_jit_limit"))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_named_and_what_it_is_now() {
        let told = |errno| told(&io::Error::from_raw_os_error(errno));
        let pids = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
        assert!(told(libc::EAGAIN).contains(&format!("kernel.pid_max = {}", pids.trim())));
        assert!(told(libc::ENOSPC).contains("user.max_net_namespaces = "));
        assert!(told(ENOTSUPP).contains("raise net.core.bpf_jit_limit"));
        assert!(told(libc::ENFILE).contains("raise fs.file-max = "));
        assert_eq!(told(libc::EPERM), io::Error::from_raw_os_error(libc::EPERM).to_string());
    }
}
