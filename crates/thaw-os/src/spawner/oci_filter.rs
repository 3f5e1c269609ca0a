//! The system call filter in the form of OCI runtimes, where each rule compares arguments of 64 bits, while the kernel's
//! calls take 32 of most: all comparisons are masked.

use std::collections::BTreeSet;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::allowed::{Condition, Entry, Op, Width};
use super::choices::{Answer, CALLS, Call};

type Result<T> = std::result::Result<T, OciSpecError>;

/// Whether an argument has these bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Test {
    argument: usize,
    mask: u64,
    value: u64,
}

impl Test {
    fn of(condition: &Condition) -> Self {
        let width = match condition.width {
            Width::Dword => u64::from(u32::MAX),
            Width::Qword => u64::MAX,
        };
        let mask = match condition.op {
            Op::Eq => width,
            Op::MaskedEq(mask) => mask & width,
        };
        Self { argument: condition.index as usize, mask, value: condition.val }
    }

    fn passes(&self, arguments: &[u64; 6]) -> bool {
        arguments[self.argument] & self.mask == self.value
    }
}

/// What a call is allowed with, each by itself.
type Alternatives = Vec<Vec<Test>>;

/// `list` is what containers get; EPERM for everything else. `clone3` looks unimplemented, as there.
pub fn seccomp(list: &[Entry]) -> Result<LinuxSeccomp> {
    let mut plain = BTreeSet::new();
    let mut rules = Vec::new();
    for name in list.iter().map(|entry| entry.syscall.as_str()).collect::<BTreeSet<_>>() {
        let of_list: Alternatives = list
            .iter()
            .filter(|entry| entry.syscall == name)
            .map(|entry| entry.args.iter().map(Test::of).collect())
            .collect();
        let alternatives = match CALLS.iter().find(|call| call.name == name) {
            Some(call) => chosen(call, &of_list)?,
            None => of_list,
        };
        match alternatives.iter().any(Vec::is_empty) {
            true => drop(plain.insert(name.to_owned())),
            false => rules.extend(alternatives.into_iter().map(|tests| (name, tests))),
        }
    }
    let mut calls = vec![
        LinuxSyscallBuilder::default()
            .names(plain.into_iter().collect::<Vec<_>>())
            .action(LinuxSeccompAction::ScmpActAllow)
            .build()?,
        LinuxSyscallBuilder::default()
            .names(vec!["clone3".to_owned()])
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(libc::ENOSYS as u32)
            .build()?,
    ];
    for (name, tests) in rules {
        calls.push(allow(name, &tests)?);
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::EPERM as u32)
        .architectures(vec![Arch::ScmpArchX86_64])
        .syscalls(calls)
        .build()
}

fn allow(name: &str, tests: &[Test]) -> Result<LinuxSyscall> {
    let arg = |test: &Test| -> Result<LinuxSeccompArg> {
        LinuxSeccompArgBuilder::default()
            .index(test.argument)
            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
            .value(test.mask)
            .value_two(test.value)
            .build()
    };
    LinuxSyscallBuilder::default()
        .names(vec![name.to_owned()])
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(tests.iter().map(arg).collect::<Result<Vec<_>>>()?)
        .build()
}

/// Values of an argument that are treated alike: one of them, and the tests of which one passes.
struct Class {
    example: u64,
    tests: Vec<Test>,
}

