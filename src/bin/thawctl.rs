//! `thawctl`: the operator's client of thawd; all of it is in `thawd::ctl`.

fn main() -> std::process::ExitCode {
    thawd::ctl::main()
}
