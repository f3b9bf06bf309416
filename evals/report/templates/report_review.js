"use strict";
// What a reviewer asks: quality against the arithmetic of decoding, few-step curves, colour by hue, round trips. The
// lines of one figure each; labels stand at their ends.

// A panel of lines {row, text, x, y, hover}. x: numbers, evenly spaced; ticks: {values, texts} below them.
function lines(node, name, column, found, ticks) {
  const by = scale(column.unit);
  const shown = found.map((one) => ({ ...one, y: one.y.map((value) => (value === null ? null : value * by)) })).filter((one) => one.y.some((value) => value !== null));
  node.hidden = !shown.length;
  if (!shown.length) return;
  const values = shown.flatMap((one) => one.y.filter((value) => value !== null));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const space = (high - low || Math.abs(high) || 1) * 0.12;
  const range = [low - space, high + space];
  const traces = shown.map(({ row, text, x, y, hover }) => ({
    x,
    y,
    mode: "lines+markers",
    line: { color: colourOf(row), width: row.calibration ? 1.2 : 2, dash: row.calibration ? "dot" : "solid" },
    marker: { color: colourOf(row), size: row.calibration ? 5 : 7, symbol: symbolOf(row), line: { width: 1.2, color: colourOf(row) } },
    text: hover,
    hovertemplate: `${escaped(text)}<br>%{text}<br>${escaped(column.name)} %{y:.5~g}<extra></extra>`,
  }));
  const ends = shown.map(({ row, text, x, y }) => {
    const last = y.findLastIndex((value) => value !== null);
    return { x: x[last], y: y[last], text: escaped(text.length > 44 ? `${text.slice(0, 43)}…` : text), colour: colourOf(row) };
  });
  const [first, last] = [ticks.values[0], ticks.values[ticks.values.length - 1]];
  const wide = Math.max(last - first, 1);
  Plotly.react(
    node,
    traces,
    themed({
      margin: { l: 66, r: 12, t: 22, b: 44 },
      xaxis: { automargin: false, title: { text: name }, range: [first - wide * 0.06, last + wide * 0.55], tickvals: ticks.values, ticktext: ticks.texts },
      yaxis: { automargin: false, title: { text: axisName(column) }, range },
      annotations: labelled(ends, range, node.clientHeight - 70),
    }),
    CONFIGURATION,
  );
}

const { review } = page;
function boxes(id, count) {
  const node = byId(id);
  while (node && node.children.length < count) node.append(element("div"));
  return node ? [...node.children] : [];
}
const labelOfRow = (row) => row.lines.join(" ");

function drawReview() {
  const numberOf = new Map(page.rows.map((row, number) => [row, number]));
  boxes("costs-plot", page.plots.speed.length).forEach((node, place) => {
    panel(node, page.plots.speed[place], (row) => review.costs[numberOf.get(row)], "GFLOPs to decode an image", false);
  });
  const evaluations = [...new Set(Object.values(review.steps))].sort((a, b) => a - b);
  boxes("steps-plot", review.stepColumns.length).forEach((node, place) => {
    panel(node, review.stepColumns[place], (row) => review.steps[numberOf.get(row)], "evaluations of the decoder's network (NFE)", true, evaluations);
  });
  boxes("drift-plot", review.drift.length).forEach((node, place) => {
    const column = review.drift[place];
    const found = Object.entries(column.rows)
      .filter(([number]) => isShown(Number(number)))
      .map(([number, y]) => {
        const row = page.rows[number];
        const x = y.map((_, trip) => trip + 1);
        return { row, text: labelOfRow(row), x, y, hover: x.map((trip) => `after ${trip} round trip${trip > 1 ? "s" : ""}`) };
      });
    const most = Math.max(...Object.values(column.rows).map((y) => y.length));
    const values = Array.from({ length: most }, (_, trip) => trip + 1);
    lines(node, "round trips", column, found, { values, texts: values });
  });
  boxes("hues-plot", review.hues.length ? 1 : 0).forEach((node) => {
    const x = review.hues.map((_, place) => place);
    const found = review.hueRows.filter(isShown).map((number) => {
      const row = page.rows[number];
      const cells = review.hues.map(({ name }) => row.cells[name] ?? [null, null, null]);
      const hover = cells.map(([, low, high], place) => review.hues[place].hue + (low === null ? "" : `<br>95 %: ${low.toPrecision(3)} to ${high.toPrecision(3)}`));
      return { row, text: labelOfRow(row), x, y: cells.map(([value]) => value), hover };
    });
    lines(node, "hue of the reference", { name: "CIEDE2000", unit: "", arrow: "↓" }, found, { values: x, texts: review.hues.map(({ hue }) => hue) });
  });
}

let reviewAsked = false;
function askReview() {
  if (reviewAsked || !byId("review")) return;
  reviewAsked = true;
  requestAnimationFrame(() => {
    reviewAsked = false;
    drawReview();
  });
}
document.addEventListener("rows", askReview);
document.addEventListener("theme", askReview);
requestAnimationFrame(() => setTimeout(askReview, 0));
