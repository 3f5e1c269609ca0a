//! The stand-in for the providers is tested like any other program. Its tests run here: an example that is a test
//! itself is not built as a program by `cargo test`, and tests/cli.rs needs the program.
#![allow(dead_code, missing_docs)]

#[path = "support/offline_upstream/main.rs"]
mod upstream;
