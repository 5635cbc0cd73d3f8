// Links that reproduce an image: everything that determines it, in the fragment of the address,
// which browsers send to no server.

const FIELDS = { seed: "seed", steps: "steps", guidance: "guidance", size: "size", scheduler: "scheduler", negative: "negative", count: "count" };
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*(@[0-9a-f]{8,64})?$/;

// wanted: {mode, subjects: [{reference, weight}], prompt, fields: {seed, steps, …}}
export function fragmentOf({ mode, subjects, prompt, fields }) {
  const query = new URLSearchParams({ mode, prompt });
  for (const { reference, weight } of subjects) query.append("subject", `${reference}:${weight}`);
  for (const [name, key] of Object.entries(FIELDS)) {
    const value = fields[name];
    if (value !== undefined && value !== "" && value !== null) query.set(key, String(value));
  }
  return `#${query}`;
}

// What a fragment asks for, or null if it is none of ours. Values are checked by the form's inputs
// and by the endpoint.
export function readFragment(fragment) {
  const query = new URLSearchParams(fragment.replace(/^#/, ""));
  const prompt = query.get("prompt");
  if (!prompt) return null;
  const mode = ["one", "together", "strip"].includes(query.get("mode")) ? query.get("mode") : "one";
  const subjects = [];
  for (const text of query.getAll("subject")) {
    const end = text.lastIndexOf(":");
    const reference = text.slice(0, end);
    const weight = Number(text.slice(end + 1));
    if (NAME.test(reference) && Number.isFinite(weight)) subjects.push({ reference, weight });
  }
  const fields = {};
  for (const [name, key] of Object.entries(FIELDS)) if (query.has(key)) fields[name] = query.get(key);
  return { mode, subjects, prompt, fields };
}
