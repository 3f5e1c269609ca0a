//! Ctrl-C and SIGTERM during `thawctl run`: the first cancels the execution, the second leaves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::complain;
use thaw_client::client::Client;

const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

/// Handles signals from its creation to the end of the process.
///
/// It runs in a task of its own, so that it works while the output waits for its reader.
#[derive(Debug)]
pub(super) struct Interrupts {
    execution: watch::Sender<Option<String>>,
    received: Arc<AtomicU8>,
}

impl Interrupts {
    /// Takes over SIGINT and SIGTERM.
    pub(super) fn install(client: Client) -> io::Result<Self> {
        let mut signals = Signals { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? };
        let (execution, known) = watch::channel(None);
        let received = Arc::new(AtomicU8::new(0));
        let flag = Arc::clone(&received);
        tokio::spawn(async move {
            let first = signals.next().await;
            flag.store(first, Ordering::Release);
            let execution: Option<String> = known.borrow().clone();
            // Without an id nothing can be cancelled; the daemon does it when it sees that we are gone.
            let Some(id) = execution else { leave(first) };
            tokio::select! {
                result = client.cancel(&id) => if let Err(error) = result {
                    complain(&format!("cannot cancel execution {id}: {error}; press Ctrl-C again to leave"));
                },
                second = signals.next() => leave(second),
            }
            leave(signals.next().await)
        });
        Ok(Self { execution, received })
    }

    /// Says which execution the first signal cancels.
    pub(super) fn set_execution(&self, id: &str) {
        self.execution.send_replace(Some(id.to_owned()));
    }

    /// The signal that made us cancel the execution.
    pub(super) fn received(&self) -> Option<u8> {
        Some(self.received.load(Ordering::Acquire)).filter(|signal| *signal != 0)
    }
}

struct Signals {
    int: Signal,
    term: Signal,
}

impl Signals {
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.int.recv() => SIGINT,
            _ = self.term.recv() => SIGTERM,
        }
    }
}

fn leave(signal: u8) -> ! {
    std::process::exit(128 + i32::from(signal))
}
