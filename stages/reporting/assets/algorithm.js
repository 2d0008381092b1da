"use strict";
// Curves and losses of one algorithm, one category set off among all.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const keys = Object.keys(runs), select = document.getElementById("run"), charts = document.getElementById("charts");
  if (!keys.length) { charts.append(el("p", { class: "note" }, "No curves are stored.")); return; }

  function draw() {
    const key = fill(select, keys.map((k) => [k, k]), select.value);
    charts.replaceChildren();
    const metrics = [...new Set(keys.flatMap((k) => Object.keys(runs[k].curves)))];
    for (const metric of metrics) {
      const own = runs[key].curves[metric], any = own ?? runs[keys.find((k) => runs[k].curves[metric])].curves[metric];
      // Thresholds of categories are on scales of their own: only one category's curve makes sense.
      const alone = any.labels[0] === "threshold";
      const series = keys.filter((k) => runs[k].curves[metric] && (!alone || k === key))
        .map((k) => ({ name: `${k}: ${fixed(runs[k].curves[metric].value)}`, x: runs[k].curves[metric].x, y: runs[k].curves[metric].y, picked: k === key }));
      const figure = el("figure", {});
      charts.append(figure);
      lineChart(figure, {
        title: metric, note: own ? `${fixed(own.value)} on ${key}` : `undefined on ${key}`, series, labels: any.labels, unit: !alone,
        limit: alone ? own?.mark : any.limit, limitText: alone ? "reported" : `limit ${any.limit}`,
      });
      if (alone && !own) figure.append(el("p", { class: "note" }, "No curve."));
    }
    const losses = runs[key].losses, names = Object.keys(losses);
    if (names.length) {
      const figure = el("figure", {});
      charts.append(figure);
      const series = names.map((name, i) => ({ name, x: losses[name].map((_, e) => e + 1), y: losses[name], picked: true, style: `series-${i % 4}` }));
      lineChart(figure, { title: "training loss", note: `${names.join(", ")} on ${key}`, series, labels: ["epoch", "mean loss"], log: true });
    } else {
      charts.append(el("figure", {}, el("figcaption", {}, "training loss"), el("p", { class: "note" }, "Fitted in one pass: no loss by epoch.")));
    }
  }
  select.addEventListener("input", draw);
  draw();
})();
