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
