//! The only program of the image `unified`; see [`thawd::unified`].

fn main() -> std::process::ExitCode {
    thawd::unified::main()
}
