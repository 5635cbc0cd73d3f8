// The built-in page: choose subjects, click an example or write a prompt, watch images appear.
// Talks only to this endpoint.

import { $, complain, make } from "./elements.js";
import { BROKEN, factsOf, generationEvents, useKey } from "./endpoint.js";
import { list, search } from "./gallery.js";
import { fragmentOf, readFragment } from "./links.js";
import { finish, isUnfinished, openResult, preview, settle } from "./pictures.js";
import { areAlive, baseOrder, isBaseAlone, ordersOf, phrase, setMode, state, toggle, whenChoiceChanges, whenWeightChanges } from "./subjects.js";

const EXAMPLES = [
  ["Places", "a photo of {} ", ["in space", "in the snow", "on the beach", "in the forest", "in the city", "under water", "at night", "in the mountains"]],
  ["Styles", "{} ", ["a photo of", "a pencil drawing of", "a painting of"]],
  ["Poses", "a photo of {} ", []], // which ones depends on the subjects
  ["Extras", "a photo of {} ", ["with a red hat", "with blue glasses", "with a yellow crown"]],
  ["Mixed", "a photo of {} ", ["with a yellow crown in space", "with a red hat in the snow", "with blue glasses on the beach"]],
];
const POSES = { living: ["sitting", "sleeping", "jumping"], things: ["tilted", "upside down"] };
const running = { now: null, last: null }; // now: {stopping, jobs, prompt}; last: {prompt, result, seed, …} of the newest result

const attempt = async (action) => {
  complain(null);
  try { return await action(); } catch (error) { if (error.name !== "AbortError") complain(error); }
};

// -- generating -----------------------------------------------------------------------------------

function settings() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    n: number("count") ?? 1,
    size: $("size").value || undefined,
    num_inference_steps: number("steps"),
    guidance_scale: number("guidance"),
    scheduler: $("scheduler").value,
    negative_prompt: $("negative").value || undefined,
  };
}

// All images of one generation share the seed, so that subjects and base can be compared.
const newSeed = () => ($("seed").value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number($("seed").value));

function plan() {
  const columns = ordersOf($("prompt").value, { ...settings(), seed: newSeed() });
  const hasBase = $("compare").checked && !isBaseAlone();
  return { columns, hasBase, mode: state.mode, prompt: $("prompt").value };
}

async function generate() {
  const { columns, hasBase, mode, prompt } = plan();
  const result = openResult(columns.map(({ title }) => title), columns[0].order.n, hasBase, mode);
  running.last = { prompt, result, mode, seed: columns[0].order.seed, references: referencesOf(columns) };
  const jobs = columns.map(({ order }, index) => ({ order, figures: result.figures[index] }));
  const bases = hasBase ? jobs.map(({ order, figures }) => ({ order: baseOrder(order), figures, isBase: true })) : [];
  history.replaceState(null, "", wholeLink(columns[0].order, mode, prompt));
  await runAll([...jobs, ...bases], mode, prompt);
}

// The address of the page reproduces its newest result, all images of it.
function wholeLink(order, mode, prompt) {
  const subjects = state.chosen.filter(({ name }) => name).map(({ reference, weight }) => ({
    reference, weight: mode === "strip" ? state.weight : weight,
  }));
  const fields = {
    seed: order.seed, steps: order.num_inference_steps, guidance: order.guidance_scale, size: order.size,
    scheduler: order.scheduler, negative: order.negative_prompt, count: order.n,
  };
  return fragmentOf({ mode, subjects, prompt, fields });
}

const referencesOf = (columns) => JSON.stringify(columns.map(({ order }) => [order.model, order.adapters?.map((one) => one.model)]));

// The newest result with the weights of now: same prompt, same seed, in the same place.
async function redraw() {
  const { last } = running;
  if (!last?.result.block.isConnected || last.mode !== state.mode) return;
  const columns = ordersOf(last.prompt, { ...settings(), seed: last.seed, n: last.result.figures[0].length });
  if (referencesOf(columns) !== last.references) return; // another choice of subjects
  if (last.result.figures.flat().some((figure) => !figure.querySelector(".view:not(.base)"))) return; // it was cancelled
  const jobs = columns.map(({ order }, index) => ({ order, figures: last.result.figures[index] }));
  const bases = jobs.filter(({ figures }) => figures.some((figure) => isUnfinished(figure, true)));
  await runAll([...jobs, ...bases.map((job) => ({ ...job, order: baseOrder(job.order), isBase: true }))], last.mode, last.prompt);
}

async function runAll(jobs, mode, prompt) {
  stopRunning("Cancelled: another generation was started.", new Set(jobs.flatMap(({ figures }) => figures)));
  const now = running.now = { stopping: new AbortController(), jobs, prompt };
  const meter = { done: new Map(), total: jobs.reduce((sum, { order }) => sum + order.n * (order.num_inference_steps ?? 25), 0) };
  busy(true);
  const outcomes = await Promise.allSettled(jobs.map((job, index) => run({ ...job, index, mode, prompt, meter }, now.stopping)));
  if (running.now !== now) return; // stopped, or a newer generation has started
  running.now = null;
  busy(false);
  // a request that was refused at once leaves no card; #error says why
  outcomes.forEach(({ reason }, index) => reason && jobs[index].figures.forEach((figure) => (
    settle(figure, prompt, reason.isRefusal ? "" : `Not generated: ${reason.message}`))));
  const failed = outcomes.find(({ status }) => status === "rejected");
  if (failed) throw failed.reason;
}

