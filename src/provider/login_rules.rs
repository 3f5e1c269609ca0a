//! Which ways to log in a provider has, and what a manifest must not say about them.

use thaw_client::types::LoginMethod;

use super::login::{Login, PORT};
use super::manifest::Provider;
use super::validate::{Invalid, check_args, check_env, check_text, invalid};

impl Provider {
    /// The way to log in that is asked for, or the first one.
    pub fn login(&self, method: Option<LoginMethod>) -> Option<&Login> {
        self.login.iter().find(|login| method.is_none_or(|method| method == login.method))
    }

    pub(super) fn validate_login(&self) -> Result<(), Invalid> {
        for (at, login) in self.login.iter().enumerate() {
            if self.login[..at].iter().any(|other| other.method == login.method) {
                return invalid("login.method", "is the same twice: there is one way for each method");
            }
            if login.argv.first().is_none_or(String::is_empty) {
                return invalid("login.argv", "must name a program");
            }
            check_args("login.argv", &login.argv, &[])?;
            check_env("login.env", &login.env, &[])?;
            login.input.iter().try_for_each(|line| check_text("login.input", line))?;
            if login.input.iter().any(|line| line.contains('\n')) {
                return invalid("login.input", "must be a list of lines");
            }
            if !["https://", "http://"].iter().any(|scheme| login.url.starts_with(scheme)) {
                return invalid("login.url", "must be the beginning of an address: https://HOST/…");
            }
            if !self.credentials.formats.contains_key(&login.file) {
                let problem =
                    "names no file of `credentials.formats`: without its format nobody knows when it is whole";
                return invalid("login.file", format!("is {:?}, which {problem}", login.file));
            }
            let is_callback = login.method == LoginMethod::Callback;
            match login.method {
                LoginMethod::Browser => return invalid("login.method", "must be \"callback\" or \"device\""),
                LoginMethod::Device if login.code.is_none() => {
                    return invalid("login.code", "is needed with `method = \"device\"`: \"*-*\" for example");
                }
                LoginMethod::Device if login.redirect.is_some() || login.follow.is_some() => {
                    return invalid("login.redirect", "and `login.follow` go with `method = \"callback\"`");
                }
                LoginMethod::Callback if login.code.is_some() => {
                    return invalid("login.code", "goes with `method = \"device\"`");
                }
                LoginMethod::Callback | LoginMethod::Device => {}
            }
            if is_callback && login.redirect.as_ref().is_some_and(|address| !address.contains(PORT)) {
                return invalid("login.redirect", "needs {port}, for the port that the CLI listens on");
            }
            if login.follow.as_ref().is_some_and(|path| !path.starts_with('/')) {
                return invalid("login.follow", "must be a path, such as /success");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
        name = "p"
        image = "i"
        home = "/home/runtime"
        egress = []
        [credentials]
        dir = ".p"
        files = ["token"]
        formats = { token = "claude-credentials" }
        required = false
        tmpfs_mib = 1
        [resources.idle]
        memory_mib = 64
        cpu = 0.1
        [resources.run]
        memory_mib = 64
        cpu = 0.1
        "#;

    fn problem(logins: &str) -> Option<String> {
        let provider: Provider = toml::from_str(&format!("{MANIFEST}{logins}")).unwrap();
        provider.validate().err().map(|error| error.to_string())
    }

    #[test]
    fn a_way_to_log_in_is_checked_by_key() {
        let callback = "[[login]]\nmethod = \"callback\"\nargv = [\"x\", \"login\"]\nurl = \"https://a.test/authorize?\"\nfile = \"token\"\n";
        let device = "[[login]]\nmethod = \"device\"\nargv = [\"x\"]\nurl = \"https://a.test/d\"\nfile = \"token\"\ncode = \"*-*\"\n";
        assert_eq!(problem(&format!("{callback}{device}")), None);
        let provider: Provider = toml::from_str(&format!("{MANIFEST}{callback}{device}")).unwrap();
        assert_eq!(provider.login(None).unwrap().method, LoginMethod::Callback);
        assert_eq!(provider.login(Some(LoginMethod::Device)).unwrap().argv, ["x"]);
        assert!(provider.login(Some(LoginMethod::Browser)).is_none());
        for (logins, about) in [
            (format!("{callback}{callback}"), "twice"),
            (callback.replace("\"x\", ", "\"\", "), "login.argv"),
            (callback.replace("\"login\"", "\"{model}\""), "{model}"),
            (callback.replace("https://", "ftp://"), "login.url"),
            (callback.replace("file = \"token\"", "file = \"other\""), "login.file"),
            (callback.replace("\"callback\"", "\"browser\""), "login.method"),
            (device.replace("code = \"*-*\"\n", ""), "login.code"),
            (format!("{callback}code = \"*\"\n"), "login.code"),
            (format!("{device}follow = \"/x\"\n"), "login.redirect"),
            (format!("{callback}redirect = \"http://localhost:1/x\"\n"), "{port}"),
            (format!("{callback}follow = \"x\"\n"), "login.follow"),
            (format!("{callback}input = [\"a\\nb\"]\n"), "login.input"),
            (format!("{callback}env = {{ HOME = \"/x\" }}\n"), "HOME"),
        ] {
            let problem = problem(&logins).unwrap_or_else(|| panic!("taken: {logins}"));
            assert!(problem.contains(about), "{about}: {problem}");
        }
    }
}
