//! Asks a Debian mirror, by way of mmdebstrap: it knows the mirrors and keys of each release, and apt inside of what it
//! sets up checks signatures and hashes. Nothing is installed and no script of a package is run.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::super::recipe::Debian;
use super::super::{BuildError, run};
use super::lock::{Package, sha256_of};
use crate::progress::Progress;

/// A source of packages.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    /// Lines of a `sources.list`, or addresses; empty leaves the choice to mmdebstrap.
    pub(super) lines: Vec<String>,
    /// Longest time for the whole download; `None` waits as long as data arrives.
    pub(super) patience: Option<Duration>,
}

/// Request to a mirror.
pub(super) enum Wanted<'a> {
    /// These versions; those that the mirror lacks are left out.
    Exactly(&'a [&'a Package]),
    /// The newest versions of these packages, and what they depend on.
    Newest(&'a [String]),
}

/// Result of a download.
pub(super) struct Fetched {
    /// Packages that are now in the pool.
    pub(super) packages: Vec<Package>,
    /// A time at which archives of the past surely know this state: `20261129T225034Z`. Later than now, because they
    /// look at the mirrors a few times a day.
    pub(super) snapshot: String,
}

/// Seconds without an answer until apt gives an address up, and how often it tries again.
const APT: [&str; 4] = [
    "--aptopt=Acquire::http::Timeout \"15\"",
    "--aptopt=Acquire::https::Timeout \"15\"",
    "--aptopt=Acquire::Retries \"1\"",
    "--aptopt=APT::Sandbox::User \"root\"",
];

/// What is done where mmdebstrap set apt up. Names and folders come by the environment: nothing of them is read by a
/// shell. mmdebstrap's own way of fetching hides what apt complains of, and fails as a whole when one version is gone.
const HOOK: &str = r#"
set -euf
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" LC_ALL=C
cd "$THAWD_WORK"
date --utc --date='+6 hours' +%Y%m%dT%H%M%SZ > snapshot
apt-get -qq update --error-on=any
for one in $THAWD_EXACTLY; do
  apt-get -qq download "$one" 2> withheld || :
done
if [ -n "$THAWD_NEWEST" ]; then
  apt-get --yes --simulate install $THAWD_NEWEST > simulated
  sed -n 's/^Inst \([^ ]*\) .*(\([^ ]*\) .*/\1=\2/p' simulated > list
  xargs apt-get -qq download < list
fi
"#;

/// The hook with a time limit. mmdebstrap itself continues, and removes its folder.
const IMPATIENT: &str = r#"timeout --kill-after=5 "$THAWD_SECONDS" sh -c "$THAWD_HOOK" || {
  [ $? != 124 ] || echo "E: no answer within $THAWD_SECONDS s" >&2
  exit 1
}"#;

/// Downloads the wanted packages into the pool (`SHA256.deb`).
pub(super) fn fetch(
    recipe: &Debian,
    wanted: &Wanted<'_>,
    mirror: &Mirror,
    pool: &Path,
    progress: &dyn Progress,
) -> Result<Fetched, BuildError> {
    let pool = std::path::absolute(pool).map_err(|error| BuildError::io(pool, error))?;
    let work = pool.join("work");
    if work.exists() {
        fs::remove_dir_all(&work).map_err(|error| BuildError::io(&work, error))?;
    }
    fs::create_dir_all(&work).map_err(|error| BuildError::io(&work, error))?;
    let from = mirror.lines.first().map_or(String::new(), |line| format!(" from {}", address(line)));
    progress.started(&format!("fetching Debian {}{from}", recipe.suite), None);
    let (exactly, newest) = match wanted {
        Wanted::Exactly(packages) => {
            (packages.iter().map(|one| format!("{}={}", one.name, one.version)).collect::<Vec<_>>(), Vec::new())
        }
        Wanted::Newest(names) => (Vec::new(), names.to_vec()),
    };
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=custom", "--skip=update,chroot/mount", "--format=null", "--quiet"]).args(APT);
    command.env("THAWD_WORK", &work).env("THAWD_HOOK", HOOK);
    command.env("THAWD_EXACTLY", exactly.join(" ")).env("THAWD_NEWEST", newest.join(" "));
    match mirror.patience {
        None => command.arg(r#"--extract-hook=eval "$THAWD_HOOK""#),
        Some(patience) => command
            .env("THAWD_SECONDS", patience.as_secs().max(1).to_string())
            .arg(format!("--extract-hook={IMPATIENT}")),
    };
    command.arg(&recipe.suite).arg("/dev/null").args(&mirror.lines);
    let result = run("mmdebstrap", "mmdebstrap", &mut command).and_then(|_| gathered(&work, &pool));
    let outcome = match (&result, wanted) {
        (Err(_), _) => "failed".to_owned(),
        (Ok(found), Wanted::Exactly(packages)) if found.packages.len() < packages.len() => {
            format!("has {} of {} locked packages", found.packages.len(), packages.len())
        }
        (Ok(_), _) => "fetched, signatures checked".to_owned(),
    };
    progress.finished(&outcome);
    fs::remove_dir_all(&work).map_err(|error| BuildError::io(&work, error))?;
    result
}

/// Address in a line of a `sources.list`.
pub(super) fn address(line: &str) -> &str {
    line.split_whitespace().find(|word| word.contains(":/")).unwrap_or(line)
}

/// Moves downloaded packages into the pool, named by hash.
fn gathered(work: &Path, pool: &Path) -> Result<Fetched, BuildError> {
    let fail = |error| BuildError::io(work, error);
    let snapshot = fs::read_to_string(work.join("snapshot")).map_err(fail)?.trim().to_owned();
    let mut packages = Vec::new();
    for entry in fs::read_dir(work).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let package = described(&path)?;
            let to = pool.join(format!("{}.deb", package.sha256));
            fs::rename(&path, &to).map_err(|error| BuildError::io(&to, error))?;
            packages.push(package);
        }
    }
    Ok(Fetched { packages, snapshot })
}

fn described(path: &Path) -> Result<Package, BuildError> {
    let mut show = Command::new("dpkg-deb");
    show.args(["--show", "--showformat=${Package} ${Version} ${Architecture}"]).arg(path);
    let text = String::from_utf8_lossy(&run("dpkg-deb", "dpkg", &mut show)?).into_owned();
    let [name, version, architecture] = text.split(' ').collect::<Vec<_>>()[..] else {
        return Err(BuildError::Path { path: path.display().to_string(), reason: "is no package".to_owned() });
    };
    let sha256 = sha256_of(path).map_err(|error| BuildError::io(path, error))?;
    Ok(Package { name: name.into(), version: version.into(), architecture: architecture.into(), sha256 })
}
