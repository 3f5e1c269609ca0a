#!/bin/bash
# The main job end to end, called by `make demo`: builds the images (once), starts an offline upstream and the
# daemon, and runs the three real command-line tools in frozen warm containers through the socket.
#
# Leaves nothing behind but a cache of images in ${THAWD_CACHE:-~/.cache/thawd}: no process, mount, cgroup or socket,
# also after Ctrl-C.
set -euo pipefail
root=$(readlink -f "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../..")
cache=${THAWD_CACHE:-$HOME/.cache/thawd}
bin=$root/target/release
work=$(mktemp -d "${TMPDIR:-/tmp}/thawd-demo.XXXXXX")
export THAWD_SOCKET=$work/run/thawd.sock
upstream_pid='' daemon_pid=''

say() { printf '\n== %s\n' "$*"; }

stop() { # pid: ask it to end, and wait until it has
  [ -n "$1" ] || return 0
  kill "$1" 2> /dev/null || true
  wait "$1" 2> /dev/null || true
}

clean() {
  status=$?
  trap - EXIT INT TERM
  # A line that was interrupted may still run; it ends with the daemon.
  stop "$daemon_pid"
  stop "$upstream_pid"
  [ "$status" -eq 0 ] || [ ! -s "$work/thawd.log" ] || { echo "demo failed; the end of the daemon's log:" >&2; tail -n 15 "$work/thawd.log" >&2; }
  rm -rf "$work"
  exit "$status"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "images (built once, kept in $cache)"
mkdir -p "$cache"
for name in openai anthropic google unified; do
  "$bin/thawctl" image build "$root/images/$name" --output "$cache/layouts/$name" --cache "$cache/build"
done

say "an offline upstream that speaks the three providers' APIs"
"$bin/examples/offline-upstream" --listen 127.0.0.1:0 --token-delay-ms 100 > "$work/upstream" &
upstream_pid=$!
for _ in $(seq 100); do [ ! -s "$work/upstream" ] || break; sleep 0.05; done
port=$(sed -n '1s/.*://p' "$work/upstream")
[ -n "$port" ] || { echo "the upstream did not start" >&2; exit 1; }
echo "http://127.0.0.1:$port, known in containers as http://upstream.test:$port"

say "the daemon, with two frozen containers per provider, and one in which the CLI waits already started"
mkdir "$work/providers"
cp "$root"/providers/*.toml "$work/providers"
cat > "$work/thawd.toml" << TOML
[api]
socket = "$THAWD_SOCKET"
[paths]
state_dir = "$cache/state"
layouts_dir = "$cache/layouts"
run_dir = "$work/run"
providers_dir = "$work/providers"
[cgroup]
name = "thawd-demo"
[egress.resolve]
"upstream.test" = ["127.0.0.1"]
$(for name in openai anthropic google unified-openai unified-anthropic unified-google; do
  printf '[provider.%s]\npool_target = 2\nbase_url = "http://upstream.test:%s"\negress = ["upstream.test:%s"]\n' "$name" "$port" "$port"
  case $name in unified-*) ;; *) echo 'prestarted = 1' ;; esac
done)
TOML
"$bin/thawd" --config "$work/thawd.toml" 2> "$work/thawd.log" &
daemon_pid=$!
printf 'filling the pools '
# Unpacking the images takes a few seconds the first time.
for _ in $(seq 600); do
  kill -0 "$daemon_pid" 2> /dev/null || { echo; echo "the daemon ended" >&2; exit 1; }
  warm=$("$bin/thawctl" --format json pools 2> /dev/null | jq '[.[].warm] | add // 0' 2> /dev/null || echo 0)
  [ "${warm:-0}" -lt 15 ] || break
  printf .
  sleep 0.2
done
echo " ${warm:-0} warm"
[ "${warm:-0}" -ge 15 ] || { "$bin/thawctl" pools >&2; exit 1; }

# Credential files in the CLIs' own formats; the tokens are made up, and the upstream takes any.
base64url() { base64 -w0 | tr '+/' '-_' | tr -d '='; }
claims='{"email":"demo@example.com","exp":4102444800,"https://api.openai.com/auth":{"chatgpt_plan_type":"plus","chatgpt_account_id":"acct_demo","chatgpt_user_id":"user_demo"}}'
token="$(printf '{"alg":"none","typ":"JWT"}' | base64url).$(printf '%s' "$claims" | base64url).c2ln"
printf '{"OPENAI_API_KEY":null,"tokens":{"id_token":"%s","access_token":"%s","refresh_token":"","account_id":"acct_demo"},"last_refresh":"2026-01-01T00:00:00Z"}' \
  "$token" "$token" > "$work/auth.json"
printf '{"claudeAiOauth":{"accessToken":"sk-ant-oat01-demo","expiresAt":4102444800000,"scopes":["user:inference"]}}' > "$work/claude.json"
# gemini checks a credential file with Google's token service, so the demo hands over the access token instead.
export GOOGLE_CLOUD_ACCESS_TOKEN=ya29.demo
export OPENAI_API_KEY=sk-demo ANTHROPIC_API_KEY=sk-ant-demo GOOGLE_API_KEY=demo GEMINI_API_KEY=demo

refilled() { # waits until what was used has been replaced
  for _ in $(seq 300); do
    warm=$("$bin/thawctl" --format json pools | jq '[.[].warm] | add')
    [ "$warm" -lt 15 ] || break
    sleep 0.1
  done
}
ask() { # title, then arguments of thawctl run
  say "$1"
  shift
  "$bin/thawctl" run --verbose --user demo "$@"
}
ask 'OpenAI codex, with ~/.codex/auth.json' --file "auth.json=$work/auth.json" openai 'What is 3*67? Answer with the number only.'
ask 'Anthropic claude, with ~/.claude/.credentials.json' --file ".credentials.json=$work/claude.json" anthropic 'What is 3*67? Answer with the number only.'
ask 'Google gemini, with an OAuth access token' --credential-env GOOGLE_CLOUD_ACCESS_TOKEN google 'What is 3*67? Answer with the number only.'

# What the model is to ask for, told to the upstream in the prompt; it answers with what the last command gave. The file that
# the command makes in /workspace is collected and written to a folder here.
steps='steps: [[{"run": "echo hi > /workspace/file; cat /workspace/file"}], [{"run": "cd /workspace && git init -q . && git add file && git commit -qm hi && git log --format=%s"}]]'
say 'the model asks for shell commands: in a container that was frozen empty (--env: that cannot be handed over late)'
worked() { # provider, what it was, arguments of thawctl run: the CLI's tool must have given what the command printed
  local provider=$1 how=$2 said
  shift 2
  said=$("$bin/thawctl" run --verbose --user demo --collect file -o "$work/made" "$@" "$provider" "$steps" 2>&1) || { echo "$said" >&2; return 1; }
  echo "$said"
  grep -q "$how" <<< "$said" || { echo "$provider: not $how" >&2; return 1; }
  grep -qx '\(Output: \)\?hi' <<< "$said" || { echo "$provider: the command did not print hi" >&2; return 1; }
  [ "$(cat "$work/made/file")" = hi ] || { echo "$provider: the file did not come back" >&2; return 1; }
  echo "collected: file, with $(cat "$work/made/file") in it"
  rm -r "$work/made"
}
worked openai "path=warm prestarted=false" --env DEMO=1 --file "auth.json=$work/auth.json"
worked anthropic "path=warm prestarted=false" --env DEMO=1 --file ".credentials.json=$work/claude.json"
worked google "path=warm prestarted=false" --env DEMO=1 --credential-env GEMINI_API_KEY

say 'the same in a container where the CLI waited already started'
refilled
worked openai prestarted=true --file "auth.json=$work/auth.json"
# claude cannot be moved to /workspace once it runs.
worked anthropic prestarted=true --workdir /home/runtime --file ".credentials.json=$work/claude.json"
worked google prestarted=true --credential-env GEMINI_API_KEY

for provider in openai anthropic google; do
  ask "without a CLI: $provider by its API" --credential-env "${provider^^}_API_KEY" "unified-$provider" 'What is 3*67? Answer with the number only.'
done

say "the pool, refilled and frozen"
refilled
"$bin/thawctl" ps
say "done; stopping"
