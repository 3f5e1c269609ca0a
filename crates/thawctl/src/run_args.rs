//! Arguments of `thawctl run`.

use std::path::PathBuf;
use std::time::Duration;

use super::profile::Profile;

/// Arguments of `thawctl run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: that of the command; 1 when a prompt's CLI reports a failure although its exit code is 0; 124 on timeout; \
125 when thawctl or the daemon failed, or a part of the output (a gap) or a file that was to be collected is missing; 126 and 127 when the command cannot be \
run or found; 128+N when killed by signal N. Ctrl-C cancels the execution, a second one leaves.")]
pub(super) struct Args {
    /// Provider whose container to use, see `thawctl providers`; may be left out when the profile names one
    #[arg(conflicts_with = "image", add = super::completion::providers())]
    pub(super) provider: Option<String>,
    /// Image of the store to run the command in, without a provider, see `thawctl images`
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "effort", "file", "credential_env", "raw"],
        add = super::completion::images())]
    pub(super) image: Option<String>,
    /// What to ask the provider's CLI; `-` reads it from stdin
    #[arg(conflicts_with_all = ["command", "image"])]
    pub(super) prompt: Option<String>,
    /// Command to run in the provider's image instead of its CLI
    #[arg(last = true, value_name = "CMD")]
    pub(super) command: Vec<String>,
    /// Program to start instead of the image's entrypoint; the image's own command is left out too
    #[arg(long, value_name = "PROGRAM", requires = "image")]
    pub(super) entrypoint: Option<String>,
    /// Model; the provider's default otherwise
    #[arg(long, conflicts_with = "command")]
    pub(super) model: Option<String>,
    /// Reasoning effort, one of those that the provider knows
    #[arg(long, conflicts_with = "command")]
    pub(super) effort: Option<String>,
    /// Whose execution this is; you otherwise
    #[arg(long, short)]
    pub(super) user: Option<String>,
    /// Credential file for this execution: its name, and where its content is read from
    #[arg(long, value_name = "NAME=PATH", value_parser = name_path)]
    pub(super) file: Vec<(String, PathBuf)>,
    /// Credential variable for this execution; its value is taken from thawctl's own environment
    #[arg(long, value_name = "NAME")]
    pub(super) credential_env: Vec<String>,
    /// Environment variable; not for secrets, since others can read thawctl's arguments
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(super) env: Vec<(String, String)>,
    /// The same for a variable that a provider's CLI may break by, such as HOME or PATH
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(super) force_env: Vec<(String, String)>,
    /// File of environment variables: a line is KEY=VALUE, KEY alone (taken from thawctl's environment), or a # comment
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// Pass standard input to the command, up to its end
    #[arg(long, short, conflicts_with = "prompt")]
    pub(super) interactive: bool,
    /// File or folder to put into /workspace, under its own name; of a folder with a `/` behind it what is in it
    #[arg(long, short = 'f', value_name = "PATH")]
    pub(super) put: Vec<PathBuf>,
    /// File or folder below /workspace to keep when the command has ended; see `thawctl files`
    #[arg(long, value_name = "PATH")]
    pub(super) collect: Vec<String>,
    /// Write what was collected below this folder; without --collect, all of /workspace
    #[arg(long, short, value_name = "DIR", conflicts_with = "detach")]
    pub(super) output: Option<PathBuf>,
    /// Directory to start in; /workspace with --put, --collect or --output
    #[arg(long, short, value_name = "PATH")]
    pub(super) workdir: Option<String>,
    /// Less memory than the provider's class has, such as 256m or "256 MiB"
    #[arg(long, short, value_name = "SIZE", value_parser = memory)]
    pub(super) memory: Option<u64>,
    /// Fewer CPUs than the provider's class has, fractions allowed
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub(super) cpus: Option<f64>,
    /// Name to find the execution by instead of its id, kept as the label `name`
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(super) name: Option<String>,
    /// Label that is returned with the execution
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(super) label: Vec<(String, String)>,
    /// Wall-clock limit in seconds, fractions allowed
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) timeout: Option<Duration>,
    /// How long to wait for a container in seconds, fractions allowed; 0 for not at all
    #[arg(long, value_name = "SECONDS", value_parser = wait_seconds)]
    pub(super) queue_timeout: Option<Duration>,
    /// Write the events as JSON lines
    #[arg(long)]
    pub(super) json: bool,
    /// Write what the provider's CLI wrote itself, instead of the answer's text
    #[arg(long, conflicts_with_all = ["json", "command"])]
    pub(super) raw: bool,
    /// Print the id and leave; see `thawctl logs`
    #[arg(long, short, conflicts_with_all = ["json", "raw"])]
    pub(super) detach: bool,
    /// Tell on stderr which container was used, and timings
    #[arg(long, short)]
    pub(super) verbose: bool,
    /// docker's option: every container is destroyed after its execution anyway
    #[arg(long, hide = true)]
    rm: bool,
}

