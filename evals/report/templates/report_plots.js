"use strict";
// Plots: rate against quality, speed against quality, and the distribution of a per-image metric. Labels stand at the
// points themselves; where they would cover each other they are moved apart and keep a thin line to their point.

const LABEL_HEIGHT = 13;
const BINS = 48;
const CONFIGURATION = { displayModeBar: false, responsive: true };

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, faint, line] = ["--ink", "--faint", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line, tickfont: { color: faint, size: 11 } };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
    showlegend: false,
    hoverlabel: { align: "left" },
    ...layout,
    xaxis: { ...axis, automargin: true, ...layout.xaxis },
    yaxis: { ...axis, automargin: true, ...layout.yaxis },
  };
}

const scale = (unit) => (unit === "%" ? 100 : 1);
const axisName = (column) => `${column.name} ${column.arrow}${column.unit ? ` (${column.unit})` : ""}`;

// Annotations at points {x, y, text, colour}, moved apart vertically. height: of the plot's area in pixels; log: whether
// x is the logarithm of what is plotted.
function labelled(points, range, height) {
  const pixels = (y) => ((range[1] - y) / (range[1] - range[0])) * height;
  const placed = points.map((point) => ({ point, wanted: pixels(point.y), at: pixels(point.y) })).sort((a, b) => a.wanted - b.wanted);
  for (let pass = 0; pass < 60; pass++) {
    for (let i = 1; i < placed.length; i++) {
      const overlap = LABEL_HEIGHT - (placed[i].at - placed[i - 1].at);
      if (overlap > 0) {
        placed[i].at += overlap / 2;
        placed[i - 1].at -= overlap / 2;
      }
    }
    for (const one of placed) one.at = Math.max(4, Math.min(height - 4, one.at));
  }
  return placed.map(({ point, wanted, at }) => ({
    x: point.x,
    y: point.y,
    text: point.text,
    font: { color: point.colour, size: 11 },
    xanchor: "left",
    align: "left",
    showarrow: true,
    arrowhead: 0,
    arrowwidth: 0.7,
    arrowcolor: point.colour,
    ax: 14,
    ay: at - wanted,
    standoff: 4,
  }));
}

const escaped = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);

// A panel: quality of the shown rows against xOf(row), a line a name where joined; nothing where no row has both. ticks:
// the numbers below it, where they are few.
function panel(node, column, xOf, xName, joined, ticks) {
  const groups = new Map();
  page.rows.forEach((row, number) => {
    const [x, cell] = [xOf(row), row.cells[column.name]];
    if (!isShown(number) || !x || !cell || cell[0] === null) return;
    const key = joined ? row.name : row.label;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push({ row, x, y: cell[0] * scale(column.unit), low: cell[1], high: cell[2] });
  });
  const traces = [];
  const ends = [];
  const [xs, ys] = [[], []];
  for (const found of groups.values()) {
    found.sort((a, b) => a.x - b.x);
    const row = found[0].row;
    const colour = colourOf(row);
    traces.push({
      x: found.map((one) => one.x),
      y: found.map((one) => one.y),
      mode: found.length > 1 ? "lines+markers" : "markers",
      line: { color: colour, width: row.calibration ? 1.2 : 2, dash: row.calibration ? "dot" : "solid" },
      marker: { color: found.map((one) => colourOf(one.row)), size: row.calibration ? 6 : 9, symbol: found.map((one) => symbolOf(one.row)), line: { width: 1.5, color: colour } },
      text: found.map((one) => escaped(one.row.lines.join(" "))),
      customdata: found.map((one) => (one.low === null ? "" : `<br>95 %: ${(one.low * scale(column.unit)).toPrecision(4)} to ${(one.high * scale(column.unit)).toPrecision(4)}`)),
      hovertemplate: `%{text}<br>%{x:,.4~g} ${xName}<br>${escaped(column.name)} %{y:.5~g}%{customdata}<extra></extra>`,
    });
    xs.push(...found.map((one) => one.x));
    ys.push(...found.map((one) => one.y));
    const end = found[found.length - 1];
    const text = found.length > 1 ? row.name : end.row.lines.join(" ");
    ends.push({ x: Math.log10(end.x), y: end.y, text: escaped(text.length > 44 ? `${text.slice(0, 43)}…` : text), colour });
  }
  node.hidden = !xs.length;
  if (!xs.length) return false;
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const space = (high - low || Math.abs(high) || 1) * 0.12;
  const range = [low - space, high + space];
  const [first, last] = [Math.log10(Math.min(...xs)), Math.log10(Math.max(...xs))];
  const wide = Math.max(last - first, 0.3);
  const height = node.clientHeight - 70;
  const layout = themed({
    margin: { l: 66, r: 12, t: 22, b: 44 },
    xaxis: { type: "log", automargin: false, title: { text: xName }, range: [first - wide * 0.06, last + wide * 0.62], ...(ticks ? { tickvals: ticks, ticktext: ticks } : { dtick: wide > 0.8 ? "D2" : undefined }) },
    yaxis: { automargin: false, title: { text: axisName(column) }, range },
    annotations: labelled(ends, range, height),
  });
  Plotly.react(node, traces, layout, CONFIGURATION);
  return true;
}

