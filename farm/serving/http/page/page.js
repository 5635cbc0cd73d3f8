"use strict";
// The built-in page: a gallery of the key's adapters, a prompt, pictures that appear as they are generated.
// Talks only to this endpoint. The key stays in this tab and is forgotten when it is closed.

const $ = (id) => document.getElementById(id);
const state = { base: "", chosen: null, last: "", search: "", generating: null, generation: 0 };

function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (answer.status === 401) $("key-form").hidden = false;
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    const wait = answer.headers.get("retry-after");
    const message = body.error?.message ?? `the endpoint responded with ${answer.status}`;
    throw new Error(wait ? `${message}\nTry again in ${wait} s.` : message);
  }
  return answer;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function complain(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

// -- gallery --------------------------------------------------------------------------------------

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      fill(entry.target).catch(() => {}); // a card works without its sample
    }
  }
}, { rootMargin: "200px" });

async function fill(card) {
  const name = encodeURIComponent(card.dataset.name);
  const facts = await (await ask(`v1/models/${name}`)).json();
  card.facts = facts;
  card.querySelector("span").textContent = facts.class_noun ?? "";
  if (card.getAttribute("aria-selected") === "true") choose(card);
  if (!facts.num_samples) return;
  const blob = await (await ask(`v1/models/${name}/samples/0`)).blob();
  const image = make("img", { alt: "", src: URL.createObjectURL(blob) });
  card.querySelector(".picture").replaceChildren(image);
}

function cardOf(model) {
  const isBase = model.owned_by === "farm" && !model.job_key;
  const card = make("button", { className: "card", type: "button" },
    make("div", { className: "picture" }, isBase ? "∅" : model.id.slice(0, 1).toUpperCase()),
    make("b", { textContent: model.id, title: model.id }),
    make("span", { textContent: isBase ? "base model" : "" }));
  card.dataset.name = model.id;
  card.isBase = isBase;
  card.setAttribute("role", "option");
  card.setAttribute("aria-selected", "false");
  card.addEventListener("click", () => choose(card));
  if (isBase) state.base = model.id; else seen.observe(card);
  return card;
}

function choose(card) {
  for (const other of $("gallery").children) other.setAttribute("aria-selected", String(other === card));
  const changed = state.chosen !== card.dataset.name;
  state.chosen = card.dataset.name;
  $("chosen").textContent = card.isBase ? `the base model, ${state.base}` : card.dataset.name;
  $("hint").textContent = card.isBase ? "" : "[V] stands for the subject of this adapter.";
  const noun = card.facts?.class_noun;
  const isOurs = !$("prompt").dataset.touched;
  if (isOurs && (changed || noun)) {
    $("prompt").value = card.isBase ? "a photo of a cat" : `a photo of [V] ${noun ?? ""}`.trim();
  }
}

async function list(fresh) {
  const generation = fresh ? ++state.generation : state.generation;
  if (fresh) state.last = "";
  const query = new URLSearchParams({ limit: "60", search: state.search, after: state.last });
  const page = await (await ask(`v1/models?${query}`)).json();
  if (generation !== state.generation) return; // a newer search has started
  if (fresh) $("gallery").replaceChildren();
  $("gallery").append(...page.data.map(cardOf));
  state.last = page.last_id ?? "";
  $("more").hidden = !page.has_more;
  $("total").textContent = `${page.total}`;
  if (state.base) $("base").textContent = `on ${state.base}`;
  if (state.chosen === null && $("gallery").firstChild) choose($("gallery").firstChild);
}

// -- generating --------------------------------------------------------------------------------------

function order() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    model: state.chosen ?? undefined,
    prompt: $("prompt").value,
    n: number("count"),
    size: $("size").value || undefined,
    seed: number("seed"),
    num_inference_steps: number("steps"),
    guidance_scale: number("guidance"),
    adapter_weight: number("weight"),
    scheduler: $("scheduler").value,
    negative_prompt: $("negative").value || undefined,
    stream: true,
    partial_images: 3,
    stream_progress: true,
  };
}

async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function frame() {
  const figure = make("figure", { className: "waiting" }, make("img", { alt: "in progress" }), make("figcaption"));
  $("pictures").prepend(figure);
  return figure;
}

function finish(figure, event) {
  const link = `data:image/${event.output_format};base64,${event.b64_json}`;
  figure.className = "";
  figure.querySelector("img").src = link;
  figure.querySelector("img").alt = event.revised_prompt;
  const metadata = JSON.stringify(event.receipt, null, 1);
  figure.querySelector("figcaption").replaceChildren(
    make("div", { textContent: event.revised_prompt }),
    make("div", { className: "quiet", textContent: `seed ${event.seed} · ${event.receipt.steps} steps · ${event.receipt.seconds.total} s` }),
    ...event.notes.map((note) => make("div", { className: "quiet", textContent: note })),
    make("a", { href: link, download: `${state.chosen}-${event.seed}.${event.output_format}`, textContent: "Save" }),
    make("details", {}, make("summary", { textContent: "Image metadata" }), make("pre", { textContent: metadata })));
}

async function generate() {
  const asked = order();
  const frames = Array.from({ length: asked.n ?? 1 }, frame).reverse();
  const steps = frames.map(() => 0);
  const stopping = new AbortController();
  state.generating = stopping;
  busy(true);
  try {
    const answer = await ask("v1/images/generations", {
      method: "POST", body: JSON.stringify(asked), signal: stopping.signal,
      headers: { "content-type": "application/json" },
    });
    for await (const event of eventsOf(answer)) {
      if (event.error) throw new Error(event.error.message);
      const figure = frames[event.picture_index];
      if (event.type === "image_generation.completed") {
        steps[event.picture_index] = asked.num_inference_steps ?? 25;
        finish(figure, event);
      } else if (event.type === "image_generation.partial_image") {
        figure.querySelector("img").src = `data:image/${event.output_format};base64,${event.b64_json}`;
      } else {
        steps[event.picture_index] = event.step;
        $("progress").max = event.num_steps * frames.length;
        $("status").textContent = event.stage;
      }
      $("progress").value = steps.reduce((sum, step) => sum + step, 0);
    }
  } catch (error) {
    if (error.name !== "AbortError") complain(error);
  } finally {
    for (const figure of frames) if (figure.className === "waiting") figure.remove();
    busy(false);
  }
}

function busy(is) {
  if (!is) state.generating = null;
  $("generate").disabled = is;
  $("stop").hidden = $("progress").hidden = !is;
  $("progress").value = 0;
  $("status").textContent = is ? "sent" : "";
}

// -- user actions ---------------------------------------------------------------------------------

const attempt = (action) => { complain(null); return action().catch(complain); };
$("generate-form").addEventListener("submit", (event) => { event.preventDefault(); if (!state.generating) attempt(generate); });
$("stop").addEventListener("click", () => state.generating?.abort());
$("more").addEventListener("click", () => attempt(() => list(false)));
$("prompt").addEventListener("input", () => { $("prompt").dataset.touched = "yes"; });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("generate-form").requestSubmit();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  attempt(async () => { await list(true); $("key-form").hidden = true; });
});
let typing;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => { state.search = $("search").value; attempt(() => list(true)); }, 200);
});
attempt(() => list(true));
