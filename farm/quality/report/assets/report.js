
"use strict";
(() => {
  const PAGE_SIZE = 25;
  const $ = (id) => document.getElementById(id);
  const table = $("table").tBodies[0];
  const NUMBERS = new Set(["rank", "gain", "prompt", "kept", "steps", "seconds"]);
  const MANY = 5000; // from here on, exact collation would take seconds
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const state = { sort: "rank", down: false, verdict: "", text: "", noun: "", page: 0, shown: [] };
  let rows = []; // sorted as state says
  let makeLine = null; // makes a row's table line, where the page has an index instead of lines

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
  function words(a, b) {
    if (rows.length < MANY) return collator.compare(a, b);
    return a < b ? -1 : a > b ? 1 : 0;
  }

  function compare(a, b) {
    const x = a[state.sort], y = b[state.sort];
    const order = NUMBERS.has(state.sort) ? x - y : words(x, y);
    return (state.down ? -order : order) || a.index - b.index;
  }

  function matches(row) {
    if (state.verdict && row.verdict !== state.verdict) return false;
    if (state.noun && row.noun !== state.noun) return false;
    if (!state.text) return true;
    return `${row.name} ${row.noun}`.toLowerCase().includes(state.text);
  }

  function show() {
    state.shown = rows.filter(matches);
    const last = Math.max(0, Math.ceil(state.shown.length / PAGE_SIZE) - 1);
    state.page = Math.min(state.page, last);
    const start = state.page * PAGE_SIZE;
    const visible = state.shown.slice(start, start + PAGE_SIZE);
    table.replaceChildren(...visible.map((row) => (row.line ??= makeLine(row))));
    $("empty").hidden = state.shown.length > 0;
    document.querySelector(".pager").hidden = state.shown.length <= PAGE_SIZE;
    const end = Math.min(start + PAGE_SIZE, state.shown.length);
    const [from, to, all] = [start + 1, end, state.shown.length].map((n) => n.toLocaleString("en"));
    $("where").textContent = `${from}–${to} of ${all}`;
    $("prev").disabled = state.page === 0;
    $("next").disabled = state.page === last;
    for (const head of document.querySelectorAll("#table thead th[aria-sort]")) {
      const mine = head.firstElementChild.dataset.sort === state.sort;
      head.setAttribute("aria-sort", mine ? (state.down ? "descending" : "ascending") : "none");
    }
  }

  function change(part) {
    Object.assign(state, { page: 0 }, part);
    if ("sort" in part) rows.sort(compare);
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
  table.addEventListener("click", (event) => {
    if (event.target.closest("a")) return;
    const line = event.target.closest("tr");
    if (line) line.querySelector("a").click();
  });

  function start(found) {
    rows = found;
    if (rows.length) show();
  }

  function readLines() {
    return [...table.rows].map((line) => {
      const row = { line, ...line.dataset };
      for (const name of ["index", ...NUMBERS]) row[name] = Number(row[name]);
      return row;
    }).sort(compare);
  }

  // -- the index of a large run: columns, in the order of "rank"
  function readIndex(data) {
    const model = table.rows[0];
    const reused = new Set(data.reused);
    const percent = (value) => (value === null ? "–" : `${value} %`);
    makeLine = (row) => {
      const line = model.cloneNode(true), at = row.rank, [name, noun, verdict, ...numbers] = line.cells;
      const page = String(Math.floor(row.index / data.size)).padStart(4, "0");
      const link = document.createElement("a");
      link.href = `${data.folder}/${page}.html#subject-${row.index}`;
      link.textContent = row.name;
      name.replaceChildren(link);
      const space = data.spaces[data.space[at]];
      if (space !== "default") name.append(small(space));
      noun.textContent = row.noun;
      const chip = document.createElement("span");
      chip.className = `chip v-${data.slugs[data.verdict[at]]}`;
      chip.append(document.createElement("i"), row.verdict);
      verdict.replaceChildren(chip);
      if (reused.has(at)) verdict.append(small("already in the store", "reused"));
      const texts = [percent(data.gain[at]), percent(data.prompt[at]), percent(data.kept[at])];
      texts.push(String(row.steps || "–"), data.times[data.time[at]]);
      numbers.forEach((cell, number) => { cell.textContent = texts[number]; });
      Object.assign(line.dataset, { index: row.index, name: row.name, verdict: row.verdict });
      return line;
    };
    return data.names.map((name, at) => ({
      line: null, rank: at, index: data.numbers[at], name,
      noun: data.nouns[data.noun[at]], verdict: data.verdicts[data.verdict[at]],
      gain: data.gain[at] ?? -9, prompt: data.prompt[at] ?? -9, kept: data.kept[at] ?? -9,
      steps: data.steps[at], seconds: data.seconds[at],
    }));
  }

  function small(text, name = "") {
    const element = document.createElement("small");
    element.textContent = text;
    element.className = name;
    return element;
  }

  const isOverview = "indexed" in document.body.dataset;
  if (!isOverview) start(readLines());

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
    const order = state.shown.map((row) => row.index);
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
  // the subjects' pages and the index follow this script: the table is seen before they arrive
  addEventListener("DOMContentLoaded", () => {
    if (isOverview) start(readIndex(JSON.parse($("index").textContent)));
    follow();
  });
})();
