//! Settings of executions, from the configuration and the memory that there is.

use std::time::Duration;

use super::workspace::Limits as FileLimits;
use crate::output::{Limits as LogLimits, Patience};
use thaw_client::config::Config;

/// How executions behave; see `[execution]` in the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Output kept per execution, bytes.
    pub output_bytes: usize,
    /// Output in a pipe at once from which on there is a second pipe, bytes.
    pub second_pipe_bytes: usize,
    /// Output of a stream from which on it lies in large pages, bytes.
    pub large_pages_bytes: u64,
    /// How long a command waits for readers that take nothing of its output.
    pub reader_stall: Duration,
    /// Time that an ended execution is kept.
    pub retention: Duration,
    /// Most ended executions kept.
    pub retained: usize,
    /// Most output of ended executions kept, all together, bytes.
    pub retained_bytes: usize,
    /// Time without a reader after which an execution without `background` is cancelled.
    pub disconnect_grace: Duration,
    /// How long a client that sends standard input waits for the command to read it.
    pub stdin_wait: Duration,
    /// The same at first for an execution that survived a restart of the daemon; also the time that a command waits for
    /// a reader that went away.
    pub reconnect_grace: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Longest time limit of an execution.
    pub max_timeout: Duration,
    /// Port of the egress proxy in the container.
    pub proxy_port: u16,
    /// Time that a request waits for a container if it names none.
    pub queue_timeout: Duration,
    /// Longest time that a request may wait for a container.
    pub max_queue_timeout: Duration,
    /// Executions of one user at the same time, those that wait included.
    pub max_per_user: usize,
    /// Files that go in and come back.
    pub files: FileLimits,
}

impl Settings {
    /// As the configuration has them.
    pub fn of(config: &Config) -> Self {
        let (execution, queue) = (&config.execution, &config.queue);
        Self {
            output_bytes: execution.output_bytes,
            second_pipe_bytes: execution.second_pipe_bytes,
            large_pages_bytes: execution.large_pages_bytes,
            reader_stall: Duration::from_millis(execution.reader_stall_ms),
            retention: Duration::from_secs(execution.retention_seconds),
            retained: execution.retained,
            retained_bytes: execution.retained_bytes,
            disconnect_grace: Duration::from_millis(execution.disconnect_grace_ms),
            stdin_wait: Duration::from_millis(execution.stdin_wait_ms),
            reconnect_grace: Duration::from_millis(execution.reconnect_grace_ms),
            kill_grace: Duration::from_millis(execution.kill_grace_ms),
            max_timeout: Duration::from_millis(execution.max_timeout_ms),
            proxy_port: config.egress.port,
            queue_timeout: Duration::from_millis(queue.timeout_ms),
            max_queue_timeout: Duration::from_millis(queue.max_timeout_ms),
            max_per_user: execution.max_per_user,
            files: FileLimits {
                put: thaw_os::workspace::Limits { bytes: execution.files_bytes, entries: execution.files_entries },
                collect: thaw_os::workspace::Limits {
                    bytes: execution.collect_bytes,
                    entries: execution.collect_entries,
                },
            },
        }
    }

    /// The same within `memory`, bytes, if that is all that this process and the output that it keeps may use: a half of it
    /// for what up to `containers` executions say, a quarter for what ended ones have said.
    #[must_use]
    pub fn within(mut self, memory: Option<u64>, containers: usize) -> Self {
        if let Some(memory) = memory.and_then(|memory| usize::try_from(memory).ok()) {
            self.fit(memory, containers);
        }
        // What is collected is kept beside the output, or it would be forgotten as soon as it is there.
        let collect = self.retained_bytes.saturating_sub(self.output_bytes) as u64;
        self.files.collect.bytes = self.files.collect.bytes.min(collect);
        self
    }

    fn fit(&mut self, memory: usize, containers: usize) {
        let output = (memory / 2 / containers.max(1)).max(MIN_OUTPUT_BYTES);
        for (key, bytes, most) in [
            ("execution.output_bytes", &mut self.output_bytes, output),
            ("execution.retained_bytes", &mut self.retained_bytes, memory / 4),
        ] {
            if *bytes > most {
                tracing::warn!(
                    key,
                    configured = *bytes,
                    used = most,
                    memory_limit = memory,
                    "more than the memory limit of this unit allows; less is kept"
                );
                *bytes = most;
            }
        }
    }

    /// Of the log of one execution.
    pub(super) fn log_limits(&self) -> LogLimits {
        LogLimits {
            bytes: self.output_bytes,
            fast: self.second_pipe_bytes,
            large: self.large_pages_bytes,
            patience: Patience { stall: self.reader_stall, away: self.reconnect_grace },
        }
    }
}

/// Lower bound of `output_bytes`; the configuration enforces it too.
const MIN_OUTPUT_BYTES: usize = 64 << 10;

#[cfg(test)]
impl Settings {
    /// Some that allow little.
    pub(crate) fn for_tests() -> Self {
        Self {
            output_bytes: 100,
            second_pipe_bytes: 100,
            large_pages_bytes: 100,
            reader_stall: Duration::ZERO,
            retention: Duration::from_secs(600),
            retained: 5,
            retained_bytes: 250,
            disconnect_grace: Duration::ZERO,
            stdin_wait: Duration::ZERO,
            reconnect_grace: Duration::ZERO,
            kill_grace: Duration::ZERO,
            max_timeout: Duration::from_secs(1),
            proxy_port: 1,
            queue_timeout: Duration::ZERO,
            max_queue_timeout: Duration::ZERO,
            max_per_user: 1,
            files: FileLimits {
                put: thaw_os::workspace::Limits { bytes: 100, entries: 1 },
                collect: thaw_os::workspace::Limits { bytes: 100, entries: 1 },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn what_is_kept_fits_the_memory_that_may_be_used() {
        let settings = || Settings { output_bytes: 16 << 20, retained_bytes: 256 << 20, ..Settings::for_tests() };
        let kept = |memory| {
            let settings = settings().within(memory, 32);
            (settings.output_bytes, settings.retained_bytes)
        };
        assert_eq!(kept(None), (16 << 20, 256 << 20));
        assert_eq!(kept(Some(8 << 30)), (16 << 20, 256 << 20));
        assert_eq!(kept(Some(256 << 20)), (4 << 20, 64 << 20));
        assert_eq!(kept(Some(1 << 20)).0, 64 << 10);
    }
}
