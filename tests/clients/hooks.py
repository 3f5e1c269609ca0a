"""What schemathesis cannot know of the daemon that it tries: which provider there is, and which commands end."""

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
