//! A CLI that writes what takes the daemon long to understand.

use std::time::{Duration, Instant};

use thaw_client::types::{ContainerState, ExecutionRequest, ExecutionState};

use crate::support::{Daemon, eventually, prompt};

/// A CLI that writes lines of claude's dialect as fast as it can, each of them a list that has to be read to its end.
const MANIFEST: &str = r#"
name = "flood"
image = "test"
home = "/home/runtime"
pool_target = 1
egress = []
[command]
argv = ["sh", "-c", "cat > /dev/null; line='{\"type\":\"x\",\"list\":[1,2,3,4,5,6,7,8,9,\"a\",\"b\",\"c\"]}'; i=0; while [ $i -lt 2000 ]; do echo \"$line\"; i=$((i+1)); done > /tmp/lines; while :; do cat /tmp/lines; done"]
prompt = "stdin"
dialect = "claude-stream-json"
[models]
default = "one"
allowed = ["one"]
[credentials]
dir = ".flood"
required = false
tmpfs_mib = 1
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 128
cpu = 1.0
"#;

/// Processor time of a process so far (proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms).
fn processor_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11..13].iter().map(|ticks| Duration::from_millis(10 * ticks.parse::<u64>().unwrap())).sum()
}

#[tokio::test]
async fn a_cli_that_floods_the_daemon_with_lines_gets_a_part_of_a_processor() {
    let daemon = Daemon::start(|mut setup| {
        setup.clear_providers();
        setup.add_provider(MANIFEST)
    })
    .await;
    let pool = || async {
        let containers = daemon.containers().await;
        (containers.len() == 1 && containers[0].state == ContainerState::Warm).then_some(())
    };
    eventually("the pool is full", pool).await;
    let flood = ExecutionRequest { background: true, ..prompt("flood", "write") };
    let execution = daemon.client.create(&flood).await.unwrap();
    // The lines are made first, and then the burst is spent.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (begun, before) = (Instant::now(), processor_time(daemon.pid()));
    tokio::time::sleep(Duration::from_secs(4)).await;
    let share = (processor_time(daemon.pid()) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    // Understanding is a tenth; taking it out of the pipe, and throwing away what is too much, comes on top.
    assert!(share < 0.25, "the daemon used {share:.2} of a processor");
    // It is still at it: otherwise there was nothing to understand.
    let state = daemon.client.execution(&execution.id).await.unwrap().state;
    assert!(share > 0.02 && state == ExecutionState::Running, "{share:.3}, {state:?}");
    daemon.client.cancel(&execution.id).await.unwrap();
    eventually("only the pool is left", pool).await;
    daemon.stop().await;
}
