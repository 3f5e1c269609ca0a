//! The list of calls that a container may make, as data with a reason for each (`seccomp.json`). The format is
//! seccompiler's; another one fails to be read.

use serde::Deserialize;

use super::filter_error::FilterError;

/// Everything that is not in it is EPERM.
const ALLOWED: &str = include_str!("seccomp.json");

#[derive(Deserialize)]
struct File {
    refused: Entries,
}

#[derive(Deserialize)]
struct Entries {
    filter: Vec<Entry>,
}

/// A call that is allowed, if all conditions hold. A call may have several entries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name of the call.
    pub syscall: String,
    /// Why it is allowed.
    pub comment: String,
    /// What its arguments have to be.
    #[serde(default)]
    pub args: Vec<Condition>,
}

/// What an argument has to be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Index of the argument.
    pub index: u32,
    /// How many of its bits count.
    #[serde(rename = "type")]
    pub width: Width,
    /// How it is compared.
    pub op: Op,
    /// With what.
    pub val: u64,
}

/// How many bits of an argument count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Width {
    /// 32.
    Dword,
    /// 64.
    Qword,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// It is the value.
    Eq,
    /// Under this mask it is the value.
    MaskedEq(u64),
}

/// All entries, in the order of the file.
///
/// # Errors
/// The file is no such list.
pub fn entries() -> Result<Vec<Entry>, FilterError> {
    let file: File = serde_json::from_str(ALLOWED)?;
    Ok(file.refused.filter)
}

/// The file itself.
#[cfg(test)]
pub fn text() -> &'static str {
    ALLOWED
}
