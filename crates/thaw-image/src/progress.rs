//! Progress of long operations for people: bars on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Receives the progress of a long operation. One stage runs at a time; each is started and finished once.
pub trait Progress: Send + Sync {
    /// A stage begins; `total_bytes` is its size, if known.
    fn started(&self, stage: &str, total_bytes: Option<u64>);
    /// The stage has processed this many more bytes.
    fn advanced(&self, bytes: u64);
    /// The stage is over; `outcome` is its result in a few words.
    fn finished(&self, outcome: &str);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn started(&self, _stage: &str, _total_bytes: Option<u64>) {}
    fn advanced(&self, _bytes: u64) {}
    fn finished(&self, _outcome: &str) {}
}

/// Progress on standard error: one line per finished stage with its time, and a live bar while it runs if
/// standard error is a terminal.
pub struct Terminal {
    prefix: String,
    live: bool,
    stage: Mutex<Option<Stage>>,
}

struct Stage {
    name: String,
    bar: ProgressBar,
    since: Instant,
}

impl Terminal {
    /// `prefix` starts each line, for example the image's name.
    pub fn new(prefix: &str) -> Self {
        Terminal { prefix: prefix.to_owned(), live: std::io::stderr().is_terminal(), stage: Mutex::new(None) }
    }
}

impl Progress for Terminal {
    fn started(&self, stage: &str, total_bytes: Option<u64>) {
        let target = if self.live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = match total_bytes {
            Some(total) => ProgressBar::with_draw_target(Some(total), target).with_style(style(
                "{prefix:>10} {msg:<28} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {elapsed} eta {eta}",
            )),
            None => ProgressBar::with_draw_target(None, target)
                .with_style(style("{prefix:>10} {msg:<28} {spinner} {bytes} {elapsed}")),
        };
        bar.set_prefix(self.prefix.clone());
        bar.set_message(stage.to_owned());
        if self.live {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        let stage = Stage { name: stage.to_owned(), bar, since: Instant::now() };
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = Some(stage);
    }

    fn advanced(&self, bytes: u64) {
        if let Some(stage) = &*self.stage.lock().unwrap_or_else(PoisonError::into_inner) {
            stage.bar.inc(bytes);
        }
    }

    fn finished(&self, outcome: &str) {
        let Some(stage) = self.stage.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let (seconds, done) = (stage.since.elapsed().as_secs_f64(), stage.bar.position());
        stage.bar.finish_and_clear();
        let size = if done > 0 { format!("{}, ", HumanBytes(done)) } else { String::new() };
        // If standard error is closed, nothing can be shown, and the work goes on.
        let _ = writeln!(std::io::stderr(), "{:>10} {:<28} {outcome} ({size}{seconds:.1} s)", self.prefix, stage.name);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
