//! System calls that are tried from inside.

use super::{Daemon, Program, Value};

/// Name, number and arguments of a system call, and how it has to end: well, or with an errno.
pub type Call<'a> = (&'a str, i64, &'a [Value], Result<(), i32>);

/// Runs system calls in a container and compares each result. `Ok(())` is any success.
pub async fn assert_calls(daemon: &Daemon, calls: &[Call<'_>]) {
    let mut program = Program::default();
    for (_, number, arguments, _) in calls {
        program.call(*number, arguments);
    }
    let outcome = daemon.run(&program.request()).await.exited(0);
    let mut wrong = Vec::new();
    for ((name, number, _, expected), result) in calls.iter().zip(program.results(&outcome.stdout)) {
        let fine = match expected {
            Ok(()) => result >= 0,
            Err(errno) => result == -i64::from(*errno),
        };
        if !fine {
            wrong.push(format!("{name} ({number}): {result}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Numbers for [`Value`].
pub fn n(number: i32) -> Value {
    number.into()
}

/// Strings for [`Value`].
pub fn text(text: &std::ffi::CStr) -> Value {
    text.into()
}

/// A [`Call`] that owns its arguments.
pub type OwnedCall = (&'static str, i64, Vec<Value>, Result<(), i32>);

/// [`assert_calls`] for calls that own their arguments.
pub async fn assert_owned(daemon: &Daemon, calls: &[OwnedCall]) {
    let calls: Vec<Call<'_>> =
        calls.iter().map(|(name, number, arguments, expected)| (*name, *number, &arguments[..], *expected)).collect();
    assert_calls(daemon, &calls).await;
}
