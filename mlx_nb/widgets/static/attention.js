/**
 * The attention view: the heads of one layer as small pictures, one of them large, and what a token looks at.
 *
 * `state` is AttentionState of mlx_nb/widgets/attention_state.py; the trait `small` has all heads as uint8, `values` the
 * chosen one as float32. ask("head", {head}) and ask("layer", {layer}) bring another.
 *
 * @typedef {{first: number, count: number, cells: number}} Span
 * @typedef {{title: string, note: string, layers: {layer: number, rank: number, why: string}[], layer: number, rank: number,
 *            heads: number, head: number, rows: Span, columns: Span, small: number[], tokens: string[], distance: string}} State
 */

import { h, setText, inks, penOf, gridStep, floatsOf, isPageKey, frame } from "./view.js";

const LISTED = 8;
const LEAST_LABEL = 11; // CSS pixels of a row from which on each has its token beside it
const MOST_CELL = 18;

/** The tokens that a cell stands for. @param {Span} span @param {number} cell @param {string[]} tokens */
function nameCell({ first, count, cells }, cell, tokens) {
  const start = first + Math.floor((cell * count) / cells);
  const stop = first + Math.floor(((cell + 1) * count) / cells);
  if (first < 0) return stop - start === 1 ? `slot ${start + 1}` : `slots ${start + 1}–${stop}`;
  if (stop - start > 1) return `${start}–${stop - 1}`;
  return tokens[start] ? `${start} ${tokens[start]}` : String(start);
}

const percent = (/** @type {number} */ share) => (Number.isFinite(share) ? `${(100 * share).toFixed(share >= 0.0995 ? 0 : share >= 0.00995 ? 1 : 2)} %` : "NaN");

/** How strongly a share is drawn: a root makes small ones visible. @param {number} share */
const darkness = (share) => Math.sqrt(Math.min(1, Math.max(0, share)));