/// With what a call is allowed that both the list and its [`Call`] have to allow.
fn chosen(call: &Call, of_list: &Alternatives) -> Result<Alternatives> {
    let mut values: [BTreeSet<(u64, u64)>; 6] = Default::default();
    for test in of_list.iter().flatten() {
        values[test.argument].insert((test.mask, test.value));
    }
    for choice in call.choices {
        if let Some((argument, value, _)) = choice.given {
            values[argument as usize].insert((u64::from(u32::MAX), u64::from(value)));
        }
        for (_, value) in choice.rows.iter().flat_map(|row| row.values) {
            values[choice.argument as usize].insert((u64::from(choice.mask), u64::from(*value)));
        }
    }
    let mut arguments = Vec::new();
    for (argument, values) in values.into_iter().enumerate().filter(|(_, values)| !values.is_empty()) {
        let masks: BTreeSet<u64> = values.iter().map(|(mask, _)| *mask).collect();
        let &[mask] = masks.iter().copied().collect::<Vec<_>>().as_slice() else {
            return Err(OciSpecError::Other(format!("{}: argument {argument} has several masks", call.name)));
        };
        arguments.push(classes(argument, mask, values.into_iter().map(|(_, value)| value).collect()));
    }
    Ok(split(&arguments, &mut [0; 6], &|values| decide(call, of_list, values)))
}

/// Each value, and all others.
fn classes(argument: usize, mask: u64, values: Vec<u64>) -> Vec<Class> {
    let test = |(mask, value)| Test { argument, mask, value };
    let others: Vec<Test> = others(mask, &values).into_iter().map(test).collect();
    let one = |value: u64| Class { example: value, tests: vec![test((mask, value))] };
    let rest = others.first().map(|other| Class { example: other.value, tests: others.clone() });
    values.into_iter().map(one).chain(rest).collect()
}

/// Looks at one argument after the other, as far as the answer hangs on it.
fn split(arguments: &[Vec<Class>], values: &mut [u64; 6], allows: &dyn Fn(&[u64; 6]) -> bool) -> Alternatives {
    match (unanimous(arguments, values, allows), arguments) {
        (Some(true), _) => vec![Vec::new()],
        (Some(false), _) | (None, []) => Vec::new(),
        (None, [first, rest @ ..]) => {
            let mut found = Vec::new();
            for class in first {
                let Some(argument) = class.tests.first().map(|test| test.argument) else { continue };
                values[argument] = class.example;
                for below in split(rest, values, allows) {
                    let with = |test: &Test| std::iter::once(*test).chain(below.iter().copied()).collect();
                    found.extend(class.tests.iter().map(with));
                }
                values[argument] = 0;
            }
            found
        }
    }
}

/// The answer, if it is the same for all values of these arguments.
fn unanimous(arguments: &[Vec<Class>], values: &mut [u64; 6], allows: &dyn Fn(&[u64; 6]) -> bool) -> Option<bool> {
    let [first, rest @ ..] = arguments else { return Some(allows(values)) };
    let mut answer = None;
    for class in first {
        let Some(argument) = class.tests.first().map(|test| test.argument) else { continue };
        let before = std::mem::replace(&mut values[argument], class.example);
        let one = unanimous(rest, values, allows);
        values[argument] = before;
        if one.is_none() || answer.is_some_and(|answer| Some(answer) != one) {
            return None;
        }
        answer = one;
    }
    answer
}

/// Whether the call is allowed with these arguments.
fn decide(call: &Call, of_list: &Alternatives, arguments: &[u64; 6]) -> bool {
    let low = |argument: u32| arguments[argument as usize] as u32;
    let answer = call.choices.iter().find_map(|choice| {
        if choice.given.is_some_and(|(argument, value, _)| low(argument) != value) {
            return None;
        }
        let has = |value: u32| low(choice.argument) & choice.mask == value;
        let row = choice.rows.iter().find(|row| row.values.iter().any(|(_, value)| has(*value)));
        let answer = row.map_or(choice.otherwise, |row| row.answer);
        (answer != Answer::Next).then_some(answer)
    });
    // There is no thaw-init that could be asked.
    let allows = matches!(answer.unwrap_or(call.elsewhere), Answer::Allow | Answer::Ask | Answer::Next);
    allows && of_list.iter().any(|tests| tests.iter().all(|test| test.passes(arguments)))
}

