"use strict";
// Accuracy against cost, with the Pareto front.
(() => {
  const { datasets, algorithms, costs } = window.REPORT;
  const form = document.getElementById("controls");
  const DEFAULT = { dataset: Object.keys(datasets)[0], metric: "", cost: "inference_ms", log: "1" };
  let state = readState(DEFAULT);

  function draw() {
    state.dataset = fill(form.elements.namedItem("dataset"), Object.keys(datasets).map((n) => [n, n]), state.dataset);
    const set = datasets[state.dataset];
    state.metric = fill(form.elements.metric, set.metrics.map((m) => [m, m]), state.metric);
    const names = Object.keys(set.costs);
    const measured = Object.keys(costs).filter((key) => names.some((name) => defined(costOf(set, key, name, "mean"))));
    state.cost = fill(form.elements.cost, measured.map((key) => [key, costs[key]]), state.cost);
    form.elements.log.checked = state.log === "1";
    const items = names.map((name) => ({ name, href: algorithms[name], x: costOf(set, state.cost, name, "mean"), y: valueOf(set, state.metric, name, "mean") }))
      .filter((item) => defined(item.x) && defined(item.y));
    const front = paretoFront(items);
    const figure = document.getElementById("chart");
    figure.replaceChildren(el("figcaption", {}, `${state.metric} against ${costs[state.cost]} `, el("span", {}, "diamonds: on the Pareto front")));
    if (items.length) scatterChart(figure, { items, front, labels: [costs[state.cost], state.metric], log: state.log === "1", name: `${state.metric} against ${costs[state.cost]}` });
    else figure.append(el("p", { class: "note" }, "No algorithm has both."));
    const left = names.filter((name) => !items.some((item) => item.name === name));
    if (left.length) figure.append(el("p", { class: "note" }, `Undefined, so not shown: ${left.join(", ")}.`));
    const table = document.getElementById("table");
    table.replaceChildren(
      el("caption", { class: "hidden" }, "Algorithms by cost"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "algorithm"), el("th", { scope: "col", class: "number" }, state.metric), measured.map((key) => el("th", { scope: "col", class: "number" }, costs[key])))),
      el("tbody", {}, front.map((item) => el("tr", {}, el("th", { scope: "row" }, el("a", { href: item.href }, item.name)), el("td", { class: "number", "data-value": item.y }, fixed(item.y)),
        measured.map((key) => { const v = costOf(set, key, item.name, "mean"); return el("td", { class: "number", "data-value": v ?? "" }, quantity(v)); })))));
    sortable(table);
    writeState(state, { ...DEFAULT, metric: set.metrics[0] });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    state[event.target.name] = event.target.type === "checkbox" ? (event.target.checked ? "1" : "0") : event.target.value;
    draw();
  });
  addEventListener("hashchange", () => { state = readState(DEFAULT); draw(); });
  draw();
})();
