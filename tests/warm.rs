//! What a warm container waits with: its CPU class, a CLI that is bound to its model, and no more memory than it needs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use support::{ContainerCgroup, Daemon, Outcome, Setup, eventually, in_bed, prompt, shell};
use thaw_client::types::{ClaimPath, ContainerState, Credentials, Event, ExecutionRequest, Pool, Secret, Stage};

const MIB: u64 = 1 << 20;

/// A CLI that speaks claude's protocol, holds 8 MiB, and answers with its model, a part of what it holds, how many
/// prompts it has had, and the variables that it was handed. `sh -c` takes its model as `$0`.
const CLI: &str = r#"
held=$(head -c 8388608 /dev/zero | tr '\0' a); asked=0; given=none
while read -r line; do case $line in
*'"initialize"'*) echo '{"type":"control_response","response":{"subtype":"success","request_id":"initialize"}}' ;;
*update_environment_variables*) case $line in *sk-mine*) given=sk-mine ;; esac ;;
*'"user"'*)
    asked=$((asked + 1)); text="$0 ${#held} $asked $given"
    echo '{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"'$text'"}}}'
    echo '{"type":"result","subtype":"success","is_error":false,"result":"'$text'"}' ;;
esac; done
"#;

const MANIFEST: &str = r#"
name = "bound"
image = "test"
home = "/home/runtime"
pool_target = 0
egress = []
[command]
argv = ["sh", "-c", "cat > /dev/null; echo cold {model}"]
[models]
default = "first"
allowed = ["first", "second", "third"]
[models.aliases]
two = "second"
[credentials]
dir = ".bound"
env = ["TEST_TOKEN"]
tmpfs_mib = 1
[prestart]
protocol = "claude-stream-json"
argv = ["sh", "-c", "CLI", "{model}"]
memory_mib = 16
credentials = [{ credential = "env:TEST_TOKEN", by = "environment" }]
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 128
cpu = 0.5
"#;

fn bound(mut setup: Setup) -> Setup {
    setup.clear_providers();
    let mut manifest: toml::Table = MANIFEST.parse().unwrap();
    manifest["prestart"]["argv"][2] = CLI.into();
    setup.add_provider(&manifest.to_string())
}

fn ask(model: &str) -> ExecutionRequest {
    let token = [("TEST_TOKEN".to_owned(), Secret::new("sk-mine".to_owned()))];
    ExecutionRequest {
        model: Some(model.to_owned()),
        credentials: Some(Credentials { files: BTreeMap::new(), env: token.into() }),
        ..prompt("bound", "Say something.")
    }
}

fn answer(outcome: &Outcome) -> String {
    let deltas = outcome.events.iter().filter_map(|(_, event)| match event {
        Event::Delta(delta) => Some(delta.text.as_str()),
        _ => None,
    });
    deltas.collect()
}

