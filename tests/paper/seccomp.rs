//! The page of system calls, which is generated from the filter.

#[test]
fn the_page_of_system_calls_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/seccomp.md");
    let current = thaw_os::spawner::filter_page().unwrap();
    if std::env::var_os("THAWD_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &current).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == current,
        "run: THAWD_UPDATE_GOLDEN=1 cargo test --test paper seccomp, and review docs/seccomp.md"
    );
}
