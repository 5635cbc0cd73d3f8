
"use strict";
(() => {
  const PAGE_SIZE = 25;
  const $ = (id) => document.getElementById(id);
  const rows = [...document.querySelectorAll("#table tbody tr")];
  const body = rows.length ? rows[0].parentNode : null;
  const state = { sort: "rank", down: false, verdict: "", text: "", noun: "", page: 0, shown: rows };
  const NUMBERS = new Set(["rank", "gain", "prompt", "kept", "steps", "seconds"]);
  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  // -- light and dark
  const theme = $("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
  });

  // -- the table
  function compare(a, b) {
    const x = a.dataset[state.sort], y = b.dataset[state.sort];
    const order = NUMBERS.has(state.sort) ? x - y : words.compare(x, y);
    return (state.down ? -order : order) || a.dataset.index - b.dataset.index;
  }

  function matches(row) {
    const data = row.dataset;
    if (state.verdict && data.verdict !== state.verdict) return false;
    if (state.noun && data.noun !== state.noun) return false;
    if (!state.text) return true;
    return `${data.name} ${data.noun}`.toLowerCase().includes(state.text);
  }

  function show() {
    state.shown = rows.filter(matches).sort(compare);
    const last = Math.max(0, Math.ceil(state.shown.length / PAGE_SIZE) - 1);
    state.page = Math.min(state.page, last);
    const start = state.page * PAGE_SIZE;
    const visible = new Set(state.shown.slice(start, start + PAGE_SIZE));
    for (const row of rows) row.hidden = !visible.has(row);
    body.append(...state.shown);
    $("empty").hidden = state.shown.length > 0;
    document.querySelector(".pager").hidden = state.shown.length <= PAGE_SIZE;
    const end = Math.min(start + PAGE_SIZE, state.shown.length);
    $("where").textContent = `${start + 1}–${end} of ${state.shown.length}`;
    $("prev").disabled = state.page === 0;
    $("next").disabled = state.page === last;
    for (const head of document.querySelectorAll("#table thead th[aria-sort]")) {
      const mine = head.firstElementChild.dataset.sort === state.sort;
      head.setAttribute("aria-sort", mine ? (state.down ? "descending" : "ascending") : "none");
    }
  }

  function change(part) {
    Object.assign(state, { page: 0 }, part);
    show();
  }

  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const sort = button.dataset.sort;
      const fresh = NUMBERS.has(sort) && sort !== "rank"; // numbers: the largest first
      change({ sort, down: state.sort === sort ? !state.down : fresh });
    });
  }
  for (const button of document.querySelectorAll("[data-verdict].verdict")) {
    button.addEventListener("click", () => {
      const verdict = state.verdict === button.dataset.verdict ? "" : button.dataset.verdict;
      for (const other of document.querySelectorAll("[data-verdict].verdict")) {
        other.setAttribute("aria-pressed", String(other.dataset.verdict === verdict));
      }
      change({ verdict });
    });
  }
  $("search").addEventListener("input", (event) => change({ text: event.target.value.trim().toLowerCase() }));
  if ($("class")) $("class").addEventListener("change", (event) => change({ noun: event.target.value }));
  $("order").addEventListener("change", (event) => {
    const value = event.target.value;
    change({ sort: value.replace("-", ""), down: value.startsWith("-") });
  });
  function turn(by) {
    state.page += by;
    show();
    $("subjects").scrollIntoView();
  }
  $("prev").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  if (body) {
    body.addEventListener("click", (event) => {
      if (event.target.closest("a")) return;
      const row = event.target.closest("tr");
      if (row) location.hash = `subject-${row.dataset.index}`;
    });
    show();
  }

  // -- a subject's page
  const dialog = $("page");
  let stop = () => {};

  function open(index) {
    const template = $(`t${index}`);
    if (!template) return;
    stop();
    $("page-body").replaceChildren(template.content.cloneNode(true));
    for (const button of $("page-body").querySelectorAll("[data-go]")) {
      button.addEventListener("click", () => go(index, Number(button.dataset.go)));
    }
    const player = $("page-body").querySelector("[data-player]");
    stop = player ? play(player) : () => {};
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    $("page-title").focus();
  }

  function go(index, by) {
    if (by === 0) return dialog.close();
    const order = state.shown.map((row) => Number(row.dataset.index));
    const at = order.indexOf(index);
    const next = order[(Math.max(at, 0) + by + order.length) % order.length];
    location.hash = `subject-${next}`;
  }

  function play(player) {
    const frames = [...player.querySelectorAll(".player-stage img")];
    const steps = [...player.querySelectorAll(".steps li")];
    const range = player.querySelector("input");
    const button = player.querySelector("[data-play]");
    let timer = 0;
    function frame(index) {
      frames.forEach((image, at) => { image.hidden = at !== index; });
      steps.forEach((step, at) => step.classList.toggle("on", at === index));
      range.value = index;
      player.querySelector("output").textContent = `${frames[index].dataset.step} steps`;
    }
    function halt() {
      clearInterval(timer);
      timer = 0;
      button.textContent = "Play";
      button.setAttribute("aria-pressed", "false");
    }
    function start() {
      if (Number(range.value) === frames.length - 1) frame(0);
      timer = setInterval(() => {
        const next = Number(range.value) + 1;
        if (next < frames.length) return frame(next);
        halt();
      }, 550);
      button.textContent = "Pause";
      button.setAttribute("aria-pressed", "true");
    }
    button.addEventListener("click", () => (timer ? halt() : start()));
    range.addEventListener("input", () => { halt(); frame(Number(range.value)); });
    steps.forEach((step, at) => step.addEventListener("click", () => { halt(); frame(at); }));
    frame(0);
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
    return halt;
  }

  dialog.addEventListener("close", () => {
    stop();
    if (location.hash.startsWith("#subject-")) history.replaceState(null, "", "#subjects");
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("input")) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const index = Number(location.hash.slice("#subject-".length));
    if (by) go(index, by);
  });
  function follow() {
    const match = /^#subject-(\d+)$/.exec(location.hash);
    if (match) open(Number(match[1]));
  }
  addEventListener("hashchange", follow);
  // the subjects' pages stand below this script: the table is usable before they have arrived
  addEventListener("DOMContentLoaded", follow);
})();
