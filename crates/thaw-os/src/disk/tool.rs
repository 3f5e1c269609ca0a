//! Programs of e2fsprogs.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::error::{DiskError, Result, failed};

/// Makes ext4.
pub const MKFS: &str = "mkfs.ext4";
/// Checks and repairs it.
pub const E2FSCK: &str = "e2fsck";

/// Where they are looked for: a daemon's `PATH` may be empty.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// Longest run of one of them.
const PATIENCE: Duration = Duration::from_secs(300);

/// Pause between two looks at whether it has ended.
const AGAIN: Duration = Duration::from_millis(2);

/// Most of what it says that is told, bytes.
const SAID: u64 = 4096;

/// The program's path.
pub fn find(program: &str) -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join(program)).find(|path| path.is_file())
}

/// Runs it; returns how it ended and the end of what it said. Blocks.
pub fn run(program: &'static str, arguments: &[&std::ffi::OsStr]) -> Result<(ExitStatus, String)> {
    let path = find(program).ok_or(DiskError::NoTool(program))?;
    let mut command = Command::new(path);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    // Everything that it says goes into one pipe, which has room for what is read of it in the end.
    let (mut said, writer) = std::io::pipe().map_err(failed("make a pipe"))?;
    let errors = writer.try_clone().map_err(failed("make a pipe"))?;
    command.current_dir("/").stdin(Stdio::null()).stdout(writer).stderr(errors);
    let mut child = command.spawn().map_err(failed(format!("start {program}")))?;
    drop(command);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = said.by_ref().take(SAID).read_to_end(&mut bytes);
        let _ = std::io::copy(&mut said, &mut std::io::sink());
        String::from_utf8_lossy(&bytes).trim().to_owned()
    });
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed(format!("wait for {program}")))? {
            break status;
        }
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            let message = format!("not done within {} s", PATIENCE.as_secs());
            return Err(DiskError::Tool { program, message });
        }
        std::thread::sleep(AGAIN);
    };
    Ok((status, reader.join().unwrap_or_default()))
}
