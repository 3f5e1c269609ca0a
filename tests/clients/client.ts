// Uses the types that openapi-typescript has made, on a real daemon: client.js SOCKET.

import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import { Agent, fetch as undiciFetch } from "undici";
import type { components, paths } from "./schema.js";

const socketPath = process.argv[2];
assert(socketPath !== undefined, "client.js SOCKET");
const dispatcher = new Agent({ connect: { socketPath } });

/** A Request of the platform, sent to the socket. */
async function overSocket(request: Request): Promise<Response> {
  const body = request.method === "GET" ? null : await request.arrayBuffer();
  const { method, headers } = request;
  const answer = await undiciFetch(request.url, { method, headers: [...headers], body, dispatcher });
  return answer as unknown as Response;
}

// openapi-fetch writes objects as `labels[label.team]=red` otherwise, whatever the description says.
const querySerializer = { object: { style: "form", explode: true } } as const;
const client = createClient<paths>({ baseUrl: "http://localhost", fetch: overSocket, querySerializer });

const version = await client.GET("/v1/version");
assert(version.data?.features.includes("idempotency_key"));

const request: components["schemas"]["ExecutionRequest"] = {
  provider: "test",
  user: "alice@example.org",
  command: ["sh", "-c", "echo hello; exit 3"],
  labels: { team: "red" },
};
const once = { header: { "Idempotency-Key": "typescript-1" } };
const first = await client.POST("/v1/executions", { body: request, params: once });
const again = await client.POST("/v1/executions", { body: request, params: once });
assert(typeof first.data === "object" && typeof again.data === "object", JSON.stringify(first.error));
assert.equal(first.data.id, again.data.id);
const path = { id: first.data.id };

const ended = await client.GET("/v1/executions/{id}", { params: { path, query: { wait: "60s" } } });
assert.equal(ended.data?.state, "exited");
assert.equal(ended.data?.exit?.code, 3);

const page = await client.GET("/v1/executions", {
  params: { query: { user: "alice@example.org", state: "exited", labels: { "label.team": "red" }, limit: 1 } },
});
assert.deepEqual(page.data?.items.map((execution) => execution.id), [path.id]);

const refused = await client.POST("/v1/executions", { body: { ...request, prompt: "3*67" } });
assert.equal(refused.error?.code, "prompt_or_command");
assert.equal(refused.error?.status, 400);

const events = await client.GET("/v1/executions/{id}/events", { params: { path }, parseAs: "text" });
assert.match(String(events.data), /event: exit/);

const deleted = await client.DELETE("/v1/executions/{id}", { params: { path } });
assert.equal(deleted.response.status, 204);
const gone = await client.GET("/v1/executions/{id}", { params: { path } });
assert.equal(gone.error?.code, "not_found");

await dispatcher.close();
console.log("typescript: all as described");
