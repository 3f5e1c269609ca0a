//! `thawctl image pull` and `push`: images from registries and to them, without the daemon.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit};
use serde_json::json;

use super::daemon_config::daemon_config;
use super::fields::Fields;
use super::table::bytes;
use super::{CtlError, Format, print};
use thaw_client::types::Secret;
use thaw_image::progress::Terminal;
use thaw_image::registry::{self, Login, Options, PullReport, PushReport, Reference};

/// Where the password comes from when standard input is not asked for it.
const PASSWORD_VARIABLE: &str = "THAWCTL_REGISTRY_PASSWORD";
/// Longest password that is read, bytes: access tokens are a few KiB.
const PASSWORD_BYTES: u64 = 64 * 1024;
/// Most memory that a pull or push may write to, bytes. It needs a few MiB; a registry that sends without end must
/// end thawctl and not the machine.
const MEMORY_BYTES: u64 = 1 << 30;

/// Arguments of `image pull`.
#[derive(Debug, clap::Args)]
pub(super) struct PullArgs {
    /// The image: REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST
    #[arg(value_name = "REFERENCE")]
    reference: String,
    /// What the image is called here [default: the last part of its repository]
    #[arg(long)]
    name: Option<String>,
    /// Where the image layout is written [default: the daemon's, /var/lib/thawd/layouts/NAME]
    #[arg(long, short, value_name = "LAYOUT_DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

/// Arguments of `image push`.
#[derive(Debug, clap::Args)]
pub(super) struct PushArgs {
    /// An image layout, or the name of one in the daemon's /var/lib/thawd/layouts
    #[arg(value_name = "LAYOUT")]
    layout: PathBuf,
    /// Where it goes: REGISTRY/REPOSITORY:TAG
    #[arg(value_name = "REFERENCE")]
    reference: String,
    #[command(flatten)]
    access: Access,
}

/// How to get in.
#[derive(Debug, clap::Args)]
struct Access {
    /// Name for the registry; the password comes from the variable THAWCTL_REGISTRY_PASSWORD or from stdin. Without a
    /// name, what `docker login` saved is used
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Talk http instead of https; registries on loopback are talked to in http anyway, unless --ca-file is given
    #[arg(long, conflicts_with = "ca_file")]
    plain_http: bool,
    /// Certificate authorities (PEM) of the registry, believed besides the machine's own
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// Gets an image into a layout, with progress on stderr.
pub(super) async fn pull(args: &PullArgs, format: &Format) -> Result<(), CtlError> {
    if daemon_config()?.image.require_signature {
        return Err(CtlError::Usage(
            "image.require_signature is set, and images of registries carry no signature that is known here: import a \
             signed archive with `thawctl image import`"
                .to_owned(),
        ));
    }
    let reference = registry::reference(&args.reference)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => reference.repository().rsplit('/').next().unwrap_or_default().to_owned(),
    };
    check_name(&name)?;
    let layout = match &args.output {
        Some(layout) => layout.clone(),
        None => daemon_config()?.paths.layouts().join(&name),
    };
    let options = args.access.options(&reference)?;
    limit_memory();
    let report = registry::pull(&reference, &options, &layout, &name, &Terminal::new(&name)).await?;
    Ok(print(&pulled(&report, format)?)?)
}

/// Sends the image of a layout, with progress on stderr.
pub(super) async fn push(args: &PushArgs, format: &Format) -> Result<(), CtlError> {
    let reference = registry::reference(&args.reference)?;
    let options = args.access.options(&reference)?;
    let layout = layout(&args.layout, &daemon_config()?.paths.layouts());
    let name = args.layout.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    limit_memory();
    let report = registry::push(&layout, &reference, &options, &Terminal::new(&name)).await?;
    Ok(print(&pushed(&report, format)?)?)
}

/// A folder if there is one, else that of the daemon with that name.
fn layout(given: &Path, layouts: &Path) -> PathBuf {
    let is_name = given.components().count() == 1 && !given.join("oci-layout").exists();
    if is_name { layouts.join(given) } else { given.to_owned() }
}

/// As the store wants it.
fn check_name(name: &str) -> Result<(), CtlError> {
    let sound = (1..=128).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c));
    if sound {
        return Ok(());
    }
    Err(CtlError::Usage(format!(
        "{name:?} cannot be an image's name: give --name with a-z 0-9 . _ - that starts with a letter or digit"
    )))
}

impl Access {
    fn options(&self, reference: &Reference) -> Result<Options, CtlError> {
        let login = match &self.username {
            None => registry::saved_login(reference.registry())?,
            Some(user) => Some(Login { user: user.clone(), password: self.password()? }),
        };
        let authorities = self.ca_file.as_deref().map(registry::authorities).transpose()?.unwrap_or_default();
        Ok(Options { login, plain_http: self.plain_http, authorities, limits: (&daemon_config()?.image).into() })
    }

    fn password(&self) -> Result<Secret, CtlError> {
        if !self.password_stdin {
            // The error of `var` would show the value.
            let password = std::env::var(PASSWORD_VARIABLE).map(Secret::new);
            return password.map_err(|_| {
                CtlError::Usage(format!(
                    "--username needs a password: set {PASSWORD_VARIABLE}, or give --password-stdin"
                ))
            });
        }
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(io::stdin(), PASSWORD_BYTES), &mut text)
            .map_err(|e| CtlError::Usage(format!("cannot read the password from stdin: {e}")))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(CtlError::Usage("there is no password on stdin".to_owned())),
            password => Ok(Secret::new(password.to_owned())),
        }
    }
}

fn limit_memory() {
    let limit = Rlimit { current: Some(MEMORY_BYTES), maximum: Some(MEMORY_BYTES) };
    // A lower limit that is in force already is as good.
    let _ = rustix::process::setrlimit(Resource::Data, limit);
}

fn pulled(report: &PullReport, format: &Format) -> Result<String, CtlError> {
    let item = json!({ "name": report.name, "digest": report.digest, "index": report.index,
        "layout": report.layout, "layers": report.layers, "compressed_bytes": report.compressed_bytes,
        "fetched_bytes": report.fetched_bytes, "unchanged": report.unchanged });
    format.text(&[item], &Fields::of_items(), || {
        Ok(format!(
            "{} {} in {}: {} layers, {} stored, {} fetched{}\n",
            report.name,
            report.digest,
            report.layout.display(),
            report.layers,
            bytes(report.compressed_bytes),
            bytes(report.fetched_bytes),
            if report.unchanged { ", unchanged" } else { "" }
        ))
    })
}

fn pushed(report: &PushReport, format: &Format) -> Result<String, CtlError> {
    let item = json!({ "reference": report.reference.to_string(), "digest": report.digest,
        "layers": report.layers, "compressed_bytes": report.compressed_bytes, "sent_bytes": report.sent_bytes });
    format.text(&[item], &Fields::of_items(), || {
        Ok(format!(
            "{} {}: {} layers, {} stored, {} sent\n",
            report.reference,
            report.digest,
            report.layers,
            bytes(report.compressed_bytes),
            bytes(report.sent_bytes)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_the_daemons_layout_and_a_path_itself() {
        let layouts = Path::new("/var/lib/thawd/layouts");
        assert_eq!(layout(Path::new("openai"), layouts), layouts.join("openai"));
        for path in ["./openai", "/tmp/openai", "a/b"] {
            assert_eq!(layout(Path::new(path), layouts), Path::new(path));
        }
    }

    #[test]
    fn names_are_those_of_the_store() {
        for good in ["alpine", "node_20", "a.b-c", "7zip"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "..", "-a", "A", "a/b", "a b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
