//! The real command-line tools in their images, and the stand-in for their providers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use thaw_image::build::{BuildOptions, build};
use thaw_image::progress::Terminal;

use crate::bed::{Bed, Daemon, repository};

/// The providers that have a CLI.
pub const PROVIDERS: [&str; 3] = ["openai", "anthropic", "google"];

/// What follows the name of a provider whose containers run in the idle class.
pub const TENTH: &str = "-tenth";

/// A provider, and the made-up account that the offline upstream accepts.
pub struct Account {
    /// Which one.
    pub provider: &'static str,
    /// Credential files.
    pub files: Vec<(&'static str, String)>,
    /// Credential variables.
    pub env: Vec<(&'static str, String)>,
}

impl Account {
    /// As a request has it.
    pub fn json(&self) -> Value {
        let object = |pairs: &[(&str, String)]| -> Value {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), json!(value)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({"files": object(&self.files), "env": object(&self.env)})
    }
}

/// The images' layouts, built as their folders say now: what has not changed is not built again.
pub fn layouts(bed: &Bed) -> Result<PathBuf> {
    let layouts = bed.cache.join("layouts");
    for provider in PROVIDERS {
        fs::create_dir_all(&layouts)?;
        let source = repository().join("images").join(provider);
        let options = BuildOptions::new(layouts.join(provider), bed.cache.join("build"));
        build(&source, &options, &Terminal::new(provider)).with_context(|| format!("build the image of {provider}"))?;
    }
    Ok(layouts)
}

/// Manifests: those that ship, and each once more with the idle class as the one that it runs in.
pub fn manifests(bed: &Bed) -> Result<PathBuf> {
    let folder = bed.path().join("real");
    fs::create_dir_all(&folder)?;
    for provider in PROVIDERS {
        let text = fs::read_to_string(repository().join("providers").join(format!("{provider}.toml")))?;
        fs::write(folder.join(format!("{provider}.toml")), &text)?;
        let mut manifest: toml::Table = text.parse()?;
        let name = format!("{provider}{TENTH}");
        let mut run = manifest["resources"]["idle"].clone();
        // Less memory would measure reclaim.
        run["memory_mib"] = manifest["resources"]["run"]["memory_mib"].clone();
        manifest["resources"]["run"] = run;
        manifest["name"] = name.clone().into();
        fs::write(folder.join(format!("{name}.toml")), manifest.to_string())?;
    }
    Ok(folder)
}

/// How many containers of one provider wait.
pub struct Waiting {
    /// Which one.
    pub provider: String,
    /// Without a CLI in them.
    pub created: usize,
    /// With one.
    pub prestarted: usize,
}

impl Waiting {
    /// In words of the daemon's configuration.
    fn config(&self, port: u16) -> String {
        let Self { provider, created, prestarted } = self;
        format!(
            "[provider.{provider}]\npool_target = {created}\nprestarted = {prestarted}\n\
             base_url = \"http://upstream.test:{port}\"\negress = [\"upstream.test:{port}\"]\n"
        )
    }
}

/// A daemon with the real providers, whose upstream listens on `port`; returns when all that should wait does. Providers
/// that are not named have empty pools. `pool` is added to that section of the configuration.
pub fn daemon(bed: &Bed, port: u16, waiting: &[Waiting], max: usize, pool: &str) -> Result<Daemon> {
    let (layouts, manifests) = (layouts(bed)?, manifests(bed)?);
    let mut more = String::from("[egress.resolve]\n\"upstream.test\" = [\"127.0.0.1\"]\n");
    more += "[pool]\ntarget = 0\n";
    more += pool;
    more.extend(waiting.iter().map(|one| one.config(port)));
    let daemon = Daemon::with(bed, &bed.cache.join("state"), &layouts, &manifests, max, &more)?;
    for one in waiting {
        full(&daemon, one)?;
    }
    Ok(daemon)
}

/// Waits until all that should wait does, and nothing else of its provider is there.
pub fn full(daemon: &Daemon, waiting: &Waiting) -> Result<()> {
    daemon.wait_full(&waiting.provider, waiting.created)?;
    if waiting.prestarted > 0 {
        daemon.wait_stage(&waiting.provider, "prestarted", waiting.prestarted)?;
    }
    Ok(())
}

/// The stand-in for the three providers.
pub struct Upstream {
    child: Child,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    record: PathBuf,
}

impl Upstream {
    /// Starts it.
    pub fn start(bed: &Bed) -> Result<Self> {
        let program = bed.binaries.join("examples/offline-upstream");
        ensure!(
            program.is_file(),
            "{} is missing: cargo build --release --example offline-upstream",
            program.display()
        );
        let (record, said) = (bed.path().join("requests"), bed.path().join("upstream"));
        let child = Command::new(program)
            .args(["--listen", "127.0.0.1:0", "--token-delay-ms", "1", "--record"])
            .arg(&record)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&said)?)
            .spawn()?;
        let mut upstream = Self { child, port: 0, record };
        let deadline = Instant::now() + Duration::from_secs(10);
        while upstream.port == 0 {
            ensure!(Instant::now() < deadline, "the offline upstream did not start");
            std::thread::sleep(Duration::from_millis(10));
            upstream.port = port(&said).unwrap_or(0);
        }
        Ok(upstream)
    }

