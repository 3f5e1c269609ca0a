//! Man pages: they can be typeset, and hold all that the command line has.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::{both_programs, output, paper};

/// The page as groff prints it, which must find nothing to warn about.
fn typeset(page: &Path) -> String {
    // One line for a paragraph, no bold by overstriking: what is searched for is not broken or doubled.
    let text = output(Command::new("groff").args(["-man", "-ww", "-Tascii", "-P-cbou", "-rLL=2000n"]).arg(page));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A command of a program, and what `--help` says of it and of those below it.
fn helps(program: &str, words: &[String]) -> Vec<(Vec<String>, String)> {
    let help = output(Command::new(program).args(words).arg("--help").env("COLUMNS", "1000"));
    let below = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
    let names =
        below.lines().take_while(|line| line.starts_with("  ")).filter_map(|line| line.split_whitespace().next());
    let mut all = Vec::new();
    for name in names.filter(|name| *name != "help") {
        all.extend(helps(program, &[words, &[name.to_owned()]].concat()));
    }
    all.push((words.to_vec(), help.clone()));
    all
}

#[test]
fn every_command_has_a_page_with_each_of_its_options() {
    let paper = paper();
    let mut expected = BTreeSet::from(["man5/thawd.toml.5".to_owned()]);
    for (name, program) in both_programs() {
        let chapter = if name == "thawd" { 8 } else { 1 };
        for (words, help) in helps(&program, &[]) {
            let title = [&[name.to_owned()], words.as_slice()].concat().join("-");
            let file = format!("man{chapter}/{title}.{chapter}");
            let text = typeset(&paper.path().join("man").join(&file));
            let options: BTreeSet<&str> = help
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .filter(|word| word.starts_with("--"))
                .collect();
            assert!(options.contains("--help"), "{help}");
            for option in options {
                assert!(option == "--" || text.contains(option), "{option} is not in {file}:\n{text}");
            }
            let about = help.lines().next().unwrap();
            assert!(text.contains(about), "{about:?} is not in {file}:\n{text}");
            expected.insert(file);
        }
    }
    let mut there = BTreeSet::new();
    for chapter in ["man1", "man5", "man8"] {
        for entry in paper.path().join("man").join(chapter).read_dir().unwrap() {
            there.insert(format!("{chapter}/{}", entry.unwrap().file_name().to_string_lossy()));
        }
    }
    assert_eq!(there, expected);
    assert!(there.contains("man1/thawctl-image-build.1") && there.len() > 25, "{there:?}");
}

#[test]
fn hidden_commands_are_in_no_page() {
    let paper = paper();
    for page in ["man8/thawd.8", "man1/thawctl.1"] {
        let text = typeset(&paper.path().join("man").join(page));
        for hidden in ["thawd-spawner", "thawd-hold", "thawd-paper", "thawctl-paper"] {
            assert!(!text.contains(hidden), "{hidden} is in {page}");
        }
    }
}

#[test]
fn the_page_of_the_configuration_has_every_key_with_its_default_and_text() {
    let text = typeset(&paper().path().join("man/man5/thawd.toml.5"));
    let sample = include_str!("../../docs/thawd.toml");
    let mut keys = 0;
    for line in sample.lines() {
        if let Some(entry) = line.strip_prefix("#= ") {
            keys += 1;
            assert!(text.contains(entry), "{entry} is not in\n{text}");
        } else if line.starts_with('[') {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
    assert!(keys > 50, "{keys}");
    assert!(text.contains("max = 200 Requests that may wait for a container, all together; beyond it"), "{text}");
    assert!(text.contains("[provider.openai] pool_target = 20"), "{text}");
}

#[test]
fn the_same_program_writes_the_same_pages() {
    let (first, second) = (paper(), paper());
    output(Command::new("diff").arg("-r").args([first.path(), second.path()]));
}
