//! The system call filter: what is allowed, what is refused (EPERM), and what looks as if the kernel did not know it
//! (ENOSYS), so that a library falls back to an older call instead of giving up.

use std::collections::BTreeMap;
use std::fmt::Write;

use seccompiler::{BpfProgram, TargetArch, sock_filter};

use super::choices::{Answer, CALLS, Call, Choice, Row};

/// The allow list, as data with a reason for each entry. Everything else is EPERM.
pub const ALLOWED: &str = include_str!("seccomp.json");

/// `AUDIT_ARCH_X86_64`, linux/audit.h.
const ARCH: u32 = 0xc000_003e;

/// Numbers of x86-64 that look unimplemented: first, last, why.
const ABSENT: [(u32, u32, &str); 16] = [
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

/// Above the calls of the x32 interface: nobody's.
const ABOVE_X32: u32 = 0x4000_0400;

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

/// What goes before each program: it leaves calls of other interfaces to the allow list, which ends them.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ABOVE: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const SKIP: u16 = 0x05; // BPF_JMP | BPF_JA
const MASK: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
/// `SECCOMP_RET_ALLOW` and `SECCOMP_RET_ERRNO` (linux/seccomp.h).
const ALLOW: u32 = 0x7fff_0000;
const ERROR: u32 = 0x0005_0000;
/// `SECCOMP_RET_USER_NOTIF`: whoever has the listener decides.
const ASK: u32 = 0x7fc0_0000;

/// Both programs, in the order in which they are installed: the last one has the last word between two refusals.
///
/// # Errors
/// The list is broken, or for another architecture.
pub fn programs() -> Result<[BpfProgram; 2], String> {
    let target: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|error| format!("no system call filter for this architecture: {error}"))?;
    if target != TargetArch::x86_64 {
        return Err("there is a system call filter for x86-64 only".to_owned());
    }
    let mut programs = seccompiler::compile_from_json(ALLOWED.as_bytes(), target)
        .map_err(|error| format!("compile the system call filter: {error}"))?;
    let allowed = programs.remove("refused").ok_or_else(|| "the system call filter lacks `refused`".to_owned())?;
    Ok([allowed, looking_closer()])
}

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Goes over so many instructions.
fn skip(instructions: usize) -> sock_filter {
    statement(SKIP, instructions as u32)
}

fn error(errno: i32) -> sock_filter {
    statement(RETURN, ERROR | errno as u32)
}

/// ENOSYS for [`ABSENT`] and for what is above x32, and what [`CALLS`] say. For all other calls it looks at nothing but the
/// number, so that the kernel's cache of what is always allowed (Linux 5.11) goes on working.
fn looking_closer() -> BpfProgram {
    // struct seccomp_data: the number is at 0, the architecture at 4, the arguments from 16 on.
    let mut program = vec![statement(LOAD, 4), jump(EQUAL, ARCH, 1, 0), statement(RETURN, ALLOW), statement(LOAD, 0)];
    for (first, last, _) in ABSENT.iter().copied().chain([(ABOVE_X32, u32::MAX, "")]) {
        program.extend([jump(AT_LEAST, first, 0, 2), jump(ABOVE, last, 1, 0), error(libc::ENOSYS)]);
    }
    for call in CALLS {
        let mut block: BpfProgram = call.choices.iter().flat_map(instructions).collect();
        block.push(verdict(call.elsewhere));
        // Jumps of more than 255 instructions need one of their own.
        program.extend([jump(EQUAL, call.number as u32, 1, 0), skip(block.len())]);
        program.extend(block);
    }
    program.push(statement(RETURN, ALLOW));
    program
}

/// Behind the last of them the next choice begins.
fn instructions(choice: &Choice) -> BpfProgram {
    let low_half = |argument: u32| statement(LOAD, 16 + 8 * argument);
    let mut body = vec![low_half(choice.argument)];
    if choice.mask != u32::MAX {
        body.push(statement(MASK, choice.mask));
    }
    let values = choice.rows.iter().flat_map(|row| row.values.iter().map(|(_, value)| (*value, row.answer)));
    let answers: Vec<_> = values.collect();
    let end = body.len() + 2 * answers.len() + 1;
    for (value, answer) in answers {
        let to_the_end = end - (body.len() + 2);
        body.push(jump(EQUAL, value, 0, 1));
        body.push(if answer == Answer::Next { skip(to_the_end) } else { verdict(answer) });
    }
    body.push(verdict(choice.otherwise));
    if let Some((argument, value, _)) = choice.given {
        let check = [low_half(argument), jump(EQUAL, value, 1, 0), skip(body.len())];
        body.splice(0..0, check);
    }
    body
}

fn verdict(answer: Answer) -> sock_filter {
    match answer {
        Answer::Allow => statement(RETURN, ALLOW),
        Answer::Refuse(errno) => error(errno),
        Answer::Ask => statement(RETURN, ASK),
        Answer::Next => skip(0),
    }
}

