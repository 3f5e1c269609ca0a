//! Files that go into an execution's `/workspace`, and those that come back.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Archive, Builder};

use super::fields::Fields;
use super::{CtlError, Format, complain, ids, print, table};
use thaw_client::client::Client;
use thaw_client::content::Content;
use thaw_client::types::{Collected, FileKind};

/// Arguments of `thawctl files`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id of the execution, the beginning of it, or its name; see `thawctl ps -a`
    #[arg(add = super::completion::executions())]
    id: String,
    /// Print this one file, by its path below /workspace
    #[arg(conflicts_with = "output")]
    path: Option<String>,
    /// Write all of them below this folder
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Lists, prints or fetches what was collected of an execution.
pub(super) async fn files(client: &Client, args: &Args, format: &Format) -> Result<(), CtlError> {
    let id = &ids::resolve(client, &args.id).await?;
    if let Some(path) = &args.path {
        let bytes = client.file(id, path).await?;
        let mut out = io::stdout().lock();
        out.write_all(&bytes)?;
        return Ok(out.flush()?);
    }
    if let Some(folder) = &args.output {
        return fetch(client, id, folder).await;
    }
    if *format != Format::Table {
        let path = format!("{}/files", thaw_client::client::execution_path(id)?);
        let items: Vec<serde_json::Value> = client.list(&path).await?;
        return format.print(&items, &Fields::of_items(), || Ok(String::new()));
    }
    let rows = client.files(id).await?.into_iter().map(|file| {
        let kind = match file.kind {
            FileKind::File => "file",
            FileKind::Directory => "directory",
            FileKind::Link => "link",
        };
        let path = file.target.map_or_else(|| file.path.clone(), |target| format!("{} -> {target}", file.path));
        [file.mode, kind.to_owned(), table::bytes(file.bytes), path]
    });
    Ok(print(&table::table(["MODE", "KIND", "SIZE", "PATH"], rows))?)
}

/// Writes what was collected below `folder`.
pub(super) async fn fetch(client: &Client, id: &str, folder: &Path) -> Result<(), CtlError> {
    let archive = client.archive(id).await?;
    unpack(&archive, folder)
        .map_err(|error| CtlError::Usage(format!("cannot write the files to {}: {error}", folder.display())))
}

fn unpack(archive: &[u8], folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut archive = Archive::new(archive);
    // Each path is checked to lie below the folder; owners and set-id bits stay behind.
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.unpack_in(folder)? {
            let path = entry.path_bytes().escape_ascii().to_string();
            return Err(io::Error::other(format!("{path} would lie elsewhere")));
        }
    }
    Ok(())
}

/// Says what of that which was asked for is missing; whether anything is.
pub(super) fn report(collected: &Collected) -> bool {
    for problem in &collected.problems {
        complain(&format!("{} was not collected: it {}", problem.path, problem.problem));
    }
    if collected.more_problems > 0 {
        complain(&format!("{} more were not collected", collected.more_problems));
    }
    !collected.problems.is_empty()
}

/// An archive of files and folders, each under its own name; of a folder that ends with `/`, or whose name is `.`, what is in
/// it.
pub(super) fn pack(paths: &[PathBuf]) -> Result<Option<Content>, CtlError> {
    if paths.is_empty() {
        return Ok(None);
    }
    let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    builder.follow_symlinks(false);
    for path in paths {
        let name = own_name(path);
        // What is named by hand may be a link.
        let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        match name {
            None if metadata.is_dir() => add_inside(&mut builder, path, Path::new(""))?,
            Some(name) => add(&mut builder, path, Path::new(name), true)?,
            None => return Err(CtlError::Usage(format!("--put {}: it has no name of its own", path.display()))),
        }
    }
    let packed = builder.into_inner().and_then(GzEncoder::finish);
    Ok(Some(packed.map_err(|error| CtlError::Usage(format!("cannot pack the files: {error}")))?.into()))
}

fn own_name(path: &Path) -> Option<&OsStr> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        return None;
    }
    match path.components().next_back() {
        Some(Component::Normal(name)) => Some(name),
        _ => None,
    }
}

fn unreadable(path: &Path, error: &io::Error) -> CtlError {
    CtlError::Usage(format!("cannot read {}: {error}", path.display()))
}

