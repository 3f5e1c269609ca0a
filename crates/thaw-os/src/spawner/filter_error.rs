//! Why the system call filter cannot be compiled.

/// Why the system call filter cannot be compiled: its tables are broken, or for another machine.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The tables are for another architecture.
    #[error("there is a system call filter for x86-64 only, and this machine is {0}")]
    Architecture(&'static str),
    /// The list of system calls cannot be read.
    #[error("the list of system calls: {0}")]
    List(#[from] serde_json::Error),
    /// seccompiler refuses it.
    #[error("compile the system call filter: {0}")]
    Compile(#[source] Box<seccompiler::Error>),
    /// It has nothing in it.
    #[error("the system call filter is empty")]
    Empty,
    /// A jump leads out of it.
    #[error("the system call filter leads out of itself")]
    Jump,
    /// An instruction that is not known here.
    #[error("the system call filter has an instruction {0:#x}")]
    Instruction(u16),
    /// A call with conditions has no number here.
    #[error("the number of `{0}`, which has conditions, is missing here")]
    Number(String),
    /// A condition looks at the upper half of an argument.
    #[error("a condition looks at the upper half of an argument")]
    UpperHalf,
    /// A choice has more values than a jump can pass.
    #[error("a choice has too many values")]
    TooManyValues,
}