/// `docs/seccomp.md`: each call that is allowed, with its reason, and what happens to the others.
///
/// # Errors
/// The list is no list.
pub fn page() -> Result<String, String> {
    let list: serde_json::Value = serde_json::from_str(ALLOWED).map_err(|error| error.to_string())?;
    let entries = list["refused"]["filter"].as_array().ok_or("the system call filter has no entries")?;
    let (mut plain, mut checked) = (BTreeMap::<&str, Vec<&str>>::new(), Vec::new());
    for entry in entries {
        let name = entry["syscall"].as_str().ok_or("an entry has no name")?;
        let reason = entry["comment"].as_str().ok_or_else(|| format!("{name} is allowed without a reason"))?;
        match entry["args"].as_array() {
            None => plain.entry(reason).or_default().push(name),
            Some(conditions) => checked.push((name, conditions.iter().map(condition).collect::<Vec<_>>(), reason)),
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

fn condition(condition: &serde_json::Value) -> String {
    let (argument, value) = (&condition["index"], &condition["val"]);
    match &condition["op"] {
        serde_json::Value::String(op) if op == "eq" => format!("argument {argument} is {value}"),
        serde_json::Value::String(op) if op == "ne" => format!("argument {argument} is not {value}"),
        serde_json::Value::Object(op) => {
            let mask = op.get("masked_eq").and_then(serde_json::Value::as_u64).unwrap_or_default();
            format!("argument {argument} has {value} under the mask {mask:#x}")
        }
        other => format!("argument {argument} {other} {value}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_filter_compiles_within_the_kernels_limit() {
        let [allowed, absent] = programs().unwrap();
        // BPF_MAXINSNS, linux/bpf_common.h.
        assert!(allowed.len() < 4096 && allowed.len() > 300);
        assert!(absent.len() < 4096 && absent.len() > 3 * ABSENT.len() + 300);
        // No jump leaves the program (the kernel refuses such a one), and each of the two ends with an answer.
        for (at, instruction) in absent.iter().enumerate() {
            let farthest = match instruction.code {
                SKIP => instruction.k as usize,
                EQUAL | AT_LEAST | ABOVE => usize::from(instruction.jt.max(instruction.jf)),
                _ => 0,
            };
            assert!(at + 1 + farthest <= absent.len(), "{at}");
        }
    }

    /// What the second program says about a call with these arguments.
    fn judged(number: i64, arguments: [u64; 6]) -> u32 {
        let [_, program] = programs().unwrap();
        let word = |offset: u32| match offset {
            0 => number as u32,
            4 => ARCH,
            _ => (arguments[(offset as usize - 16) / 8] >> (8 * (offset & 4))) as u32,
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let instruction = &program[at];
            let jumped = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
            at += 1 + match instruction.code {
                LOAD => {
                    accumulator = word(instruction.k);
                    0
                }
                MASK => {
                    accumulator &= instruction.k;
                    0
                }
                SKIP => instruction.k as usize,
                EQUAL => jumped(accumulator == instruction.k),
                AT_LEAST => jumped(accumulator >= instruction.k),
                ABOVE => jumped(accumulator > instruction.k),
                RETURN => return instruction.k,
                code => panic!("{code:#x}"),
            };
        }
    }

    #[test]
    fn each_value_gets_what_its_row_says_and_others_are_unknown() {
        for call in CALLS {
            for choice in call.choices {
                let with = |value: u32| {
                    // As sockets are made: of a type and a protocol that are allowed unless they are what is tried.
                    let mut arguments = if call.name == "socket" { [0, 1, 0, 0, 0, 0] } else { [0; 6] };
                    if let Some((argument, given, _)) = choice.given {
                        arguments[argument as usize] = u64::from(given);
                    }
                    // The upper half of an argument that the kernel takes for 32 bits changes nothing.
                    arguments[choice.argument as usize] = u64::from(value) | 1 << 40;
                    judged(call.number, arguments)
                };
                let expected = |answer: Answer| match answer {
                    Answer::Refuse(errno) => ERROR | errno as u32,
                    Answer::Allow | Answer::Next => ALLOW,
                    Answer::Ask => ASK,
                };
                let mut seen = BTreeSet::new();
                for row in choice.rows {
                    for (name, value) in row.values {
                        assert!(seen.insert(value), "{} {name} stands in two rows", call.name);
                        assert_eq!(with(*value), expected(row.answer), "{} {name}", call.name);
                    }
                }
                let unknown = 0x7777_7777 & choice.mask;
                assert_eq!(with(unknown), expected(choice.otherwise), "{}", call.name);
            }
        }
        assert_eq!(judged(libc::SYS_setsockopt, [0, 263, 1, 0, 0, 0]), ERROR | libc::ENOPROTOOPT as u32);
        assert_eq!(judged(libc::SYS_socket, [1, 1, 0, 0, 0, 0]), ALLOW);
        assert_eq!(judged(libc::SYS_read, [0; 6]), ALLOW);
        assert_eq!(judged(libc::SYS_io_setup, [0; 6]), ERROR | libc::ENOSYS as u32);
    }

    #[test]
    fn every_call_that_is_allowed_has_a_reason_and_none_is_refused_as_well() {
        let page = page().unwrap();
        for (calls, _) in REFUSED {
            for call in calls.split_whitespace() {
                assert!(!ALLOWED.contains(&format!("\"syscall\": \"{call}\"")), "{call}");
                assert_eq!(page.matches(&format!("`{call}`")).count(), 1, "{call}");
            }
        }
        let known: BTreeSet<_> = REFUSED.iter().flat_map(|(calls, _)| calls.split_whitespace()).collect();
        assert!(known.contains("ptrace") && !known.contains("clone3"));
    }
}
