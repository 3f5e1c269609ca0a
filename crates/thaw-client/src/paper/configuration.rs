//! thawd.toml(5), from the sample configuration: its comments are the text, its keys the entries.

use clap_mangen::roff::{Roff, bold, roman};

use super::man::inlines;

const DESCRIPTION: &str = "\
The file is TOML with the sections below. Each key stands here with its default, which also holds when there is no \
file; one whose text says what holds when it is absent is shown with that. Unknown keys are refused. A key that ends in `_bytes` takes a size with its unit too, such as \"100 MiB\"; one in `_ms` \
or `_seconds` a time, such as \"10 m\". `thawd --check-config` \
checks the file and the provider manifests, `systemctl reload thawd` takes over what a running daemon can.";

/// The page. Understands what `docs/thawd.toml` is made of: sections, keys behind `#= ` and the comments before them;
/// at its end, behind a line that ends with a colon, an example.
pub(super) fn page(sample: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("TH", ["THAWD.TOML", "5", "\"\"", concat!("thawd ", env!("CARGO_PKG_VERSION")), "thawd"]);
    roff.control("SH", ["NAME"]).text([roman("thawd.toml - configuration of thawd")]);
    roff.control("SH", ["SYNOPSIS"]).text([bold("/etc/thawd/thawd.toml")]);
    roff.control("SH", ["DESCRIPTION"]).text(inlines(DESCRIPTION));
    let mut comment: Vec<&str> = Vec::new();
    let mut lines = sample.lines();
    for line in lines.by_ref() {
        if let Some(entry) = line.strip_prefix("#= ") {
            roff.control("TP", []).text([bold(entry)]).text(inlines(&comment.join(" ")));
            comment.clear();
        } else if let Some(text) = line.strip_prefix("# ") {
            if text.ends_with(':') {
                comment.push(text);
                break;
            }
            comment.push(text);
        } else if line.starts_with('[') {
            roff.control("SH", [line]);
        } else {
            // What opens the file speaks of the file, not of a key.
            comment.clear();
        }
    }
    roff.control("SH", ["[provider.NAME]"]).text(inlines(&comment.join(" ")));
    roff.control("PP", []).control("nf", []);
    for line in lines {
        roff.text([roman(line.strip_prefix("# ").unwrap_or(line))]);
    }
    roff.control("fi", []);
    roff.control("SH", ["SEE ALSO"]).text([roman("thawd(8), thawctl(1)")]);
    roff
}

#[cfg(test)]
mod tests {
    use super::page;

    #[test]
    fn keys_become_entries_and_comments_their_text() {
        let page = page(
            "# Of the file.\n\n[a]\n# What `it` is,\n# in two lines.\n#= key = 1\n#= bare = \"x\"\n\n\
             # One section each:\n# [provider.p]\n# k = 2  # why\n",
        )
        .to_roff();
        for part in [
            ".SH [a]\n.TP\n\\fBkey = 1\\fR\nWhat \\fBit\\fR is, in two lines.\n.TP\n\\fBbare = \"x\"\\fR\n",
            ".SH [provider.NAME]\nOne section each:\n.PP\n.nf\n[provider.p]\nk = 2  # why\n.fi\n",
        ] {
            assert!(page.contains(part), "{part}\nis not in\n{page}");
        }
    }
}
