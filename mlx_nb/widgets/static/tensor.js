/**
 * The tensor's view: a face of an array as an image that is panned and zoomed; what is not here is asked for.
 *
 *   to Python:    {kind: "ask", what: "window", details: {version, rows, columns, height, width}}
 *                 {kind: "ask", what: "face", details: {rows, columns, index}}
 *   from Python:  the traits state, overview, maxima; windows as answers with one buffer
 *
 * A tile is a window that has come: float32 where each cell is a value, else bfloat16, each cell the value of largest
 * magnitude of those it stands for. Where a pixel stands for several cells, the strongest of them is drawn.
 *
 * @typedef {{rows: number[], columns: number[], height: number, width: number, exact: boolean,
 *            values: Float32Array, indices: Uint8Array}} Tile
 */

import { h, svg, setText, ZERO, RESERVED, strength, colour, formatNumber, isPageKey, frame, WORDS } from "./view.js";

const MOST_TILES = 24;
const ASK_AFTER_MS = 80;
const LARGEST_CELL = { width: 64, height: 26 };
const NUMBERS_FROM = { width: 46, height: 15 };
const [LOWEST, TALLEST, ROW] = [72, 340, 14];
const ZOOM = 1.6;

/** Where colours end, and how they get there. */
const RANGES = [
  ["part", "99 %", "Colours end at the 99th percentile of the magnitudes in the picture: outliers are clipped"],
  ["all", "largest", "Colours end at the largest magnitude"],
  ["log", "log", "Colours follow the logarithm of the magnitude, over six powers of ten"],
];
const DECADES = 6;

const KEYS = "Arrow keys move the cursor, with Shift by a page; plus and minus zoom, 0 shows all, 1 shows single values, Enter marks the place for the other views.";

// ------------------------------------------------------------------------------------------------------ numbers

/** Cells as they travelled. @param {DataView} packed @param {boolean} exact @returns {Float32Array} */
function unpack(packed, exact) {
  const count = packed.byteLength / (exact ? 4 : 2);
  const values = new Float32Array(count);
  if (exact) for (let i = 0; i < count; i++) values[i] = packed.getFloat32(i * 4, true);
  else {
    const bits = new Uint32Array(values.buffer);
    for (let i = 0; i < count; i++) bits[i] = packed.getUint16(i * 2, true) << 16;
  }
  return values;
}

/** The largest finite magnitude, and the 99th percentile. @param {Float32Array} values */
function limitsOf(values) {
  const sizes = values.filter(Number.isFinite).map(Math.abs).sort();
  const most = sizes.length ? sizes[sizes.length - 1] : 0;
  return { all: most, log: most, part: (sizes.length && sizes[Math.floor(0.99 * (sizes.length - 1))]) || most };
}

/** One colour index a value. @param {Float32Array} values @param {string} range @param {number} limit */
function indicesOf(values, range, limit) {
  const indices = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value !== value) indices[i] = 255;
    else if (value === Infinity) indices[i] = 254;
    else if (value === -Infinity) indices[i] = 253;
    else {
      const share = limit ? Math.abs(value) / limit : 0;
      const part = range === "log" ? (share ? 1 + Math.log10(share) / DECADES : 0) : share;
      const depth = Math.round(ZERO * Math.min(Math.max(part, 0), 1));
      indices[i] = value < 0 ? ZERO - depth : ZERO + depth;
    }
  }
  return indices;
}

/** The cell of `cells` over `length` that holds a place: cell i begins at floor(i · length / cells). */
const cellAt = (/** @type {number} */ place, /** @type {number} */ length, /** @type {number} */ cells) =>
  Math.floor(((place + 1) * cells - 1) / length);
const beginOf = (/** @type {number} */ cell, /** @type {number} */ length, /** @type {number} */ cells) =>
  Math.floor((cell * length) / cells);

const clamp = (/** @type {number} */ value, /** @type {number} */ low, /** @type {number} */ high) =>
  Math.min(Math.max(value, low), Math.max(low, high));

// ---------------------------------------------------------------------------------------------------------- view