/// The pools of prestarted CLIs, once they are full.
async fn waiting(daemon: &Daemon) -> Vec<Pool> {
    eventually("CLIs wait already started", || async {
        let mut pools = daemon.client.pools().await.unwrap();
        pools.retain(|pool| pool.stage == Stage::Prestarted);
        pools.iter().all(|pool| pool.warm == pool.target && pool.creating == 0).then_some(pools)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_the_cli_that_was_started_with_its_model() {
    let daemon = Daemon::start(|setup| {
        bound(setup).set("provider.bound.prestarted", 1).set("provider.bound.prestarted_models.two", 2)
    })
    .await;
    let pools = waiting(&daemon).await;
    let models: Vec<_> = pools.iter().map(|pool| (pool.model.as_deref(), pool.target)).collect();
    assert_eq!(models, [(Some("first"), 1), (Some("second"), 2)]);
    let waiting_then = daemon.containers().await;
    assert_eq!(waiting_then.len(), 3);

    for (model, is) in [("first", "first"), ("two", "second"), ("second", "second")] {
        let outcome = daemon.run(&ask(model)).await;
        assert_eq!(answer(&outcome), format!("{is} 8388608 1 sk-mine"), "{:?}", outcome.exit);
        assert!(outcome.started.prestarted && outcome.started.path == ClaimPath::Warm, "{:?}", outcome.started);
        assert!(waiting_then.iter().any(|container| container.id == outcome.started.container));
    }
    // Nobody waits with the third model: correct first, then fast.
    let outcome = daemon.run(&ask("third")).await;
    assert!(!outcome.started.prestarted, "{:?}", outcome.started);
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "cold third\n");

    // Each has served its one user and is gone; others wait in their place.
    waiting(&daemon).await;
    eventually("those that were used are gone", || async {
        let now = daemon.containers().await;
        (now.len() == 3 && now.iter().all(|one| waiting_then.iter().all(|then| then.id != one.id))).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waiting_containers_hold_is_told_by_stage() {
    let daemon =
        Daemon::start(|setup| bound(setup).set("provider.bound.prestarted", 2).set("provider.bound.pool_target", 2))
            .await;
    waiting(&daemon).await;
    let pools = eventually("figures of both stages", || async {
        let pools = daemon.client.pools().await.unwrap();
        // They may be a second old.
        let of_both = |pool: &Pool| pool.memory.bytes > 0 && pool.memory.bytes / 2 == pool.memory.bytes_per_container;
        pools.iter().all(|pool| pool.warm == 2 && of_both(pool)).then_some(pools)
    })
    .await;
    let of = |stage| pools.iter().find(|pool| pool.stage == stage).unwrap().memory;
    let (created, prestarted) = (of(Stage::Created), of(Stage::Prestarted));
    assert!(created.bytes_per_container < MIB, "{created:?}");
    assert!((8 * MIB..32 * MIB).contains(&prestarted.bytes_per_container), "{prestarted:?}");
    assert!(prestarted.anonymous_bytes >= 2 * 8 * MIB && prestarted.anonymous_bytes <= prestarted.bytes);
    for memory in [created, prestarted] {
        assert!(memory.kernel_bytes > 0 && memory.kernel_bytes < memory.bytes, "{memory:?}");
        assert_eq!((memory.bytes_per_container, memory.swapped_bytes), (memory.bytes / 2, 0));
    }
    // What the kernel says of each container is what the pool says of all.
    let warm = daemon.containers().await.into_iter().filter(|one| one.state == ContainerState::Warm);
    let sum: u64 = warm.map(|container| container.memory_bytes).sum();
    let told = created.bytes + prestarted.bytes;
    assert!(told.abs_diff(sum) < sum / 10, "{told} against {sum}");
    let metrics = daemon.http("GET /metrics", &[], b"").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let gauge = |stage: &str| {
        let name = format!(r#"thawd_pool_memory_bytes{{provider="bound",stage="{stage}"}} "#);
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or_else(|| panic!("{text}"))
    };
    assert!(gauge("prestarted") >= 16 * MIB && gauge("created") < 2 * MIB, "{text}");
    daemon.stop().await;
}

/// A manifest's CLI that begins as the usual one does and then goes on with `script` when it gets the prompt.
fn speaking(setup: Setup, script: &str) -> Setup {
    let mut setup = bound(setup);
    setup.clear_providers();
    let mut manifest: toml::Table = MANIFEST.parse().unwrap();
    let begin = r#"while read -r line; do case $line in
        *'"initialize"'*) echo '{"type":"control_response","response":{"subtype":"success","request_id":"initialize"}}' ;;
        *'"user"'*) break ;;
        esac; done"#;
    manifest["prestart"]["argv"][2] = format!("{begin}\n{script}").into();
    setup.add_provider(&manifest.to_string()).set("provider.bound.prestarted", 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_asks_on_and_reads_nothing_is_ended() {
    // Requests of 60 kB, which are answered with as much: without a limit the daemon would hold all of them.
    let script = r#"id=$(head -c 60000 /dev/zero | tr '\0' a)
        while :; do echo '{"type":"control_request","request_id":"'$id'"}'; done"#;
    let daemon = Daemon::start(|setup| speaking(setup, script)).await;
    waiting(&daemon).await;
    let before = support::resident_bytes(daemon.pid());
    let outcome = daemon.run(&ask("first")).await;
    assert!(outcome.started.prestarted, "{:?}", outcome.started);
    let detail = outcome.exit.detail.clone().unwrap_or_default();
    assert!(!outcome.exit.success && detail.contains("asks for more than it reads"), "{:?}", outcome.exit);
    let after = support::resident_bytes(daemon.pid());
    assert!(after < before + 16 * MIB, "{before} bytes before, {after} after");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pipes_of_a_conversation_are_out_of_reach_of_what_the_cli_starts() {
    let script = r#"
        for place in /dev/stdout /dev/stdin /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2; do
            (sh -c ": >> $place") 2>/dev/null && reached="$reached $place"
            (sh -c ": < $place") 2>/dev/null && reached="$reached $place"
        done
        echo '{"type":"result","subtype":"success","is_error":false,"result":"reached:'$reached'"}'"#;
    let daemon = Daemon::start(|setup| speaking(setup, script)).await;
    waiting(&daemon).await;
    let outcome = daemon.run(&ask("first")).await;
    assert!(outcome.started.prestarted && outcome.exit.success, "{:?}", outcome.exit);
    assert_eq!(answer(&outcome), "reached:");
    daemon.stop().await;
}

/// What was said to one that waits has to fit a message to the keeper, or the next daemon could not go on from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_stops_in_the_middle_of_a_long_line_does_not_wait() {
    for (bytes, waits) in [(2_000, true), (20_000, false)] {
        let mut daemon = Daemon::prepare(|setup| {
            let mut setup = bound(setup);
            setup.clear_providers();
            let mut manifest: toml::Table = MANIFEST.parse().unwrap();
            // Behind its answer to `initialize`.
            let (begin, rest) = CLI.split_once(";;").unwrap();
            manifest["prestart"]["argv"][2] = format!("{begin}; printf '%0{bytes}d' 0 ;;{rest}").into();
            setup.add_provider(&manifest.to_string()).set("provider.bound.prestarted", 1)
        });
        daemon.spawn(&[]);
        // One that does not wait is not ready either.
        let pool = eventually("it waits, or is refused", || async {
            let pools = daemon.client.pools().await.ok()?;
            let pool = pools.into_iter().find(|pool| pool.stage == Stage::Prestarted)?;
            (pool.warm == 1 || pool.last_error.is_some()).then_some(pool)
        })
        .await;
        assert_eq!(pool.warm == 1, waits, "{pool:?}");
        let reason = pool.last_error.unwrap_or_default();
        assert_eq!(reason.contains("in the middle of a line"), !waits, "{reason}");
        daemon.stop().await;
    }
}

/// An answer of 1.2 MiB in one line of a CLI that waited is no success, and that is said; a tool's result of 3 MiB does not
/// matter.
#[tokio::test(flavor = "multi_thread")]
async fn long_lines_of_a_prestarted_cli_are_read_as_far_as_they_matter() {
    let script = r#"
        x=$(head -c 1048576 /dev/zero | tr '\0' x)
        echo '{"type":"user","message":{"content":[{"type":"tool_result","content":"'"$x$x$x"'"}]}}'
        say() { echo '{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"'"$1"'"}}}'; }
        SAY
        echo '{"type":"result","subtype":"success","is_error":false,"result":"'"RESULT"'"}'"#;
    for (say, result, success) in [("say 201", "201", true), ("say 201", "$x$x", true), ("", "$x$x", false)] {
        let script = script.replace("SAY", say).replace("RESULT", result);
        let daemon = Daemon::start(|setup| speaking(setup, &script)).await;
        waiting(&daemon).await;
        let outcome = daemon.run(&ask("first")).await;
        assert!(outcome.started.prestarted, "{:?}", outcome.started);
        assert_eq!(outcome.exit.success, success, "{say} {result}: {:?}", outcome.exit);
        if success {
            assert_eq!(answer(&outcome), "201");
        } else {
            let detail = outcome.exit.detail.clone().unwrap_or_default();
            assert!(detail.contains("more than 1 MiB"), "{detail}");
        }
        daemon.stop().await;
    }
}

/// What cannot use a prestarted CLI stays in the line, and who can gets it although it came later.
#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_becomes_ready_goes_to_who_waits_for_it() {
    let daemon = Daemon::start(|setup| {
        let mut setup = bound(setup);
        setup.clear_providers();
        let mut manifest: toml::Table = MANIFEST.parse().unwrap();
        // Long enough for all three requests to come before it is ready.
        manifest["prestart"]["argv"][2] = format!("sleep 3; {CLI}").into();
        setup.add_provider(&manifest.to_string()).set("provider.bound.prestarted", 1).set("container.max", 2)
    })
    .await;
    let background = |request: ExecutionRequest| ExecutionRequest { background: true, ..request };
    let occupant = background(ExecutionRequest { provider: "bound".to_owned(), ..shell("sleep 1000") });
    let occupant = daemon.client.create(&occupant).await.unwrap().id;
    assert!(daemon.run(&ask("first")).await.started.prestarted);
    eventually("the next CLI is being started", || async {
        let pools = daemon.client.pools().await.unwrap();
        pools.iter().any(|pool| pool.stage == Stage::Prestarted && pool.creating == 1).then_some(())
    })
    .await;
    let other = ExecutionRequest { env: [("ANY".to_owned(), "thing".to_owned())].into(), ..ask("first") };
    // Told that they wait, one after the other.
    let mut streams = Vec::new();
    for request in [other, ask("first")] {
        let mut stream = daemon.client.execute_stream(&request).await.unwrap();
        let (_, first) = stream.next().await.unwrap().unwrap();
        assert!(matches!(first, Event::Queued(_)), "{first:?}");
        streams.push(stream);
    }
    let [other, late] = [0, 1].map(|index: usize| streams[index].execution().unwrap().to_owned());
    let outcome = Outcome::of(daemon.client.events(&late, None).await.unwrap()).await;
    assert_eq!(answer(&outcome), "first 8388608 1 sk-mine", "{:?}", outcome.exit);
    assert!(outcome.started.prestarted && outcome.started.path == ClaimPath::Warm, "{:?}", outcome.started);
    // Its place is free now, and nobody but the other one waits for it.
    let outcome = Outcome::of(daemon.client.events(&other, None).await.unwrap()).await;
    assert!(!outcome.started.prestarted, "{:?}", outcome.started);
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "cold first\n");
    daemon.client.cancel(&occupant).await.unwrap();
    daemon.stop().await;
}

/// Without a name that fits, nothing may wait with another model than the operator meant.
#[test]
fn models_that_cannot_wait_are_refused_at_the_start() {
    let late = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("providers/openai.toml")).unwrap();
    for (key, count, problem) in [
        ("provider.bound.prestarted_models.fourth", 1, "fourth"),
        ("provider.bound.prestarted_models.first", 1, "once more"),
        ("provider.openai.prestarted_models.gpt-5", 1, "use `prestarted` instead"),
        ("provider.bound.prestarted_modles.first", 1, "did you mean `prestarted_models`"),
    ] {
        let daemon = Daemon::prepare(|setup| {
            bound(setup).add_provider(&late).set("provider.bound.prestarted", 1).set(key, count)
        });
        let config = daemon.path("thawd.toml");
        let output = Command::new(env!("CARGO_BIN_EXE_thawd")).arg("--config").arg(config).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(problem), "{key}: {said}");
    }
}

#[tokio::test]
async fn a_class_has_its_own_period_and_burst() {
    let run = (500_000, 1_000_000, 500_000);
    for (period, idle) in [(1000, (100_000, 1_000_000, 100_000)), (100, (10_000, 100_000, 10_000))] {
        let daemon = Daemon::start(|setup| {
            setup
                .pool(1)
                .provider("resources.idle.cpu_period_ms", period)
                .provider("resources.idle.cpu_burst", 0.2)
                .provider("resources.run.cpu_period_ms", 1000)
        })
        .await;
        let warm = daemon.settled().await.remove(0);
        let cgroup = ContainerCgroup::of(&warm);
        let limits = || {
            let (quota, period) = cgroup.cpu_limit();
            (quota, period, cgroup.cpu_burst())
        };
        assert_eq!(limits(), idle, "a tenth of a CPU, and what it has saved up");
        let execution = daemon.client.create(&shell("sleep 1000")).await.unwrap();
        assert_eq!(execution.container.as_deref(), Some(warm.id.as_str()));
        assert_eq!(limits(), run, "while it serves");
        daemon.client.cancel(&execution.id).await.unwrap();
        daemon.stop().await;
    }
}

/// Swap made of compressed memory, in the test bed only: it is the whole machine's.
struct Zram;

impl Zram {
    fn swap() -> Option<Self> {
        let sh = |script: &str| Command::new("sh").args(["-ec", script]).status().unwrap().success();
        if !in_bed() {
            return None;
        }
        assert!(sh("echo 256M > /sys/block/zram0/disksize; mkswap /dev/zram0 > /dev/null; swapon /dev/zram0"));
        Some(Self)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = Command::new("sh").args(["-c", "swapoff /dev/zram0; echo 1 > /sys/block/zram0/reset"]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reclaimed_container_holds_less_and_works_as_ever() {
    for mode in ["cache", "swap"] {
        let zram = Zram::swap();
        let daemon =
            Daemon::start(|setup| bound(setup).set("pool.reclaim", mode).set("provider.bound.prestarted", 1)).await;
        let pool = waiting(&daemon).await.remove(0);
        assert!(daemon.log().contains("memory reclaimed"), "{}", daemon.log());
        assert!(!daemon.log().contains("memory not reclaimed"), "{}", daemon.log());
        let memory = eventually("figures of it", || async {
            let pools = daemon.client.pools().await.unwrap();
            let found = pools.into_iter().find(|one| one.stage == pool.stage && one.memory.bytes > 0);
            found.map(|pool| pool.memory)
        })
        .await;
        if zram.is_some() && mode == "swap" {
            assert!(memory.swapped_bytes > 6 * MIB && memory.anonymous_bytes < 3 * MIB, "{memory:?}");
        } else {
            // Anonymous memory stays where there is no swap for it, or none is allowed.
            assert!(memory.swapped_bytes == 0 && memory.anonymous_bytes >= 8 * MIB, "{memory:?}");
        }
        let container = daemon.containers().await.remove(0);
        let outcome = daemon.run(&ask("first")).await;
        assert_eq!(answer(&outcome), "first 8388608 1 sk-mine", "{mode}: {:?}", outcome.exit);
        assert_eq!((outcome.started.prestarted, &outcome.started.container), (true, &container.id));
        daemon.stop().await;
    }
}

#[tokio::test]
async fn what_holds_a_secret_is_never_swapped() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("pool.reclaim", "swap")).await;
    let execution = daemon.client.create(&shell("sleep 1000")).await.unwrap();
    let container = daemon.container(execution.container.as_ref().unwrap()).await;
    assert!(ContainerCgroup::of(&container).may_swap_nothing());
    daemon.client.cancel(&execution.id).await.unwrap();
    daemon.stop().await;
}
