//! Completions: each shell loads them and completes with them.

use std::path::Path;
use std::process::Command;

use crate::{output, paper};

/// The shell's words for an unfinished line, whose last word is `word`.
fn in_bash(paper: &Path, line: &[&str]) -> Vec<String> {
    let script = r#"
        source "$1"; shift
        complete -p "$1" > /dev/null || exit 1
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        "_$1" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let file = paper.join("bash").join(line[0]);
    let words = output(Command::new("bash").args(["--norc", "-c", script, "bash"]).arg(file).args(line));
    words.lines().map(str::to_owned).collect()
}

fn in_fish(paper: &Path, line: &[&str]) -> Vec<String> {
    let file = paper.join("fish").join(format!("{}.fish", line[0]));
    let script = "source $argv[1]; complete -C \"$argv[2..]\"";
    // fish writes its universal variables there.
    let home = tempfile::TempDir::new().unwrap();
    let words =
        output(Command::new("fish").args(["--no-config", "-c", script]).arg(file).args(line).env("HOME", home.path()));
    words.lines().map(|word| word.split('\t').next().unwrap().to_owned()).collect()
}

/// Checks what stands on the line of an interactive zsh after a tab in place of the `|`. Its completion works in its line editor only, and that
/// only on a terminal, which its module zpty gives.
fn in_zsh(paper: &Path, line: &str) {
    let script = r#"
        zmodload zsh/zpty
        zpty shell "TERM=vt100 zsh -f -i"
        seen=
        await() {
            for i in {1..200}; do
                while zpty -r -t shell part; do seen+=$part; done
                [[ $seen == *$1* ]] && return 0
                sleep 0.05
            done
            print -r -- "nothing like $1 in: ${(V)seen}" >&2
            exit 1
        }
        zpty -w shell "PROMPT=; fpath=($1 \$fpath); autoload -U compinit; compinit -D -u; echo loa''ded"
        await loaded
        seen=
        zpty -w -n shell "$2"$'\t'
        await "$3"
    "#;
    let (typed, completed) = line.split_once('|').unwrap();
    let expected = format!("{typed}{completed}");
    let folder = paper.join("zsh");
    output(Command::new("zsh").args(["-f", "-c", script, "zsh"]).arg(folder).args([typed, &expected]));
}

#[test]
fn bash_completes() {
    let paper = paper();
    assert_eq!(in_bash(paper.path(), &["thawctl", "poo"]), ["pools", "pool"]);
    assert_eq!(in_bash(paper.path(), &["thawctl", "run", "--ti"]), ["--timeout"]);
    assert_eq!(in_bash(paper.path(), &["thawctl", "image", "bui"]), ["build"]);
    assert_eq!(in_bash(paper.path(), &["thawctl", "--format", ""]), ["table", "json", "jsonl"]);
    assert_eq!(in_bash(paper.path(), &["thawd", "--check"]), ["--check-config"]);
    for program in ["thawctl", "thawd"] {
        let all = in_bash(paper.path(), &[program, ""]);
        assert!(all.contains(&"--help".to_owned()), "{all:?}");
        assert!(!all.iter().any(|word| ["paper", "spawner", "hold"].contains(&word.as_str())), "{all:?}");
    }
}

#[test]
fn fish_completes() {
    let paper = paper();
    assert_eq!(in_fish(paper.path(), &["thawctl", "poo"]), ["pool", "pools"]);
    assert_eq!(in_fish(paper.path(), &["thawctl", "run", "--ti"]), ["--timeout"]);
    assert_eq!(in_fish(paper.path(), &["thawd", "--check"]), ["--check-config"]);
}

#[test]
fn zsh_completes() {
    let paper = paper();
    in_zsh(paper.path(), "thawctl cance|l");
    in_zsh(paper.path(), "thawctl run --time|out");
    in_zsh(paper.path(), "thawd --check|-config");
}