    /// Time from `asked` to the first request that came after it, and to the first one with a prompt in it.
    pub fn first_after(&self, asked: u64) -> Result<(Duration, Duration)> {
        let text = fs::read_to_string(&self.record)?;
        let (mut first, mut prompt) = (None, None);
        // The newest are at the end; one run makes few.
        for line in text.lines().rev() {
            let request: Value = serde_json::from_str(line)?;
            match request["monotonic_ns"].as_u64() {
                Some(at) if at >= asked => {
                    first = Some(at);
                    prompt = if request["prompt"].is_string() { Some(at) } else { prompt };
                }
                _ => break,
            }
        }
        let since = |at: u64| Duration::from_nanos(at - asked);
        match (first, prompt) {
            (Some(first), Some(prompt)) => Ok((since(first), since(prompt))),
            _ => bail!("no prompt reached the upstream"),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The clock of the upstream's record, nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn port(said: &Path) -> Option<u16> {
    fs::read_to_string(said).ok()?.lines().next()?.rsplit_once(':')?.1.trim().parse().ok()
}

/// Accounts in the CLIs' own formats, with tokens that are made up.
pub fn accounts() -> Vec<Account> {
    let base64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let claims = json!({
        "email": "bench@example.com", "exp": 4_102_444_800_u64,
        "https://api.openai.com/auth": {
            "chatgpt_plan_type": "plus", "chatgpt_account_id": "acct_bench", "chatgpt_user_id": "user_bench",
        },
    });
    let header = json!({"alg": "none", "typ": "JWT"});
    let token = format!("{}.{}.c2ln", base64.encode(header.to_string()), base64.encode(claims.to_string()));
    let openai = json!({
        "OPENAI_API_KEY": null, "last_refresh": "2026-01-01T00:00:00Z",
        "tokens": {"id_token": token, "access_token": token, "refresh_token": "", "account_id": "acct_bench"},
    });
    let anthropic = json!({"claudeAiOauth": {
        "accessToken": "sk-ant-oat01-bench", "expiresAt": 4_102_444_800_000_u64, "scopes": ["user:inference"],
    }});
    vec![
        Account { provider: "openai", files: vec![("auth.json", openai.to_string())], env: vec![] },
        Account { provider: "anthropic", files: vec![(".credentials.json", anthropic.to_string())], env: vec![] },
        // gemini checks a credential file with Google's token service, so it gets a key instead.
        Account { provider: "google", files: vec![], env: vec![("GEMINI_API_KEY", "key-bench".to_owned())] },
    ]
}