function drawPanels() {
  for (const id of ["rate", "speed"]) {
    // all boxes first, since a later one makes those before narrower
    while (byId(id).children.length < page.plots[id].length) byId(id).append(element("div"));
  }
  const node = (id, place) => byId(id).children[place];
  const rate = page.plots.rate.map((column, place) => panel(node("rate", place), column, (row) => row.bits, "bits per image", true));
  const speed = page.plots.speed.map((column, place) =>
    panel(node("speed", place), column, (row) => (row.calibration ? null : row.speed?.rate), "images/s", false),
  );
  byId("plot-note").textContent = [
    rate.some(Boolean) ? "Rate: bits an image, mean; rows of one name are joined, dotted grey lines are the references of calibration." : "No row has a rate.",
    speed.some(Boolean) ? "Speed: the last step of a row (decoding, generation), on the machines and batches that report.md names; calibration rows are left out." : "No model was timed.",
  ].join(" ");
}

function drawHistogram() {
  const metric = page.metrics[Number(byId("histogram-metric").value)];
  const node = byId("histogram");
  if (!metric) return;
  const by = scale(metric.unit);
  const rows = page.rows.map((row, number) => ({ row, number, values: (page.values[number]?.[metric.name] ?? []).flat() })).filter(({ number, values }) => isShown(number) && values.length);
  const finite = rows.map(({ values }) => values.filter((value) => typeof value === "number").map((value) => value * by));
  const low = finite.reduce((least, values) => values.reduce((a, b) => Math.min(a, b), least), Infinity);
  const high = finite.reduce((most, values) => values.reduce((a, b) => Math.max(a, b), most), -Infinity);
  const traces = [];
  const width = (high - low || 1) / BINS;
  rows.forEach(({ row, values }, place) => {
    const counts = new Array(BINS).fill(0);
    for (const value of finite[place]) counts[Math.min(BINS - 1, Math.floor((value - low) / width))] += 1;
    const most = Math.max(...counts, 1);
    const base = rows.length - 1 - place;
    const [x, y, text] = [[low], [base], [""]];
    counts.forEach((count, bin) => {
      x.push(low + bin * width, low + (bin + 1) * width);
      y.push(base + (0.86 * count) / most, base + (0.86 * count) / most);
      const said = `${escaped(row.lines.join(" "))}<br>${(low + bin * width).toPrecision(4)} to ${(low + (bin + 1) * width).toPrecision(4)}: ${count} of ${values.length}`;
      text.push(said, said);
    });
    x.push(low + BINS * width);
    y.push(base);
    text.push("");
    const colour = colourOf(row);
    traces.push({ x, y, text, mode: "lines", line: { color: colour, width: 1.3 }, fill: "toself", fillcolor: `${colour}44`, hoverinfo: "text", hoveron: "points" });
    const mean = finite[place].reduce((a, b) => a + b, 0) / finite[place].length;
    if (finite[place].length) traces.push({ x: [mean, mean], y: [base, base + 0.86], mode: "lines", line: { color: colour, width: 2.5 }, hoverinfo: "skip" });
  });
  const unlike = rows.map(({ values }, place) => values.filter((value) => value === "inf" || value === "-inf").length);
  const layout = themed({
    margin: { l: 60, r: 20, t: 8, b: 44 },
    height: 80 + 34 * rows.length,
    xaxis: { title: { text: `${metric.name}${metric.unit ? ` (${metric.unit})` : ""}` } },
    yaxis: {
      tickvals: rows.map((_, place) => rows.length - 1 - place + 0.3),
      ticktext: rows.map(({ row }, place) => escaped(row.lines.join(" ").slice(0, 40)) + (unlike[place] ? ` (${unlike[place]} at ∞)` : "")),
      range: [-0.15, rows.length],
      showgrid: false,
      zeroline: false,
    },
  });
  Plotly.react(node, traces, layout, CONFIGURATION);
}

// Zooming: dragging; double-click shows all again.
let plotsAsked = false;
function drawPlots() {
  if (plotsAsked) return;
  plotsAsked = true;
  requestAnimationFrame(() => {
    plotsAsked = false;
    drawPanels();
    drawHistogram();
  });
}
options(byId("histogram-metric"), page.metrics.map((metric, number) => [String(number), metric.name]), String(Math.max(0, page.metrics.findIndex((metric) => metric.better))));
byId("histogram-metric").addEventListener("change", drawHistogram);
document.addEventListener("rows", drawPlots);
document.addEventListener("theme", drawPlots);
requestAnimationFrame(() => setTimeout(drawPlots, 0));
