//! Links `thaw-init` statically: it runs in root file systems that may hold no C library at all.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for flag in ["-static", "-no-pie", "-Wl,-Bstatic,--start-group,-lc,-lgcc,-lgcc_eh,--end-group"] {
        println!("cargo:rustc-link-arg-bins={flag}");
    }
}
