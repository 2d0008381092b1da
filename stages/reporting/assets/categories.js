"use strict";
// Algorithms by categories, coloured by value.
(() => {
  const { datasets, algorithms } = window.REPORT;
  const form = document.getElementById("controls");
  const DEFAULT = { dataset: Object.keys(datasets)[0], metric: "" };
  let state = readState(DEFAULT);

  function draw() {
    state.dataset = fill(form.elements.namedItem("dataset"), Object.keys(datasets).map((n) => [n, n]), state.dataset);
    const set = datasets[state.dataset];
    state.metric = fill(form.elements.metric, set.metrics.map((m) => [m, m]), state.metric);
    const names = ranked(set, state.metric);
    const columns = ["mean", ...set.categories];
    const values = names.map((name) => columns.map((c) => valueOf(set, state.metric, name, c)));
    const known = values.flat().filter(defined);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const bests = columns.map((_, c) => podium(values.map((row) => row[c])));
    const heads = columns.map((c, i) => el("th", { scope: "col", class: "number" }, i ? el("a", { href: set.pages[i - 1] }, c) : "mean"));
    const rows = names.map((name, r) => el("tr", {},
      el("th", { scope: "row" }, el("a", { href: algorithms[name] }, name)),
      columns.map((_, c) => {
        const value = values[r][c], text = fixed(value), place = bests[c].indexOf(text);
        const share = defined(value) ? (value - low) / (high - low || 1) : 0;
        return el("td", { class: "cell", style: defined(value) ? { background: `rgb(var(--heat), ${(0.42 * share).toFixed(3)})` } : {} },
          el("span", { class: place === 0 ? "best" : place === 1 ? "second" : defined(value) ? null : "undefined" }, text));
      })));
    document.getElementById("table").replaceChildren(
      el("caption", { class: "hidden" }, `${state.metric} of algorithms by categories`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "algorithm"), heads)), el("tbody", {}, rows));
    document.getElementById("legend").textContent = known.length
      ? `Colours from ${fixed(low)} (clear) to ${fixed(high)}. Best of a column bold, second underlined.` : "No value is defined.";
    writeState(state, { ...DEFAULT, metric: set.metrics[0] });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => { state[event.target.name] = event.target.value; draw(); });
  addEventListener("hashchange", () => { state = readState(DEFAULT); draw(); });
  draw();
})();
