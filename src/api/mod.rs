//! The HTTP surface: verifies, converts, calls.
pub mod types;
