"use strict";
// Zoomable pictures, layers, type switches, and a table that sorts. Without scripts everything is still shown.

const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
for (const tools of $$(".buttons, [data-panel], [data-switches], .tools")) tools.hidden = false;

// A picture whose viewBox is what is seen of it: zoom and move change nothing else.
class Viewer {
  constructor(figure) {
    this.figure = figure;
    this.svg = figure.querySelector("svg");
    this.whole = [0, 0, Number(this.svg.dataset.width), Number(this.svg.dataset.height)];
    this.unit = Number(this.svg.dataset.unit || 1);
    this.fingers = new Map();
    for (const button of $$("[data-do]", figure)) button.addEventListener("click", () => this[button.dataset.do]());
    figure.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.svg.addEventListener("pointerdown", (event) => this.down(event));
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) this.svg.addEventListener(name, (event) => this.up(event));
    this.svg.addEventListener("dblclick", (event) => this.zoom(2, ...this.at(event)));
    this.svg.addEventListener("click", (event) => { if (this.moved) event.preventDefault(); }, true);
    new ResizeObserver(() => this.measure()).observe(this.svg);
    this.all();
  }
  all() { this.show(...this.whole); }
  in() { this.zoom(1.5); }
  out() { this.zoom(1 / 1.5); }
  full() { document.fullscreenElement ? document.exitFullscreen() : this.figure.requestFullscreen?.(); }
  show(x, y, width, height) {
    const [, , w, h] = this.whole;
    width = Math.min(w, Math.max(w / 200, width));
    height = Math.min(h, Math.max(h / 200, height));
    x = Math.min(Math.max(x, 0), w - width);
    y = Math.min(Math.max(y, 0), h - height);
    this.seen = [x, y, width, height];
    this.svg.setAttribute("viewBox", this.seen.map((value) => value.toFixed(2)).join(" "));
    this.svg.classList.toggle("zoomed", width < w);
    this.svg.style.touchAction = width < w ? "none" : "pan-y";
    this.measure();
  }
  zoom(factor, cx, cy) {
    const [x, y, width, height] = this.seen;
    cx ??= x + width / 2;
    cy ??= y + height / 2;
    this.show(cx - (cx - x) / factor, cy - (cy - y) / factor, width / factor, height / factor);
  }
  // The length of the scale bar: a round number of um that is about a sixth of the picture.
  measure() {
    const bar = this.figure.querySelector("[data-bar]");
    const matrix = this.svg.getScreenCTM();
    if (!bar || !matrix || !matrix.a) return;
    const pxPerUm = matrix.a / this.unit;
    const wanted = this.svg.clientWidth / 6 / pxPerUm;
    const step = 10 ** Math.floor(Math.log10(wanted));
    const um = [5, 2, 1].map((n) => n * step).find((n) => n <= wanted) ?? step;
    bar.style.width = `${um * pxPerUm}px`;
    bar.textContent = um >= 1000 ? `${um / 1000} mm` : `${+um.toPrecision(1)} µm`;
  }
  at(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    return [point.x, point.y];
  }
  key(event) {
    if (event.target !== this.figure) return;
    const [x, y, width, height] = this.seen;
    const step = 0.15;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      this.show(x + dx * step * width, y + dy * step * height, width, height);
    } else if (event.key === "+" || event.key === "=") this.in();
    else if (event.key === "-") this.out();
    else if (event.key === "0") this.all();
    else return;
    event.preventDefault();
  }
  wheel(event) {
    // The page scrolls until the picture has been clicked or Ctrl is held.
    if (!event.ctrlKey && !this.figure.contains(document.activeElement)) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * 0.0016), ...this.at(event));
  }
  down(event) {
    this.figure.focus({ preventScroll: true });
    this.moved = false;
    this.fingers.set(event.pointerId, event);
    this.start = this.at(event);
  }
  move(event) {
    if (!this.fingers.has(event.pointerId)) return;
    const before = this.spread();
    const last = this.fingers.get(event.pointerId);
    if (Math.hypot(event.clientX - last.clientX, event.clientY - last.clientY) < 3 && !this.moved) return;
    if (!this.moved) this.svg.setPointerCapture(event.pointerId);
    this.moved = true;
    this.figure.classList.add("moving");
    this.fingers.set(event.pointerId, event);
    const now = this.at(event);
    if (this.fingers.size === 2 && before) this.zoom(this.spread() / before, ...now);
    else if (this.fingers.size === 1) {
      const [x, y, width, height] = this.seen;
      this.show(x + this.start[0] - now[0], y + this.start[1] - now[1], width, height);
    }
  }
  up(event) {
    this.fingers.delete(event.pointerId);
    this.figure.classList.remove("moving");
  }
  spread() {
    const [one, other] = [...this.fingers.values()];
    return other ? Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) : 0;
  }
}
for (const figure of $$("[data-viewer]")) figure.viewer = new Viewer(figure);

