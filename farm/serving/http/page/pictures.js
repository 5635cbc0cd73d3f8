// The results: one block per generation, one figure per image, the base's image beside it.

import { $, make } from "./elements.js";

const MAX_RESULTS = 40; // older ones leave the page, because every picture is kept in memory

// A block of figures for `titles` × `count` images; figures[title][picture].
export function openResult(titles, count, hasBase, mode) {
  const figures = titles.map((title) => Array.from({ length: count }, () => figureOf(title, hasBase, mode)));
  const block = make("section", { className: `result ${mode}` }, ...figures.flat());
  $("pictures").prepend(block);
  while ($("pictures").children.length > MAX_RESULTS) $("pictures").lastChild.remove();
  block.scrollIntoView({ block: "nearest", behavior: "smooth" });
  return { block, figures };
}

function figureOf(title, hasBase, mode) {
  const own = make("div", { className: "view" }, make("img", { alt: "in progress" }));
  const views = make("div", { className: "views" }, own);
  if (mode === "strip") own.append(make("span", { className: "tag", textContent: title }));
  if (hasBase) {
    own.querySelector(".tag") ?? own.append(make("span", { className: "tag", textContent: title }));
    views.append(make("div", { className: "view base" }, make("img", { alt: "in progress" }),
      make("span", { className: "tag", textContent: "base model" })));
  }
  return make("figure", { className: "waiting" }, views, make("figcaption"));
}

const dataUrl = (event) => `data:image/${event.output_format};base64,${event.b64_json}`;

export function preview(figure, event, isBase) {
  imageOf(figure, isBase).src = dataUrl(event);
}

const imageOf = (figure, isBase) => figure.querySelector(isBase ? ".base img" : "img");

// Show a finished image. `link` is the fragment that reproduces it, `file` its name when saved.
export function finish(figure, event, { isBase, link, file }) {
  const image = imageOf(figure, isBase);
  image.src = dataUrl(event);
  image.alt = isBase ? `${event.revised_prompt}, by the base model` : event.revised_prompt;
  image.classList.add("done");
  if (!isBase) caption(figure, event, link, file);
  if ([...figure.querySelectorAll("img")].every((one) => one.classList.contains("done"))) figure.className = "";
}

function caption(figure, event, link, file) {
  const { receipt } = event;
  const anchor = make("a", { href: link, textContent: "Link to this image", className: "link" });
  anchor.addEventListener("click", (click) => copyLink(click, anchor));
  const weights = receipt.adapters.map(({ weight }) => Number(weight).toFixed(2)).join(" + ");
  const notes = event.notes?.length ? [make("div", { className: "quiet", textContent: event.notes.join(" ") })] : [];
  figure.querySelector("figcaption").replaceChildren(
    make("div", { textContent: event.revised_prompt }),
    make("div", { className: "quiet", textContent: `seed ${event.seed} · ${receipt.steps} steps${weights ? ` · weight ${weights}` : ""} · ${receipt.seconds.total.toFixed(1)} s` }),
    ...notes,
    make("div", { className: "line" }, anchor, make("a", { href: dataUrl(event), download: file, textContent: "Save" })),
    make("details", {}, make("summary", { textContent: "Image metadata" }), make("pre", { textContent: JSON.stringify(receipt, null, 1) })));
}

// Copy where the browser allows it; elsewhere the anchor is followed, and the address is the link.
async function copyLink(click, anchor) {
  if (!navigator.clipboard || click.ctrlKey || click.metaKey || click.shiftKey) return;
  click.preventDefault();
  history.replaceState(null, "", anchor.getAttribute("href"));
  const said = await navigator.clipboard.writeText(anchor.href).then(() => "Link copied", () => "Link is in the address bar");
  anchor.textContent = said;
  setTimeout(() => { anchor.textContent = "Link to this image"; }, 2500);
}