/// Pairs of a mask and a value, each value below `mask` but those in `values` under exactly one of them.
fn others(mask: u64, values: &[u64]) -> Vec<(u64, u64)> {
    let mut pairs = Vec::new();
    // Bits from the top that are decided, and the values that begin with them.
    let mut open = vec![(0u64, 0u64, values.to_vec())];
    for bit in (0..u64::BITS).rev().map(|bit| 1u64 << bit).filter(|bit| mask & bit != 0) {
        let mut next = Vec::new();
        for (decided, prefix, values) in open {
            for value in [prefix, prefix | bit] {
                let within: Vec<u64> = values.iter().copied().filter(|other| other & bit == value & bit).collect();
                match within.is_empty() {
                    true => pairs.push((decided | bit, value)),
                    false => next.push((decided | bit, value, within)),
                }
            }
        }
        open = next;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::super::allowed;
    use super::*;

    #[test]
    fn every_other_value_is_under_exactly_one_mask() {
        let forbidden = [21522, 21532];
        let pairs = others(u64::from(u32::MAX), &forbidden);
        let under = |value: u64| pairs.iter().filter(|(mask, wanted)| value & mask == *wanted).count();
        for value in [0, 1, 21521, 21523, 21524, 21526, 21531, 21533, 21530, 21540, 0x8000_0000, u64::from(u32::MAX)] {
            assert_eq!(under(value), 1, "{value}");
        }
        for value in forbidden {
            assert_eq!(under(value), 0);
            assert_eq!(under(value | 1 << 40), 0, "bits that the kernel does not look at");
        }
        assert!(pairs.len() < 64, "{}", pairs.len());
        assert_eq!(others(3, &[0, 1, 2]), [(3, 3)]);
    }

    /// The rules for a call: on each of these arguments they say what the filter of a container says.
    #[test]
    fn the_rules_allow_what_the_filter_allows() {
        let list = allowed::entries().unwrap();
        for call in CALLS {
            let of_list: Alternatives = list
                .iter()
                .filter(|entry| entry.syscall == call.name)
                .map(|entry| entry.args.iter().map(Test::of).collect())
                .collect();
            let rules = chosen(call, &of_list).unwrap();
            assert!(rules.len() < 700, "{}: {}", call.name, rules.len());
            let mut values: BTreeSet<u64> = (0..70).chain([0xffff_ffff, 0x8000_0000, 0x5412, 1 << 40]).collect();
            for choice in call.choices {
                values.extend(choice.given.map(|(_, value, _)| u64::from(value)));
                values.extend(choice.rows.iter().flat_map(|row| row.values).map(|(_, value)| u64::from(*value)));
            }
            for one in &values {
                for two in &values {
                    for three in [0, 1, 2, 6, 17, 58, 255, *one] {
                        for arguments in [[*one, *two, three, 0, 0, 0], [three, *one, *two, 0, 0, 0]] {
                            let allowed = rules.iter().any(|tests| tests.iter().all(|test| test.passes(&arguments)));
                            assert_eq!(allowed, decide(call, &of_list, &arguments), "{} {arguments:?}", call.name);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_list_becomes_rules() {
        let seccomp = serde_json::to_value(seccomp(&allowed::entries().unwrap()).unwrap()).unwrap();
        assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ERRNO");
        let calls = seccomp["syscalls"].as_array().unwrap();
        let plain = calls[0]["names"].as_array().unwrap();
        assert!(plain.len() > 200 && plain.contains(&"read".into()) && !plain.contains(&"ioctl".into()));
        assert_eq!(calls[1]["names"], serde_json::json!(["clone3"]));
        let clone = calls.iter().find(|call| call["names"][0] == "clone").unwrap();
        assert_eq!(clone["args"][0]["op"], "SCMP_CMP_MASKED_EQ");
        assert_eq!((&clone["args"][0]["value"], &clone["args"][0]["valueTwo"]), (&2_114_060_416_u64.into(), &0.into()));
    }
}
