//! The only program of the image `unified`; all of it is in the library beside this file.

fn main() -> std::process::ExitCode {
    thaw_unified::main()
}
