// Questions to the server and the events of its answers.

export class Refused extends Error {
  constructor(message, status, seconds) {
    super(message);
    this.status = status;
    this.seconds = seconds;
  }
}

const KEY = "qwenvl_key";

export const storeKey = (key) => sessionStorage.setItem(KEY, key);

export function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

// The JSON at an address of this server. Throws Refused if it is refused.
export async function get(address) {
  const response = await fetch(address, { headers: headers() });
  if (!response.ok) throw new Refused(await messageOf(response), response.status);
  return response.json();
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

// Asks and calls `hear(text)` with each piece of the answer.
// Returns {reason, forgotten} at its end. Throws Refused, or the browser's errors if the connection fails or `signal` aborts it.
export async function ask(question, signal, hear) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...question, stream: true }),
    signal,
  });
  if (!response.ok) {
    throw new Refused(await messageOf(response), response.status, Number(response.headers.get("Retry-After")));
  }
  const end = { reason: "", forgotten: 0 };
  for await (const event of events(response.body)) {
    if (event === "[DONE]") return end;
    const value = JSON.parse(event);
    if (value.error) throw new Refused(value.error.message, 500);
    const choice = value.choices[0];
    if (!choice) continue;
    if (choice.delta.content) hear(choice.delta.content);
    if (choice.finish_reason) {
      end.reason = choice.finish_reason;
      end.forgotten = value.forgotten ?? 0;
    }
  }
  throw new TypeError("the stream ended early");
}

// The data of server-sent events; comments are left out.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const event of whole) if (event.startsWith("data: ")) yield event.slice(6);
  }
}
