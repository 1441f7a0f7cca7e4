"use strict";
// Values under the pointer, or by the arrow keys on a focused chart. Everything is set as text.
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const shown = (run) => run === null || (document.getElementById("show-" + run) || { checked: true }).checked;
const figures = (value) => value === null ? "–" : String(Number(value.toPrecision(4)));
const nearest = (xs, x) => xs.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(xs[best] - x) ? i : best), 0);
// Runs may log other steps, and end earlier: the pointer stops at every point of any line, and a line that has ended has no value there.
const places = (lines) => [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
const value = (line, x) => x > line.x[line.x.length - 1] ? null : line.y[nearest(line.x, x)];

function row(name, value, run) {
  const line = document.createElement("div");
  for (const text of [name, value]) line.appendChild(document.createElement("span")).textContent = text;
  if (run !== undefined) {
    line.className = run === null ? "grey" : "c" + (run % 8);
    line.firstChild.prepend(document.createElement("i"));
    line.querySelector("i").className = "swatch";
  }
  return line;
}

for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = data[svg.dataset.chart];
  const [left, top, right, bottom] = svg.dataset.box.split(" ").map(Number);
  const [first, last] = svg.dataset.span.split(" ").map(Number);
  const rule = document.createElementNS("http://www.w3.org/2000/svg", "path");
  rule.setAttribute("class", "rule");
  let at = 0; // the x that is shown

  function show(x) {
    const lines = chart.lines.filter((line) => shown(line.run) && line.x.length);
    if (!lines.length) return hide();
    const xs = places(lines);
    at = xs[nearest(xs, x)];
    const place = left + ((at - first) / (last - first)) * (right - left);
    rule.setAttribute("d", `M${place} ${top}V${bottom}`);
    svg.append(rule);
    const p = 1 / (1 + Math.exp(24 - 0.75 * (at + 0.5))); // of the middle of a bar: 64 of them over log-odds from -24 to 24
    tip.replaceChildren(row(chart.log_odds ? "p about" : "step", chart.log_odds ? figures(p) : at.toLocaleString("en")));
    for (const line of lines) tip.append(row(line.label, figures(value(line, at)), line.run));
    tip.hidden = false;
    const box = svg.getBoundingClientRect();
    const across = box.left + (place / svg.viewBox.baseVal.width) * box.width + 14;
    tip.style.left = Math.max(4, Math.min(across, innerWidth - tip.offsetWidth - 6)) + "px";
    tip.style.top = Math.max(4, Math.min(box.top + 8, innerHeight - tip.offsetHeight - 6)) + "px";
  }
  function hide() { tip.hidden = true; rule.remove(); }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    show(first + ((x - left) / (right - left)) * (last - first));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (!way) return;
    const xs = places(chart.lines.filter((line) => shown(line.run)));
    event.preventDefault();
    if (xs.length) show(xs[Math.max(0, Math.min(xs.length - 1, nearest(xs, at) + way))]);
  });
}