impl Args {
    /// Those of `run PROVIDER PROMPT`.
    pub(super) fn of_prompt(provider: &str, prompt: &str) -> Self {
        Self {
            provider: Some(provider.to_owned()),
            image: None,
            prompt: Some(prompt.to_owned()),
            command: Vec::new(),
            entrypoint: None,
            model: None,
            effort: None,
            user: None,
            file: Vec::new(),
            credential_env: Vec::new(),
            env: Vec::new(),
            force_env: Vec::new(),
            env_file: Vec::new(),
            interactive: false,
            put: Vec::new(),
            collect: Vec::new(),
            output: None,
            workdir: None,
            memory: None,
            cpus: None,
            name: None,
            label: Vec::new(),
            timeout: None,
            queue_timeout: None,
            json: false,
            raw: false,
            detach: false,
            verbose: false,
            rm: false,
        }
    }

    /// Whether a provider's CLI is asked something: with a provider in the profile, one word alone is the prompt.
    pub(super) fn is_prompt(&self, profile: &Profile) -> bool {
        self.prompt.is_some() || (self.command.is_empty() && self.provider.is_some() && profile.provider.is_some())
    }
}

/// A name as ids are not: it must not look like the beginning of one.
fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(plain) || text.starts_with("e-") {
        return Err("must be 1 to 64 letters, digits, '.', '_' or '-', and not begin with \"e-\" as ids do".to_owned());
    }
    Ok(text.to_owned())
}

/// A size: docker's `512m` means MiB, as everybody who types it means; with a longer unit it is what the unit says.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    let number = |digits: &str| digits.trim().parse::<f64>().ok().filter(|number| *number > 0.0);
    let shift = match text.chars().last().map(|c| c.to_ascii_lowercase()) {
        Some('b') if text.len() > 1 && text[..text.len() - 1].trim_end().ends_with(|c: char| c.is_ascii_digit()) => {
            Some(0)
        }
        Some('k') => Some(10),
        Some('m') => Some(20),
        Some('g') => Some(30),
        _ => None,
    };
    let parsed = match shift {
        Some(shift) => number(&text[..text.len() - 1]).map(|number| (number * f64::from(1u32 << shift)) as u64),
        None => text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
    };
    parsed.filter(|size| *size > 0).ok_or_else(|| "must be a size such as 256m, 1g or \"256 MiB\"".to_owned())
}

fn cpus(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.01);
    number.ok_or_else(|| "must be a number of CPUs of at least 0.01".to_owned())
}

/// Parses `KEY=VALUE`.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must have the form KEY=VALUE".to_owned()),
    }
}

/// Parses `NAME=PATH`.
pub(super) fn name_path(text: &str) -> Result<(String, PathBuf), String> {
    match key_value(text) {
        Ok((name, path)) if !path.is_empty() => Ok((name, path.into())),
        _ => Err("must have the form NAME=PATH".to_owned()),
    }
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|duration| duration.as_millis() > 0).ok_or_else(|| "must be a number of seconds above 0".to_owned())
}

fn wait_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "must be a number of seconds, 0 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    use super::super::{Cli, Command};

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        let cli = Cli::try_parse_from(["thawctl", "run"].iter().chain(args))?;
        let Command::Run(args) = cli.command else { panic!("{:?}", cli.command) };
        Ok(*args)
    }

    #[test]
    fn a_prompt_or_a_command_but_never_both_or_neither() {
        assert_eq!(parse(&["openai", "3*67"]).unwrap().prompt.as_deref(), Some("3*67"));
        assert_eq!(parse(&["openai", "-"]).unwrap().prompt.as_deref(), Some("-"));
        let command = parse(&["openai", "-v", "--", "sh", "-c", "exit 3", "--json"]).unwrap();
        assert_eq!((command.command.len(), command.json, command.verbose), (4, false, true));
        let default = Profile { provider: Some("openai".into()), ..Profile::default() };
        let alone = parse(&["3*67"]).unwrap();
        assert!(alone.is_prompt(&default) && !alone.is_prompt(&Profile::default()));
        assert!(parse(&["openai", "hi", "--", "sh"]).is_err());
        assert!(parse(&["openai", "--model", "m", "--", "sh"]).is_err());
    }

    #[test]
    fn a_timeout_is_a_number_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "x", "inf", "nan", "1e400"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_written_as_docker_writes_them_or_with_their_unit() {
        for (text, bytes) in [
            ("512m", 512 << 20),
            ("1g", 1 << 30),
            ("64K", 64 << 10),
            ("7b", 7),
            ("256 MiB", 256 << 20),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for bad in ["", "m", "0", "-1m", "many", "1 parsec"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
        assert!(cpus("0.5").is_ok() && cpus("0").is_err() && cpus("nan").is_err());
        assert!(name("my.run_1").is_ok() && name("e-1").is_err() && name("a b").is_err());
    }

    #[test]
    fn pairs_are_split_at_the_first_equals_sign() {
        assert_eq!(key_value("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(key_value("A="), Ok(("A".into(), String::new())));
        assert!(key_value("A").is_err() && key_value("=b").is_err());
        assert!(name_path("auth.json=").is_err());
    }
}
