"use strict";
// The image viewer: one item at a time, all rows side by side with one zoom and pan; a wipe between any two; differences.

const REFERENCE = "reference";
const MOST_DECODED = 600;
const STRIP_BEFORE = 5;
const STRIP_AFTER = 24;

const viewer = { order: [], at: 0, seed: 0, view: { zoom: 1, x: 0.5, y: 0.5 }, left: "", right: "", drawn: 0 };

// --- images ----------------------------------------------------------------------------------------------------------

let inside = null;
const loads = new Map(); // index of an item to its thumbnails, or to the promise of them
const waiting = new Map();
window.lactokImages = (index, thumbnails) => waiting.get(index)?.(thumbnails);

function thumbnailsOf(index) {
  if (page.images.inside) {
    inside ??= JSON.parse(byId("thumbnails").textContent);
    return Promise.resolve(inside[index] ?? {});
  }
  if (!loads.has(index)) {
    loads.set(
      index,
      new Promise((resolve) => {
        waiting.set(index, resolve);
        const script = element("script", { src: `${page.images.folder}/${String(index).padStart(6, "0")}.js` });
        script.addEventListener("error", () => resolve({}));
        script.addEventListener("load", () => script.remove());
        document.head.append(script);
      }),
    );
  }
  return loads.get(index);
}

function decoded(source) {
  return new Promise((resolve) => {
    const image = new Image();
    image.addEventListener("load", () => resolve(image));
    image.addEventListener("error", () => resolve(null));
    image.src = source;
  });
}

const images = new Map();
async function load(row, index, seed) {
  const whole = page.images.whole[row] ?? [];
  if (whole.length) {
    const number = whole.includes(seed) ? seed : whole[0];
    const found = await decoded(`${page.images.folder}/${row}/${String(index).padStart(6, "0")}-${number}.png`);
    if (found) return found;
  }
  const thumbnails = (await thumbnailsOf(index))[row];
  const one = thumbnails?.[Math.min(seed, thumbnails.length - 1)];
  return one ? decoded(`data:image/jpeg;base64,${one}`) : null;
}
function imageOf(row, index, seed) {
  const key = `${row}/${index}/${seed}`;
  if (!images.has(key)) {
    if (images.size > MOST_DECODED) images.delete(images.keys().next().value);
    images.set(key, load(row, index, seed));
  }
  return images.get(key);
}

// --- the order of items ----------------------------------------------------------------------------------------------

function valueOf(number, metric, index, seed = viewer.seed) {
  const seeds = page.values[number]?.[metric];
  const value = seeds?.[Math.min(seed, seeds.length - 1)]?.[index] ?? null;
  return value === "inf" ? Infinity : value === "-inf" ? -Infinity : value;
}

// How bad a figure is: larger is worse. Metrics without a stated direction (an error, by their names) count as errors.
function badness(number, metric, index) {
  const value = valueOf(number, metric.name, index);
  if (value === null) return null;
  return metric.better === "higher" ? -value : metric.better === "zero" ? Math.abs(value) : value;
}

