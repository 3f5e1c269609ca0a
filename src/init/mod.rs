//! What the daemon and `thaw-init` say to each other. The code of `thaw-init` itself is in `src/bin/thaw-init.rs`:
//! it is no_std and cannot use this library, so it includes [`wire`] as a source file.

pub mod wire;

#[cfg(test)]
mod tests {
    use super::wire::{MAX_DATAGRAM, Report, Signal, SpawnHeader, op};

    #[test]
    fn messages_survive_encoding() {
        let spawn = SpawnHeader { tag: 7, uid: 1000, gid: 1001, argc: 3, envc: 2 };
        assert_eq!(SpawnHeader::decode(&spawn.encode()), Some(spawn));
        let signal = Signal { tag: 7, signal: 15 };
        assert_eq!(Signal::decode(&signal.encode()), Some(signal));
        let report = Report { op: op::EXITED, tag: 7, value: -2, detail: 9 };
        assert_eq!(Report::decode(&report.encode()), Some(report));
    }

    #[test]
    fn short_messages_are_refused() {
        assert_eq!(SpawnHeader::decode(&[op::SPAWN, 0, 0, 0, 1]), None);
        assert_eq!(Signal::decode(&[op::SIGNAL]), None);
        assert_eq!(Report::decode(&[op::HELLO; 15]), None);
        assert_eq!(Report::decode(&[op::HELLO; 17]), None);
    }

    #[test]
    fn the_largest_single_argument_fits() {
        // MAX_ARG_STRLEN, execve(2): 32 pages.
        const { assert!(MAX_DATAGRAM > 32 * 4096 + 64 * 1024) }
    }
}
