// The chosen subjects, their weights, and the prompt's words for them.
//
// Modes: "one" subject; several "together" in one image; a "strip" of one prompt over several
// subjects, one image each.

import { $, make } from "./elements.js";
import { factsOf, sampleOf } from "./endpoint.js";

const MAX_STRIP = 12;
const CLASS = "{class_noun}"; // in a strip's prompt: the class noun of each subject

export const state = { mode: "one", base: "", chosen: [], weight: 1 };

// A subject: {name, reference, noun, weight}; reference is `name`, or `name@key` from a link.
// The base has the empty name.
const BASE = Object.freeze({ name: "", reference: "", noun: "cat", weight: 1 });

export function mostSubjects() {
  return { one: 1, together: Number(document.body.dataset.maxAdapters), strip: MAX_STRIP }[state.mode];
}

export const isBaseAlone = () => state.mode === "one" && !state.chosen[0]?.name;
export const isChosen = (name) => state.chosen.some((subject) => subject.name === name);

// Words that class nouns of animals and people end in; for other nouns, "sleeping" makes no sense.
const ALIVE = new Set(("cat kitten dog puppy bird parrot owl duck chicken fish horse pony cow pig sheep goat rabbit bunny hamster " +
  "mouse rat fox wolf bear panda tiger lion elephant monkey frog turtle lizard animal pet person people man woman boy girl child kid " +
  "baby toddler robot").split(" "));

export const isAlive = (noun) => ALIVE.has(noun.toLowerCase().split(/\s+/).at(-1));
export const areAlive = () => state.chosen.every(({ noun }) => isAlive(noun));

// What the prompt says of the chosen subjects.
export function phrase() {
  if (state.mode === "strip") return `[V] ${CLASS}`;
  if (isBaseAlone()) return `a ${BASE.noun}`;
  if (state.mode === "one") return `[V] ${state.chosen[0].noun}`.trim();
  return state.chosen.map(({ name, noun }) => `[V:${name}] ${noun}`.trim()).join(" and ");
}

// The prompt with one phrase in place of another, or unchanged if it holds neither.
function replacePhrase(before, after) {
  const prompt = $("prompt");
  if (prompt.value.includes(before)) prompt.value = prompt.value.replace(before, () => after);
}

// Change the choice; the prompt's phrase changes with it.
function change(action) {
  const before = phrase();
  action();
  const after = phrase();
  if (before && after) replacePhrase(before, after);
  if (before && !after) state.lost = before; // no subject at the moment
  if (!before && after && state.lost) replacePhrase(state.lost, after);
  show();
}

export async function toggle(name, reference = name, weight = 1) {
  if (state.mode === "one") change(() => { state.chosen = name ? [subjectOf(name, reference, weight)] : [BASE]; });
  else if (isChosen(name)) change(() => { state.chosen = state.chosen.filter((subject) => subject.name !== name); });
  else if (!name || state.chosen.length >= mostSubjects()) return;
  else change(() => { state.chosen = [...state.chosen, subjectOf(name, reference, weight)]; });
  if (!name) return;
  const { class_noun: noun } = await factsOf(reference);
  const subject = state.chosen.find((one) => one.name === name);
  if (subject) change(() => { subject.noun = noun ?? ""; });
}

const subjectOf = (name, reference, weight) => ({ name, reference, noun: "", weight });

export function setMode(mode) {
  change(() => {
    state.mode = mode;
    const named = state.chosen.filter((subject) => subject.name);
    state.chosen = mode === "one" ? [named[0] ?? BASE] : named.slice(0, mostSubjects());
  });
  document.querySelector(`input[name=mode][value=${mode}]`).checked = true;
}

// -- what is shown --------------------------------------------------------------------------------

let onWeight = () => {};
export function whenWeightChanges(action) { onWeight = action; }
let onChoice = () => {};
export function whenChoiceChanges(action) { onChoice = action; }

