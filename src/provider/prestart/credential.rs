//! Credentials in the representation that prestart drivers expect.

/// A credential of a request.
pub(super) enum Credential<'a> {
    /// An API key.
    Key(&'a str),
    /// A ChatGPT access token.
    Tokens(Tokens<'a>),
    /// A variable: its name and value.
    Variable(&'a str, &'a str),
    /// A file that is mounted; nothing needs to be passed.
    File,
}

/// A ChatGPT login without its refresh token.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    pub(super) access: &'a str,
    pub(super) account: String,
    pub(super) plan: Option<String>,
    /// Whether codex could have renewed the token, given the file.
    pub(super) renewable: bool,
}
