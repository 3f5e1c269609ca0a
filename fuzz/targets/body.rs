//! Bodies of requests to the API: each is read in one way or refused.
#![no_main]

use std::cell::RefCell;
use std::time::Duration;

use thaw_client::types::ExecutionRequest;
use thawd::api::{ApiError, read_body};

fn understood(data: &[u8]) -> Result<ExecutionRequest, ApiError> {
    thread_local! {
        static RUNTIME: RefCell<tokio::runtime::Runtime> =
            RefCell::new(tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));
    }
    let body = axum::body::Body::from(data.to_vec());
    RUNTIME.with_borrow(|runtime| runtime.block_on(read_body(body, 1 << 20, Duration::from_secs(5))))
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(request) = understood(data) else { return };
    // What was understood says the same when it is written down and read again.
    let written = serde_json::to_vec(&request).expect("it can be written");
    let Ok(again) = understood(&written) else { panic!("{}", String::from_utf8_lossy(&written)) };
    assert_eq!(serde_json::to_vec(&again).expect("as before"), written);
});
