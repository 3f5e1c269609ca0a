//! Datagrams on the control socket, as thaw-init reads commands and signals, and the daemon reports.
#![no_main]

use std::ffi::CStr;

use thaw_wire::{
    MAX_STRINGS, REPORT_LEN, RLIMIT_LEN, Report, Rlimit, Signal, SpawnHeader, cut_strings, group,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(report) = Report::decode(data) {
        assert_eq!(Report::decode(&report.encode()), Some(report));
        assert_eq!(data.len(), REPORT_LEN);
    }
    if let Some(signal) = Signal::decode(data) {
        assert_eq!(Signal::decode(&signal.encode()), Some(signal));
    }
    let Some(header) = SpawnHeader::decode(data) else { return };
    assert_eq!(SpawnHeader::decode(&header.encode()), Some(header));
    let Some((rlimits, strings_at)) = header.offsets() else { return };
    for index in 0..header.groups as usize {
        assert_eq!(group(data, index).is_some(), data.len() >= rlimits - 4 * (header.groups as usize - 1 - index));
    }
    for index in 0..header.rlimits as usize {
        if let Some(rlimit) = data.get(rlimits + index * RLIMIT_LEN..).and_then(Rlimit::decode) {
            assert_eq!(Rlimit::decode(&rlimit.encode()), Some(rlimit));
        }
    }
    // As thaw-init does: the buffer goes on behind the datagram with a NUL.
    let strings = data.get(strings_at..);
    let (mut cwd, mut argv, mut envp) = ([std::ptr::null(); 2], table(), table());
    let parsed = strings
        .and_then(|bytes| cut_strings(bytes, 1, &mut cwd))
        .and_then(|bytes| cut_strings(bytes, header.argc as usize, &mut argv))
        .and_then(|bytes| cut_strings(bytes, header.envc as usize, &mut envp));
    let Some(rest) = parsed else { return };
    // Each string lies within the datagram, right behind the one before.
    let mut at = strings_at;
    for (table, count) in [(&cwd[..], 1), (&argv[..], header.argc as usize), (&envp[..], header.envc as usize)] {
        assert!(table[count].is_null());
        for &string in &table[..count] {
            let expected = CStr::from_bytes_until_nul(&data[at..]).expect("it is terminated");
            assert_eq!(string, expected.as_ptr());
            at += expected.count_bytes() + 1;
        }
    }
    assert_eq!(rest.len(), data.len() - at);
});

fn table() -> Vec<*const std::ffi::c_char> {
    vec![std::ptr::null(); MAX_STRINGS + 1]
}
