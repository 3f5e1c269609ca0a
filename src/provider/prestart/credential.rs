//! A credential of a request, in the form that drivers take.

/// A credential, looked up in a request.
pub(super) enum Credential<'a> {
    /// An API key.
    Key(&'a str),
    /// A ChatGPT access token.
    Tokens(Tokens<'a>),
    /// A variable.
    Variable(&'a str, &'a str),
    /// In a file that was mounted.
    File,
}

/// A ChatGPT login without its refresh token.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    pub(super) access: &'a str,
    pub(super) account: String,
    pub(super) plan: Option<String>,
    /// Whether codex could have renewed it, given the file.
    pub(super) renewable: bool,
}
