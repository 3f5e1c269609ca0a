//! What the pages of the programs say and clap does not know.

use super::{Program, Section};

/// thawd(8)
pub const DAEMON: Program = Program {
    name: "thawd",
    chapter: "8",
    sections: &[
        Section {
            heading: "SIGNALS",
            entries: &[
                (
                    "SIGTERM, SIGINT",
                    "Stop. With `--on-stop destroy`, the default, running executions end at once, for the reason `killed`, \
                     and every container is destroyed. With `--on-stop keep` they go on, for the next daemon, as they do \
                     when the daemon is killed.",
                ),
                (
                    "SIGHUP",
                    "Read the configuration again. What a running daemon cannot take over is named in the log as \
                     `needs_restart`; a file with a mistake changes nothing.",
                ),
            ],
        },
        Section {
            heading: "ENVIRONMENT",
            entries: &[
                (
                    "RUST_LOG",
                    "What is logged, such as `thawd=debug,info`; overrides `log.filter` of the configuration.",
                ),
                (
                    "NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS",
                    "Set by systemd: readiness, watchdog and socket activation.",
                ),
            ],
        },
        Section {
            heading: "FILES",
            entries: &[
                ("/etc/thawd/thawd.toml", "The configuration, see thawd.toml(5)."),
                ("/run/thawd/thawd.sock", "The HTTP API. Whoever may use it may run any command in any image."),
                ("/usr/share/thawd/providers/*.toml", "The provider manifests."),
                ("/var/lib/thawd", "Images. Nothing else is kept there."),
            ],
        },
        Section {
            heading: "EXIT STATUS",
            entries: &[
                ("0", "It was told to stop, or the configuration is right."),
                ("1", "It could not start or go on, or the configuration is wrong; standard error says why."),
                ("2", "The command line is wrong."),
            ],
        },
    ],
    see_also: &["thawctl(1)", "thawd.toml(5)", "cgroups(7)", "user_namespaces(7)", "systemctl(1)"],
};

/// thawctl(1)
pub const CLIENT: Program = Program {
    name: "thawctl",
    chapter: "1",
    sections: &[
        Section {
            heading: "EXIT STATUS",
            entries: &[
                ("0", "It worked."),
                (
                    "1",
                    "For `run`: the provider's program reports a failure. For `doctor` and `image verify`: something is wrong.",
                ),
                ("124", "For `run`: the time limit passed."),
                (
                    "125",
                    "thawctl or the daemon failed, the request was refused or waited in vain, or the container broke.",
                ),
                ("126, 127", "For `run`: the command could not be run, or was not found."),
                (
                    "128 + N",
                    "For `run`: the command was killed by signal N; 137 also when the memory limit was reached, 130 when \
                     Ctrl-C cancelled it.",
                ),
                ("141", "Whoever read the output went away."),
                ("any other", "For `run`: that of the command."),
            ],
        },
        Section {
            heading: "ENVIRONMENT",
            entries: &[
                ("THAWD_SOCKET", "The daemon's socket, unless `--socket` names it."),
                (
                    "THAWD_CONFIG",
                    "The daemon's configuration, which tells `image` where images are and what they may cost.",
                ),
                ("THAWCTL_REGISTRY_PASSWORD", "Password for the registry, with `--username`."),
                (
                    "DOCKER_CONFIG",
                    "Folder of the `config.json` in which `docker login` saved passwords, else `~/.docker`.",
                ),
            ],
        },
        Section {
            heading: "FILES",
            entries: &[
                ("/run/thawd/thawd.sock", "The daemon's socket; for root and the group `thawd`."),
                ("/etc/thawd/thawd.toml", "The daemon's configuration, see thawd.toml(5)."),
                ("/var/cache/thawd/build", "What is kept between builds of images."),
            ],
        },
    ],
    see_also: &["thawctl(1)", "thawd(8)", "thawd.toml(5)"],
};