function sortItems() {
  const all = page.images.indices ?? page.items.map((_, index) => index);
  const metric = chosenMetric();
  const [row, less] = [byId("sort-row").value, byId("sort-less").value];
  const keep = viewer.order[viewer.at];
  if (!metric) {
    viewer.order = all;
    viewer.at = Math.max(0, all.indexOf(keep));
    return;
  }
  const sign = byId("sort-best").checked ? 1 : -1;
  const scored = all.map((index) => {
    let score = badness(Number(row), metric, index);
    if (less !== "" && score !== null) {
      const other = badness(Number(less), metric, index);
      score = other === null ? null : score === other ? 0 : score - other;
    }
    return [index, score];
  });
  scored.sort(([, a], [, b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return a === b ? 0 : sign * (a < b ? -1 : 1);
  });
  viewer.order = scored.map(([index]) => index);
  viewer.at = 0;
}

// Why an image is bad: the row's figures on it with their places among all images, worst first, and how the other rows
// do on it by the metric of the sort.
const ordered = new Map(); // row, metric and output to the badness of all images, worst first
function placeOf(number, metric, index) {
  const here = badness(number, metric, index);
  if (here === null) return null;
  const key = `${number}/${metric.name}/${viewer.seed}`;
  if (!ordered.has(key)) {
    const all = page.items.map((_, at) => badness(number, metric, at)).filter((value) => value !== null);
    ordered.set(key, all.sort((a, b) => (a === b ? 0 : a < b ? 1 : -1)));
  }
  const all = ordered.get(key);
  return { at: all.indexOf(here) + 1, of: all.length, equal: all[0] === all[all.length - 1] };
}
const NTH = new Intl.PluralRules("en", { type: "ordinal" });
const ENDINGS = { one: "st", two: "nd", few: "rd", other: "th" };
function nth(place) {
  if (place.at === 1) return "worst";
  return `${place.at.toLocaleString("en")}${ENDINGS[NTH.select(place.at)]} worst`;
}
function why(index) {
  const number = Number(viewer.right);
  const judged = page.metrics.filter((metric) => metric.better);
  if (viewer.right === REFERENCE || !judged.length || page.items.length < 2) return [];
  const found = judged.map((metric) => ({ metric, place: placeOf(number, metric, index) })).filter(({ place }) => place && !place.equal);
  if (!found.length) return [];
  const first = chosenMetric();
  found.sort((a, b) => (b.metric === first) - (a.metric === first) || a.place.at - b.place.at);
  const line = element("p", {}, element("b", {}, labelOf(viewer.right).join(" ")), `, places among ${found[0].place.of.toLocaleString("en")} ${page.unit}: `);
  found.forEach(({ metric, place }, at) => line.append(at ? ", " : "", `${metric.name} ${figure(raw(number, metric.name, index), metric)} (`, place.at <= 3 ? element("b", {}, nth(place)) : nth(place), ")"));
  const metric = found[0].metric;
  const others = page.rows
    .map((row, other) => ({ row, place: row.calibration || other === number ? null : placeOf(other, metric, index) }))
    .filter(({ place }) => place && !place.equal)
    .map(({ row, place }) => `${row.lines.join(" ")} (${nth(place)})`);
  return others.length ? [line, element("p", {}, `The other rows on it, by ${metric.name}: ${others.join(", ")}`)] : [line];
}

// A click on a figure of the table: the row's images, the worst by that metric first.
function showWorst(number, metric) {
  const chosen = { "sort-metric": page.metrics.indexOf(metric), "sort-row": number, "sort-less": "" };
  for (const [id, value] of Object.entries(chosen)) byId(id).value = String(value);
  byId("sort-best").checked = false;
  viewer.right = String(number);
  sortItems();
  show();
  byId("viewer").scrollIntoView();
}
function linkFigures() {
  const heads = [...document.querySelectorAll("#table thead th")].map((head) => page.metrics.find((metric) => metric.name === head.dataset.name));
  for (const line of document.querySelectorAll("#table tbody tr")) {
    const number = Number(line.dataset.row);
    [...line.children].forEach((cell, column) => {
      const metric = heads[column];
      if (!metric || !page.values[number]?.[metric.name]) return;
      cell.classList.add("to-worst");
      cell.title += "; click: its images, the worst first";
      cell.addEventListener("click", () => showWorst(number, metric));
    });
  }
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function place(context, image, view) {
  const { width, height } = context.canvas;
  const fit = Math.min(width / image.naturalWidth, height / image.naturalHeight) * view.zoom;
  context.imageSmoothingEnabled = fit < 2;
  context.imageSmoothingQuality = "high";
  const [w, h] = [image.naturalWidth * fit, image.naturalHeight * fit];
  context.drawImage(image, width / 2 - view.x * w, height / 2 - view.y * h, w, h);
}

function ready(canvas) {
  const side = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  if (canvas.width !== side) canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.globalCompositeOperation = "source-over";
  context.clearRect(0, 0, side, side);
  return context;
}

// |a - b| of each channel times the gain. The canvas is only drawn on and never read, since a page from a disk may not
// read the pixels of files beside it.
function drawDifference(context, a, b) {
  const { width, height } = context.canvas;
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  place(context, a, viewer.view);
  context.globalCompositeOperation = "difference";
  place(context, b, viewer.view);
  context.globalCompositeOperation = "lighter";
  for (let gain = Number(byId("gain").value); gain > 1; gain /= 2) context.drawImage(context.canvas, 0, 0);
  context.globalCompositeOperation = "source-over";
}

function drawCell(cell) {
  const context = ready(cell.canvas);
  if (!cell.image) return;
  if (byId("difference").checked && viewer.leftImage && cell.row !== viewer.left) {
    drawDifference(context, viewer.leftImage, cell.image);
  } else place(context, cell.image, viewer.view);
}

function drawWipe() {
  const context = ready(byId("wipe-canvas"));
  const { width, height } = context.canvas;
  const [left, right] = [viewer.leftImage, viewer.rightImage];
  if (byId("difference").checked && left && right) {
    drawDifference(context, left, right);
    return;
  }
  if (right) place(context, right, viewer.view);
  const at = (Number(byId("wipe-at").value) / 1000) * width;
  if (left) {
    context.save();
    context.beginPath();
    context.rect(0, 0, at, height);
    context.clip();
    context.clearRect(0, 0, at, height);
    place(context, left, viewer.view);
    context.restore();
  }
  context.fillStyle = "#fff";
  context.fillRect(at - devicePixelRatio, 0, 2 * devicePixelRatio, height);
  context.fillStyle = "#0072B2";
  context.fillRect(at - devicePixelRatio / 2, 0, devicePixelRatio, height);
}

let asked = false;
function redraw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    cells.forEach(drawCell);
    drawWipe();
  });
}

