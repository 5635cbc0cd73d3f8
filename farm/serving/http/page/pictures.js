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

const replaced = new WeakMap(); // the finished image under a preview, by its element

export function preview(figure, event, isBase) {
  const image = imageOf(figure, isBase);
  if (image.classList.contains("done") && !replaced.has(image)) replaced.set(image, image.src);
  image.src = dataUrl(event);
}

export const isUnfinished = (figure, isBase) => figure.querySelector(isBase ? ".base img:not(.done)" : "img:not(.done)") !== null;

// The end of a generation that did not finish this figure: finished images stay, previews leave,
// and the caption says why. Without words, a figure without its own image leaves.
export function settle(figure, prompt, words) {
  for (const image of figure.querySelectorAll("img.done")) {
    if (replaced.has(image)) image.src = replaced.get(image);
    replaced.delete(image);
  }
  if (!isUnfinished(figure, false)) return;
  const isOwnDone = figure.querySelector(".view:not(.base) img.done") !== null;
  const block = figure.parentElement;
  for (const image of figure.querySelectorAll("img:not(.done)")) image.closest(".view").remove();
  figure.className = "";
  if (isOwnDone) {
    if (words) figure.querySelector("figcaption").append(make("div", { className: "quiet", textContent: `Base model's image: ${words}` }));
  } else if (words) {
    figure.querySelector("figcaption").replaceChildren(make("div", { textContent: prompt }), make("div", { className: "quiet", textContent: words }));
  } else {
    figure.remove();
    if (block && !block.children.length) block.remove();
  }
}

const imageOf = (figure, isBase) => figure.querySelector(isBase ? ".base img" : "img");

// Show a finished image. `link` is the fragment that reproduces it, `file` its name when saved.
export function finish(figure, event, { isBase, link, file }) {
  const image = imageOf(figure, isBase);
  image.src = dataUrl(event);
  replaced.delete(image);
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
