/**
 * The logit lens's view: the most probable token after each layer, at each position. A row for each layer, all ranks
 * under one another; the cell that is chosen is told in full beside the table.
 *
 * `state` is LensState of mlx_nb/widgets/lens_state.py, the trait `cells` has the cells packed as its cell_dtype.
 *
 * @typedef {{entropy: number, answer: number, place: number, tokens: number[], chances: number[]}} Cell
 * @typedef {{position: number, text: string, answer: string, appears: number, sentence: string}} Column
 * @typedef {{title: string, note: string, head_rank: number, rows: {name: string, rank: number}[], columns: Column[],
 *            texts: string[], top: number}} State
 */

import { h, setText, gridStep, WORDS, frame } from "./view.js";

const MODES = [
  ["probability", "Probability", "How probable the cell's own token is"],
  ["answer", "Answer", "How probable the model's answer at that position is after this layer"],
  ["entropy", "Certainty", "How certain the cell is: dark has no doubt (0 bits), blank spreads over all tokens"],
];
const SHADES = 9;

/** @param {State} state @param {DataView|null} packed @returns {Cell[][]} */
function unpack({ rows, columns, top }, packed) {
  const size = 12 + 8 * top;
  const list = (/** @type {number} */ at, /** @type {(at: number) => number} */ read) => Array.from({ length: top }, (_, i) => read(at + 4 * i));
  return rows.map((_, row) => columns.map((_column, column) => {
    const at = (row * columns.length + column) * size;
    if (!packed || at + size > packed.byteLength) return { entropy: NaN, answer: NaN, place: -1, tokens: [], chances: [] };
    return {
      entropy: packed.getFloat32(at, true),
      answer: packed.getFloat32(at + 4, true),
      place: packed.getInt32(at + 8, true),
      tokens: list(at + 12, (each) => packed.getInt32(each, true)),
      chances: list(at + 12 + 4 * top, (each) => packed.getFloat32(each, true)),
    };
  }));
}

const percent = (/** @type {number} */ chance) =>
  Number.isNaN(chance) ? "NaN" : chance >= 0.0995 ? `${(100 * chance).toFixed(0)} %` : chance >= 0.0005 ? `${(100 * chance).toFixed(1)} %` : "< 0.1 %";