/** @param {{model: import("./view.js").Model, el: HTMLElement}} context @returns {() => void} */
function render(context) {
  const view = frame(context, "attention", "Attention");
  const { root, signal, body, button, buttons } = view;
  /** @type {State} */
  let state;
  let values = new Float32Array(0);
  let [row, column] = [-1, -1];
  let [left, top, cell] = [0, 0, 1]; // where the picture begins, and how large its cells are

  const layers = /** @type {HTMLSelectElement} */ (h("select.ma-select", { "aria-label": "Layer" }));
  const [before, after] = [-1, 1].map((step) => button(step < 0 ? "‹" : "›", {
    key: step < 0 ? "[" : "]", icon: true, label: step < 0 ? "Layer before" : "Next layer", title: `${step < 0 ? "The layer before" : "The next layer"} (${step < 0 ? "[" : "]"})` }, () => stepLayer(step)));
  buttons.append(h("span.mv-set", {}, before, layers, after));
  const heads = h("div.mv-row.ma-heads", { role: "group", "aria-label": "Heads" });
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas.ma-canvas", { role: "img", tabindex: 0 }));
  const plot = h("div.ma-plot", {}, canvas);
  const asking = h("div.mv-title");
  const list = h("table.ma-top.mv-numbers", { "aria-label": "Tokens that it looks at most" });
  const readout = h("div.ma-readout.mv-mono", { role: "status", "aria-live": "polite" });
  const legend = h("div.mv-legend", {}, h("span.mv-key", {}, "0", h("i.ma-scale", { title: "The colour follows the root of the share, so that small ones are visible" }), "100 %"));
  const error = h("div.mv-note.ma-error");
  body.append(heads, h("div.ma-panes", {}, plot, h("div.ma-side", {}, asking, list, readout, legend, error)));

  // -- from Python

  function take(/** @type {State} */ next) {
    const old = state;
    state = next;
    values = floatsOf(context.model.get("values"));
    view.head(state);
    setText(view.note, state.heads ? `attention · layer ${state.layer} · rank ${state.rank}` : "attention");
    setText(view.sentence, /** @type {any} */ (state).sentence);
    drawLayers();
    drawHeads();
    const other = !old || old.rows.cells !== state.rows.cells || old.columns.cells !== state.columns.cells;
    if (other && state.rows.cells) [row, column] = [state.rows.cells - 1, -1];
    setText(error, state.distance ? `Computed again in float32; what the model made is off by ${state.distance} of its largest value at most.` : "");
    canvas.setAttribute("aria-label", `Head ${state.head} of layer ${state.layer}: ${state.rows.count} tokens look at ${state.columns.count}; the stronger the larger the share`);
    tell();
    resize();
    queue();
  }

  function drawLayers() {
    const ranks = [...new Set(state.layers.map((each) => each.rank))];
    layers.replaceChildren(...ranks.map((rank) => h("optgroup", { label: `rank ${rank}` }, ...state.layers.filter((each) => each.rank === rank).map((each) =>
      h("option", { value: each.layer, selected: each.layer === state.layer, disabled: Boolean(each.why), title: each.why || null }, `layer ${each.layer}${each.why ? ", not observable" : ""}`)))));
    layers.value = String(state.layer);
    const seen = seenLayers();
    before.setAttribute("aria-disabled", String(seen.indexOf(state.layer) <= 0));
    after.setAttribute("aria-disabled", String(seen.indexOf(state.layer) === seen.length - 1));
  }

  const seenLayers = () => state.layers.filter((each) => !each.why).map((each) => each.layer);

  function drawHeads() {
    const packed = context.model.get("small");
    const [tall, wide] = state.small;
    const focus = heads.contains(document.activeElement);
    const blue = [64, 130, 235]; // as in the picture that stays: it suits light and dark
    heads.replaceChildren(...Array.from({ length: packed ? state.heads : 0 }, (_, head) => {
      const small = /** @type {HTMLCanvasElement} */ (h("canvas", { width: wide, height: tall, "aria-hidden": true }));
      const pen = /** @type {CanvasRenderingContext2D} */ (small.getContext("2d"));
      const image = pen.createImageData(wide, tall);
      for (let at = 0; at < wide * tall; at++) {
        image.data.set([...blue, 255 * darkness(packed.getUint8(head * wide * tall + at) / 255)], 4 * at);
      }
      pen.putImageData(image, 0, 0);
      const node = h(`button.ma-head${head === state.head ? ".chosen" : ""}`, { type: "button", "aria-label": `Head ${head}`, "aria-pressed": String(head === state.head), title: `Head ${head}` }, small, h("span", { "aria-hidden": true }, String(head)));
      node.addEventListener("click", () => chooseHead(head), { signal });
      return node;
    }));
    if (focus) /** @type {HTMLElement} */ (heads.children[state.head])?.focus();
  }

  // -- drawing

  /** The picture's size: as large as there is room, with its tokens beside it where they can be read. */
  function resize() {
    if (!state.rows.cells) return;
    const { cells: tall } = state.rows;
    const { cells: wide } = state.columns;
    const room = plot.clientWidth - 24;
    const labelled = Math.min(MOST_CELL, (room - 96) / wide);
    const named = labelled >= LEAST_LABEL;
    [left, top] = named ? [96, 84] : [34, 18];
    cell = Math.max(Math.min(named ? labelled : (room - left) / wide, MOST_CELL, 520 / wide), 0.5);
    canvas.style.width = `${left + cell * wide}px`;
    canvas.style.height = `${top + cell * tall + 2}px`;
  }

  const queue = view.painter(plot, () => {
    if (!state || !values.length) return;
    resize();
    paint();
  });

  function paint() {
    const { pen, W, H } = penOf(canvas);
    const ink = inks(plot, ["fg", "soft", "line", "chip", "done", "now"]);
    const [tall, wide] = [state.rows.cells, state.columns.cells];
    const exact = wide === state.columns.count && tall === state.rows.count;
    // What a token cannot see is tinted: it comes after it.
    pen.fillStyle = ink.chip;
    if (state.columns.first === 0) {
      for (let r = 0; r < tall; r++) {
        const last = state.rows.first + Math.floor(((r + 1) * state.rows.count) / tall);
        const from = Math.ceil((last * wide) / state.columns.count);
        if (from < wide) pen.fillRect(left + from * cell, top + r * cell, (wide - from) * cell, cell);
      }
    }
    pen.fillStyle = ink.done;
    const gap = cell >= 6 ? 1 : 0;
    for (let r = 0; r < tall; r++) {
      for (let c = 0; c < wide; c++) {
        const share = values[r * wide + c];
        if (share === 0) continue;
        pen.globalAlpha = Number.isFinite(share) ? darkness(share) : 1;
        pen.fillStyle = Number.isFinite(share) ? ink.done : "#ffe14d";
        pen.fillRect(left + c * cell, top + r * cell, cell - gap, cell - gap);
      }
    }
    pen.globalAlpha = 1;
    pen.font = `11px ${getComputedStyle(readout).fontFamily}`;
    pen.textBaseline = "middle";
    const names = cell >= LEAST_LABEL && exact && state.tokens.length > 0;
    const every = names ? 1 : [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((n) => (n / state.columns.count) * wide * cell >= 34) || 2000;
    labels(pen, state.rows, row, every, names, ink, (r, text) => {
      pen.textAlign = "right";
      pen.fillText(text, left - 6, top + (r + 0.5) * cell, left - 8);
    });
    labels(pen, state.columns, column, every, names, ink, (c, text) => {
      pen.save();
      pen.translate(left + (c + 0.5) * cell, top - (names ? 6 : 9));
      if (names) pen.rotate(-Math.PI / 2);
      pen.textAlign = names ? "left" : "center";
      pen.fillText(text, 0, 0, names ? top - 8 : undefined);
      pen.restore();
    });
    pen.strokeStyle = ink.now;
    pen.lineWidth = 1.5;
    if (row >= 0) pen.strokeRect(left - 0.75, top + row * cell - 0.75 - gap / 2, Math.min(wide * cell + 1, W - left), cell + 1 - gap / 2);
    if (row >= 0 && column >= 0) pen.strokeRect(left + column * cell - 1.5, top + row * cell - 1.5, cell + 2, Math.min(cell + 2, H - top - row * cell + 1));
  }

  /** Tokens beside an axis, or where there is no room their numbers now and then. */
  function labels(/** @type {any} */ pen, /** @type {Span} */ span, /** @type {number} */ chosen, /** @type {number} */ every, /** @type {boolean} */ names, /** @type {any} */ ink, /** @type {(at: number, text: string) => void} */ write) {
    for (let at = 0; at < span.cells; at++) {
      const number = Math.max(span.first, 0) + Math.floor((at * span.count) / span.cells);
      const earlier = at ? Math.max(span.first, 0) + Math.floor(((at - 1) * span.count) / span.cells) : number - 1;
      if (!names && Math.floor(number / every) === Math.floor(earlier / every)) continue;
      pen.fillStyle = at === chosen ? ink.now : ink.soft;
      write(at, names ? shortened(state.tokens[number] || String(number)) : String(Math.max(Math.floor(number / every) * every, span.first)));
    }
  }

  const shortened = (/** @type {string} */ text) => (text.length > 11 ? `${text.slice(0, 10)}…` : text);

  /** The chosen token: what it looks at most, and the chosen pair. */
  function tell(r = row, c = column) {
    const wide = state.columns.cells;
    if (r < 0 || !values.length) {
      for (const node of [asking, list, readout]) node.replaceChildren();
      return;
    }
    asking.replaceChildren(nameCell(state.rows, r, state.tokens), " ", h("span", {}, "looks at"));
    const line = Array.from(values.subarray(r * wide, (r + 1) * wide), (share, at) => ({ share, at }));
    const most = line.filter(({ share }) => share > 0).sort((a, b) => b.share - a.share).slice(0, LISTED);
    list.replaceChildren(h("tbody", {}, ...most.map(({ share, at }) => {
      const bar = h("i.ma-bar");
      bar.style.width = `${Math.max(1, 100 * share).toFixed(1)}%`;
      const line = h(at === c ? "tr.chosen" : "tr", {}, h("th.ma-token", { scope: "row" }, nameCell(state.columns, at, state.tokens)), h("td.ma-share", {}, percent(share)), h("td.ma-bars", { "aria-hidden": true }, bar));
      line.addEventListener("click", () => choose(r, at), { signal });
      return line;
    })));
    const share = c >= 0 ? values[r * wide + c] : NaN;
    setText(readout, c < 0 ? "" : `${nameCell(state.rows, r, state.tokens)} → ${nameCell(state.columns, c, state.tokens)}: ${percent(share)}`);
  }

  // -- from the user, and from other views

  function choose(/** @type {number} */ r, /** @type {number} */ c, tellOthers = true) {
    [row, column] = [r, c];
    tell();
    queue();
    const token = state.rows.first + Math.floor((r * state.rows.count) / state.rows.cells);
    if (tellOthers) view.pick({ layer: state.layer, rank: state.rank, head: state.head, token });
  }

  function chooseHead(/** @type {number} */ head) {
    if (head >= 0 && head < state.heads && head !== state.head) view.ask("head", { head });
  }

  function stepLayer(/** @type {number} */ by) {
    const seen = seenLayers();
    const next = seen[seen.indexOf(state.layer) + by];
    if (next !== undefined) view.ask("layer", { layer: next });
  }

  layers.addEventListener("change", () => view.ask("layer", { layer: Number(layers.value) }), { signal });

  /** @returns {[number, number]|null} */
  function cellAt(/** @type {MouseEvent} */ event) {
    if (!state || !values.length) return null;
    const box = canvas.getBoundingClientRect();
    const r = Math.floor((event.clientY - box.top - top) / cell);
    const c = Math.floor((event.clientX - box.left - left) / cell);
    return r >= 0 && r < state.rows.cells && c < state.columns.cells ? [r, Math.max(c, -1)] : null;
  }

  canvas.addEventListener("pointermove", (event) => {
    const at = cellAt(event);
    if (state) at ? tell(...at) : tell();
  }, { signal });
  canvas.addEventListener("pointerleave", () => state && tell(), { signal });
  canvas.addEventListener("click", (event) => {
    const at = cellAt(event);
    if (at) choose(...at);
  }, { signal });

  root.addEventListener("keydown", (event) => {
    if (!state || isPageKey(event) || event.target === layers) return;
    if (event.target === canvas) {
      const to = gridStep(event, Math.max(row, 0), Math.max(column, 0), state.rows.cells, state.columns.cells);
      if (to) return choose(...to);
    }
    const inHeads = heads.contains(/** @type {Node} */ (event.target));
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (inHeads && step) chooseHead(state.head + step);
    else if (event.key === "[") stepLayer(-1);
    else if (event.key === "]") stepLayer(1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, { signal });

  view.onPlace(({ token, head }) => {
    if (!state || !values.length) return;
    if (head !== undefined) chooseHead(head);
    const { first, count, cells } = state.rows;
    if (token === undefined || token < first || token >= first + count) return;
    const r = Math.floor(((token - first) * cells) / count);
    if (r !== row) choose(r, column, false);
  });

  view.onState(take, ["small", "values"]);
  return view.end;
}

export default { render };
