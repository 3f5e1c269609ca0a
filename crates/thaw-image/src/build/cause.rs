//! Finds the cause of a program's failure, as one line that names the package.

/// Longest cause, bytes: an address and a sentence fit.
const LONGEST: usize = 400;

/// Cause of a program's failure, from its standard error. `--verbose` shows the whole text.
pub(super) fn cause(program: &str, raw: &str) -> String {
    let no_space = ["No space left on device", "ENOSPC", "not enough free space"];
    let cause = if no_space.iter().any(|text| raw.contains(text)) {
        Some("no space left on the device, where the cache or the temporary folder is".to_owned())
    } else {
        match program {
            "mmdebstrap" => apt(raw),
            "npm" => npm(raw),
            _ => None,
        }
    };
    let cause = cause.or_else(|| last(program, raw)).unwrap_or_else(|| "it does not say why".to_owned());
    let cause = cause.split_whitespace().collect::<Vec<_>>().join(" ");
    match cause.char_indices().find(|(at, c)| at + c.len_utf8() > LONGEST) {
        Some((end, _)) => format!("{}…", &cause[..end]),
        None => cause,
    }
}

/// The last line, without the program's name in front.
fn last(program: &str, raw: &str) -> Option<String> {
    let line = raw.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let line = line.strip_prefix(program).and_then(|line| line.strip_prefix(": error: ")).unwrap_or(line);
    Some(line.to_owned())
}

/// Errors of apt; mmdebstrap and the hook only add that they failed. apt 3 may write out the letters.
fn apt(raw: &str) -> Option<String> {
    let raw = &raw.replace("Error: ", "E: ").replace("Warning: ", "W: ");
    let after = |start: &str| raw.lines().find_map(|line| line.trim().strip_prefix(start));
    if let Some(package) = after("E: Unable to locate package ") {
        return Some(format!("{package}: the mirror has no package of this name"));
    }
    if let Some(rest) = after("E: Version '") {
        let mut parts = rest.split('\'');
        let (version, package) = (parts.next()?, parts.nth(1)?);
        return Some(format!("{package}: the mirror does not have version {version}"));
    }
    if let Some(rest) = after("E: Package '") {
        return Some(format!("{}: the mirror has no version of it", rest.split('\'').next()?));
    }
    // `W: GPG error: REPOSITORY: REASON` has the reason; `E: The repository … is not signed.` is the fatal error. With
    // sqv instead of gpgv, the first line has another beginning.
    let names = ["GPG error: ", "OpenPGP signature verification failed: "];
    let signature = names.iter().find_map(|name| after(&format!("W: {name}")).or_else(|| after(&format!("E: {name}"))));
    if let Some((repository, reason)) = signature.and_then(|line| line.split_once(": ")) {
        return Some(format!("the signature of {repository} is not good: {reason}"));
    }
    if let Some(rest) = after("E: The repository '") {
        let (repository, reason) = rest.split_once("' ")?;
        return Some(format!("the mirror {repository} {}", reason.trim_end_matches('.')));
    }
    if let Some(rest) = after("E: Failed to fetch ") {
        let (address, reason) = rest.split_once(' ')?;
        return Some(format!("cannot fetch {address}: {}", reason.trim()));
    }
    let own = ["E: setup failed", "E: mmdebstrap failed", "E: Some index files", "E: command failed"];
    let line = raw.lines().find(|line| line.starts_with("E: ") && !own.iter().any(|start| line.starts_with(start)));
    line.map(|line| line.trim_start_matches("E: ").to_owned())
}

