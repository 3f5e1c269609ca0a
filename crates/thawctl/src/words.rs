//! Words of docker and podman that mean nothing here, and what to do instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Commands without a counterpart, and one sentence each.
const COMMANDS: [(&str, &str); 28] = [
    ("start", "an execution that ended cannot be started again: `thawctl run` starts another one"),
    ("restart", "an execution cannot be restarted: `thawctl cancel ID`, then `thawctl run`"),
    (
        "create",
        "what lives on is a sandbox: `thawctl sandbox create`; else `thawctl run`, or `thawctl pool set` for warm containers",
    ),
    (
        "pause",
        "sandboxes are frozen with `thawctl sandbox freeze`; an execution cannot be paused: `thawctl cancel ID` ends it",
    ),
    ("unpause", "a sandbox is woken with `thawctl sandbox wake`, and by each command in it"),
    ("container", "executions are what `thawctl ps` lists, their containers are in `thawctl containers`"),
    ("commit", "a container is destroyed with its execution: make images with `thawctl image build`"),
    ("diff", "a container is destroyed with its execution, and its files with it"),
    ("export", "a container is destroyed with its execution: `thawctl image push` sends an image"),
    ("history", "`thawctl image inspect NAME` shows the layers of an image"),
    ("save", "`thawctl image push LAYOUT REFERENCE` sends an image; layouts are folders below /var/lib/thawd/layouts"),
    (
        "tag",
        "an image gets its name when it comes in: `thawctl image import --name NAME`, `thawctl image pull --name NAME`",
    ),
    ("search", "registries are not searched: `thawctl image pull REFERENCE` takes the full name of an image"),
    ("logout", "thawctl saves no login of a registry; `docker logout` removes what docker saved"),
    ("port", "containers have no ports: they reach hosts through the daemon's proxy, and nothing reaches them"),
    ("network", "containers have no networks: `thawctl providers` shows which hosts they may reach"),
    ("volume", "containers have no volumes: what they write is destroyed with them"),
    ("rename", "a name is given at the start: `thawctl run --name NAME`"),
    ("update", "limits are given at the start: `thawctl run --memory --cpus --timeout`; pools: `thawctl pool set`"),
    (
        "system",
        "`thawctl info` shows the daemon, `thawctl image prune` frees space, `thawctl doctor` checks the machine",
    ),
    ("swarm", "one daemon serves one machine"),
    ("compose", "an execution is one container: `thawctl run` starts one"),
    ("pod", "an execution is one container: `thawctl run` starts one"),
    ("kube", "an execution is one container: `thawctl run` starts one"),
    ("generate", "the systemd units come with the package: `systemctl status thawd`"),
    ("unshare", "`thawctl run --image NAME -- sh -c 'CMD'` runs a command in an image"),
    ("mount", "the files of an image are below /var/lib/thawd/images; `thawctl image inspect NAME` says where"),
    ("list", "`thawctl ps` lists executions, `thawctl containers` containers, `thawctl images` images"),
];

/// Options of `run` without a counterpart.
const OPTIONS: [(&str, &str); 27] = [
    ("-t", "there are no terminals yet: leave -t out, and pass standard input on with -i"),
    ("--tty", "there are no terminals yet: leave --tty out, and pass standard input on with -i"),
    ("-v", "containers have no volumes; -v is --verbose here"),
    ("--volume", "containers have no volumes: what they write is destroyed with them"),
    ("--mount", "containers have no volumes: what they write is destroyed with them"),
    ("--tmpfs", "everything writable in a container is a tmpfs already, of container.ephemeral_bytes"),
    ("-p", "containers have no ports: nothing reaches them"),
    ("--publish", "containers have no ports: nothing reaches them"),
    ("-P", "containers have no ports: nothing reaches them"),
    ("--network", "containers reach hosts through the daemon's proxy alone: `egress` in the configuration says which"),
    ("--net", "containers reach hosts through the daemon's proxy alone: `egress` in the configuration says which"),
    ("--dns", "containers resolve no names: the daemon's proxy does"),
    ("--add-host", "containers resolve no names: `egress.resolve` in the configuration gives the proxy addresses"),
    ("--hostname", "the host name of a container is its id"),
    ("--privileged", "no container has a privilege over the host"),
    ("--cap-add", "no command has a capability"),
    ("--cap-drop", "no command has a capability: there is none to drop"),
    ("--security-opt", "every container has the same filter of system calls, see docs/seccomp.md"),
    ("--device", "containers have six devices, such as /dev/null, and no others"),
    ("--gpus", "containers have no devices of the host"),
    ("--restart", "an execution runs once; start it again when it fails"),
    ("--init", "every container has an init, thaw-init"),
    ("--read-only", "the image is read-only for every command; home, /tmp and /dev/shm are writable"),
    ("--pull", "`thawctl image pull REFERENCE` gets an image"),
    ("--platform", "images are those of this machine's processor"),
    ("--ulimit", "container.open_files in the configuration is the limit of open files"),
    (
        "--pids-limit",
        "the limit of processes is the provider's: pids_max in its manifest, image_run.pids_max for images",
    ),
];

/// A sentence for a mistake that docker's habit explains.
pub(super) fn instead(error: &clap::Error) -> Option<String> {
    let given = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = given(ContextKind::InvalidSubcommand)?;
            let (_, sentence) = COMMANDS.iter().find(|(known, _)| *known == word)?;
            Some(format!("there is no `{word}`: {sentence}"))
        }
        ErrorKind::UnknownArgument => {
            let word = given(ContextKind::InvalidArg)?;
            let name = word.split('=').next().unwrap_or(word);
            if let Some((_, sentence)) = OPTIONS.iter().find(|(known, _)| *known == name) {
                return Some(format!("there is no `{name}`: {sentence}"));
            }
            let of_run = error.get(ContextKind::Usage).is_some_and(|usage| usage.to_string().contains("thawctl run"));
            (of_run && !word.starts_with('-')).then(|| {
                format!(
                    "{word:?} is one word too many: quote a prompt; put `--` before a command; name an image with --image"
                )
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::Cli;
    use super::*;

    fn said(args: &[&str]) -> Option<String> {
        instead(&Cli::try_parse_from(["thawctl"].iter().chain(args)).unwrap_err())
    }

    #[test]
    fn every_word_without_a_counterpart_is_answered_and_is_none_of_ours() {
        let cli = Cli::command();
        for (word, sentence) in COMMANDS {
            assert!(!cli.get_subcommands().any(|command| command.get_name() == word), "{word}");
            assert_eq!(said(&[word]), Some(format!("there is no `{word}`: {sentence}")), "{word}");
        }
        let run = cli.find_subcommand("run").unwrap();
        for (option, sentence) in OPTIONS.iter().filter(|(option, _)| *option != "-v") {
            let long = option.trim_start_matches('-');
            assert!(!run.get_arguments().any(|arg| arg.get_long() == Some(long)), "{option}");
            assert_eq!(said(&["run", "openai", option, "x"]), Some(format!("there is no `{option}`: {sentence}")));
        }
    }

    #[test]
    fn a_command_without_dashes_is_explained() {
        let said = said(&["run", "alpine", "echo", "hi"]).unwrap();
        assert!(said.contains("\"hi\"") && said.contains("`--`") && said.contains("--image"), "{said}");
        assert_eq!(super::instead(&Cli::try_parse_from(["thawctl", "pol"]).unwrap_err()), None, "clap's own words");
    }
}
