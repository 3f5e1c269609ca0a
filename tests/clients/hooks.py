"""What schemathesis cannot know of the daemon that it tries: which provider there is, which commands end, and what sandboxes
are made from."""

import schemathesis


@schemathesis.hook("map_body").apply_to(method="POST", path="/v1/executions")
def map_body(ctx, body):
    """Most requests are of the provider that there is, and run something that ends at once."""
    if isinstance(body, dict) and isinstance(body.get("provider"), str) and body["provider"]:
        body["provider"] = "test"
        body.pop("image", None)
        if isinstance(body.get("command"), list):
            body["command"] = ["true"]
    return body


def of_test(body):
    """Sandboxes are made from the provider that there is."""
    if isinstance(body, dict) and isinstance(body.get("template"), str) and body["template"]:
        body["template"] = "test"
    return body


@schemathesis.hook("map_body").apply_to(method="POST", path="/v1/sandboxes")
def map_body(ctx, body):
    return of_test(body)


@schemathesis.hook("map_body").apply_to(method="PUT", path="/v1/users/{user}/sandboxes/{name}")
def map_body(ctx, body):
    return of_test(body)


@schemathesis.serializer("application/x-tar")
def tar(ctx, value):
    """An archive is bytes, whatever they are."""
    return value if isinstance(value, bytes) else str(value).encode()
