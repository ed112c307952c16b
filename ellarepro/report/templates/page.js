"use strict";

// Charts are drawn when their run is opened: a page of a hundred would be slow at once.
const ON_PAPER = { width: 320, height: 220, autosize: false }; // pixels
const withPointer = matchMedia("(pointer: fine)").matches;
const LAYOUT = {
  font: { family: "system-ui, sans-serif", size: 12 },
  margin: { l: 60, r: 10, t: 30, b: 40 },
  legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", traceorder: "normal" },
  dragmode: withPointer ? "zoom" : false, // a finger scrolls the page
};
const OPTIONS = { displayModeBar: false, responsive: true };

function draw(run) {
  for (const plot of run.querySelectorAll(".plot:not(.js-plotly-plot)")) {
    const figure = JSON.parse(plot.querySelector("script").textContent);
    for (const axis of ["xaxis", "yaxis"]) figure.layout[axis].title.standoff = 8;
    Plotly.newPlot(plot, figure.data, { ...LAYOUT, ...figure.layout }, OPTIONS);
  }
}

// What a cell is sorted by: its first number; words come after numbers, what is missing last.
function value(cell) {
  const text = cell.textContent.trim();
  if (text === "" || text.startsWith("–") || text.startsWith("not run")) return null;
  const number = text.replace("−", "-").match(/(?:^|\s)([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w-])/i);
  return number ? Number(number[1].replaceAll(",", "")) : text;
}

function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}

function sort(table, head) {
  const column = [...head.parentNode.children].indexOf(head);
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => [value(row.cells[column]), row]);
  const missing = rows.filter(([key]) => key === null);
  const known = rows.filter(([key]) => key !== null).sort(([a], [b]) => sign * compare(a, b));
  table.tBodies[0].append(...[...known, ...missing].map(([, row]) => row));
}

for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => sort(head.closest("table"), head));
}

const runs = [...document.querySelectorAll("details.run")];
for (const run of runs) run.addEventListener("toggle", () => run.open && draw(run));

function open(run) {
  run.open = true;
  draw(run);
}

function openNamed() {
  const run = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (run?.matches("details.run")) {
    open(run);
    run.scrollIntoView();
  }
}

addEventListener("hashchange", openNamed);
openNamed();
document.getElementById("open-all").addEventListener("click", () => runs.forEach(open));

function resize(change) {
  for (const plot of document.querySelectorAll(".js-plotly-plot")) Plotly.relayout(plot, change);
}

addEventListener("beforeprint", () => resize(ON_PAPER));
addEventListener("afterprint", () => resize({ width: null, height: null, autosize: true }));
