/**
 * The statistics strip: a row for each layer, a column for each token, coloured by how large a statistic is there.
 *
 * `state` is StatsState of mlx_nb/widgets/stats_state.py, the trait `numbers` has [statistics, rows, columns] float32.
 *
 * @typedef {{name: string, site: string, rank: number, layer: number}} Row
 * @typedef {{title: string, note: string, rows: Row[], statistics: {name: string, words: string, sentence: string}[],
 *            chosen: string, start: number, stop: number, each: number, tokens: string[]}} State
 */

import { h, setText, formatNumber, inks, penOf, gridStep, floatsOf, frame } from "./view.js";

const AXIS = 20; // CSS pixels above the first row
const NAMES = 104;
const LEAST_ROW = 11;
const MOST_ROW = 20;

/** @param {{model: import("./view.js").Model, el: HTMLElement}} context @returns {() => void} */
function render(context) {
  const view = frame(context, "stats", "Statistics");
  const { signal, body, buttons } = view;
  /** @type {State} */
  let state;
  let numbers = new Float32Array(0);
  let [columns, which] = [0, 0];
  let [row, column] = [-1, -1];
  let shown = { values: new Float32Array(0), low: NaN, high: NaN };

  const choices = view.choices("Statistic", (name) => {
    which = state.statistics.findIndex((each) => each.name === name);
    draw();
  });
  buttons.append(choices.node);
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas.mq-canvas", { role: "img", tabindex: 0 }));
  const readout = h("div.mq-readout.mv-mono", { role: "status", "aria-live": "polite" });
  const [least, most] = [h("span"), h("span")];
  const legend = h("div.mv-legend", {}, least, h("i.mq-scale", { title: "A logarithmic scale" }), most,
    h("span.mv-key", {}, h("i.mv-hatch"), "nothing finite"),
    h("span.mq-hint", {}, "click or arrow keys choose a place for all views"));
  body.append(h("div.mv-row.mq-row", {}, canvas, readout, legend));

  // -- from Python

  function take(/** @type {State} */ next) {
    const first = state === undefined;
    state = next;
    numbers = floatsOf(context.model.get("numbers"));
    columns = state.rows.length && state.statistics.length ? numbers.length / state.statistics.length / state.rows.length : 0;
    if (first) which = Math.max(0, state.statistics.findIndex(({ name }) => name === state.chosen));
    if (row >= state.rows.length || column >= columns) [row, column] = [-1, -1];
    view.head(state);
    choices.offer(state.statistics.map(({ name, words }) => [name, name === "nonfinite" ? "NaN, Inf" : name, words]));
    draw();
  }

  /** The chosen statistic: its values, and the ends of its scale. */
  function draw() {
    const one = state.statistics[which];
    const size = state.rows.length * columns;
    const values = numbers.subarray(which * size, (which + 1) * size);
    let [low, high] = [Infinity, 0];
    for (const value of values) if (Number.isFinite(value) && value > 0) [low, high] = [Math.min(low, value), Math.max(high, value)];
    shown = { values, low, high };
    choices.mark(one ? one.name : "");
    setText(view.note, one ? one.name : "");
    setText(view.sentence, one ? one.sentence : "");
    setText(least, high ? formatNumber(low) : "0");
    setText(most, formatNumber(high));
    canvas.style.height = `${AXIS + state.rows.length * rowHeight() + 2}px`;
    canvas.setAttribute("aria-label", `${one ? one.words : ""}; ${state.rows.length} rows by ${state.stop - state.start} tokens. ${one ? one.sentence : ""}`);
    tell();
    queue();
  }

  const rowHeight = () => Math.min(MOST_ROW, Math.max(LEAST_ROW, Math.round(420 / Math.max(1, state.rows.length))));

  const queue = view.painter(canvas, () => state && paint());

  function paint() {
    const { pen, W } = penOf(canvas);
    const ink = inks(/** @type {HTMLElement} */ (canvas.parentElement), ["fg", "soft", "line", "edge", "done", "now"]);
    const [tall, wide] = [rowHeight(), (W - NAMES) / Math.max(1, columns)];
    const span = Math.log(shown.high) - Math.log(shown.low);
    pen.textBaseline = "middle";
    state.rows.forEach((each, r) => {
      const top = AXIS + r * tall;
      const first = r === 0 || state.rows[r - 1].rank !== each.rank;
      pen.textAlign = "left";
      if (first) {
        pen.font = `600 12px ${ink.font}`;
        pen.fillStyle = ink.fg;
        pen.fillText(`rank ${each.rank}`, 0, top + tall / 2);
        if (r) {
          pen.fillStyle = ink.edge;
          pen.fillRect(0, top - 1, W, 1);
        }
      }
      pen.font = `11px ${ink.font}`;
      pen.fillStyle = r === row ? ink.now : ink.soft;
      pen.textAlign = "right";
      pen.fillText(each.name, NAMES - 8, top + tall / 2, NAMES - 60);
      for (let c = 0; c < columns; c++) {
        const value = shown.values[r * columns + c];
        const left = NAMES + c * wide;
        if (Number.isNaN(value) || !Number.isFinite(value)) {
          pen.fillStyle = "#ffe14d";
          pen.fillRect(left, top + 0.5, wide, tall - 1);
          pen.fillStyle = "#000";
          for (let at = 0; at < wide; at += 3) pen.fillRect(Math.round(left + at), top + 0.5, 1, tall - 1);
          continue;
        }
        const share = value <= 0 ? 0 : span > 0 ? (Math.log(value) - Math.log(shown.low)) / span : 1;
        pen.globalAlpha = value <= 0 ? 0.03 : 0.07 + 0.93 * Math.min(1, Math.max(0, share));
        pen.fillStyle = ink.done;
        pen.fillRect(left, top + 0.5, wide > 4 ? wide - 0.75 : wide + 0.05, tall - 1);
        pen.globalAlpha = 1;
      }
    });
    // Positions above: about every 60 pixels, at round numbers.
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((each) => (each / state.each) * wide >= 52) || 10000;
    pen.font = `11px ${ink.font}`;
    pen.fillStyle = ink.soft;
    pen.textAlign = "center";
    for (let at = Math.ceil(state.start / step) * step; at < state.stop; at += step) {
      const x = NAMES + ((at - state.start) / state.each + 0.5 / state.each) * wide;
      pen.fillText(String(at), Math.min(Math.max(x, NAMES + 6), W - 10), 8);
    }
    pen.textAlign = "right";
    pen.fillText("layer ↓ token →", NAMES - 8, 8);
    if (row >= 0) {
      pen.strokeStyle = ink.now;
      pen.lineWidth = 2;
      pen.strokeRect(NAMES + column * wide - 1, AXIS + row * tall - 0.5, wide + 2, tall + 1);
    }
  }

  function describe(/** @type {number} */ r, /** @type {number} */ c) {
    const from = state.start + c * state.each;
    const to = Math.min(from + state.each, state.stop);
    const token = state.each > 1 ? `tokens ${from}–${to - 1}, the largest` : `token ${from}${state.tokens[c] ? ` ${state.tokens[c]}` : ""}`;
    return `rank ${state.rows[r].rank} · ${state.rows[r].site} · ${token} · ${state.statistics[which].name} ${formatNumber(shown.values[r * columns + c])}`;
  }

  function tell(r = row, c = column) {
    setText(readout, r >= 0 && c >= 0 ? describe(r, c) : "");
  }

  // -- from the user, and from other views

  function choose(/** @type {number} */ r, /** @type {number} */ c, tellOthers = true) {
    [row, column] = [r, c];
    tell();
    queue();
    if (!tellOthers) return;
    const { rank, layer, site } = state.rows[r];
    view.pick({ rank, site, token: state.start + c * state.each, ...(layer >= 0 ? { layer } : {}) });
  }

  /** @returns {[number, number]|null} */
  function cellAt(/** @type {MouseEvent} */ event) {
    if (!state || !columns) return null;
    const box = canvas.getBoundingClientRect();
    const r = Math.floor((event.clientY - box.top - AXIS) / rowHeight());
    const c = Math.floor(((event.clientX - box.left - NAMES) / (box.width - NAMES)) * columns);
    return r >= 0 && r < state.rows.length && c >= 0 && c < columns ? [r, c] : null;
  }

  canvas.addEventListener("click", (event) => {
    const at = cellAt(event);
    if (at) choose(...at);
  }, { signal });
  canvas.addEventListener("pointermove", (event) => {
    const at = cellAt(event);
    if (state) at ? tell(...at) : tell();
  }, { signal });
  canvas.addEventListener("pointerleave", () => state && tell(), { signal });

  canvas.addEventListener("keydown", (event) => {
    const to = gridStep(event, Math.max(row, 0), Math.max(column, 0), state.rows.length, columns);
    if (!to) return;
    if (row < 0 && event.key.startsWith("Arrow")) choose(0, 0); // nothing was chosen: the first press shows where it begins
    else choose(...to);
  }, { signal });

  view.onPlace(({ layer, token }) => {
    if (!state || !columns) return;
    const r = layer === undefined ? -1 : state.rows.findIndex((each) => each.layer === layer);
    const c = token === undefined || token < state.start || token >= state.stop ? -1 : Math.floor((token - state.start) / state.each);
    const [toRow, toColumn] = [r < 0 ? Math.max(row, 0) : r, c < 0 ? Math.max(column, 0) : c];
    if ((r >= 0 || c >= 0) && (toRow !== row || toColumn !== column)) choose(toRow, toColumn, false);
  });

  view.onState(take, ["numbers"]);
  return view.end;
}

export default { render };
