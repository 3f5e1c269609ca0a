//! Compiles the system call filter: one program for all tables, that finds a call's number by halving.
//!
//! What a container costs depends on it: at each installation the kernel translates the program, and runs it once for
//! every number there is, to know which calls need no look any more (Linux 5.11). A list that is gone through from its
//! beginning takes about 0.3 ms of that for 300 calls, a tree of the same 0.1 ms.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, TargetArch, sock_filter};
use serde_json::{Value, json};

use super::allowed::{self, Condition, Entry, Op, Width};
use super::choices::{Answer, CALLS, Call, Choice, Row};
use super::filter::ABSENT;
use super::filter_error::FilterError;

/// `AUDIT_ARCH_X86_64`, linux/audit.h.
const ARCH: u32 = 0xc000_003e;
/// Numbers of the x32 interface: the first, and the first that is nobody's.
const X32: u32 = 0x4000_0000;
const ABOVE_X32: u32 = 0x4000_0400;

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
/// `SECCOMP_RET_KILL_PROCESS`.
const KILL: u32 = 0x8000_0000;

/// What calls get from a number on, up to the next one's.
#[derive(Clone, PartialEq)]
struct Range {
    first: u32,
    leaf: BpfProgram,
}

/// The filter.
///
/// # Errors
/// The list is broken, or for another architecture.
pub fn program() -> Result<BpfProgram, FilterError> {
    let target = TargetArch::x86_64;
    if std::env::consts::ARCH.try_into().ok() != Some(target) {
        return Err(FilterError::Architecture(std::env::consts::ARCH));
    }
    // struct seccomp_data: the number is at 0, the architecture at 4, the arguments from 16 on.
    let mut program = vec![statement(LOAD, 4), jump(EQUAL, ARCH, 1, 0), statement(RETURN, KILL), statement(LOAD, 0)];
    program.extend(tree(&ranges(target)?));
    Ok(program)
}

/// What each number gets, neighbours with the same together.
fn ranges(target: TargetArch) -> Result<Vec<Range>, FilterError> {
    let entries = allowed::entries()?;
    let unconditional = allows_by_number(&entries, target)?;
    let mut conditional = BTreeMap::<u32, Vec<&Entry>>::new();
    for entry in entries.iter().filter(|entry| !entry.args.is_empty()) {
        conditional.entry(number(&entry.syscall)?).or_default().push(entry);
    }
    let unknown = error(libc::ENOSYS);
    let last = ABSENT[ABSENT.len() - 1].0;
    let mut ranges: Vec<Range> = Vec::new();
    let mut add = |first, leaf: BpfProgram| {
        if ranges.last().is_none_or(|last| last.leaf != leaf) {
            ranges.push(Range { first, leaf });
        }
    };
    for number in 0..last {
        let is_absent = ABSENT.iter().any(|(first, last, _)| (*first..=*last).contains(&number));
        let call = CALLS.iter().find(|call| call.number == i64::from(number));
        let looked_at = call.map(look_into).transpose()?;
        let conditions = conditional.get(&number);
        let is_allowed = conditions.is_some() || allows(&unconditional, number)?;
        add(
            number,
            match (is_absent, is_allowed) {
                (true, _) => vec![unknown.clone()],
                (false, false) => vec![error(libc::EPERM)],
                (false, true) => {
                    let allowed = looked_at.unwrap_or_else(|| vec![statement(RETURN, ALLOW)]);
                    match conditions {
                        Some(entries) => only_if(entries, allowed)?,
                        None => allowed,
                    }
                }
            },
        );
    }
    add(last, vec![unknown.clone()]);
    add(X32, vec![error(libc::EPERM)]);
    add(ABOVE_X32, vec![unknown]);
    Ok(ranges)
}

/// Leads to what the range says in which the number is.
fn tree(ranges: &[Range]) -> BpfProgram {
    let (below, above) = match ranges {
        [] => return Vec::new(),
        [only] => return only.leaf.clone(),
        _ => ranges.split_at(ranges.len() / 2),
    };
    let (first, below, above) = (above[0].first, tree(below), tree(above));
    let mut program = match u8::try_from(below.len()) {
        Ok(length) => vec![jump(AT_LEAST, first, length, 0)],
        // Jumps of more than 255 instructions need one of their own.
        Err(_) => vec![jump(AT_LEAST, first, 0, 1), skip(below.len())],
    };
    program.extend(below);
    program.extend(above);
    program
}