/** @param {{model: import("./view.js").Model, el: HTMLElement}} context @returns {() => void} */
function render(context) {
  const { model } = context;
  const view = frame(context, "tensor", "Tensor");
  const { signal } = view;

  /** @type {any} */
  let state = null;
  /** @type {Tile[]} */
  let tiles = [];
  let range = "part";
  let limits = { all: 0, part: 0, log: 0 };
  /** What is seen, in rows and columns of the face. */
  let seen = { top: 0, left: 0, rows: 1, columns: 1 };
  let cursor = { row: 0, column: 0 };
  let painting = 0;
  /** @type {ReturnType<typeof setTimeout>|undefined} */
  let asking;
  /** Labels that have come, by row and by column. */
  let labels = { rows: new Map(), columns: new Map() };
  /** @type {{rows: Float32Array, columns: Float32Array}} */
  let maxima = { rows: new Float32Array(), columns: new Float32Array() };

  // -- the skeleton
  const site = h("b");
  const suffix = h("span");
  view.title.append(site, suffix);
  const zoomIn = view.button("+", { key: "+", icon: true, label: "Zoom in", title: "Zoom in (+); also Ctrl and the wheel" }, () => zoom(ZOOM));
  const zoomOut = view.button("−", { key: "-", icon: true, label: "Zoom out", title: "Zoom out (−)" }, () => zoom(1 / ZOOM));
  const fit = view.button("All", { key: "0", title: "Show the whole face" }, () => showAll());
  const single = view.button("1:1", { key: "1", title: "Show single values around the cursor" }, () => showSingle());
  const turn = view.button("Swap", { key: "x", title: "Swap rows and columns" }, () => swap());
  view.buttons.append(h("span.mv-set", {}, zoomOut, zoomIn), h("span.mv-set", {}, fit, single, turn));

  const axes = h("div.mt-axes");
  const ranges = h("select.mt-select", { "aria-label": "Colour range" }, ...RANGES.map(([name, text, title]) => h("option", { value: name, title }, text)));
  const controls = h("div.mt-controls", {}, axes, h("label.mt-axis", {}, "colours ", ranges));
  const gutter = h("div.mt-gutter", { "aria-hidden": true });
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas.mt-canvas", { role: "img", tabindex: 0 }));
  const help = h("span.mt-help", { id: `mt-help-${Math.random().toString(36).slice(2)}` }, KEYS);
  canvas.setAttribute("aria-describedby", help.id);
  const mark = h("div.mt-cursor", { hidden: true });
  const stage = h("div.mt-stage", {}, canvas, mark, help);
  const rowStrip = svg("svg.mt-strip.mt-row-strip", { role: "img", "aria-label": "Largest magnitude of each row", preserveAspectRatio: "none" });
  const columnStrip = svg("svg.mt-strip.mt-column-strip", { role: "img", "aria-label": "Largest magnitude of each column", preserveAspectRatio: "none" });
  const ticks = h("div.mt-ticks", { "aria-hidden": true });
  const corner = h("div.mt-corner", { title: "The strips show the largest magnitude of each row and column, as logarithms" }, "max");
  const plot = h("div.mt-plot", {}, gutter, stage, rowStrip, h("div"), columnStrip, corner, h("div"), ticks, h("div"));
  const readout = h("div.mt-readout.mv-mono", { role: "status", "aria-live": "polite" });
  const legend = h("div.mv-legend");
  const below = h("div.mt-below", {}, readout, legend);
  const numbers = h("table.mv-numbers");
  const histogram = h("figure.mt-figure");
  const outliers = h("table.mt-outliers.mv-mono");
  const panes = h("div.mt-panes", {}, h("div.mt-pane", {}, numbers, histogram), h("div.mt-pane", {}, outliers));
  view.body.append(controls, h("div.mv-row.mt-picture-row", {}, plot, below), panes);

  // ---- from Python ------------------------------------------------------------------------------------------

  /** @param {any} next */
  function draw(next) {
    const fresh = !state || next.version !== state.version;
    const turned = !state || ["rows", "columns", "height", "width", "site"].some((key) => next[key] !== state[key]);
    state = next;
    setText(site, state.site);
    setText(suffix, state.suffix);
    view.title.setAttribute("title", state.site + state.suffix);
    setText(view.note, state.note);
    const letters = state.shape.map((/** @type {number} */ n, /** @type {number} */ i) => (state.letters[i] ? `${state.letters[i]} ${n}` : `${n}`));
    setText(view.subtitle, [`[${letters.join(", ")}] ${state.dtype}`, state.size, state.tokens].filter(Boolean).join(" · "));
    view.root.setAttribute("aria-label", `Tensor: ${state.site}${state.suffix}`);
    setText(view.sentence, state.sentence);
    if (fresh) {
      const { height, width, exact } = state.overview;
      const packed = model.get("overview");
      tiles = height * width ? [tile([0, state.height], [0, state.width], height, width, exact, packed)] : [];
      limits = tiles.length ? limitsOf(tiles[0].values) : { all: 0, part: 0, log: 0 };
      recolour();
      if (turned) {
        labels = { rows: new Map(), columns: new Map() };
        cursor = { row: 0, column: 0 };
      }
      drawAxes();
      fitStage();
      if (turned) seen = { top: 0, left: 0, rows: Math.max(1, state.height), columns: Math.max(1, state.width) };
    }
    readMaxima();
    drawNumbers();
    queue();
  }

  /** @returns {Tile} */
  function tile(rows, columns, height, width, exact, packed) {
    const values = unpack(packed, exact);
    return { rows, columns, height, width, exact, values, indices: indicesOf(values, range, limits[range]) };
  }

  function recolour() {
    for (const each of tiles) each.indices = indicesOf(each.values, range, limits[range]);
    drawLegend();
  }

  function readMaxima() {
    const packed = model.get("maxima");
    const { rows, columns } = state.maxima;
    const all = packed && packed.byteLength === 4 * (rows + columns) ? unpack(packed, true) : new Float32Array();
    maxima = { rows: all.slice(0, rows), columns: all.slice(rows) };
  }

  // ---- axes -----------------------------------------------------------------------------------------------------

  function drawAxes() {
    const length = state.shape.length;
    const several = length - state.fixed > 2;
    const name = (/** @type {number} */ axis) => `${state.letters[axis] && state.letters[axis].length === 1 ? `${state.letters[axis]} · ` : ""}${state.names[axis]}`;
    const focus = axes.contains(document.activeElement) ? document.activeElement?.getAttribute("aria-label") : null;
    const parts = [];
    for (const kind of /** @type {const} */ (["rows", "columns"])) {
      const axis = state[kind];
      if (axis < 0) continue;
      if (!several) {
        parts.push(h("span.mt-axis", {}, `${kind} `, h("b", {}, name(axis)), ` ${state.shape[axis].toLocaleString("en")}`));
        continue;
      }
      const options = state.shape.map((/** @type {number} */ n, /** @type {number} */ i) => (i < state.fixed ? null : h("option", { value: i, selected: i === axis }, `${name(i)} (${n.toLocaleString("en")})`)));
      const select = h("select.mt-select", { "aria-label": kind }, ...options);
      select.addEventListener("change", () => {
        const wanted = Number(/** @type {HTMLSelectElement} */ (select).value);
        const other = kind === "rows" ? "columns" : "rows";
        ask({ [kind]: wanted, [other]: state[other] === wanted ? axis : state[other] });
      }, { signal });
      parts.push(h("label.mt-axis", {}, `${kind} `, select));
    }
    for (let axis = 0; axis < length; axis++) {
      if (axis === state.rows || axis === state.columns || state.shape[axis] < 2) continue;
      parts.push(picker(axis, name(axis)));
    }
    axes.replaceChildren(...parts);
    if (focus) /** @type {HTMLElement|undefined} */ ([...axes.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === focus))?.focus();
    turn.hidden = !several && state.rows < 0;
  }

  function picker(/** @type {number} */ axis, /** @type {string} */ name) {
    const at = state.index[axis];
    const last = state.shape[axis] - 1;
    const go = (/** @type {number} */ to) => {
      const index = [...state.index];
      index[axis] = clamp(Math.round(to) || 0, 0, last);
      if (index[axis] !== state.index[axis]) ask({ index });
    };
    const input = /** @type {HTMLInputElement} */ (h("input.mt-number", { type: "number", min: 0, max: last, value: at, "aria-label": name }));
    input.addEventListener("change", () => go(Number(input.value)), { signal });
    const step = (/** @type {string} */ text, /** @type {number} */ by, /** @type {string} */ word) => {
      const node = view.button(text, { icon: true, label: `${word} ${name}`, title: `${word} ${name}` }, () => go(state.index[axis] + by));
      node.setAttribute("aria-disabled", String(by < 0 ? at === 0 : at === last));
      return node;
    };
    return h("span.mt-axis", {}, `${name} `, step("‹", -1, "Previous"), input, step("›", 1, "Next"), ` of ${state.shape[axis]}`);
  }

  function ask(/** @type {object} */ change) {
    view.ask("face", { rows: state.rows, columns: state.columns, index: state.index, ...change });
  }

  function swap() {
    if (state.rows >= 0) ask({ rows: state.columns, columns: state.rows });
  }

  // ---- the picture ------------------------------------------------------------------------------------------------

  function fitStage() {
    const tall = clamp(state.height * ROW, LOWEST, TALLEST);
    stage.style.height = gutter.style.height = `${tall}px`;
    /** @type {any} */ (rowStrip).style.height = `${tall}px`;
  }

  function queue() {
    if (!painting && !signal.aborted) painting = requestAnimationFrame(paint);
  }

  function paint() {
    painting = 0;
    if (signal.aborted || !state || !canvas.clientWidth) return;
    settle();
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const W = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const H = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== W) canvas.width = W;
    if (canvas.height !== H) canvas.height = H;
    const picked = new Uint8Array(W * H).fill(ZERO);
    for (const each of [...tiles].sort((a, b) => grain(b) - grain(a))) paintTile(picked, W, H, each);
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const image = pen.createImageData(W, H);
    const out = new Uint32Array(image.data.buffer);
    const palette = paletteOf();
    for (let i = 0; i < picked.length; i++) {
      out[i] = picked[i] in RESERVED ? packed(colour(picked[i], i % W, Math.floor(i / W))) : palette[picked[i]];
    }
    pen.putImageData(image, 0, 0);
    writeNumbers(pen, W, H, ratio);
    drawCursor();
    drawLabels();
    drawStrips();
    drawReadout();
    canvas.setAttribute("aria-label", described());
    clearTimeout(asking);
    asking = setTimeout(askWindow, ASK_AFTER_MS);
  }

  /** How many values a cell of a tile stands for. */
  const grain = (/** @type {Tile} */ each) =>
    ((each.rows[1] - each.rows[0]) / each.height) * ((each.columns[1] - each.columns[0]) / each.width);

  /** Which cells of a tile each pixel shows: two per pixel, half-open; -1 outside. */
  function spans(pixels, first, length, [begin, end], cells) {
    const found = new Int32Array(pixels * 2).fill(-1);
    for (let p = 0; p < pixels; p++) {
      const from = Math.floor(first + (p * length) / pixels + 1e-9);
      const to = Math.max(from + 1, Math.ceil(first + ((p + 1) * length) / pixels - 1e-9));
      const [low, high] = [Math.max(from, begin), Math.min(length < pixels ? from + 1 : to, end)];
      if (low >= high) continue;
      found[2 * p] = cellAt(low - begin, end - begin, cells);
      found[2 * p + 1] = cellAt(high - 1 - begin, end - begin, cells) + 1;
    }
    return found;
  }

  /** @param {Uint8Array} picked @param {number} W @param {number} H @param {Tile} each */
  function paintTile(picked, W, H, each) {
    const down = spans(H, seen.top, seen.rows, each.rows, each.height);
    const across = spans(W, seen.left, seen.columns, each.columns, each.width);
    const { indices, width } = each;
    for (let y = 0; y < H; y++) {
      const [first, last] = [down[2 * y], down[2 * y + 1]];
      if (first < 0) continue;
      for (let x = 0; x < W; x++) {
        const left = across[2 * x];
        if (left < 0) continue;
        let best = indices[first * width + left];
        const right = across[2 * x + 1];
        if (last - first > 1 || right - left > 1) {
          for (let r = first; r < last; r++) {
            for (let c = left; c < right; c++) {
              const index = indices[r * width + c];
              if (strength(index) > strength(best)) best = index;
            }
          }
        }
        picked[y * W + x] = best;
      }
    }
  }

  const packed = (/** @type {number[]} */ [r, g, b, a]) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
  /** @type {Uint32Array|undefined} */
  let palette;
  function paletteOf() {
    return (palette ??= Uint32Array.from({ length: 253 }, (_, index) => packed(colour(index, 0, 0))));
  }

  /** The best tile that has a value's own cell, or else the finest that covers it. */
  function tileAt(/** @type {number} */ row, /** @type {number} */ column) {
    let best = null;
    for (const each of tiles) {
      const inside = row >= each.rows[0] && row < each.rows[1] && column >= each.columns[0] && column < each.columns[1];
      if (inside && (!best || grain(each) < grain(best))) best = each;
    }
    return best;
  }

  /** What is known of a place: its value, or the strongest of the rows and columns around it. */
  function look(/** @type {number} */ row, /** @type {number} */ column) {
    const found = tileAt(row, column);
    if (!found) return null;
    const [height, width] = [found.rows[1] - found.rows[0], found.columns[1] - found.columns[0]];
    const i = cellAt(row - found.rows[0], height, found.height);
    const j = cellAt(column - found.columns[0], width, found.width);
    return {
      value: found.values[i * found.width + j],
      index: found.indices[i * found.width + j],
      rows: [found.rows[0] + beginOf(i, height, found.height), found.rows[0] + beginOf(i + 1, height, found.height)],
      columns: [found.columns[0] + beginOf(j, width, found.width), found.columns[0] + beginOf(j + 1, width, found.width)],
    };
  }

  /** Numbers where cells have room for them, and letters for NaN and Inf. */
  function writeNumbers(pen, W, H, ratio) {
    const [wide, tall] = [canvas.clientWidth / seen.columns, canvas.clientHeight / seen.rows];
    if (wide < NUMBERS_FROM.width || tall < NUMBERS_FROM.height) return;
    const fore = getComputedStyle(canvas).color;
    pen.font = `${11 * ratio}px ${getComputedStyle(readout).fontFamily}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let row = Math.floor(seen.top); row < Math.min(seen.top + seen.rows, state.height); row++) {
      for (let column = Math.floor(seen.left); column < Math.min(seen.left + seen.columns, state.width); column++) {
        const found = look(row, column);
        if (!found || found.rows[1] - found.rows[0] > 1 || found.columns[1] - found.columns[0] > 1) continue;
        const x = (column + 0.5 - seen.left) * wide * ratio;
        const y = (row + 0.5 - seen.top) * tall * ratio;
        const text = found.index in RESERVED ? RESERVED[found.index].mark : short(found.value);
        if (found.index in RESERVED) {
          pen.lineWidth = 4 * ratio;
          pen.strokeStyle = "#fff";
          pen.strokeText(text, x, y);
          pen.fillStyle = "#000";
        } else pen.fillStyle = Math.abs(found.index - ZERO) > 0.55 * ZERO ? "#fff" : fore;
        pen.fillText(text, x, y);
      }
    }
  }

  const short = (/** @type {number} */ value) => {
    const text = formatNumber(Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6 ? Number(value.toPrecision(3)) : value);
    return text.length > 7 ? value.toExponential(0).replace("e+", "e").replace("e-", "e−").replace(/^-/, "−") : text;
  };

  // ---- around the picture ---------------------------------------------------------------------------------------

  function drawLabels() {
    const tall = canvas.clientHeight;
    const row = tall / seen.rows;
    const step = Math.max(1, Math.ceil(13 / row));
    const rows = [];
    for (let at = Math.ceil(Math.max(seen.top - 0.5, 0) / step) * step; at < Math.min(seen.top + seen.rows, state.height); at += step) {
      const y = (at + 0.5 - seen.top) * row;
      if (y < 0 || y > tall) continue;
      const number = state.row_first >= 0 ? at + state.row_first : at;
      const node = h("div.mt-label", { style: `top:${clamp(y, 6, tall - 6).toFixed(1)}px`, title: labels.rows.get(at) }, h("span", {}, String(number)));
      if (labels.rows.get(at)) node.append(" ", h("b", {}, labels.rows.get(at)));
      rows.push(node);
    }
    gutter.replaceChildren(...rows);
    const wide = canvas.clientWidth / seen.columns;
    const named = labels.columns.size > 0 && wide > 24;
    const every = niceStep((named ? 84 : 56) / wide);
    const columns = [];
    for (let at = Math.ceil(Math.max(seen.left, 0) / every) * every; at < Math.min(seen.left + seen.columns, state.width); at += every) {
      const x = (at + 0.5 - seen.left) * wide;
      if (x < 0 || x > canvas.clientWidth - 2) continue;
      const number = state.column_first >= 0 ? at + state.column_first : at;
      const text = `${number.toLocaleString("en")}${named && labels.columns.get(at) ? ` ${labels.columns.get(at)}` : ""}`;
      const side = x < 20 ? "start" : x > canvas.clientWidth - 20 ? "end" : "";
      columns.push(h(`div.mt-tick${side ? `.${side}` : ""}`, { style: `left:${x.toFixed(1)}px` }, text));
    }
    const name = state.columns >= 0 ? state.names[state.columns] : "";
    ticks.replaceChildren(...columns, h("div.mt-axis-name", {}, name));
  }

  function niceStep(/** @type {number} */ least) {
    if (least <= 1) return 1;
    const ten = 10 ** Math.floor(Math.log10(least));
    return [1, 2, 5, 10].map((n) => n * ten).find((step) => step >= least) || 10 * ten;
  }

  /** Bars of the largest magnitudes, as logarithms from somewhat below the least of them. */
  function drawStrips() {
    const most = Math.max(...[maxima.rows, maxima.columns].map((part) => part.reduce((a, b) => Math.max(a, b), 0)));
    const least = Math.max(0.7 * Math.min(most / 2, ...[maxima.rows, maxima.columns].map((part) => part.reduce((a, b) => (b > 0 ? Math.min(a, b) : a), Infinity))), most * 1e-4);
    const high = (/** @type {number} */ value) => (value > least ? Math.log(value / least) / Math.log(most / least) : 0);
    /** @param {SVGElement} strip @param {Float32Array} found @param {number} length */
    const bars = (strip, found, length, first, shown, pixels, size, down) => {
      const parts = [];
      for (let p = 0; p < pixels && found.length; p++) {
        const from = Math.floor(first + (p * shown) / pixels);
        const to = Math.max(from + 1, Math.ceil(first + ((p + 1) * shown) / pixels - 1e-9));
        if (from < 0 || from >= length) continue;
        let value = 0;
        const last = cellAt(Math.min(shown < pixels ? from : to - 1, length - 1), length, found.length);
        for (let i = cellAt(from, length, found.length); i <= last; i++) value = Math.max(value, found[i]);
        const bar = (high(value) * size).toFixed(1);
        parts.push(down ? `M0 ${p}h${bar}v1h-${bar}z` : `M${p} 0v${bar}h1v-${bar}z`);
      }
      strip.setAttribute("viewBox", down ? `0 0 ${size} ${pixels}` : `0 0 ${pixels} ${size}`);
      strip.replaceChildren(svg("path", { d: parts.join("") }));
    };
    bars(rowStrip, maxima.rows, state.height, seen.top, seen.rows, Math.max(1, canvas.clientHeight), 40, true);
    bars(columnStrip, maxima.columns, state.width, seen.left, seen.columns, Math.max(1, canvas.clientWidth), 26, false);
  }

  function drawLegend() {
    const limit = limits[range];
    const scale = [h("span", {}, `−${formatNumber(limit)}`), " ", h(`i.mv-scale${range === "log" ? ".mt-log" : ""}`), " ", h("span", {}, `+${formatNumber(limit)}`)];
    const clipped = range === "part" && limits.all > limit * 1.001 ? [" ", h("span.mv-clipped", { title: WORDS.clipped }, "clipped")] : [];
    const reserved = Object.keys(RESERVED).map(Number).filter((index) => tiles.some((each) => each.indices.includes(index)));
    legend.replaceChildren(...(limit ? scale : []), ...clipped, ...reserved.flatMap((index) =>
      [" ", h("span.mv-key", {}, h(`i.mv-hatch.h${index}`), " ", h("span", {}, RESERVED[index].name))]));
  }

  function drawCursor() {
    const found = look(cursor.row, cursor.column);
    mark.hidden = !found;
    if (!found) return;
    const [wide, tall] = [canvas.clientWidth / seen.columns, canvas.clientHeight / seen.rows];
    const box = { top: (found.rows[0] - seen.top) * tall, left: (found.columns[0] - seen.left) * wide,
      height: (found.rows[1] - found.rows[0]) * tall, width: (found.columns[1] - found.columns[0]) * wide };
    const size = { height: Math.max(box.height, 7), width: Math.max(box.width, 7) };
    const style = { top: box.top - (size.height - box.height) / 2, left: box.left - (size.width - box.width) / 2, ...size };
    for (const [key, value] of Object.entries(style)) mark.style.setProperty(key, `${value.toFixed(1)}px`);
  }

  const numbered = (/** @type {number[]} */ [from, to], /** @type {number} */ shift) => (to - from > 1 ? `${(from + shift).toLocaleString("en")}–${(to - 1 + shift).toLocaleString("en")}` : (from + shift).toLocaleString("en"));

  /** The place and value under the cursor, in words. */
  function drawReadout() {
    const found = look(cursor.row, cursor.column);
    if (!found) return setText(readout, state.height * state.width ? "" : "The array is empty.");
    const parts = [];
    for (const kind of /** @type {const} */ (["rows", "columns"])) {
      if (state[kind] < 0) continue;
      const first = kind === "rows" ? state.row_first : state.column_first;
      const one = kind === "rows" ? cursor.row : cursor.column;
      const text = labels[kind].get(one);
      const many = found[kind][1] - found[kind][0] > 1;
      parts.push(`${state.names[state[kind]]}${many ? "s" : ""} ${numbered(found[kind], Math.max(first, 0))}${text && !many ? ` ${text}` : ""}`);
    }
    const exact = found.rows[1] - found.rows[0] === 1 && found.columns[1] - found.columns[0] === 1;
    setText(readout, `${parts.join(" · ")}: ${exact ? "" : "strongest "}${formatNumber(found.value)}`);
  }

  function described() {
    const whole = `${state.site}${state.suffix}, ${state.height} rows by ${state.width} columns`;
    const all = seen.rows >= state.height && seen.columns >= state.width;
    const part = all ? "" : `; shown are rows ${numbered([Math.floor(seen.top), Math.ceil(seen.top + seen.rows)], 0)} and columns ${numbered([Math.floor(seen.left), Math.ceil(seen.left + seen.columns)], 0)}`;
    return `${whole}${part}; blue is negative, orange positive`;
  }

  // ---- numbers, histogram, outliers --------------------------------------------------------------------------------

  function drawNumbers() {
    const alarming = (/** @type {any} */ cell) => ["NaN", "Inf"].includes(cell.name) && cell.value !== "0";
    numbers.replaceChildren(
      h("thead", {}, h("tr", {}, ...state.numbers.map((/** @type {any} */ cell) => h("th", { scope: "col", title: cell.name === "rms" ? WORDS.rms : null }, cell.name)))),
      h("tbody", {}, h("tr", {}, ...state.numbers.map((/** @type {any} */ cell) => h(`td${alarming(cell) ? ".alarm" : ""}`, {}, cell.value)))));
    drawHistogram();
    const rows = state.outliers.map((/** @type {any} */ one) => {
      const go = h("button.mt-go", { type: "button", title: "Go there" }, one.where);
      go.addEventListener("click", () => goTo(one.row, one.column), { signal });
      return h("tr", {}, h("td", {}, one.value), h("td", {}, go));
    });
    outliers.replaceChildren(h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "largest"), h("th", { scope: "col" }, "at"))), h("tbody", {}, ...rows));
    outliers.hidden = !rows.length;
    panes.hidden = !state.numbers.length;
  }

  function drawHistogram() {
    const octaves = state.octaves;
    histogram.hidden = !octaves.length;
    if (!octaves.length) return;
    const counts = [...[...octaves].reverse().map(([e, n]) => ["negative", n, `${of(-(2 ** (e + 1)))} to ${of(-(2 ** e))}`]),
      ["zero", state.zeros, "zero"], ...octaves.map(([e, , n]) => ["positive", n, `${of(2 ** e)} to ${of(2 ** (e + 1))}`])];
    const most = Math.max(...counts.map(([, count]) => Math.log1p(count))) || 1;
    const tall = 56;
    const step = Math.max(8, Math.ceil(160 / counts.length)); // one power of two alone still has room for its axis
    const bars = counts.map(([kind, count, words], i) => {
      const high = (tall * Math.log1p(count)) / most;
      return svg(`rect.${kind}`, { x: i * step, y: (tall - high).toFixed(1), width: step - 1, height: high.toFixed(1) },
        svg("title", {}, `${words}: ${count.toLocaleString("en")}`));
    });
    const drawn = svg("svg.mt-histogram", { viewBox: `0 0 ${counts.length * step} ${tall}`, width: counts.length * step, height: tall,
      role: "img", "aria-label": "Histogram: a bar for each power of two, heights as logarithms" }, ...bars);
    const end = 2 ** (octaves[octaves.length - 1][0] + 1);
    const largest = end >= 1 && end < 1e6 ? String(end) : of(end);
    histogram.replaceChildren(drawn, h("figcaption.mv-legend.mt-ends", { style: `max-width:${counts.length * step}px` }, h("span", {}, `−${largest}`), " ", h("span", {}, "0"), " ", h("span", {}, `+${largest}`)));
  }

  const of = formatNumber;

  // ---- moving -------------------------------------------------------------------------------------------------------

  /** Keep what is seen inside the face, and cells no larger than they may be. */
  function settle() {
    const least = { rows: Math.min(state.height, canvas.clientHeight / LARGEST_CELL.height), columns: Math.min(state.width, canvas.clientWidth / LARGEST_CELL.width) };
    seen.rows = clamp(seen.rows, least.rows, Math.max(1, state.height));
    seen.columns = clamp(seen.columns, least.columns, Math.max(1, state.width));
    seen.top = clamp(seen.top, 0, state.height - seen.rows);
    seen.left = clamp(seen.left, 0, state.width - seen.columns);
    const all = seen.rows >= state.height && seen.columns >= state.width;
    fit.setAttribute("aria-disabled", String(all));
    zoomOut.setAttribute("aria-disabled", String(all));
    stage.classList.toggle("whole", all);
  }

  /** Zoom about a place, which stays where it is. */
  function zoom(/** @type {number} */ by, at = { row: cursor.row + 0.5, column: cursor.column + 0.5 }) {
    if (!state) return;
    const inside = at.row >= seen.top && at.row <= seen.top + seen.rows && at.column >= seen.left && at.column <= seen.left + seen.columns;
    const [rows, columns] = [seen.rows / by, seen.columns / by];
    const share = inside ? { row: (at.row - seen.top) / seen.rows, column: (at.column - seen.left) / seen.columns } : { row: 0.5, column: 0.5 };
    seen = { rows, columns, top: at.row - share.row * rows, left: at.column - share.column * columns };
    const wanted = { ...seen };
    settle();
    // What the limits have changed is changed about the same place.
    seen.top = clamp(wanted.rows === seen.rows ? seen.top : at.row - share.row * seen.rows, 0, state.height - seen.rows);
    seen.left = clamp(wanted.columns === seen.columns ? seen.left : at.column - share.column * seen.columns, 0, state.width - seen.columns);
    queue();
  }

  function showAll() {
    seen = { top: 0, left: 0, rows: state.height, columns: state.width };
    queue();
  }

  function showSingle() {
    const [rows, columns] = [canvas.clientHeight / (NUMBERS_FROM.height + 3), canvas.clientWidth / (NUMBERS_FROM.width + 4)];
    seen = { rows, columns, top: cursor.row + 0.5 - rows / 2, left: cursor.column + 0.5 - columns / 2 };
    queue();
  }

  function goTo(/** @type {number} */ row, /** @type {number} */ column) {
    cursor = { row, column };
    const [rows, columns] = [Math.min(seen.rows, 96), Math.min(seen.columns, 192)];
    seen = { rows, columns, top: row + 0.5 - rows / 2, left: column + 0.5 - columns / 2 };
    queue();
    pick();
  }

  /** Move the cursor, and what is seen after it. */
  function move(/** @type {number} */ down, /** @type {number} */ across) {
    cursor = { row: clamp(cursor.row + down, 0, state.height - 1), column: clamp(cursor.column + across, 0, state.width - 1) };
    if (cursor.row < seen.top) seen.top = cursor.row;
    if (cursor.row + 1 > seen.top + seen.rows) seen.top = cursor.row + 1 - seen.rows;
    if (cursor.column < seen.left) seen.left = cursor.column;
    if (cursor.column + 1 > seen.left + seen.columns) seen.left = cursor.column + 1 - seen.columns;
    queue();
  }

  /** A step of the cursor: to the next cell that is drawn as one, at least a pixel away. */
  function step(/** @type {"rows"|"columns"} */ kind, /** @type {number} */ way, /** @type {boolean} */ page) {
    const shown = seen[kind];
    if (page) return Math.max(1, Math.floor(shown * 0.9)) * way;
    const found = look(cursor.row, cursor.column);
    const one = kind === "rows" ? cursor.row : cursor.column;
    return found ? (way > 0 ? found[kind][1] - one : found[kind][0] - 1 - one) : way;
  }

  function pick() {
    const place = { ...state.place };
    if (state.row_first >= 0) place.token = cursor.row + state.row_first;
    const head = ["H", "K"].map((letter) => state.letters.indexOf(letter)).find((axis) => axis >= 0);
    if (head !== undefined && head !== state.rows && head !== state.columns) place.head = state.index[head];
    view.pick(place);
  }

  /** Ask for what is seen, and some of what is around it, unless a tile has it already. */
  function askWindow() {
    if (signal.aborted || !tiles.length) return;
    const pixels = { rows: canvas.height, columns: canvas.width };
    /** @param {Tile} each */
    const serves = (each) => {
      const covers = each.rows[0] <= seen.top && each.rows[1] >= Math.min(seen.top + seen.rows, state.height) &&
        each.columns[0] <= seen.left && each.columns[1] >= Math.min(seen.left + seen.columns, state.width);
      const tall = (each.rows[1] - each.rows[0]) / each.height;
      const wide = (each.columns[1] - each.columns[0]) / each.width;
      return covers && each.exact || covers && (each.fine || (tall <= Math.max(1, (1.5 * seen.rows) / pixels.rows) && wide <= Math.max(1, (1.5 * seen.columns) / pixels.columns)));
    };
    if (tiles.some(serves) && !wantsLabels()) return;
    const [down, across] = [seen.rows / 4, seen.columns / 4];
    const rows = [Math.max(0, Math.floor(seen.top - down)), Math.min(state.height, Math.ceil(seen.top + seen.rows + down))];
    const columns = [Math.max(0, Math.floor(seen.left - across)), Math.min(state.width, Math.ceil(seen.left + seen.columns + across))];
    const height = Math.ceil((pixels.rows * (rows[1] - rows[0])) / seen.rows);
    const width = Math.ceil((pixels.columns * (columns[1] - columns[0])) / seen.columns);
    const version = state.version;
    view.ask("window", { version, rows, columns, height, width }).then((answer) => {
      if (!answer || answer.content.version !== state.version) return;
      const { content } = answer;
      content.row_labels.forEach((/** @type {string} */ text, /** @type {number} */ i) => labels.rows.set(content.rows[0] + i, text));
      content.column_labels.forEach((/** @type {string} */ text, /** @type {number} */ i) => labels.columns.set(content.columns[0] + i, text));
      asked.add(`${content.rows}/${content.columns}`);
      const next = tile(content.rows, content.columns, content.height, content.width, content.exact, answer.buffers[0]);
      // A window that was cut down to what may travel is as fine as it gets there.
      next.fine = next.height < Math.min(height, rows[1] - rows[0]) || next.width < Math.min(width, columns[1] - columns[0]);
      tiles.push(next);
      if (tiles.length > MOST_TILES) tiles.splice(1, 1);
      drawLegend();
      queue();
    });
  }

  /** @type {Set<string>} */
  const asked = new Set();
  /** Whether rows that have room for a name have none, and were not asked for. */
  function wantsLabels() {
    if (state.row_first < 0 || seen.rows > 400 || labels.rows.has(Math.floor(seen.top))) return false;
    return !tiles.some((each) => each !== tiles[0] && each.rows[0] <= seen.top && each.rows[1] > seen.top);
  }

  // ---- from the user ---------------------------------------------------------------------------------------------

  const at = (/** @type {MouseEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    return { row: seen.top + ((event.clientY - box.top) / box.height) * seen.rows, column: seen.left + ((event.clientX - box.left) / box.width) * seen.columns };
  };
  /** @type {{x: number, y: number, top: number, left: number, moved: boolean}|null} */
  let drag = null;
  const on = (/** @type {string} */ name, /** @type {(event: any) => void} */ callback, options = {}) => canvas.addEventListener(name, callback, { signal, ...options });
  on("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    drag = { x: event.clientX, y: event.clientY, top: seen.top, left: seen.left, moved: false };
  });
  on("pointermove", (event) => {
    if (!state) return;
    if (!drag) {
      const { row, column } = at(event);
      cursor = { row: clamp(Math.floor(row), 0, state.height - 1), column: clamp(Math.floor(column), 0, state.width - 1) };
      drawCursor();
      drawReadout();
      return;
    }
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    drag.moved ||= Math.abs(x) + Math.abs(y) > 3;
    if (!drag.moved) return;
    seen.top = drag.top - (y * seen.rows) / canvas.clientHeight;
    seen.left = drag.left - (x * seen.columns) / canvas.clientWidth;
    queue();
  });
  on("pointerup", (event) => {
    if (drag && !drag.moved) {
      const { row, column } = at(event);
      cursor = { row: clamp(Math.floor(row), 0, state.height - 1), column: clamp(Math.floor(column), 0, state.width - 1) };
      queue();
      pick();
    }
    drag = null;
  });
  on("pointercancel", () => (drag = null));
  on("dblclick", (event) => zoom(ZOOM * ZOOM, at(event)));
  // The plain wheel scrolls the notebook.
  on("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 150), at(event));
  }, { passive: false });

  view.root.addEventListener("keydown", (event) => {
    if (isPageKey(event) || !state || /^(INPUT|SELECT)$/.test(/** @type {HTMLElement} */ (event.target).tagName)) return;
    const page = event.shiftKey;
    /** @type {Record<string, () => void>} */
    const keys = {
      "+": () => zoom(ZOOM), "=": () => zoom(ZOOM), "-": () => zoom(1 / ZOOM), 0: showAll, 1: showSingle, x: swap,
    };
    /** @type {Record<string, () => void>} */
    const moves = {
      ArrowUp: () => move(step("rows", -1, page), 0), ArrowDown: () => move(step("rows", 1, page), 0),
      ArrowLeft: () => move(0, step("columns", -1, page)), ArrowRight: () => move(0, step("columns", 1, page)),
      Home: () => move(0, -state.width), End: () => move(0, state.width),
      PageUp: () => move(step("rows", -1, true), 0), PageDown: () => move(step("rows", 1, true), 0), Enter: pick,
    };
    const act = keys[event.key] || (event.target === canvas && moves[event.key]);
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }, { signal });

  ranges.addEventListener("change", () => {
    range = /** @type {HTMLSelectElement} */ (ranges).value;
    recolour();
    queue();
  }, { signal });

  view.onPlace((place) => {
    if (!state || place.token === undefined || state.row_first < 0) return;
    const row = place.token - state.row_first;
    if (row < 0 || row >= state.height || row === cursor.row) return;
    move(row - cursor.row, 0);
  });

  const observer = new ResizeObserver(queue);
  observer.observe(stage);
  view.endings.push(() => observer.disconnect(), () => clearTimeout(asking), () => cancelAnimationFrame(painting));
  view.onState(draw, ["overview", "maxima"]);
  return view.end;
}

export default { render };
