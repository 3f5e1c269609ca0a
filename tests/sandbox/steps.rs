//! The daemon kills itself at each named step of a sandbox: what is left is whole, or is told of as gone.

#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn dying_at_each_step_leaves_a_sandbox_whole_or_gone() {
    use thaw_client::types::{ExecutionRequest, NamedSandboxRequest, Sandbox, SandboxState};

    use super::{all, inside, run, usual, wanted};
    use crate::support::{Daemon, PATIENCE};

    let mut daemon = Daemon::prepare(usual);
    for step in thawd::failpoints::SANDBOX {
        daemon.spawn(&[("THAWD_DIE_AT", step)]);
        daemon.ready().await;
        let client = daemon.client.clone();
        // As far as it comes.
        let life = tokio::spawn(async move {
            let sandbox: Sandbox = client.create_sandbox(&wanted(r#"{"name":"dev"}"#), None).await?;
            let stream = client.execute_stream(&inside(&sandbox, "echo ran >> ~/log")).await?;
            crate::support::collect(stream).await;
            while client
                .freeze_sandbox::<Sandbox>(&sandbox.id)
                .await
                .is_err_and(|error| error.to_string().contains("run in"))
            {}
            client.create(&ExecutionRequest { background: true, ..inside(&sandbox, "sleep 1000") }).await?;
            client.delete_sandbox(&sandbox.id).await
        });
        let status = tokio::time::timeout(PATIENCE, daemon.ended()).await;
        assert!(!status.unwrap_or_else(|_| panic!("{step} is never reached")).success(), "{step}");
        life.abort();
        daemon.launch().await;
        let left = all(&daemon).await;
        let is_undone = matches!(step, "sandbox.written" | "sandbox.kept" | "sandbox.ended");
        let states: Vec<_> = left.iter().filter(|one| one.name.is_some()).map(|one| one.state).collect();
        match is_undone {
            true => assert_eq!(states, [SandboxState::Gone], "{step}"),
            false => assert!(states[0] != SandboxState::Gone && states.len() == 1, "{step}: {left:?}"),
        }
        // One that is there does its work, and has run a command once or not at all.
        let named = NamedSandboxRequest { template: "test".to_owned(), ..Default::default() };
        let sandbox: Sandbox = daemon.client.ensure_sandbox("u1", "dev", &named).await.unwrap();
        assert_eq!(left.iter().any(|one| one.id == sandbox.id), !is_undone, "{step}");
        let logged = run(&daemon, &sandbox, "cat ~/log; true").await;
        assert!(matches!(logged.text(), "" | "ran\n"), "{step}: {}", logged.text());
        for one in all(&daemon).await {
            if one.state != SandboxState::Gone {
                daemon.client.delete_sandbox(&one.id).await.unwrap();
            }
            daemon.client.delete_sandbox(&one.id).await.unwrap();
        }
        daemon.settled().await;
        daemon.kill();
    }
    daemon.launch().await;
    daemon.stop().await;
}

/// Each step of a sandbox with storage: it is whole with its files, or it was never created and took no space.
#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn dying_at_each_step_of_its_storage_leaves_every_file_or_nothing() {
    use thaw_client::types::{NamedSandboxRequest, Sandbox, SandboxState, SandboxStorage};

    use super::storage::{attached, image, nothing_attached};
    use super::{all, inside, run, usual, wanted};
    use crate::support::{Daemon, PATIENCE, eventually};

    let storage = Some(SandboxStorage { size_bytes: Some(32 << 20) });
    let mut daemon = Daemon::prepare(|setup| usual(setup).set("sandbox.stop_grace_seconds", 2));
    for step in thawd::failpoints::STORAGE {
        daemon.spawn(&[("THAWD_DIE_AT", step)]);
        daemon.ready().await;
        let client = daemon.client.clone();
        // As far as it comes.
        let life = tokio::spawn(async move {
            let request = wanted(r#"{"name":"dev","storage":{"size_bytes":33554432}}"#);
            let sandbox: Sandbox = client.create_sandbox(&request, None).await?;
            let stream = client.execute_stream(&inside(&sandbox, "echo first >> ~/log; sync ~/log")).await?;
            crate::support::collect(stream).await;
            client.stop_sandbox::<Sandbox>(&sandbox.id).await?;
            let stream = client.execute_stream(&inside(&sandbox, "echo second >> ~/log; sync ~/log")).await?;
            crate::support::collect(stream).await;
            client.delete_sandbox(&sandbox.id).await
        });
        let status = tokio::time::timeout(PATIENCE, daemon.ended()).await;
        assert!(!status.unwrap_or_else(|_| panic!("{step} is never reached")).success(), "{step}");
        life.abort();
        daemon.launch().await;
        let left = all(&daemon).await;
        assert_eq!(left.len(), 1, "{step}: {left:?}");
        let (before, state) = (&left[0], left[0].state);
        let is_undone = matches!(step, "storage.making" | "storage.made" | "storage.attached" | "storage.prepared");
        match step {
            _ if is_undone => assert_eq!(state, SandboxState::Gone, "{step}"),
            "storage.removing" => assert_eq!(state, SandboxState::Gone, "{step}"),
            "sandbox.terminated" => assert_eq!(state, SandboxState::Active, "{step}"),
            "sandbox.started" => assert_eq!(state, SandboxState::Active, "{step}"),
            _ => assert_eq!(state, SandboxState::Stopped, "{step}"),
        }
        if state == SandboxState::Gone {
            eventually(&format!("{step}: no space is taken"), || async {
                (!image(&daemon, before).exists()).then_some(())
            })
            .await;
            nothing_attached(&daemon).await;
        } else {
            let named = NamedSandboxRequest { template: "test".to_owned(), storage, ..Default::default() };
            let sandbox: Sandbox = daemon.client.ensure_sandbox("u1", "dev", &named).await.unwrap();
            assert_eq!(sandbox.id, before.id, "{step}");
            let logged = run(&daemon, &sandbox, "cat ~/log").await;
            assert_eq!(logged.text(), "first\n", "{step}: {}", logged.errors());
            assert_eq!(attached(&daemon).len(), 1, "{step}");
            daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
            nothing_attached(&daemon).await;
        }
        daemon.client.delete_sandbox(&before.id).await.unwrap();
        let files: Vec<_> = std::fs::read_dir(daemon.path("state/storage")).unwrap().flatten().collect();
        assert_eq!(files.len(), 1, "{step}: only templates are left: {files:?}");
        daemon.settled().await;
        daemon.kill();
    }
    daemon.launch().await;
    daemon.stop().await;
}
