/**
 * The KV cache's view: a row for the layers of a rank that read the same, and the norms of the chosen one.
 *
 *   to Python:    {kind: "ask", what: "choose", details: {layer, buffer}}   "cost", "trim", "rewind" {count}
 *                 "fork", "pause", "resume", "refresh" {}
 *   from Python:  the traits state and norms
 */

import { h, setText, ZERO, colour, formatNumber, floatsOf, isPageKey, WORDS, frame } from "./view.js";

const HEADS = ["rank", "layers", "class", "offset", "capacity", "", "used/held", ""];
const TIPS = {
  rewind: "Stand at the start of an earlier pass again, in the run that is stepped",
  fork: "A second run from here on, which goes its own way",
  pending: "Tokens of this run whose keys and values these layers have not written yet",
  offset: "Tokens that have gone through it", capacity: "Positions that fit before it grows or turns", "used/held": "Bytes in use, and bytes that are held",
};

/** @param {{model: import("./view.js").Model, el: HTMLElement}} context @returns {() => void} */
function render(context) {
  const view = frame(context, "kv", "KV cache");
  const { signal } = view;
  /** @type {any} */
  let state = null;
  let norms = new Float32Array();
  let logical = true;
  let at = { head: 0, place: 0 };

  const headline = h("div.mk-headline", { role: "alert", hidden: true });
  const head = h("tr", {}, ...HEADS.map((name) => h("th", { scope: "col", title: TIPS[name] }, name)));
  const rows = h("tbody");
  const count = /** @type {HTMLInputElement} */ (h("input.mk-count", { type: "number", min: 1, value: 1, "aria-label": "Tokens to cut off or to go back" }));
  const trim = view.button("Trim", { key: "t", title: "Cut the last tokens off every layer on every rank; nothing is computed" }, () => cut());
  const refresh = view.button("↻", { key: "r", icon: true, label: "Refresh", title: "Look again (r)" }, () => view.ask("refresh"));
  const rewind = view.button("Rewind", { key: "w", title: TIPS.rewind }, () => back());
  const fork = view.button("Fork", { key: "f", title: TIPS.fork }, () => split());
  const pause = view.button("Pause", { key: "p", title: "Let the run stand still after a token or a chunk, and look at what it holds" }, () => view.ask("pause"));
  const resume = view.button("Go on", { key: "p", title: "Let the run go on" }, () => view.ask("resume"));
  view.buttons.append(h("span.mv-set", {}, pause, resume), h("span.mv-set", {}, count, h("span.mk-unit", { "aria-hidden": true }, "tokens"), trim, rewind, fork), refresh);
  const cost = h("div.mk-cost", { role: "status", "aria-live": "polite" });
  const names = h("span.mk-names");
  const order = view.button("", { key: "o", title: "A ring overwrites its oldest positions: as they follow each other, or as they lie in memory" }, () => turn());
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas.mk-canvas", { role: "img", tabindex: 0 }));
  const readout = h("div.mk-readout.mv-mono", { role: "status", "aria-live": "polite" });
  const legend = h("div.mv-legend");
  const norm = h("div.mv-row.mk-norms", { hidden: true }, h("div.mk-bar-top", {}, names, order), canvas, h("div.mk-below", {}, readout, legend));
  view.body.append(cost, headline, h("div.mv-row.mk-scroll", {}, h("table.mk-table", {}, h("thead", {}, head), rows)), norm);

  /** @param {any} next */
  function draw(next) {
    state = next;
    view.head({ title: state.model, note: state.note });
    setText(view.note, "KV cache");
    view.note.title = WORDS.kv;
    view.subtitle.title = `${state.note} · ${WORDS.phases}`;
    headline.hidden = !state.headline;
    setText(headline, state.headline);
    setText(view.sentence, state.sentence);
    const focus = rows.contains(document.activeElement) ? document.activeElement?.textContent : null;
    rows.replaceChildren(...state.rows.map(row));
    if (focus) /** @type {HTMLElement|undefined} */ ([...rows.querySelectorAll("button")].find((node) => node.textContent === focus))?.focus();
    trim.setAttribute("aria-disabled", String(!state.trim.most));
    trim.setAttribute("title", state.trim.why || "Cut the last tokens off every layer on every rank; nothing is computed");
    count.max = String(Math.max(state.trim.most, 1));
    for (const [node, tip] of /** @type {[HTMLElement, string][]} */ ([[rewind, TIPS.rewind], [fork, TIPS.fork]])) {
      node.setAttribute("aria-disabled", String(!state.rewind.can));
      node.setAttribute("title", state.rewind.why || tip);
    }
    view.pill.hidden = !state.run.status;
    setText(view.pill, state.run.status);
    view.pill.className = `mv-pill ${state.run.status === "paused" ? "stopped" : state.run.status}`;
    const focused = document.activeElement;
    pause.hidden = !state.run.pause;
    resume.hidden = !state.run.resume;
    if (/** @type {HTMLElement} */ (focused)?.hidden && (focused === pause || focused === resume)) view.root.focus();
    drawNorms();
    drawCost();
  }

  /** @param {any} one */
  function row(one) {
    const go = one.opens ? h("button.mk-go", { type: "button", title: `Show the norms of layer ${one.layer}` }, one.layers) : one.layers;
    if (one.opens) go.addEventListener("click", () => choose(one.layer), { signal });
    const cells = [String(one.rank), go, one.class, one.offset, one.room, bar(one), one.size, one.detail];
    const tips = { 7: one.detail.includes("pending") ? TIPS.pending : null };
    return h(`tr${one.layer === state.chosen.layer ? ".chosen" : ""}`, {}, ...cells.map((cell, i) => h("td", { title: tips[i] }, cell)));
  }

  /** Kept, written, stale and free slots, and where a ring writes next. @param {any} one */
  function bar(one) {
    if (!one.capacity) return "";
    const share = (/** @type {number} */ n) => `${((100 * n) / one.capacity).toFixed(2)}%`;
    const kept = Math.min(one.kept, one.filled);
    const words = [`${one.filled} of ${one.capacity} slots written`, kept ? `the first ${kept} are kept for ever` : "",
      one.stale ? `${one.stale} hold what was cut off` : "", one.ring_at >= 0 ? `the ring writes slot ${one.ring_at % one.capacity} next` : ""].filter(Boolean).join("; ");
    const part = (/** @type {string} */ name, /** @type {number} */ n) => (n ? h(`i.${name}`, { style: `width:${share(n)}` }) : null);
    return h("span.mk-bar", { role: "img", "aria-label": words, title: words }, part("kept", kept), part("written", one.filled - kept), part("stale", one.stale),
      one.ring_at >= 0 ? h("i.next", { style: `left:${share(one.ring_at % one.capacity)}` }) : null);
  }

  const choose = (/** @type {number} */ layer, buffer = state.chosen.buffer || "keys") => view.ask("choose", { layer, buffer });

  function cut() {
    if (state.trim.most) view.ask("trim", { count: Number(count.value) || 0 });
  }

  function back() {
    if (state.rewind.can) view.ask("rewind", { count: Number(count.value) || 0 });
  }

  function split() {
    if (state.rewind.can) view.ask("fork");
  }

  /** What each of them would cost, before it is done; asked again only when it can be another. */
  let told = "";
  async function drawCost() {
    const about = JSON.stringify([count.value, state.trim, state.rewind, state.run, state.note]);
    if (about === told) return;
    told = about;
    if (state.run.status === "running" || (!state.trim.most && !state.rewind.can)) return setText(cost, "");
    const found = await view.ask("cost", { count: Number(count.value) || 0 });
    if (!found || about !== told) return;
    const { trim: a, rewind: b, fork: c } = found.content;
    cost.replaceChildren(...[a, b, c].filter(Boolean).map((text) => h("div", {}, text)));
  }
  count.addEventListener("input", () => drawCost(), { signal });

  function turn() {
    logical = !logical;
    drawNorms();
  }

  /** The columns in the order in which they are drawn. */
  function columns() {
    const found = state.chosen.positions.map((/** @type {number} */ position, /** @type {number} */ slot) => ({ position, slot }));
    return logical ? found.sort((/** @type {any} */ a, /** @type {any} */ b) => a.position - b.position) : found;
  }

  function drawNorms() {
    const { chosen } = state;
    const packed = context.model.get("norms");
    norm.hidden = !chosen.heads || !packed || packed.byteLength !== 4 * chosen.heads * chosen.positions.length;
    if (norm.hidden) return;
    norms = floatsOf(packed);
    names.replaceChildren(h("b", {}, `layer ${chosen.layer}`), ...chosen.names.map((/** @type {string} */ name) => {
      const node = view.button(name, { title: `Norms of the ${name}` }, () => choose(chosen.layer, name));
      node.setAttribute("aria-pressed", String(name === chosen.buffer));
      return node;
    }));
    order.hidden = !chosen.ring;
    setText(/** @type {any} */ (order.firstChild), logical ? "logical order" : "order in memory");
    at = { head: Math.min(at.head, chosen.heads - 1), place: Math.min(at.place, chosen.positions.length - 1) };
    const wide = columns();
    canvas.width = Math.max(1, wide.length);
    canvas.height = chosen.heads;
    canvas.style.height = `${Math.max(40, Math.min(chosen.heads * 18, 220))}px`;
    const finite = norms.filter(Number.isFinite);
    const most = finite.reduce((a, b) => Math.max(a, b), 0);
    const least = finite.reduce((a, b) => Math.min(a, b), most);
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const image = pen.createImageData(canvas.width, canvas.height);
    for (let r = 0; r < chosen.heads; r++) {
      wide.forEach((/** @type {any} */ one, /** @type {number} */ c) => {
        const value = norms[r * wide.length + one.slot];
        const index = Number.isFinite(value) ? ZERO + Math.round((ZERO * (value - least * 0.9)) / (most - least * 0.9 || 1)) : 255;
        image.data.set(colour(index, c, r), 4 * (r * wide.length + c));
      });
    }
    pen.putImageData(image, 0, 0);
    canvas.setAttribute("aria-label", `Norms of the ${chosen.buffer} of layer ${chosen.layer}: ${chosen.heads} heads by ${wide.length} positions, the stronger the longer`);
    legend.replaceChildren(h("span", {}, `${formatNumber(least)} to ${formatNumber(most)}`));
    drawReadout();
  }

  function drawReadout() {
    const one = columns()[at.place];
    if (!one) return setText(readout, "");
    const slot = state.chosen.ring ? ` (slot ${one.slot})` : "";
    setText(readout, `head ${at.head} · position ${one.position}${slot}: ${formatNumber(norms[at.head * state.chosen.positions.length + one.slot])}`);
  }

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const cell = (/** @type {number} */ share, /** @type {number} */ n) => Math.max(0, Math.min(n - 1, Math.floor(share * n)));
    at = { head: cell((event.clientY - box.top) / box.height, state.chosen.heads), place: cell((event.clientX - box.left) / box.width, state.chosen.positions.length) };
    drawReadout();
  }, { signal });
  canvas.addEventListener("click", () => view.pick({ layer: state.chosen.layer, head: at.head, token: columns()[at.place].position }), { signal });

  view.root.addEventListener("keydown", (event) => {
    if (isPageKey(event) || !state || /** @type {HTMLElement} */ (event.target).tagName === "INPUT") return;
    const [down, across] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
    if ((down || across) && event.target === canvas) {
      at = { head: Math.max(0, Math.min(state.chosen.heads - 1, at.head + down)), place: Math.max(0, Math.min(state.chosen.positions.length - 1, at.place + across)) };
      drawReadout();
    } else if (event.key === "t") cut();
    else if (event.key === "w") back();
    else if (event.key === "f") split();
    else if (event.key === "p" && state.run.pause) view.ask("pause");
    else if (event.key === "p" && state.run.resume) view.ask("resume");
    else if (event.key === "r") view.ask("refresh");
    else if (event.key === "o" && !order.hidden) turn();
    else return;
    event.preventDefault();
  }, { signal });

  view.onState(draw, ["norms"]);
  return view.end;
}

export default { render };