// --- one item --------------------------------------------------------------------------------------------------------

let cells = [];
const labelOf = (row) => (row === REFERENCE ? [REFERENCE] : page.rows[Number(row)].lines);

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
  if (!entries.some(([value]) => value === chosen) && entries.length) select.value = entries[0][0];
}

// The metric of the sort, undefined in the dataset's order.
function chosenMetric() {
  const chosen = byId("sort-metric").value;
  return chosen === "" ? undefined : page.metrics[Number(chosen)];
}
// What stands below each image: the metric of the sort, and those of the plots.
function captionMetrics() {
  const liked = page.plots.speed.map((column) => page.metrics.find((metric) => metric.name === column.name));
  return [...new Set([chosenMetric(), ...liked, ...page.metrics.slice(0, 2)])].filter(Boolean).slice(0, 2);
}

function makeCell(row, index) {
  const number = Number(row);
  const canvas = element("canvas");
  const caption = element("figcaption", {}, labelOf(row)[0]);
  for (const line of labelOf(row).slice(1)) caption.append(element("br"), element("small", {}, line));
  if (row !== REFERENCE) {
    for (const metric of captionMetrics()) {
      const shown = `${metric.name} ${figure(raw(number, metric.name, index), metric)}`;
      caption.append(element("br"), element("small", {}, shown));
    }
    caption.title = page.metrics.map((one) => `${one.name}: ${figure(raw(number, one.name, index), one)}`).join("\n");
    for (const reason of page.reasons[number]?.[`${index}/${viewer.seed}`] ?? []) {
      caption.append(element("br"), element("small", { className: "bad" }, reason));
    }
  }
  const box = element("figure", {}, canvas, caption);
  return { row, canvas, box, image: null };
}
function raw(number, metric, index) {
  const seeds = page.values[number]?.[metric];
  return seeds?.[Math.min(viewer.seed, seeds.length - 1)]?.[index];
}

