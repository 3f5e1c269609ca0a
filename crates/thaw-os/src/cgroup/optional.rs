//! Control files that not every kernel has.

use std::fs;
use std::path::Path;

/// Writes to a file that an older kernel may lack, or refuse.
pub(super) fn write_if_there(path: &Path, value: &str) -> bool {
    path.exists() && fs::write(path, value).is_ok()
}
