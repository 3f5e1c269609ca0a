//! The tables of the system call filter, and the page of it: what is allowed, what is refused (EPERM), and what looks as if the kernel did not know it
//! (ENOSYS), so that a library falls back to an older call instead of giving up.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::allowed::{self, Condition, Op};
use super::choices::{Answer, CALLS, Call, Choice, Row};
use super::filter_error::FilterError;

/// Numbers of x86-64 that look unimplemented: first, last, why.
pub const ABSENT: [(u32, u32, &str); 16] = [
    (134, 134, "`uselib`: the kernel has it no more"),
    (156, 156, "`_sysctl`: the kernel has it no more"),
    (174, 174, "`create_module`: the kernel has it no more"),
    (177, 178, "`get_kernel_syms`, `query_module`: the kernel has them no more"),
    (180, 185, "`nfsservctl` and five that were never made: the kernel has them no more"),
    (206, 210, "`io_setup` and its kin: the host has 65,536 requests for all (`fs.aio-max-nr`); databases do without"),
    (212, 212, "`lookup_dcookie`: the kernel has it no more"),
    (214, 215, "`epoll_ctl_old`, `epoll_wait_old`: never made"),
    (236, 236, "`vserver`: never made"),
    (333, 333, "`io_pgetevents`, as `io_setup`"),
    (335, 423, "given to nobody, but for `uretprobe` and `uprobe`, which the kernel alone calls"),
    (435, 435, "`clone3`: its flags are behind a pointer and cannot be checked; libraries use `clone` then"),
    (451, 451, "`cachestat`: newer than this list"),
    (453, 453, "`map_shadow_stack`: newer than this list"),
    (457, 461, "`statmount`, `listmount`, `lsm_*`: newer than this list"),
    // As far as the x32 interface, which has the calls of this one by other numbers.
    (463, 0x3fff_ffff, "`setxattrat` and everything newer"),
];

/// What is refused on purpose, by reason. For the page alone: whatever is not allowed is refused.
const REFUSED: [(&str, &str); 13] = [
    (
        "mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree move_mount mount_setattr",
        "what a container sees was decided when it was made",
    ),
    ("unshare setns", "new namespaces open much of the kernel to whoever is root in them"),
    (
        "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise process_mrelease",
        "reading and changing other processes, tracing one's own children included (SECURITY.md)",
    ),
    (
        "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register",
        "a long record of holes; io_uring makes calls past this filter",
    ),
    (
        "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl \
      quotactl_fd syslog iopl ioperm vhangup sysfs ustat",
        "the host's administration",
    ),
    ("settimeofday clock_settime clock_adjtime sethostname setdomainname", "the host's clock, the container's name"),
    ("add_key request_key keyctl", "keyrings are counted and named for the host"),
    ("open_by_handle_at name_to_handle_at", "files past the container's root (CVE-2014-3519)"),
    ("fanotify_init fanotify_mark", "watching whole file systems"),
    (
        "mbind set_mempolicy get_mempolicy migrate_pages move_pages set_mempolicy_home_node",
        "placement of memory is the host's affair",
    ),
    ("modify_ldt", "segments of 16 and 32 bits; a record of holes"),
    ("memfd_secret", "memory that the host can neither swap nor look at"),
    ("sync", "it writes back what all of the host has to write; `syncfs` and `fsync` are for what is one's own"),
];

/// `docs/seccomp.md`: each call that is allowed, with its reason, and what happens to the others.
///
/// # Errors
/// The list is no list.
pub fn page() -> Result<String, FilterError> {
    let entries = allowed::entries()?;
    let (mut plain, mut checked) = (BTreeMap::<&str, Vec<&str>>::new(), Vec::new());
    for entry in &entries {
        let (name, reason) = (entry.syscall.as_str(), entry.comment.as_str());
        match entry.args.is_empty() {
            true => plain.entry(reason).or_default().push(name),
            false => checked.push((name, entry.args.iter().map(condition).collect::<Vec<_>>(), reason)),
        }
    }
    let mut text = String::from(HEAD);
    for (reason, mut calls) in plain {
        calls.sort_unstable();
        row(&mut text, &calls, reason);
    }
    text += "\n## Allowed with these arguments\n\n| call | arguments | why |\n|---|---|---|\n";
    for (name, conditions, reason) in checked {
        let _ = writeln!(text, "| `{name}` | {} | {reason} |", conditions.join(", "));
    }
    CALLS.iter().for_each(|call| closer(&mut text, call));
    text += "\n## Refused: EPERM\n\n| calls | why |\n|---|---|\n";
    for (calls, reason) in REFUSED {
        row(&mut text, &calls.split_whitespace().collect::<Vec<_>>(), reason);
    }
    text += ABSENT_HEAD;
    for (first, last, reason) in ABSENT {
        let numbers = match last {
            _ if first == last => first.to_string(),
            0x3fff_ffff => format!("from {first}"),
            _ => format!("{first} to {last}"),
        };
        let _ = writeln!(text, "| {numbers} | {reason} |");
    }
    Ok(text)
}