// Cancel what is running; its cards say so, except those in `kept`, which the next generation fills.
function stopRunning(words, kept = new Set()) {
  const { now } = running;
  if (!now) return;
  running.now = null;
  now.stopping.abort();
  busy(false);
  for (const figure of now.jobs.flatMap(({ figures }) => figures)) if (!kept.has(figure)) settle(figure, now.prompt, words);
}

async function run({ order, figures, isBase, index, mode, prompt, meter }, stopping) {
  const num = order.num_inference_steps ?? 25;
  const finished = new Set();
  for await (const event of generationEvents(order, stopping.signal)) {
    if (stopping.signal.aborted) return; // events of the same chunk may follow
    const at = event.picture_index ?? 0;
    if (finished.has(at)) continue; // a late preview never replaces its image
    const figure = figures[at];
    if (event.type === "image_generation.completed") {
      finished.add(at);
      meter.done.set(`${index}/${at}`, num);
      finish(figure, event, { isBase, link: linkOf(event, mode, prompt), file: `${nameOf(order)}-${event.seed}.${event.output_format}` });
    } else if (event.type === "image_generation.partial_image") {
      preview(figure, event, isBase);
    } else {
      meter.done.set(`${index}/${at}`, event.step);
      $("status").textContent = event.stage;
    }
    $("progress").max = meter.total;
    $("progress").value = [...meter.done.values()].reduce((sum, steps) => sum + steps, 0);
  }
  if (!stopping.signal.aborted && finished.size < order.n) throw new Error(BROKEN);
}

const nameOf = (order) => [order.model ?? state.base, ...(order.adapters ?? []).map((one) => one.model)].map((name) => name.split("@")[0]).join("+");

// Links name versions, so that an image stays the same when an adapter is trained again.
function linkOf({ receipt, seed }, mode, prompt) {
  const subjects = receipt.adapters.map(({ name, key, weight }) => ({ reference: `${name}@${key}`, weight }));
  const fields = {
    seed, steps: receipt.steps, guidance: receipt.guidance, size: `${receipt.width_px}x${receipt.height_px}`,
    scheduler: receipt.scheduler, negative: receipt.negative_prompt,
  };
  return fragmentOf({ mode, subjects, prompt, fields });
}

function busy(is) {
  $("generate").disabled = is;
  $("stop").hidden = $("progress").hidden = !is;
  $("progress").value = 0;
  $("status").textContent = is ? "sent" : "";
}

// -- links ----------------------------------------------------------------------------------------

async function openLink() {
  const wanted = readFragment(location.hash);
  if (!wanted) return false;
  setMode(wanted.mode);
  if (!wanted.subjects.length) await toggle("");
  state.chosen = wanted.mode === "one" ? state.chosen : [];
  for (const { reference, weight } of wanted.subjects) {
    await factsOf(reference); // an unknown subject is reported here
    await toggle(reference.split("@")[0], reference, weight);
  }
  if (wanted.mode === "strip" && wanted.subjects.length) state.weight = wanted.subjects[0].weight;
  for (const [id, value] of Object.entries({ count: "1", ...wanted.fields })) $(id).value = value;
  $("prompt").value = wanted.prompt;
  await generate();
  return true;
}

// -- user actions ---------------------------------------------------------------------------------

function showExamples() {
  const kindOfSubjects = areAlive() ? "living" : "things";
  if ($("examples").dataset.subjects === kindOfSubjects) return;
  $("examples").dataset.subjects = kindOfSubjects;
  const poses = POSES[kindOfSubjects];
  $("examples").replaceChildren(...EXAMPLES.map(([kind, pattern, words]) => make("div", { className: "group" },
    make("span", { className: "quiet", textContent: kind }),
    make("div", { className: "words" }, ...(kind === "Poses" ? poses : words).map((word) => {
      const button = make("button", { type: "button", textContent: word, className: "example" });
      button.addEventListener("click", () => {
        $("prompt").value = kind === "Styles" ? `${word} ${phrase()}` : `${pattern.replace("{}", () => phrase())}${word}`;
        attempt(generate);
      });
      return button;
    })))));
}

async function start() {
  $("prompt").value ||= `a photo of ${phrase()}`;
  await list(true, attempt);
  if (await openLink()) return;
  const first = [...$("gallery").children].find((card) => !card.isBase);
  if (first && !state.chosen.length) await toggle(first.dataset.name);
}

$("generate-form").addEventListener("submit", (event) => { event.preventDefault(); attempt(generate); });
$("stop").addEventListener("click", () => stopRunning("Stopped."));
$("more").addEventListener("click", () => attempt(() => list(false, attempt)));
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("generate-form").requestSubmit();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  attempt(async () => { await start(); $("key-form").hidden = true; });
});
$("size").addEventListener("invalid", () => {
  if ($("size").validity.patternMismatch) $("size").setCustomValidity("Write width x height in pixels, such as 512x512, or auto.");
});
$("size").addEventListener("input", () => $("size").setCustomValidity(""));
// a browser shows its message only at a field that is visible
$("generate-form").addEventListener("invalid", ({ target }) => target.closest("details")?.setAttribute("open", ""), true);
for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", () => setMode(radio.value));
let typing;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => attempt(() => search($("search").value, attempt)), 200);
});
let sliding;
whenWeightChanges(() => {
  clearTimeout(sliding);
  sliding = setTimeout(() => attempt(redraw), 250);
});
addEventListener("hashchange", () => attempt(openLink));
whenChoiceChanges(showExamples);
showExamples();
attempt(start);