fn npm(raw: &str) -> Option<String> {
    let lines = raw.lines().filter_map(|line| {
        let line = line.strip_prefix("npm error").or_else(|| line.strip_prefix("npm ERR!"))?.trim();
        (!line.is_empty() && !line.starts_with("A complete log")).then_some(line)
    });
    let lines: Vec<&str> = lines.collect();
    let code = lines.iter().find_map(|line| line.strip_prefix("code ")).unwrap_or_default();
    let find = |start: &str| lines.iter().find_map(|line| line.split_once(start).map(|(_, rest)| rest));
    let known = match code {
        "ETARGET" => find("No matching version found for ")
            .map(|rest| format!("{}: the registry has no such version", rest.trim_end_matches('.'))),
        "E404" | "E410" | "E451" => find("Not Found - GET ")
            .map(|rest| format!("the registry has no {}", rest.split(' ').next().unwrap_or_default())),
        "EINTEGRITY" => find("wanted ").map(|rest| format!("the content is not the locked one: wanted {rest}")),
        _ => find("request to ")
            .and_then(|rest| rest.split_once(" failed, reason: "))
            .map(|(address, reason)| format!("the registry does not answer: {address}: {reason}")),
    };
    let code_lines = ["code ", "syscall ", "errno "];
    known.or_else(|| {
        let said = lines.iter().find(|line| !code_lines.iter().any(|start| line.starts_with(start)))?;
        Some(if code.is_empty() { (*said).to_owned() } else { format!("{code}: {said}") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_s_errors_name_the_package_and_the_cause() {
        let failed = "E: setup failed: E: command failed: eval \"$THAWD_HOOK\"\nE: mmdebstrap failed to run\n";
        for (raw, expected) in [
            ("E: Unable to locate package nosuch\n", "nosuch: the mirror has no package of this name"),
            ("E: Version '1.0' for 'libc6' was not found\n", "libc6: the mirror does not have version 1.0"),
            ("E: Package 'libc6' has no installation candidate\n", "libc6: the mirror has no version of it"),
            (
                "W: GPG error: http://m trixie InRelease: The following signatures were invalid: BADSIG 1\nE: The \
                 repository 'http://m trixie InRelease' is not signed.\n",
                "the signature of http://m trixie InRelease is not good: The following signatures were invalid: BADSIG 1",
            ),
            (
                "E: The repository 'http://m trixie Release' does not have a Release file.\n",
                "the mirror http://m trixie Release does not have a Release file",
            ),
            (
                "E: Failed to fetch http://m/dists/trixie/InRelease  Could not resolve 'm'\nE: Some index files failed \
                 to download. They have been ignored, or old ones used instead.\n",
                "cannot fetch http://m/dists/trixie/InRelease: Could not resolve 'm'",
            ),
            ("E: no answer within 2 s\n", "no answer within 2 s"),
            ("Error: Unable to locate package nosuch\n", "nosuch: the mirror has no package of this name"),
            (
                "Warning: OpenPGP signature verification failed: http://m trixie InRelease: Sub-process /usr/bin/sqv \
                 returned an error code (1), error message is: Missing key 1, which is needed to verify signature.\n",
                "the signature of http://m trixie InRelease is not good: Sub-process /usr/bin/sqv returned an error code \
                 (1), error message is: Missing key 1, which is needed to verify signature.",
            ),
            (
                "tar: write: No space left on device\n",
                "no space left on the device, where the cache or the temporary folder is",
            ),
        ] {
            assert_eq!(cause("mmdebstrap", &format!("{raw}{failed}")), expected);
        }
        assert_eq!(cause("mmdebstrap", "E: chroot directory not empty\n"), "chroot directory not empty");
        assert_eq!(cause("mmdebstrap", ""), "it does not say why");
    }

    #[test]
    fn npm_s_errors_name_the_package_and_the_cause() {
        for (raw, expected) in [
            (
                "npm error code ETARGET\nnpm error notarget No matching version found for left@1.0.0.\n",
                "left@1.0.0: the registry has no such version",
            ),
            (
                "npm ERR! code E404\nnpm ERR! 404 Not Found - GET http://r/left - Not found\n",
                "the registry has no http://r/left",
            ),
            (
                "npm error code ECONNREFUSED\nnpm error errno ECONNREFUSED\nnpm error FetchError: request to http://r/left \
                 failed, reason: connect ECONNREFUSED 127.0.0.1:1\nnpm error A complete log of this run\n",
                "the registry does not answer: http://r/left: connect ECONNREFUSED 127.0.0.1:1",
            ),
            ("npm error code EUSAGE\nnpm error\nnpm error Invalid lock\n", "EUSAGE: Invalid lock"),
            (
                "npm error code ENOSPC\nnpm error nospc\n",
                "no space left on the device, where the cache or the temporary folder is",
            ),
        ] {
            assert_eq!(cause("npm", raw), expected);
        }
    }

    #[test]
    fn others_say_it_last_and_never_on_two_lines_or_without_end() {
        assert_eq!(
            cause("dpkg-deb", "warning\ndpkg-deb: error: 'x' is not a Debian format archive\n\n"),
            "'x' is not a Debian format archive"
        );
        assert!(cause("strip", &"é".repeat(1000)).len() <= LONGEST + "…".len());
    }
}