// Layers of the map.
function chooseHeat(input) {
  for (const image of $$("[data-heat]"))
    if (image.dataset.heat === input.value) image.removeAttribute("display");
    else image.setAttribute("display", "none");
  const scale = document.querySelector("[data-scale]");
  scale.hidden = input.value === "-1";
  scale.querySelector("[data-low]").textContent = input.dataset.low || "";
  scale.querySelector("[data-high]").textContent = input.dataset.high || "";
}
for (const input of $$("input[name=heat]")) {
  input.addEventListener("change", () => chooseHeat(input));
  if (input.checked) chooseHeat(input);
}
for (const input of $$("[data-opacity]"))
  input.addEventListener("input", () => document.querySelector(".heat").setAttribute("opacity", input.value / 100));
for (const input of $$("[data-toggle]"))
  input.addEventListener("change", () => {
    for (const layer of $$(`[data-layer="${input.dataset.toggle}"]`)) layer.style.display = input.checked ? "" : "none";
  });

// Types and confidence of the cells shown.
const typeSwitches = $$("[data-type]");
function showTypes() {
  for (const input of typeSwitches)
    for (const group of $$(`[data-cells="${input.dataset.type}"]`)) group.style.display = input.checked ? "" : "none";
}
for (const input of typeSwitches) input.addEventListener("change", showTypes);
for (const button of $$("[data-all]"))
  button.addEventListener("click", () => {
    for (const input of typeSwitches) input.checked = button.dataset.all === "1";
    showTypes();
  });
for (const input of $$("[data-fill]"))
  input.addEventListener("change", () => {
    for (const cells of $$(".cells")) cells.classList.toggle("filled", input.checked);
  });
for (const input of $$("[data-confidence]"))
  input.addEventListener("input", () => {
    document.querySelector("[data-confidence-value]").textContent = (input.value / 100).toFixed(2);
    for (const cell of $$(".cells path")) cell.style.display = Number(cell.dataset.c) < Number(input.value) ? "none" : "";
  });
const names = typeSwitches.map((input) => input.parentElement.textContent.trim());
for (const cells of $$(".cells")) {
  const told = cells.closest("figure").querySelector("[data-told]");
  cells.addEventListener("pointerover", ({ target }) => {
    if (!target.dataset.c) return;
    const name = names[Number(target.parentElement.dataset.cells)];
    told.textContent = `${name}, confidence ${(target.dataset.c / 100).toFixed(2)}, ${target.dataset.a} µm²`;
  });
  cells.addEventListener("pointerout", () => { told.textContent = ""; });
}

// Tables: find, filter, sort.
function valueOf(row, column) {
  const text = row.cells[column]?.textContent.trim() ?? "";
  const number = Number(text.replaceAll(",", ""));
  return text === "" ? null : Number.isNaN(number) ? text : number;
}
function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
  return typeof a === "number" ? -1 : 1;
}
function sortBy(table, heading) {
  const column = heading.cellIndex;
  const numbers = heading.classList.contains("n");
  const now = heading.getAttribute("aria-sort");
  const next = now ? (now === "ascending" ? "descending" : "ascending") : numbers ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", next);
  const sign = next === "ascending" ? 1 : -1;
  const keyed = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
  keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}
for (const table of $$("table.sortable"))
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(table, heading));
  }
for (const tools of $$(".tools")) {
  const rows = [...document.getElementById(tools.dataset.for).tBodies[0].rows];
  const find = tools.querySelector("[data-find]"), status = tools.querySelector("[data-status]");
  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const text = `${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase();
      const fits = status.value === "flagged" ? row.querySelector(".flag") : !status.value || row.dataset.s === status.value;
      row.hidden = !fits || !text.includes(wanted);
      shown += !row.hidden;
    }
    tools.querySelector("[data-shown]").textContent = `${shown} of ${rows.length} slides`;
  };
  find.addEventListener("input", filter);
  status.addEventListener("change", filter);
  filter();
}