/// The numbers that are allowed whatever their arguments, as a program: only seccompiler has the names.
fn allows_by_number(entries: &[Entry], target: TargetArch) -> Result<BpfProgram, FilterError> {
    let names = entries.iter().filter(|entry| entry.args.is_empty()).map(|entry| json!({"syscall": entry.syscall}));
    let list = json!({
        "list": {
            "mismatch_action": {"errno": libc::EPERM},
            "match_action": "allow",
            "filter": names.collect::<Vec<Value>>(),
        }
    });
    let mut programs = seccompiler::compile_from_json(list.to_string().as_bytes(), target)
        .map_err(|error| FilterError::Compile(Box::new(error)))?;
    programs.remove("list").ok_or(FilterError::Empty)
}

fn allows(program: &[sock_filter], number: u32) -> Result<bool, FilterError> {
    Ok(judge(program, number, [0; 6])? == ALLOW)
}

/// What a program says about a call.
fn judge(program: &[sock_filter], number: u32, arguments: [u64; 6]) -> Result<u32, FilterError> {
    let word = |offset: u32| match offset {
        0 => number,
        4 => ARCH,
        _ => (arguments[(offset as usize - 16) / 8] >> (8 * (offset & 4))) as u32,
    };
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let instruction = program.get(at).ok_or(FilterError::Jump)?;
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
            RETURN => return Ok(instruction.k),
            code => return Err(FilterError::Instruction(code)),
        };
    }
}

/// Numbers of the calls that are allowed with certain arguments.
fn number(name: &str) -> Result<u32, FilterError> {
    let number = match name {
        "clone" => libc::SYS_clone,
        "personality" => libc::SYS_personality,
        "socket" => libc::SYS_socket,
        "socketpair" => libc::SYS_socketpair,
        _ => return Err(FilterError::Number(name.to_owned())),
    };
    Ok(number as u32)
}

/// `allowed` if all conditions of one of the entries hold, otherwise EPERM.
fn only_if(entries: &[&Entry], allowed: BpfProgram) -> Result<BpfProgram, FilterError> {
    let mut program = vec![error(libc::EPERM)];
    for entry in entries.iter().rev() {
        // From its end to its beginning, since each jump depends on how much comes behind it.
        let mut block = vec![skip(program.len())];
        for condition in entry.args.iter().rev() {
            let mut check = comparison(condition)?;
            check.push(skip(block.len()));
            block.splice(0..0, check);
        }
        program.splice(0..0, block);
    }
    program.extend(allowed);
    Ok(program)
}

/// Goes over the instruction behind it if the condition holds.
fn comparison(condition: &Condition) -> Result<BpfProgram, FilterError> {
    let fits = |value: u64| u32::try_from(value).map_err(|_| FilterError::UpperHalf);
    let value = fits(condition.val)?;
    let load = low_half(condition.index);
    let equal = jump(EQUAL, value, 1, 0);
    match (condition.op, condition.width) {
        (Op::Eq, Width::Dword) => Ok(vec![load, equal]),
        (Op::MaskedEq(mask), _) => Ok(vec![load, statement(MASK, fits(mask)?), equal]),
        (Op::Eq, Width::Qword) => Err(FilterError::UpperHalf),
    }
}

/// One choice after the other, and what the call gets if none decides.
fn look_into(call: &Call) -> Result<BpfProgram, FilterError> {
    let nobody = Choice { given: None, argument: 0, mask: u32::MAX, otherwise: call.elsewhere, rows: &[] };
    let blocks = call.choices.iter().chain([&nobody]).map(instructions).collect::<Result<Vec<_>, _>>()?;
    Ok(blocks.concat())
}

