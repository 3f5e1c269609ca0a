"""Uses the client that openapi-python-client has made, on a real daemon: client.py SOCKET."""

import sys

import httpx
from thawd_client import Client
from thawd_client.api.daemon import get_version
from thawd_client.api.executions import (
    cancel_execution,
    create_execution,
    delete_execution,
    get_execution,
    get_execution_stats,
    list_executions,
    read_stdout,
)
from thawd_client.api.pools import list_pools
from thawd_client.api.providers import list_providers
from thawd_client.models import (
    Execution,
    ExecutionRequest,
    ExecutionRequestLabels,
    ExecutionState,
    ListExecutionsLabels,
    Problem,
)


def main(socket: str) -> None:
    client = Client("http://localhost", httpx_args={"transport": httpx.HTTPTransport(uds=socket)})
    with client:
        version = get_version.sync(client=client)
        assert version is not None and not isinstance(version, Problem)
        assert "idempotency_key" in version.features and version.limits.max_containers > 0

        labels = ExecutionRequestLabels.from_dict({"team": "red"})
        request = ExecutionRequest(
            provider="test", user="auth0|5f7c", command=["sh", "-c", "echo hello; exit 3"], labels=labels
        )
        first = create_execution.sync(client=client, body=request, idempotency_key="python-1")
        again = create_execution.sync(client=client, body=request, idempotency_key="python-1")
        assert isinstance(first, Execution) and isinstance(again, Execution) and first.id == again.id

        ended = get_execution.sync(first.id, client=client, wait="60s")
        assert isinstance(ended, Execution) and ended.state is ExecutionState.EXITED
        assert ended.exit_ is not None and ended.exit_ and ended.exit_.code == 3 and ended.started_at

        output = read_stdout.sync_detailed(first.id, client=client, offset=1)
        assert output.status_code == 200 and output.content == b"ello\n"

        page = list_executions.sync(
            client=client,
            user="auth0|5f7c",
            state=ExecutionState.EXITED,
            labels=ListExecutionsLabels.from_dict({"label.team": "red"}),
            limit=1,
        )
        assert page is not None and not isinstance(page, Problem)
        assert [execution.id for execution in page.items] == [first.id]

        stats = get_execution_stats.sync(first.id, client=client)
        assert stats is not None and not isinstance(stats, Problem) and stats.memory_peak_bytes > 0

        problem = cancel_execution.sync("e-none", client=client)
        assert isinstance(problem, Problem) and problem.code == "not_found" and not problem.retryable
        assert delete_execution.sync_detailed(first.id, client=client).status_code == 204
        gone = get_execution.sync(first.id, client=client)
        assert isinstance(gone, Problem) and gone.status == 404

        pools = list_pools.sync(client=client)
        providers = list_providers.sync(client=client)
        assert pools is not None and not isinstance(pools, Problem) and pools.items[0].provider == "test"
        assert providers is not None and not isinstance(providers, Problem) and providers.items[0].name == "test"
    print("python: all as described")


main(sys.argv[1])