function slider(label, value, changed) {
  const shown = make("output", { textContent: Number(value).toFixed(2) });
  const input = make("input", { type: "range", min: "0", max: "1.5", step: "0.05", value: String(value), ariaLabel: label });
  input.addEventListener("input", () => {
    shown.textContent = Number(input.value).toFixed(2);
    changed(Number(input.value));
    onWeight();
  });
  return make("label", { className: "weight" }, make("span", { className: "quiet", textContent: "weight" }), input, shown);
}

function chip(subject) {
  const picture = make("span", { className: "thumb", textContent: subject.name.slice(0, 1).toUpperCase() });
  sampleOf(subject.reference).then((url) => url && picture.replaceChildren(make("img", { src: url, alt: "" }))).catch(() => {});
  const parts = [picture, make("b", { textContent: subject.name, title: subject.reference })];
  if (state.mode !== "strip") {
    parts.push(slider(`Weight of ${subject.name}`, subject.weight, (value) => { subject.weight = value; }));
  }
  if (state.mode !== "one") {
    const remove = make("button", { type: "button", className: "remove", textContent: "×", ariaLabel: `Remove ${subject.name}` });
    remove.addEventListener("click", () => toggle(subject.name));
    parts.push(remove);
  }
  return make("div", { className: "chip" }, ...parts);
}

const HINTS = {
  one: "[V] stands for the subject of this adapter.",
  together: "[V:name] stands for the subject of that adapter.",
  strip: `[V] stands for each subject in turn, ${CLASS} for its class noun.`,
};

export function show() {
  const named = state.chosen.filter((subject) => subject.name);
  const rows = named.map(chip);
  if (state.mode === "strip" && named.length) {
    rows.push(make("div", { className: "chip wide" },
      slider("Weight of all subjects", state.weight, (value) => { state.weight = value; })));
  }
  $("subjects").className = state.mode;
  $("subjects").replaceChildren(...rows);
  $("hint").textContent = isBaseAlone() ? "" : HINTS[state.mode];
  $("chosen").textContent = chosenText(named.length);
  $("compare").parentElement.hidden = isBaseAlone();
  for (const card of $("gallery").children) {
    const name = card.isBase ? "" : card.dataset.name;
    card.setAttribute("aria-selected", String(card.isBase ? isBaseAlone() : isChosen(name)));
    card.disabled = card.isBase && state.mode !== "one";
  }
  $("gallery").setAttribute("aria-multiselectable", String(state.mode !== "one"));
  onChoice();
}

function chosenText(count) {
  if (isBaseAlone()) return `The base model, ${state.base}`;
  if (state.mode === "one") return "";
  const what = state.mode === "together" ? "to put in one image" : "to compare";
  if (count === 0) return `Choose subjects ${what}.`;
  return count < 2 ? `Choose another subject ${what}.` : `${count} subjects`;
}

// -- what is sent ---------------------------------------------------------------------------------

// One order per image column: {title, order}; `common` holds the fields all share.
export function ordersOf(prompt, common) {
  if (isBaseAlone()) return [{ title: state.base, order: { ...common, prompt } }];
  if (!state.chosen.length) throw new Error("Choose a subject in the gallery first.");
  if (state.mode === "strip") {
    return state.chosen.map(({ name, reference, noun }) => ({
      title: name,
      order: { ...common, prompt: prompt.replaceAll(CLASS, () => noun), model: reference, adapter_weight: state.weight },
    }));
  }
  const [first, ...others] = state.chosen;
  const adapters = others.map(({ reference, weight }) => ({ model: reference, weight }));
  const order = { ...common, prompt, model: first.reference, adapter_weight: first.weight };
  return [{
    title: state.chosen.map(({ name }) => name).join(" + "),
    order: adapters.length ? { ...order, adapters } : order,
  }];
}

// The same order for the bare base: adapters of weight 0 change nothing, and [V] keeps its meaning.
export function baseOrder(order) {
  if (!order.model) return null;
  const adapters = order.adapters?.map((adapter) => ({ ...adapter, weight: 0 }));
  return { ...order, adapter_weight: 0, ...(adapters && { adapters }) };
}
