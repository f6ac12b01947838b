/**
 * The view of a comparison: a row for each site, a bar for how far the two are apart there; a layer opens into its
 * modules, and a site shows the difference as a picture.
 *
 *   to Python:    ask("inside", {layer})   ask("gap", {site})
 *   from Python:  `state` is DiffState of mlx_nb/widgets/diff_state.py, the trait `gap` is packed as shared/preview.py does it
 *
 * @typedef {{site: string, rank: string, layer: number, opens: boolean, verdict: string, texts: string[], free: number,
 *            forced: number, allowed: number}} Row
 */

import { h, setText, colour, isPageKey, frame } from "./view.js";

const TIPS = {
  max: "The largest absolute difference of free runs", mean: "The mean absolute difference of free runs",
  relative: "The norm of the difference over the norm of the other's values, in free runs: errors add up",
  forced: "The same where each module was given what went into the other's: it answers for itself alone",
};

/** @param {{model: import("./view.js").Model, el: HTMLElement}} context @returns {() => void} */
function render(context) {
  const view = frame(context, "diff", "Diff");
  const { root, signal, body } = view;
  /** @type {any} */
  let state;
  /** Layers whose modules are shown. @type {Set<string>} */
  const open = new Set();
  /** @type {string|null} what was asked for, and has not come */
  let asked = null;
  let at = 0;

  const told = h("div.mv-row.md-told");
  const head = h("tr");
  const rows = h("tbody");
  const scroll = h("div.mv-row.md-scroll", {}, h("table.md-table.mv-numbers", {}, h("thead", {}, head), rows));
  const name = h("div.mv-title");
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas.md-gap", { role: "img" }));
  const words = h("div.mv-note");
  const picture = h("div.mv-row.md-picture", { hidden: true }, name, canvas, words);
  body.append(told, scroll, picture);

  function draw(/** @type {any} */ next) {
    state = next;
    asked = null;
    view.head(state);
    view.pill.hidden = !state.rows.length;
    view.pill.className = `mv-pill ${state.ok ? "finished" : "failed"}`;
    setText(view.pill, state.ok ? "the same" : "they differ");
    setText(view.note, "diff");
    setText(view.sentence, state.sentence);
    told.replaceChildren(...state.told.map((/** @type {string} */ line) => h("div", {}, line)));
    told.hidden = !state.told.length;
    head.replaceChildren(...["site", "rank", ...state.heads, "", ""].map((text) => h("th", { scope: "col", title: TIPS[/** @type {keyof TIPS} */ (text)] }, text)));
    drawRows();
    drawGap();
  }

  function drawRows() {
    const focus = rows.contains(document.activeElement) ? document.activeElement?.getAttribute("data-key") : null;
    /** @type {Set<string>} */
    const done = new Set();
    rows.replaceChildren(...state.rows.flatMap((/** @type {Row} */ one) => {
      const key = String(one.layer);
      const first = one.opens && !done.has(key) && one.site.endsWith(".output");
      if (first) done.add(key);
      const within = first && open.has(key) ? (state.inside[key] || []).map((/** @type {Row} */ each) => row(each, ".within", false)) : [];
      return [row(one, "", first), ...within];
    }));
    const nodes = /** @type {HTMLElement[]} */ ([...rows.querySelectorAll(".md-go")]);
    at = Math.min(at, Math.max(0, nodes.length - 1));
    nodes.forEach((node, place) => node.setAttribute("tabindex", place === at ? "0" : "-1"));
    if (focus) /** @type {HTMLElement|undefined} */ ([...rows.querySelectorAll("[data-key]")].find((node) => node.getAttribute("data-key") === focus))?.focus({ preventScroll: true });
  }

  /** @param {Row} one @param {string} kind @param {boolean} opens */
  function row(one, kind, opens) {
    const key = String(one.layer);
    const go = h("button.md-go", { type: "button", title: "Show the difference there as a picture", "data-key": one.site, "aria-pressed": String(state.gap.site === one.site) }, one.site);
    go.addEventListener("click", () => look(one), { signal });
    const fold = opens ? h("button.md-fold", { type: "button", "aria-expanded": String(open.has(key)), "aria-label": `Modules of layer ${key}`, title: "Compare its modules one by one", "data-key": `fold ${key}` }, asked === key ? "…" : open.has(key) ? "▾" : "▸") : h("span.md-fold");
    if (opens) fold.addEventListener("click", () => turn(one), { signal });
    const share = (/** @type {number} */ n) => `${(100 * n).toFixed(1)}%`;
    const bar = h("span.md-bar", { "aria-hidden": true }, h("i.free", { style: `width:${share(one.free)}` }), h("i.allowed", { style: `left:${share(one.allowed)}` }),
      one.forced >= 0 ? h("i.forced", { style: `left:${share(one.forced)}` }) : null);
    return h(`tr${kind}${one.verdict ? ".differs" : ""}`, {}, h("th", { scope: "row" }, fold, go), ...[one.rank, ...one.texts].map((text) => h("td", {}, text)), h("td.md-bars", {}, bar), h("td.md-verdict", {}, one.verdict));
  }

  function drawGap() {
    const packed = context.model.get("gap");
    const { site, height, width } = state.gap;
    picture.hidden = !packed || !packed.byteLength || !height;
    if (picture.hidden) return;
    name.replaceChildren(h("span", {}, "difference at "), site);
    setText(words, `${state.gap.words} · blue: ${state.title} has less, orange: more`);
    canvas.width = width;
    canvas.height = height;
    canvas.style.height = `${Math.max(48, Math.min(height * 6, 260))}px`;
    canvas.setAttribute("aria-label", `Difference at ${site}: ${state.gap.words}`);
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const image = pen.createImageData(width, height);
    for (let i = 0; i < width * height; i++) image.data.set(colour(packed.getUint8(8 + i), i % width, Math.floor(i / width)), 4 * i);
    pen.putImageData(image, 0, 0);
  }

  // -- from the user

  async function turn(/** @type {Row} */ one) {
    const key = String(one.layer);
    if (open.has(key)) open.delete(key);
    else open.add(key);
    if (open.has(key) && !state.inside[key]) {
      asked = key;
      drawRows();
      if ((await view.ask("inside", { layer: one.layer })) === null) open.delete(key);
      asked = null;
    }
    if (!signal.aborted) drawRows();
  }

  function look(/** @type {Row} */ one) {
    view.ask("gap", { site: one.site });
    if (one.layer >= 0) view.pick({ layer: one.layer });
  }

  root.addEventListener("keydown", (event) => {
    const nodes = /** @type {HTMLElement[]} */ ([...rows.querySelectorAll(".md-go")]);
    const here = /** @type {HTMLElement} */ (event.target).closest("tr");
    if (isPageKey(event) || !here || !rows.contains(here)) return;
    const place = nodes.findIndex((node) => here.contains(node));
    const fold = /** @type {HTMLElement|null} */ (here.querySelector("button.md-fold"));
    const to = { ArrowUp: place - 1, ArrowDown: place + 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (to !== undefined) {
      at = Math.min(Math.max(to, 0), nodes.length - 1);
      nodes.forEach((node, each) => node.setAttribute("tabindex", each === at ? "0" : "-1"));
      nodes[at].focus();
    } else if (fold && { ArrowRight: "false", ArrowLeft: "true" }[event.key] === fold.getAttribute("aria-expanded")) fold.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, { signal });

  view.onState(draw, ["gap"]);
  return view.end;
}

export default { render };
