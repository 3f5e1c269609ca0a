//! Threads for the system's resolver, which blocks. They are separate so that a silent name server cannot use up the
//! threads that create containers.

use std::io;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

/// Look-ups at the same time, of all containers together. Each container may have `egress.limits.lookups` of them.
const MAX_LOOKUPS: usize = 64;

/// The runtime whose blocking threads do the look-ups; only those threads are used, started and ended by need. The
/// runtime is never dropped, so that the daemon's end does not wait for a name server.
fn threads() -> io::Result<&'static Runtime> {
    static THREADS: OnceLock<io::Result<Runtime>> = OnceLock::new();
    let made = THREADS.get_or_init(|| {
        Builder::new_current_thread().max_blocking_threads(MAX_LOOKUPS).thread_name("thawd-lookup").build()
    });
    made.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))
}

/// Runs a look-up on one of these threads; waits while [`MAX_LOOKUPS`] are running.
pub(super) async fn run<T: Send + 'static>(look_up: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    threads()?.spawn_blocking(look_up).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use super::{MAX_LOOKUPS, run};

    #[test]
    fn name_servers_that_do_not_answer_hold_up_look_ups_and_nothing_else() {
        // One thread for everything else that blocks.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let begun = Arc::new(AtomicUsize::new(0));
            let (mut answers, mut asked) = (Vec::new(), Vec::new());
            for _ in 0..=MAX_LOOKUPS {
                let (answer, waits) = mpsc::channel::<()>();
                answers.push(answer);
                let begun = Arc::clone(&begun);
                asked.push(tokio::spawn(run(move || {
                    begun.fetch_add(1, Ordering::SeqCst);
                    Ok(waits.recv().is_err())
                })));
            }
            let limit = Duration::from_secs(20);
            let waiting = async {
                while begun.load(Ordering::SeqCst) < MAX_LOOKUPS {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(limit, waiting).await.unwrap();
            let other = tokio::task::spawn_blocking(|| "created");
            assert_eq!(tokio::time::timeout(limit, other).await.unwrap().unwrap(), "created");
            assert_eq!(begun.load(Ordering::SeqCst), MAX_LOOKUPS, "one waits for the others");
            drop(answers);
            for one in asked {
                assert!(tokio::time::timeout(limit, one).await.unwrap().unwrap().unwrap());
            }
        });
    }
}
