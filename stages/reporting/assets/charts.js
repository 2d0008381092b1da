"use strict";
// Charts as SVG in the page's own type and colours, drawn anew at the width that they are given.

/** Round ends and steps of an axis from low to high, about `count` of them. */
function ticks(low, high, count = 5) {
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => span / s <= count) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Ticks of a logarithmic axis: 1, 2 and 5 times powers of ten; powers only over a long way. */
function logTicks(low, high) {
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  const steps = to - from > 4 ? [1] : [1, 2, 5];
  const found = [];
  for (let p = from; p <= to; p++) for (const m of steps) found.push(m * 10 ** p);
  return found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
}

const short = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? String(Number(value.toPrecision(2)).toExponential()).replace("e+", "e") : String(Number(value.toPrecision(4)));
};

/** Keep a drawing at its figure's width. */
function responsive(figure, draw) {
  let width = 0;
  const redraw = () => {
    const now = Math.max(260, Math.round(figure.clientWidth));
    if (now !== width && figure.clientWidth) { width = now; draw(width); }
  };
  new ResizeObserver(redraw).observe(figure);
  redraw();
}

/** Axes with grid; returns the SVG and the functions that place values. */
function axes(width, height, x, y, name) {
  const box = { left: 54, right: width - 12, top: 10, bottom: height - 42 };
  const place = (axis, from, to) => {
    const f = axis.log ? Math.log10 : (v) => v;
    const [a, b] = [f(axis.low), f(axis.high)];
    return (v) => from + ((f(v) - a) / (b - a || 1)) * (to - from);
  };
  const px = place(x, box.left, box.right), py = place(y, box.bottom, box.top);
  const node = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": name });
  const of = (axis, count) => (axis.log ? logTicks(axis.low, axis.high) : ticks(axis.low, axis.high, count));
  for (const v of of(x, width < 420 ? 4 : 7)) {
    node.append(svg("line", { class: "grid", x1: px(v), x2: px(v), y1: box.top, y2: box.bottom }),
      svg("text", { x: px(v), y: box.bottom + 16, "text-anchor": "middle" }, document.createTextNode(short(v))));
  }
  for (const v of y.names ? [] : of(y, 6)) {
    node.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: py(v), y2: py(v) }),
      svg("text", { x: box.left - 7, y: py(v) + 4, "text-anchor": "end" }, document.createTextNode(short(v))));
  }
  node.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    svg("text", { x: (box.left + box.right) / 2, y: height - 8, "text-anchor": "middle" }, document.createTextNode(x.label)));
  if (y.label) node.append(svg("text", { x: 12, y: (box.top + box.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(box.top + box.bottom) / 2})` }, document.createTextNode(y.label)));
  return { node, px, py, box };
}

const points = (xs, ys, px, py) => xs.map((v, i) => (defined(v) && defined(ys[i]) ? `${px(v).toFixed(1)},${py(ys[i]).toFixed(1)}` : "")).filter(Boolean).join(" ");

/** Lines, one set off: series are {name, x, y, picked, style}. */
function lineChart(figure, { title, note, series, labels, limit, limitText, log, unit }) {
  figure.replaceChildren(el("figcaption", {}, title, " ", el("span", {}, note ?? "")));
  const xs = series.flatMap((s) => s.x).filter(defined), ys = series.flatMap((s) => s.y).filter(defined);
  if (!xs.length) return;
  const x = { low: unit ? 0 : Math.min(...xs), high: unit ? Math.max(...xs) : Math.max(...xs), label: labels[0] };
  const logs = log && ys.every((v) => v > 0);
  const y = { low: unit ? 0 : Math.min(...ys), high: unit ? 1 : Math.max(...ys), label: labels[1], log: logs };
  if (y.low === y.high) { y.low -= 0.5; y.high += 0.5; y.log = false; }
  responsive(figure, (width) => {
    figure.querySelector("svg")?.remove();
    const { node, px, py, box } = axes(width, 250, x, y, `${title}: ${labels[1]} over ${labels[0]}`);
    node.setAttribute("role", "img");
    for (const s of [...series].sort((a, b) => (a.picked ? 1 : 0) - (b.picked ? 1 : 0))) {
      node.append(svg("polyline", { class: `line ${s.picked ? "picked" : ""} ${s.style ?? ""}`, points: points(s.x, s.y, px, py) },
        svg("title", {}, document.createTextNode(s.name))));
    }
    if (defined(limit) && limit <= x.high * 1.0001 && limit >= x.low) {
      const right = px(limit) > width - 90;
      node.append(svg("line", { class: "limit", x1: px(limit), x2: px(limit), y1: box.top, y2: box.bottom }),
        svg("text", { class: "limit", x: px(limit) + (right ? -5 : 5), y: box.bottom - 8, "text-anchor": right ? "end" : "start" }, document.createTextNode(limitText)));
    }
    figure.append(node);
  });
}

/** Points of the Pareto front: nothing is better at no higher cost. */
function paretoFront(items) {
  const front = [];
  for (const item of [...items].sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (!front.length || item.y > front.at(-1).y) front.push(item);
  }
  return front;
}

/** A scatter of {name, href, x, y} with its front; names where there is room, the front's first. */
function scatterChart(figure, { items, front, labels, log, name }) {
  const xs = items.map((i) => i.x), ys = items.map((i) => i.y);
  const pad = (low, high) => { const d = (high - low || Math.abs(high) || 1) * 0.06; return [low - d, high + d]; };
  const useLog = log && xs.every((v) => v > 0);
  const [ylow, yhigh] = pad(Math.min(...ys), Math.max(...ys));
  const [xlow, xhigh] = useLog ? [Math.min(...xs) / 1.25, Math.max(...xs) * 1.6] : [0, Math.max(...xs) * 1.12];
  responsive(figure, (width) => {
    figure.querySelector("svg")?.remove();
    const height = Math.round(Math.min(520, Math.max(330, width * 0.55)));
    const { node, px, py, box } = axes(width, height, { low: xlow, high: xhigh, label: labels[0], log: useLog }, { low: ylow, high: yhigh, label: labels[1] }, name);
    let path = "";
    front.forEach((item, i) => { path += i ? `H${px(item.x).toFixed(1)}V${py(item.y).toFixed(1)}` : `M${px(item.x).toFixed(1)} ${box.bottom}V${py(item.y).toFixed(1)}`; });
    if (front.length) node.append(svg("path", { class: "front", d: `${path}H${box.right}` }));
    const taken = items.map((i) => [px(i.x) - 6, py(i.y) - 6, px(i.x) + 6, py(i.y) + 6]);
    const order = [...items].sort((a, b) => front.includes(b) - front.includes(a));
    for (const item of order) {
      const cx = px(item.x), cy = py(item.y), on = front.includes(item), long = item.name.length * 6.7;
      const spots = [["start", 9, on ? 17 : 4], ["start", 9, -8], ["end", -9, -8], ["end", -9, 4], ["middle", 0, -10], ["middle", 0, 19], ["start", 9, 17], ["end", -9, 15]].map(([anchor, dx, dy]) => {
        const left = cx + dx - (anchor === "end" ? long : anchor === "middle" ? long / 2 : 0);
        return { anchor, x: cx + dx, y: cy + dy, box: [left, cy + dy - 11, left + long, cy + dy + 3] };
      });
      const free = spots.find(({ box: [l, t, r, b] }) => l > box.left && r < width && t > 0 && b < box.bottom && !taken.some(([l2, t2, r2, b2]) => l < r2 && r > l2 && t < b2 && b > t2));
      if (free) taken.push(free.box);
      node.append(svg("a", { href: item.href, "aria-label": `${item.name}: ${labels[1]} ${fixed(item.y)}, ${labels[0]} ${quantity(item.x)}${on ? ", on the front" : ""}` },
        svg("title", {}, document.createTextNode(`${item.name}\n${labels[1]} ${fixed(item.y)}\n${labels[0]} ${quantity(item.x)}`)),
        on ? svg("path", { class: "point on", d: `M${cx} ${cy - 6}L${cx + 6} ${cy}L${cx} ${cy + 6}L${cx - 6} ${cy}Z` }) : svg("circle", { class: "point", cx, cy, r: 4.5 }),
        free ? svg("text", { class: "label", x: free.x, y: free.y, "text-anchor": free.anchor }, document.createTextNode(item.name)) : null));
    }
    figure.append(node);
  });
}

/** Values with intervals, a row each: items are {name, value, low, high}. */
function forestChart(figure, { items, label, name, guide }) {
  const ends = items.flatMap((i) => [i.low, i.high, i.value]).filter(defined);
  if (!ends.length) { figure.replaceChildren(el("p", { class: "note" }, "No value is defined.")); return; }
  const span = Math.max(...ends) - Math.min(...ends) || 0.1;
  responsive(figure, (width) => {
    figure.querySelector("svg")?.remove();
    const height = 56 + 24 * items.length, names = Math.min(190, Math.max(...items.map((i) => i.name.length * 6.9)) + 12, width * 0.42);
    const { node, box } = axes(width, height, { low: Math.min(...ends) - 0.04 * span, high: Math.max(...ends) + 0.04 * span, label }, { low: 0, high: 1, names: true }, name);
    node.replaceChildren();
    const low = Math.min(...ends) - 0.04 * span, high = Math.max(...ends) + 0.04 * span;
    const px = (v) => names + ((v - low) / (high - low)) * (box.right - 40 - names);
    for (const v of ticks(low, high, width < 420 ? 3 : 6)) node.append(svg("line", { class: "grid", x1: px(v), x2: px(v), y1: 6, y2: box.bottom }), svg("text", { x: px(v), y: box.bottom + 16, "text-anchor": "middle" }, document.createTextNode(short(v))));
    node.append(svg("text", { x: (names + box.right) / 2, y: height - 8, "text-anchor": "middle" }, document.createTextNode(label)));
    if (defined(guide)) node.append(svg("line", { class: "guide", x1: px(guide), x2: px(guide), y1: 6, y2: box.bottom }));
    items.forEach((item, row) => {
      const y = 20 + 24 * row;
      node.append(svg("text", { class: "label", x: names - 10, y: y + 4, "text-anchor": "end" }, document.createTextNode(item.name)));
      if (defined(item.low)) node.append(svg("line", { class: "interval", x1: px(item.low), x2: px(item.high), y1: y, y2: y }));
      if (defined(item.value)) node.append(svg("circle", { class: "point on", cx: px(item.value), cy: y, r: 3.5 }), svg("text", { x: box.right - 34, y: y + 4 }, document.createTextNode(fixed(item.value))));
    });
    figure.append(node);
  });
}
