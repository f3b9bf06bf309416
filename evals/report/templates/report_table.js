"use strict";
// What all parts of the page share: its data, which rows are shown, their colours, the theme; and the table.

const page = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Okabe and Ito's colours for the models under test, those that stand out on the theme's ground; calibration rows are
// grey.
const PALETTES = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"],
  dark: ["#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442"],
};
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star"];
const CALIBRATION = "#8b949e";
const names = [...new Set(page.rows.filter((row) => !row.calibration).map((row) => row.label))];
function colourOf(row) {
  const palette = PALETTES[document.documentElement.dataset.theme] ?? PALETTES.light;
  return row.calibration ? CALIBRATION : palette[names.indexOf(row.label) % palette.length];
}
function symbolOf(row) {
  if (row.calibration) return "x-thin-open";
  return SYMBOLS[Math.floor(names.indexOf(row.label) / PALETTES.light.length) % SYMBOLS.length];
}

// Rows that the reader switched off, and the words by which rows are filtered.
const hidden = new Set();
let words = [];
function isShown(number) {
  const label = page.rows[number].label.toLowerCase();
  return !hidden.has(number) && words.every((word) => label.includes(word));
}
function tell(name) {
  document.dispatchEvent(new CustomEvent(name));
}

function applyRows() {
  for (const line of document.querySelectorAll("#table tbody tr")) line.hidden = !isShown(Number(line.dataset.row));
  for (const chip of document.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", isShown(Number(chip.dataset.row)));
  tell("rows");
}

page.rows.forEach((row, number) => {
  const mark = element("i", { className: "mark" });
  const chip = element("button", { type: "button", className: "chip", title: row.label }, mark, row.lines.join(" "));
  chip.dataset.row = number;
  chip.addEventListener("click", () => {
    if (hidden.has(number)) hidden.delete(number);
    else hidden.add(number);
    applyRows();
  });
  byId("chips").append(chip);
});
byId("filter").addEventListener("input", (event) => {
  words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  applyRows();
});

// A click on a column: the best first where it has a direction, then the other way round. Empty cells stay last.
function sortTable(header) {
  const column = Number(header.dataset.column);
  const first = header.dataset.better === "higher" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  for (const one of document.querySelectorAll("#table thead th")) one.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const text = header.classList.contains("text");
  const body = document.querySelector("#table tbody");
  const value = (line) => line.children[column].dataset.order;
  const number = (found) => (found === "inf" ? Infinity : found === "-inf" ? -Infinity : Number(found));
  const lines = [...body.children].sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === "" || right === "") return (left === "") - (right === "");
    if (text) return sign * left.localeCompare(right, "en", { numeric: true });
    const [x, y] = [number(left), number(right)];
    return x === y ? 0 : sign * (x < y ? -1 : 1);
  });
  body.append(...lines);
}
for (const header of document.querySelectorAll("#table thead th")) {
  header.tabIndex = 0;
  header.addEventListener("click", () => sortTable(header));
  header.addEventListener("keydown", (event) => {
    if (event.key === "Enter") sortTable(header);
  });
}

// Columns that the shown table leaves out, such as the use of the codebook.
byId("more")?.addEventListener("change", (event) => document.querySelector("#table table").classList.toggle("all", event.target.checked));

// The theme: as the system has it, until the reader chooses one. A page from a disk may have no storage.
const THEMES = ["system", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = "system";
try {
  theme = localStorage.getItem("lactok-theme") || "system";
} catch {
  // then it is chosen anew each time
}
function applyTheme() {
  const name = theme === "system" ? (dark.matches ? "dark" : "light") : theme;
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = `theme: ${theme}`;
  for (const mark of document.querySelectorAll("[data-row] .mark")) {
    mark.style.setProperty("--mark", colourOf(page.rows[Number(mark.closest("[data-row]").dataset.row)]));
  }
  tell("theme");
}
byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  try {
    localStorage.setItem("lactok-theme", theme);
  } catch {
    // see above
  }
  applyTheme();
});
dark.addEventListener("change", applyTheme);
applyTheme();
byId("help-open").addEventListener("click", () => byId("help").showModal());

function figure(value, metric) {
  if (value === null || value === undefined) return "–";
  if (value === "inf") return "∞";
  if (value === "-inf") return "−∞";
  const scaled = metric.unit === "%" ? value * 100 : value;
  const digits = metric.unit === "%" ? 0 : metric.digits;
  return `${scaled.toFixed(digits).replace("-", "−")}${metric.unit && metric.unit !== "%" ? ` ${metric.unit}` : metric.unit}`;
}