async function show() {
  if (!viewer.order.length) return;
  const index = viewer.order[viewer.at];
  const drawn = ++viewer.drawn;
  const [id, cluster, prompt] = page.items[index];
  byId("place").textContent = `${(viewer.at + 1).toLocaleString("en")} of ${viewer.order.length.toLocaleString("en")}`;
  byId("caption").replaceChildren(prompt ? element("b", {}, prompt) : id);
  const more = [prompt ? id : "", cluster && cluster !== id ? `of ${cluster}` : ""].filter(Boolean).join(", ");
  if (more) byId("caption").append(" ", element("small", {}, more));
  byId("why").replaceChildren();
  const all = [REFERENCE, ...page.rows.map((_, number) => String(number))];
  const loaded = await Promise.all(all.map((row) => imageOf(row, index, viewer.seed)));
  if (drawn !== viewer.drawn) return; // the reader is at another item by now
  const there = all.filter((_, place) => loaded[place]);
  const wanted = there.filter((row) => row === REFERENCE || isShown(Number(row)));
  if (!there.includes(viewer.left)) viewer.left = there[0] ?? "";
  if (!there.includes(viewer.right)) {
    const models = there.filter((row) => row !== REFERENCE && !page.rows[Number(row)].calibration);
    viewer.right = models[0] ?? there[1] ?? viewer.left;
  }
  byId("why").replaceChildren(...why(index));
  const entries = there.map((row) => [row, labelOf(row).join(" ")]);
  options(byId("left"), entries, viewer.left);
  options(byId("right"), entries, viewer.right);
  viewer.leftImage = loaded[all.indexOf(viewer.left)];
  viewer.rightImage = loaded[all.indexOf(viewer.right)];
  cells = wanted.map((row) => {
    const cell = makeCell(row, index);
    cell.image = loaded[all.indexOf(row)];
    return cell;
  });
  for (const cell of cells) cell.box.classList.toggle("chosen", cell.row === viewer.right);
  byId("grid").replaceChildren(...cells.map((cell) => cell.box));
  for (const cell of cells) movable(cell.canvas, () => chooseRight(cell.row));
  redraw();
  showStrip(drawn);
}

function chooseRight(row) {
  viewer.right = row;
  show();
}

async function showStrip(drawn) {
  const first = Math.max(0, Math.min(viewer.at - STRIP_BEFORE, viewer.order.length - STRIP_BEFORE - STRIP_AFTER));
  const places = viewer.order.slice(first, first + STRIP_BEFORE + STRIP_AFTER).map((index, step) => [index, first + step]);
  const row = viewer.left === REFERENCE ? REFERENCE : viewer.right;
  const shown = await Promise.all(places.map(([index]) => imageOf(row, index, viewer.seed)));
  if (drawn !== viewer.drawn) return;
  byId("strip").replaceChildren(
    ...places.map(([index, at], step) => {
      const button = element("button", { type: "button", title: page.items[index][0] });
      button.setAttribute("aria-current", String(at === viewer.at));
      button.append(element("img", { src: shown[step]?.src ?? "data:,", alt: page.items[index][0] }));
      button.addEventListener("click", () => goTo(at));
      return button;
    }),
  );
}

function goTo(at) {
  viewer.at = Math.max(0, Math.min(viewer.order.length - 1, at));
  show();
}

// --- zoom and pan ----------------------------------------------------------------------------------------------------

const moves = new WeakSet();
function movable(canvas, click) {
  if (moves.has(canvas)) return;
  moves.add(canvas);
  let from = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    const { view } = viewer;
    const [u, v] = [(event.clientX - box.left) / box.width - 0.5, (event.clientY - box.top) / box.height - 0.5];
    const zoom = Math.max(1, Math.min(64, view.zoom * Math.exp(-event.deltaY * 0.0015)));
    moveTo(view.x + u / view.zoom - u / zoom, view.y + v / view.zoom - v / zoom, zoom);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, y: event.clientY, view: { ...viewer.view }, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return;
    const side = canvas.clientWidth * from.view.zoom;
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    from.moved ||= Math.abs(dx) + Math.abs(dy) > 3;
    if (from.moved) moveTo(from.view.x - dx / side, from.view.y - dy / side, from.view.zoom);
  });
  canvas.addEventListener("pointerup", () => {
    if (from && !from.moved && click) click();
    from = null;
  });
  canvas.addEventListener("dblclick", resetView);
}
function moveTo(x, y, zoom) {
  const margin = 0.5 / zoom;
  const held = (value) => Math.max(margin, Math.min(1 - margin, value));
  viewer.view = { zoom, x: held(x), y: held(y) };
  redraw();
}
function resetView() {
  moveTo(0.5, 0.5, 1);
}

