// Requests to this endpoint: the key, errors as exceptions, server-sent events.
// The key stays in this tab and is forgotten when it is closed.

import { $ } from "./elements.js";

export function useKey(key) {
  sessionStorage.setItem("key", key);
}

export async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The endpoint does not respond. Is it running?");
  });
  if (answer.status === 401) {
    $("key-form").hidden = false;
    // the form says what to enter; an error only if something was entered
    throw new Error(key ? "This key is not valid here: it is mistyped, revoked, or of another endpoint." : "");
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    const wait = answer.headers.get("retry-after");
    const message = body.error?.message ?? `the endpoint responded with ${answer.status}`;
    throw new Error(wait ? `${message}\nTry again in ${wait} s.` : message);
  }
  return answer;
}

export const BROKEN = "the connection to the endpoint broke before the image was finished. Generate it again.";

// Yields the events of one generation; each is a parsed object. An error before them is a refusal.
export async function* generationEvents(order, signal) {
  const answer = await ask("v1/images/generations", {
    method: "POST",
    body: JSON.stringify({ ...order, stream: true, partial_images: 3, stream_progress: true }),
    headers: { "content-type": "application/json" },
    signal,
  }).catch((error) => { throw Object.assign(error, { isRefusal: true }); });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new Error(BROKEN);
    });
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

const known = new Map();

// Details of an adapter by `name` or `name@key`, asked for once.
export function factsOf(reference) {
  if (!known.has(reference)) {
    const asked = ask(`v1/models/${encodeURIComponent(reference)}`).then((answer) => answer.json());
    asked.catch(() => known.delete(reference));
    known.set(reference, asked);
  }
  return known.get(reference);
}

const samples = new Map();

// A blob URL of an adapter's first sample, or "" if it has none.
export function sampleOf(reference) {
  if (!samples.has(reference)) {
    const asked = factsOf(reference).then(async (facts) => {
      if (!facts.num_samples) return "";
      const blob = await (await ask(`v1/models/${encodeURIComponent(reference)}/samples/0`)).blob();
      return URL.createObjectURL(blob);
    });
    asked.catch(() => samples.delete(reference));
    samples.set(reference, asked);
  }
  return samples.get(reference);
}