/// Behind the last of them the next choice begins. Values come first, a comparison each, then what the others get, then
/// what each row gets.
fn instructions(choice: &Choice) -> Result<BpfProgram, FilterError> {
    let mut body = vec![low_half(choice.argument)];
    if choice.mask != u32::MAX {
        body.push(statement(MASK, choice.mask));
    }
    let values = choice.rows.iter().enumerate();
    let values: Vec<_> =
        values.flat_map(|(row, Row { values, .. })| values.iter().map(move |(_, v)| (row, *v))).collect();
    for (index, (row, value)) in values.iter().enumerate() {
        let distance = u8::try_from(values.len() - index + row).map_err(|_| FilterError::TooManyValues)?;
        body.push(jump(EQUAL, *value, distance, 0));
    }
    let answers = [choice.otherwise].into_iter().chain(choice.rows.iter().map(|row| row.answer));
    body.extend(answers.enumerate().map(|(index, answer)| match answer {
        Answer::Allow => statement(RETURN, ALLOW),
        Answer::Refuse(errno) => error(errno),
        Answer::Ask => statement(RETURN, ASK),
        Answer::Next => skip(choice.rows.len() - index),
    }));
    if let Some((argument, value, _)) = choice.given {
        let check = [low_half(argument), jump(EQUAL, value, 1, 0), skip(body.len())];
        body.splice(0..0, check);
    }
    Ok(body)
}

fn low_half(argument: u32) -> sock_filter {
    statement(LOAD, 16 + 8 * argument)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn judged(number: i64, arguments: [u64; 6]) -> u32 {
        judge(&program().unwrap(), number as u32, arguments).unwrap()
    }

    #[test]
    fn the_filter_compiles_within_the_kernels_limit() {
        let program = program().unwrap();
        // BPF_MAXINSNS, linux/bpf_common.h.
        assert!(program.len() < 4096 && program.len() > 500, "{}", program.len());
        // No jump leaves the program: the kernel refuses such a one.
        for (at, instruction) in program.iter().enumerate() {
            let farthest = match instruction.code {
                SKIP => instruction.k as usize,
                EQUAL | AT_LEAST | ABOVE => usize::from(instruction.jt.max(instruction.jf)),
                _ => 0,
            };
            assert!(at + 1 + farthest < program.len() || instruction.code == RETURN, "{at}");
        }
    }

    /// Against seccompiler's own program for the same list, which goes through it from the beginning.
    #[test]
    fn each_number_gets_what_the_list_says() {
        let list = allowed::text().as_bytes();
        let listed = seccompiler::compile_from_json(list, TargetArch::x86_64).unwrap().remove("refused").unwrap();
        let tree = program().unwrap();
        let known = 0..ABSENT[ABSENT.len() - 1].0;
        let above = [known.end, 0x3fff_ffff, X32, X32 + 1, ABOVE_X32 - 1, ABOVE_X32, u32::MAX];
        // No namespace; the families of sockets that are allowed, and some that are not; of personalities too.
        let arguments = [0, 1, 2, 8, 10, 16, 17, 40, 0x2_0000, 0x2_0008, 0x1000_0000, 0xffff_ffff, 0x1111_0000_0001];
        for number in known.chain(above) {
            for first in arguments {
                let is_absent = ABSENT.iter().any(|(first, last, _)| (*first..=*last).contains(&number));
                let is_looked_at = CALLS.iter().any(|call| call.number == i64::from(number));
                let given = [first, 1, 0, 0, 0, 0];
                let expected = match judge(&listed, number, given).unwrap() {
                    _ if is_absent || number >= ABOVE_X32 => ERROR | libc::ENOSYS as u32,
                    // What those get is for the next test.
                    ALLOW if is_looked_at => continue,
                    answer => answer,
                };
                assert_eq!(judge(&tree, number, given).unwrap(), expected, "{number} {first:#x}");
            }
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
        assert_eq!(judged(libc::SYS_ptrace, [0; 6]), ERROR | libc::EPERM as u32);
    }

    #[test]
    fn calls_of_another_interface_end_the_program() {
        let program = program().unwrap();
        assert_eq!(program[1], jump(EQUAL, ARCH, 1, 0));
        assert_eq!(program[2], statement(RETURN, KILL));
    }
}