// --- start -----------------------------------------------------------------------------------------------------------

function startViewer() {
  const rows = page.rows.map((row, number) => [String(number), row.lines.join(" ")]).filter(([number]) => page.rows[number].status === "ok");
  const model = rows.find(([number]) => !page.rows[number].calibration) ?? rows[0];
  const metrics = page.metrics.map((metric, number) => [String(number), metric.name]);
  options(byId("sort-metric"), [["", "order of the dataset"], ...metrics], "");
  options(byId("sort-row"), rows, model?.[0]);
  options(byId("sort-less"), [["", "nothing"], ...rows], "");
  if (page.seeds > 1) {
    byId("seed-label").hidden = false;
    options(byId("seed"), Array.from({ length: page.seeds }, (_, seed) => [String(seed), String(seed + 1)]), "0");
    byId("seed").addEventListener("change", (event) => {
      viewer.seed = Number(event.target.value);
      sortItems();
      show();
    });
  }
  for (const id of ["sort-metric", "sort-row", "sort-less", "sort-best"]) {
    byId(id).addEventListener("change", (event) => {
      if (id === "sort-row") viewer.right = event.target.value;  // what is sorted by is what is looked at
      sortItems();
      show();
    });
  }
  byId("previous").addEventListener("click", () => goTo(viewer.at - 1));
  byId("next").addEventListener("click", () => goTo(viewer.at + 1));
  for (const side of ["left", "right"]) {
    byId(side).addEventListener("change", (event) => {
      viewer[side] = event.target.value;
      show();
    });
  }
  for (const id of ["difference", "gain", "wipe-at"]) byId(id).addEventListener("input", redraw);
  movable(byId("wipe-canvas"));
  document.addEventListener("rows", show);
  document.addEventListener("theme", redraw);
  window.addEventListener("resize", redraw);
  const { images: told, items } = page;
  const kinds = Object.keys(told.whole).length
    ? `Whole images, without loss, lie in ${told.folder}/; where one is missing its thumbnail is shown.`
    : "Images are JPEG thumbnails of what was scored, at most 192 pixels wide or high: differences of a few levels are the compression's. save_images=true keeps whole images without loss.";
  const part = told.shown < items.length ? ` Thumbnails of ${told.shown} of ${items.length} ${page.unit} are there.` : "";
  byId("image-note").textContent = `${kinds}${part} Wheel: zoom; drag: move; click: at the right of the wipe.`;
  linkFigures();
  sortItems();
  show();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    if (event.target.type !== "range" && event.target.type !== "checkbox") return;
  }
  if (event.key === "?") byId("help").open ? byId("help").close() : byId("help").showModal();
  if (!byId("strip")) return;
  const models = page.rows.map((_, number) => number).filter(isShown);
  if (event.key === "ArrowRight" && event.target.type !== "range") goTo(viewer.at + 1);
  else if (event.key === "ArrowLeft" && event.target.type !== "range") goTo(viewer.at - 1);
  else if (/^[1-9]$/.test(event.key) && models[Number(event.key) - 1] !== undefined) chooseRight(String(models[Number(event.key) - 1]));
  else if (event.key === "d") byId("difference").click();
  else if (event.key === "z") resetView();
  else return;
  event.preventDefault();
});
if (byId("strip")) setTimeout(startViewer, 0);
