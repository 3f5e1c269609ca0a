//! Offline upstream: a loopback stand-in for the three providers, so that the real CLIs can be run without a network.
//!
//! It speaks the streaming part of the OpenAI Responses API, the Anthropic Messages API, the Gemini API and Gemini's
//! Code Assist API, and answers the side calls that the CLIs make. It computes the last product in a prompt
//! (`3*67` gives `201`), records what it was asked, and can be told to misbehave.
//!
//! A prompt that ends with `steps: [[{"run": "ls"}], …]` is answered by calls of the CLI's own tools, one list a turn; what
//! the tools gave is recorded.
//!
//! `POST /__control` sets misbehaviour and pace, `GET /__requests` tells what was asked, `DELETE /__requests` forgets
//! it, `GET /__credentials` gives credentials that the CLIs accept.
//!
//! It belongs to tests and to the demo; it knows no secret and checks none, but like the real ones it refuses a
//! request that carries no credential.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accounts;
mod answer;
mod anthropic;
mod call;
mod google;
mod images;
mod misbehave;
mod openai;
mod record;
mod script;
mod server;
mod stream;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use clap::Parser;

/// Command line.
#[derive(Debug, Parser)]
#[command(name = "offline-upstream", about = "Loopback stand-in for the three providers' streaming APIs")]
struct Args {
    /// Address to listen on; port 0 takes a free one. The first line on standard output is `listening ADDR`.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Pause before each token of an answer, milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 50)]
    token_delay_ms: u64,
    /// Append every request to this file, one JSON object per line.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let recorder = record::Recorder::open(args.record.as_deref())?;
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    println!("listening {}", listener.local_addr()?);
    let state = server::State::new(recorder, Duration::from_millis(args.token_delay_ms));
    // Each token must leave at once, or the pace of the stream would be Nagle's.
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    axum::serve(listener, server::router(state)).await?;
    Ok(())
}