/// The part of the page about a call that stands for many.
fn closer(text: &mut String, call: &Call) {
    let _ = writeln!(text, "\n## What `{}` may be asked\n", call.name);
    let otherwise = |choice: &Choice| match choice.given {
        None => format!("Others: {}.", told(choice.otherwise)),
        Some((_, _, given)) => format!("Others of `{given}`: {}.", told(choice.otherwise)),
    };
    let mut others: Vec<_> = call.choices.iter().map(otherwise).collect();
    if call.choices.iter().any(|choice| choice.given.is_some()) && call.elsewhere != Answer::Allow {
        others.push(format!("Of anything else: {}.", told(call.elsewhere)));
    }
    let _ = writeln!(text, "{}", others.join(" "));
    if call.choices.iter().any(|choice| !choice.rows.is_empty()) {
        text.push_str("\n| value | answer | why |\n|---|---|---|\n");
    }
    for choice in call.choices {
        let given = choice.given.map(|(_, _, given)| format!("`{given}`: ")).unwrap_or_default();
        for Row { values, answer, why } in choice.rows {
            let names: Vec<_> = values.iter().map(|(name, _)| format!("`{name}`")).collect();
            let _ = writeln!(text, "| {given}{} | {} | {why} |", names.join(" "), told(*answer));
        }
    }
}

fn told(answer: Answer) -> &'static str {
    match answer {
        Answer::Allow | Answer::Next => "allowed",
        Answer::Ask => "thaw-init is asked",
        Answer::Refuse(0) => "nothing, and no error",
        Answer::Refuse(libc::EPERM) => "EPERM",
        Answer::Refuse(libc::EINVAL) => "EINVAL, as if unknown",
        Answer::Refuse(libc::ENOTTY) => "ENOTTY, as if unknown",
        Answer::Refuse(libc::ENOPROTOOPT) => "ENOPROTOOPT, as if unknown",
        Answer::Refuse(libc::EPROTONOSUPPORT) => "EPROTONOSUPPORT, as if unknown",
        Answer::Refuse(libc::ESOCKTNOSUPPORT) => "ESOCKTNOSUPPORT, as if unknown",
        Answer::Refuse(libc::EOPNOTSUPP) => "EOPNOTSUPP, as if unknown",
        Answer::Refuse(_) => "an error",
    }
}

const HEAD: &str = "# System calls\n\n\
The filter of every container, generated from `seccomp.json`, `filter.rs` and `choices.rs` of the spawner. Calls of the 32-bit\n\
interface end the program with SIGSYS; those of x32 are refused like any that is not listed.\n\n\
## Allowed\n\n| calls | why |\n|---|---|\n";

const ABSENT_HEAD: &str = "\n## Unknown: ENOSYS\n\n\
As if the kernel did not have them, so that libraries use what they used before. A call that the kernel gets tomorrow\n\
is among them until somebody has looked at it.\n\n| numbers of x86-64 | which |\n|---|---|\n";

fn row(text: &mut String, calls: &[&str], reason: &str) {
    let calls: Vec<String> = calls.iter().map(|call| format!("`{call}`")).collect();
    let _ = writeln!(text, "| {} | {reason} |", calls.join(" "));
}

fn condition(condition: &Condition) -> String {
    let Condition { index, op, val, .. } = condition;
    match op {
        Op::Eq => format!("argument {index} is {val}"),
        Op::MaskedEq(mask) => format!("argument {index} has {val} under the mask {mask:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_that_is_allowed_has_a_reason_and_none_is_refused_as_well() {
        let page = page().unwrap();
        for (calls, _) in REFUSED {
            for call in calls.split_whitespace() {
                assert!(!allowed::text().contains(&format!("\"syscall\": \"{call}\"")), "{call}");
                assert_eq!(page.matches(&format!("`{call}`")).count(), 1, "{call}");
            }
        }
        let known: BTreeSet<_> = REFUSED.iter().flat_map(|(calls, _)| calls.split_whitespace()).collect();
        assert!(known.contains("ptrace") && !known.contains("clone3"));
    }
}