pub(super) fn add<W: Write>(builder: &mut Builder<W>, path: &Path, name: &Path, is_top: bool) -> Result<(), CtlError> {
    let looked = if is_top { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let kind = looked.map_err(|error| unreadable(path, &error))?.file_type();
    if kind.is_dir() {
        builder.append_dir(name, path).map_err(|error| unreadable(path, &error))?;
        return add_inside(builder, path, name);
    }
    if kind.is_file() {
        let mut file = fs::File::open(path).map_err(|error| unreadable(path, &error))?;
        return builder.append_file(name, &mut file).map_err(|error| unreadable(path, &error));
    }
    if kind.is_symlink() {
        return builder.append_path_with_name(path, name).map_err(|error| unreadable(path, &error));
    }
    let problem = "it is no file, folder or link; leave it out";
    Err(CtlError::Usage(format!("cannot take {}: {problem}", path.display())))
}

pub(super) fn add_inside<W: Write>(builder: &mut Builder<W>, folder: &Path, name: &Path) -> Result<(), CtlError> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = entries.map_err(|error| unreadable(folder, &error))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        add(builder, &entry.path(), &name.join(entry.file_name()), false)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(content: &Content) -> Vec<String> {
        let plain = flate2::read::GzDecoder::new(content.as_bytes());
        let mut archive = Archive::new(plain);
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_folder_goes_in_under_its_name_and_with_a_slash_without() {
        let place = tempfile::tempdir().unwrap();
        let repo = place.path().join("repo");
        fs::create_dir_all(repo.join("src")).unwrap();
        fs::write(repo.join("src/a.rs"), "a").unwrap();
        symlink("/etc/passwd", repo.join("link")).unwrap();
        let packed = |path: PathBuf| names(&pack(&[path]).unwrap().unwrap());
        assert_eq!(packed(repo.clone()), ["repo", "repo/link", "repo/src", "repo/src/a.rs"]);
        for inside in ["repo/", "repo/src/..", "repo/."] {
            let names = packed(place.path().join(inside));
            assert!(names.contains(&"link".to_owned()), "{inside}: {names:?}");
        }
        assert_eq!(packed(repo.join("src/a.rs")), ["a.rs"]);
        assert!(pack(&[]).unwrap().is_none());
        let error = pack(&[repo.join("missing")]).unwrap_err().to_string();
        assert!(error.contains("repo/missing"), "{error}");
        let _socket = std::os::unix::net::UnixListener::bind(repo.join("socket")).unwrap();
        let error = pack(&[repo]).unwrap_err().to_string();
        assert!(error.contains("repo/socket") && error.contains("leave it out"), "{error}");
    }

    #[test]
    fn nothing_is_unpacked_elsewhere() {
        let (place, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let other_path = other.path().to_str().unwrap();
        let entry = |kind: tar::EntryType, path: &str, link: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o4755);
            let gnu = header.as_gnu_mut().unwrap();
            gnu.name[..path.len()].copy_from_slice(path.as_bytes());
            gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_cksum();
            (header, content.to_vec())
        };
        let packed = |entries: Vec<(tar::Header, Vec<u8>)>| {
            let mut builder = Builder::new(Vec::new());
            entries.iter().for_each(|(header, content)| builder.append(header, content.as_slice()).unwrap());
            builder.into_inner().unwrap()
        };
        let link = || entry(tar::EntryType::Symlink, "out", other_path, b"");
        for bad in [
            packed(vec![entry(tar::EntryType::Regular, "../x", "", b"x")]),
            packed(vec![link(), entry(tar::EntryType::Regular, "out/x", "", b"x")]),
        ] {
            assert!(unpack(&bad, &place.path().join("here")).is_err());
        }
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
        let good = packed(vec![link(), entry(tar::EntryType::Regular, "run", "", b"#!/bin/sh")]);
        unpack(&good, &place.path().join("good")).unwrap();
        let mut found = BTreeMap::new();
        for file in fs::read_dir(place.path().join("good")).unwrap() {
            let file = file.unwrap();
            found.insert(file.file_name().into_string().unwrap(), file.file_type().unwrap().is_symlink());
        }
        assert_eq!(found, [("out".to_owned(), true), ("run".to_owned(), false)].into());
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(place.path().join("good/run")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o6111, 0o111);
        let mut text = String::new();
        fs::File::open(place.path().join("good/run")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "#!/bin/sh");
    }
}
