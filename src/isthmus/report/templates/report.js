"use strict";
const plots = JSON.parse(document.getElementById("plots").textContent);
const narrow = () => window.innerWidth < 640;
const settings = { responsive: true, displaylogo: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

function fitted(layout) {
  if (!narrow()) return layout;
  const copy = JSON.parse(JSON.stringify(layout));
  copy.font.size = 12;
  copy.legend.font.size = 11.5;
  copy.margin = { l: 52, r: 8, t: 16, b: 46 };
  copy.dragmode = false;
  return copy;
}

function draw() {
  for (const [key, plot] of Object.entries(plots)) {
    const place = document.getElementById("plot-" + key);
    const options = Object.assign({}, settings, { displayModeBar: narrow() ? false : undefined });
    options.toImageButtonOptions = { format: "svg", filename: key };
    Plotly.react(place, plot.data, fitted(plot.layout), options);
  }
}

let wasNarrow = narrow();
window.addEventListener("resize", () => { if (narrow() !== wasNarrow) { wasNarrow = narrow(); draw(); } });
draw();

function sortBy(head) {
  const table = head.closest("table");
  const body = table.tBodies[0];
  const place = Array.from(head.parentNode.children).indexOf(head);
  const down = head.getAttribute("aria-sort") === "ascending";
  const value = (row) => { const text = row.children[place].dataset.sort; return text === "" ? NaN : Number(text); };
  const compare = (a, b) => {
    const x = value(a), y = value(b);
    if (Number.isNaN(x)) return Number.isNaN(y) ? 0 : 1;  // cells without a number stay last, whichever way
    if (Number.isNaN(y)) return -1;
    return down ? y - x : x - y;
  };
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  Array.from(body.rows).sort(compare).forEach((row) => body.appendChild(row));
}
document.querySelectorAll(".rows thead th").forEach((head) =>
  head.querySelector("button").addEventListener("click", () => sortBy(head)));
