//! `thawctl`: the client of thawd for people; all of it is in the library beside this file.

fn main() -> std::process::ExitCode {
    thawctl::main()
}
