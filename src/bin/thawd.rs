//! The daemon.
fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("spawner") {
        thawd::spawner::serve(std::path::Path::new(&args[3])).unwrap_or_else(|e| eprintln!("{e}"));
    }
}
