// Follows event streams with npm's eventsource, which does what a browser's EventSource does: events.mjs SOCKET ID.
// Prints the events of the execution ID, breaking the connection once in between; it must stop by itself after `exit`.

import assert from "node:assert/strict";
import { EventSource } from "eventsource";
import { Agent, fetch } from "undici";

const [socketPath, id] = process.argv.slice(2);
const dispatcher = new Agent({ connect: { socketPath } });
const seen = [];
let requests = 0;
let broken = false;

const source = new EventSource(`http://localhost/v1/executions/${id}/events`, {
  fetch: async (url, init) => {
    requests += 1;
    const answer = await fetch(url, { ...init, dispatcher });
    if (broken || answer.body === null) return answer;
    // The first connection breaks behind the second event.
    broken = true;
    const reader = answer.body.getReader();
    let text = "";
    const cut = new ReadableStream({
      async pull(controller) {
        const { done, value } = await reader.read();
        if (done) return controller.close();
        text += new TextDecoder().decode(value);
        const end = text.indexOf("\n\n", text.indexOf("\n\n") + 1);
        controller.enqueue(value);
        if (end >= 0) {
          await reader.cancel();
          controller.close();
        }
      },
    });
    return new Response(cut, { status: answer.status, headers: { "content-type": "text/event-stream" } });
  },
});
for (const name of ["queued", "started", "stdout", "stderr", "delta", "gap", "exit"]) {
  source.addEventListener(name, (event) => {
    const data = JSON.parse(event.data);
    assert.match(data.at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
    seen.push({ id: Number(event.lastEventId), name, text: data.data });
  });
}
source.addEventListener("error", () => {
  // Once nothing can follow the answer is 204, and it does not come back.
  if (source.readyState !== EventSource.CLOSED) return;
  console.log(JSON.stringify({ seen, requests }));
  process.exit(0);
});
setTimeout(() => {
  console.error("still open", JSON.stringify({ seen, requests }));
  process.exit(1);
}, 60_000).unref();