/** @param {{model: import("./view.js").Model, el: HTMLElement}} context @returns {() => void} */
function render(context) {
  const view = frame(context, "lens", "Logit lens");
  const { root, signal, body, buttons } = view;
  /** @type {State} */
  let state;
  /** @type {Cell[][]} */
  let cells = [];
  /** @type {HTMLElement[][]} */
  let nodes = [];
  let [row, column] = [-1, -1];
  let mode = "probability";

  const modes = view.choices("Colour shows", (name) => { mode = name; shadeAll(); });
  modes.offer(MODES);
  buttons.append(modes.node);
  setText(view.note, "logit lens");
  view.note.title = "What the model would say if it ended after that layer: each hidden state goes through the last norm and head";
  const scroll = h("div.ml-scroll");
  const where = h("div.mv-title");
  const facts = h("div.mv-note", { title: "Entropy: how many bits of doubt are left; 0 bits is one certain token, n bits are as many doubts as 2ⁿ equal ones" });
  const list = h("table.ml-top.mv-numbers", { "aria-label": "Most probable tokens" });
  const key = h("div.mv-legend.ml-key", {},
    h("span.mv-key", {}, h("i.ml-swatch"), h("span.ml-word", {}, "0 to 100 %")),
    h("span.mv-key", {}, h("i.ml-swatch.answer"), h("span", { title: "From here to the last layer the most probable token is the one that the model answers" }, "the answer, from here on")));
  body.append(h("div.ml-panes", {}, scroll, h("div.ml-side", {}, where, facts, list, key)));

  // -- from Python

  function take(/** @type {State} */ next) {
    const before = state;
    state = next;
    cells = unpack(state, context.model.get("cells"));
    view.head(state);
    drawTable();
    if (!state.rows.length || !state.columns.length) return;
    if (!before || row >= state.rows.length || column >= state.columns.length) [row, column] = [state.rows.length - 1, state.columns.length - 1];
    choose(row, column, { tell: false, focus: false });
    shadeAll();
    scroll.scrollLeft = scroll.scrollWidth;
  }

  function drawTable() {
    const ranks = state.rows.map((each) => each.rank);
    nodes = state.rows.map((_, r) => state.columns.map(({ appears }, c) => {
      const cell = cells[r][c];
      const node = h(`td.ml-cell${appears >= 0 && r >= appears ? ".answer" : ""}`,
        { role: "gridcell", tabindex: -1, title: `${state.texts[cell.tokens[0]] ?? ""} ${percent(cell.chances[0])}; ${cell.entropy.toFixed(1)} bits` },
        state.texts[cell.tokens[0]] ?? "");
      node.addEventListener("click", () => choose(r, c), { signal });
      return node;
    }));
    const lines = state.rows.map((each, r) => {
      const first = r === 0 || ranks[r - 1] !== each.rank;
      return h(first && r ? "tr.first" : "tr", { role: "row" },
        first ? h("th.ml-rank", { role: "rowheader", scope: "rowgroup", rowspan: ranks.filter((rank) => rank === each.rank).length }, `rank ${each.rank}`) : null,
        h("th.ml-layer", { role: "rowheader", scope: "row", title: each.name === "embed" ? WORDS.ends : null }, each.name), ...nodes[r]);
    });
    const heads = state.columns.map((each) => h("th", { role: "columnheader", scope: "col", title: `token ${each.position}` }, each.text));
    scroll.replaceChildren(h("table.ml-grid", { role: "grid", "aria-label": "Most probable token after each layer, at each position" },
      h("thead", {}, h("tr", { role: "row" }, h("th.ml-corner", { role: "columnheader", colspan: 2 }, "after layer"), ...heads)), h("tbody", {}, ...lines)));
  }

  // -- drawing

  function shadeAll() {
    modes.mark(mode);
    const most = cells.flat().reduce((found, { entropy }) => (entropy > found ? entropy : found), 1e-9);
    cells.forEach((line, r) => line.forEach((cell, c) => {
      const value = mode === "entropy" ? 1 - cell.entropy / most : mode === "answer" ? cell.answer : cell.chances[0];
      const shade = Number.isNaN(value) ? 0 : Math.min(SHADES - 1, Math.max(0, Math.floor(value * SHADES)));
      nodes[r][c].className = nodes[r][c].className.replace(/ p\d/, "") + ` p${shade}`;
    }));
    setText(/** @type {HTMLElement} */ (key.querySelector(".ml-word")), mode === "entropy" ? `${most.toFixed(1)} to 0 bits` : "0 to 100 %");
  }

  function choose(/** @type {number} */ r, /** @type {number} */ c, { tell = true, focus = true } = {}) {
    nodes[row]?.[column]?.classList.remove("current");
    nodes[row]?.[column]?.setAttribute("tabindex", "-1");
    [row, column] = [r, c];
    const node = nodes[r][c];
    node.classList.add("current");
    node.setAttribute("tabindex", "0");
    for (const each of nodes.flat()) each.removeAttribute("aria-selected");
    node.setAttribute("aria-selected", "true");
    if (focus) node.focus({ preventScroll: false });
    const [cell, line, place] = [cells[r][c], state.rows[r], state.columns[c]];
    where.replaceChildren(line.name === "embed" ? "the embedding" : `layer ${line.name}`, " ", h("span", {}, `rank ${line.rank} · token ${place.position} ${place.text}`));
    const known = cell.place >= 0 && !Number.isNaN(cell.answer);
    setText(facts, `${cell.entropy.toFixed(1)} bits of entropy` + (known ? ` · the answer ${place.answer} is number ${(cell.place + 1).toLocaleString("en")} here, ${percent(cell.answer)}` : ""));
    list.replaceChildren(h("tbody", {}, ...cell.tokens.map((token, i) => {
      const bar = h("i.ml-bar");
      bar.style.width = `${Math.max(1, 100 * (cell.chances[i] || 0)).toFixed(1)}%`;
      return h("tr", {}, h("th.ml-token", { scope: "row" }, state.texts[token] ?? ""), h("td.ml-chance", {}, percent(cell.chances[i])), h("td.ml-bars", { "aria-hidden": true }, bar));
    })));
    setText(view.sentence, place.sentence);
    if (tell) view.pick({ token: place.position, ...(line.name === "embed" ? { rank: line.rank } : { rank: line.rank, layer: Number(line.name) }) });
  }

  // -- from the user, and from other views

  root.addEventListener("keydown", (event) => {
    if (!(/** @type {HTMLElement} */ (event.target)).closest(".ml-grid")) return;
    const to = gridStep(event, row, column, nodes.length, state.columns.length);
    if (to) choose(...to);
  }, { signal });

  view.onPlace(({ layer, token }) => {
    if (!nodes.length) return;
    const r = layer === undefined ? row : state.rows.findIndex((each) => each.name === String(layer));
    const c = token === undefined ? column : state.columns.findIndex((each) => each.position === token);
    if ((r >= 0 || c >= 0) && (r !== row || c !== column)) choose(r < 0 ? row : r, c < 0 ? column : c, { tell: false, focus: false });
  });

  view.onState(take, ["cells"]);
  return view.end;
}

export default { render };
