// The gallery of the key's adapters; samples are fetched when a card comes into view.

import { $, make } from "./elements.js";
import { ask, factsOf, sampleOf } from "./endpoint.js";
import { show, state, toggle } from "./subjects.js";

const listing = { last: "", search: "", generation: 0 };

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      fill(entry.target).catch(() => {}); // a card works without its sample
    }
  }
}, { rootMargin: "200px" });

async function fill(card) {
  card.querySelector("span").textContent = (await factsOf(card.dataset.name)).class_noun ?? "";
  const url = await sampleOf(card.dataset.name);
  if (url) card.querySelector(".picture").replaceChildren(make("img", { alt: "", src: url }));
}

function cardOf(model, attempt) {
  const isBase = model.owned_by === "farm" && !model.job_key;
  const card = make("button", { className: "card", type: "button" },
    make("div", { className: "picture" }, isBase ? "∅" : model.id.slice(0, 1).toUpperCase()),
    make("b", { textContent: model.id, title: model.id }),
    make("span", { textContent: isBase ? "base model" : "" }));
  card.dataset.name = model.id;
  card.isBase = isBase;
  card.setAttribute("role", "option");
  card.setAttribute("aria-selected", "false");
  card.addEventListener("click", () => attempt(() => toggle(isBase ? "" : model.id)));
  if (isBase) state.base = model.id; else seen.observe(card);
  return card;
}

export async function list(isFresh, attempt) {
  const generation = isFresh ? ++listing.generation : listing.generation;
  if (isFresh) listing.last = "";
  const query = new URLSearchParams({ limit: "60", search: listing.search, after: listing.last });
  const page = await (await ask(`v1/models?${query}`)).json();
  if (generation !== listing.generation) return; // a newer search has started
  if (isFresh) $("gallery").replaceChildren();
  $("gallery").append(...page.data.map((model) => cardOf(model, attempt)));
  listing.last = page.last_id ?? "";
  $("more").hidden = !page.has_more;
  $("total").textContent = `${page.total} ${page.total === 1 ? "adapter" : "adapters"}`;
  if (state.base) $("base").textContent = `on ${state.base}`;
  show();
}

export function search(text, attempt) {
  listing.search = text;
  return list(true, attempt);
}
