# One question to a provider as a Nomad batch job. The task's exit code is that of the CLI.
#   nomad job dispatch -meta provider=openai -meta user=u1 ask prompt.txt
job "ask" {
  type = "batch"

  parameterized {
    payload       = "required"
    meta_required = ["provider", "user"]
  }

  group "ask" {
    task "run" {
      driver = "raw_exec"

      dispatch_payload {
        file = "prompt.txt"
      }

      config {
        command = "/bin/sh"
        # Nomad passes values in the environment, so nothing of them is read as shell code.
        args = ["-c", "exec /usr/local/bin/thawctl run --user \"$NOMAD_META_user\" \"$NOMAD_META_provider\" - < \"$NOMAD_TASK_DIR/prompt.txt\""]
      }

      # The client only; the container has its own limits.
      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
