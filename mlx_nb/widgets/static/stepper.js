/**
 * The stepper's view. Draws the `StepperState` of mlx_nb/shared/view_state.py, and sends what the user asks for:
 *
 *   to Python:    {kind: "stride", stride, id}   {kind: "interrupt"}   {kind: "ask", what: "breakpoint", id, details}
 *   from Python:  {kind: "answered", id}         and the traits state, preview, busy, can_interrupt
 *
 * mlx_nb/widgets/stepper_static.py draws the same screen without a script; a test compares the two.
 *
 * @typedef {{id: number, text: string, template: boolean, in_pass: boolean, generated: boolean, more?: number}} Token
 * @typedef {{layer: number, state: string, kv: string, breakpoint?: number, within?: boolean}} Layer
 * @typedef {{rank: number, host: string, holds: string, status: string, note: string,
 *            embed: string|null, head: string|null, layers: Layer[]}} Lane
 * @typedef {{source: number, text: string, state: string}} Wire
 * @typedef {{title: string, file: string, breadcrumb: string[],
 *            lines: {number: number, text: string, current: boolean}[]}} Source
 * @typedef {{sequence: number, model: string, prompt: string, status: string, where: string, tokens: Token[],
 *            pass_text: string, lanes: Lane[], wires: Wire[], site: string, suffix: string, site_note: string,
 *            arguments: {name: string, shape: string, dtype: string, size: string}[],
 *            numbers: {name: string, value: string}[], preview_label: string, preview_limit: string, preview_note: string,
 *            source: Source|null, sentence: string,
 *            modules: {path: string, class_name: string, depth: number, state: string, shape?: string, site?: string,
 *                      breakpoint?: number}[],
 *            kv: {rank: number, layers: string, class_name: string, offset: string, state: string}[],
 *            breakpoints: {number: number, site: string, condition: string, hits: number, enabled: boolean}[],
 *            text: string, error: string}} State
 */

import { h, lineTo, ownKeys, ZERO, RESERVED, strength, colour, WORDS } from "./view.js";
import { foldedDetails } from "./stepper_details.js";

/** The strides: name, label, key, tooltip; in groups as pdb's users know them. */
const STRIDES = [
  [
    ["into", "Into", "s", "To the next entry, exit, send or receive"],
    ["over", "Over", "n", "To this module's exit"],
    ["out", "Out", "r", "To the parent's exit"],
  ],
  [
    ["layer", "Layer", "l", "To the next layer's output"],
    ["rank", "Rank", "k", "To where the next rank receives"],
    ["token", "Token", "t", "To the start of the next pass"],
  ],
  [
    ["back", "Back", "b", "Undo the last stride: to where it began"],
    ["run", "Run", "c", "To the end"],
  ],
];

/** What ends something has no key of its own: a slip would cost the run. */
const ENDINGS = [
  ["restart", "↻", "Restart", "The same prompt from the start"],
  ["close", "✕", "Close", "End this run"],
];

const STOP_KEY = "i";

/** Short strides take milliseconds: the buttons only change their looks when one takes longer than this. */
const BUSY_LOOKS_AFTER_MS = 250;
const NO_ANSWER_AFTER_S = 10;

const TOKENS_PER_CLICK = 500;

// ------------------------------------------------------------------------------------------------------ tokens

/**
 * Where the strip folds: long runs of one kind keep their ends; a strip of which a part was not sent folds once,
 * around that part. The static picture has the same rule.
 * @param {Token[]} tokens
 * @returns {{from: number, to: number}[]} half-open ranges to hide
 */
function folds(tokens) {
  const unsent = tokens.findIndex((token) => token.more);
  if (unsent >= 0) return [{ from: Math.min(24, unsent), to: Math.max(unsent + 1, tokens.length - 24) }];
  const found = [];
  for (let from = 0; from < tokens.length; ) {
    const { template, generated } = tokens[from];
    let to = from;
    while (to < tokens.length && tokens[to].template === template && tokens[to].generated === generated) to++;
    const [most, head, tail] = template ? [4, 2, 0] : [64, 24, 24];
    if (to - from > most) found.push({ from: from + head, to: to - tail });
    from = to;
  }
  return found;
}

/** How many tokens some cells stand for. @param {Token[]} tokens */
const countTokens = (tokens) => tokens.reduce((sum, token) => sum + (token.more || 1), 0);

/** @param {Token} token @param {number} index */
function tokenChip(token, index) {
  const kind = token.template ? "t" : token.generated ? "g" : "p";
  const word = { t: "template", g: "generated", p: "prompt" }[kind];
  const node = h(`span.ms-token.${kind}`, { title: `token ${index} · id ${token.id} · ${word}` }, token.text);
  if (token.in_pass) node.classList.add("in");
  return node;
}

/**
 * The token strip. It remembers how many tokens of each fold the user has opened.
 * @param {AbortSignal} signal
 */
function tokenStrip(signal) {
  const node = h("div.mv-row.ms-tokens.mv-mono", { role: "group", "aria-label": "Tokens" });
  /** @type {Map<number, number>} */
  const opened = new Map();
  /** @type {State} */
  let latest;

  /** @param {State} state */
  function draw(state) {
    latest = state;
    /** @type {Node[]} */
    const chips = [];
    const hidden = folds(state.tokens);
    let index = 0; // into state.tokens
    let position = 0; // in the sequence: a cell with `more` stands for several
    const show = () => {
      chips.push(tokenChip(state.tokens[index++], position));
      position += 1;
    };
    for (const fold of hidden) {
      while (index < fold.from) show();
      const open = opened.get(fold.from) || 0;
      // What was not sent stays hidden, and what is open lies on both sides of it.
      const unsent = state.tokens.slice(fold.from, fold.to).findIndex((token) => token.more);
      const before = Math.min(open, unsent < 0 ? fold.to - fold.from : unsent);
      const after = unsent < 0 ? 0 : Math.min(open - before, fold.to - fold.from - unsent - 1);
      while (index < fold.from + before) show();
      const rest = state.tokens.slice(index, fold.to - after);
      const all = rest.length === (unsent < 0 ? 0 : 1);
      const count = countTokens(rest);
      const [first, last] = [position, position + count - 1];
      const which = rest.length ? `tokens ${first} to ${last}` : "";
      const title = !all ? `Show ${which}` :
        rest.length ? `The text of ${which} is not sent to this page: %mlx_show tokens lists a prompt's. Press to fold the rest again` :
        "Fold these tokens again";
      const text = rest.length ? `… ${count.toLocaleString("en")} more` : "fold";
      const chip = h("button.ms-more", { type: "button", "aria-expanded": open > 0, title }, text);
      if (rest.some((token) => token.in_pass)) chip.classList.add("in");
      chip.addEventListener("click", () => {
        opened.set(fold.from, all ? 0 : open + TOKENS_PER_CLICK);
        draw(latest);
      }, { signal });
      chips.push(chip);
      position += count;
      index = fold.to - after;
      while (index < fold.to) show();
    }
    while (index < state.tokens.length) show();
    if (!["finished", "failed", "closed", "ended"].includes(state.status)) chips.push(h("span.ms-token.next", {}, "next"));
    if (state.pass_text) chips.push(h("span.ms-pass", {}, state.pass_text));
    const refocus = node.contains(document.activeElement);
    node.replaceChildren(...chips);
    if (refocus) /** @type {HTMLElement|null} */ (node.querySelector("button"))?.focus({ preventScroll: true });
  }
  return { node, draw };
}

// ------------------------------------------------------------------------------------------------------- lanes

/**
 * Layers as cells; a lane of many is drawn in groups. The static picture has the same rule.
 * @param {Layer[]} layers
 * @returns {{first: number, last: number, state: string, kv: string}[]}
 */
function group(layers) {
  const size = layers.length > 48 ? Math.ceil(layers.length / 40) : 1;
  const groups = [];
  for (let i = 0; i < layers.length; i += size) {
    const part = layers.slice(i, i + size);
    const states = part.map((layer) => layer.state);
    const kvs = new Set(part.map((layer) => layer.kv));
    groups.push({
      first: part[0].layer,
      last: part[part.length - 1].layer,
      state: states.includes("current") ? "current" : states.every((s) => s === states[0]) ? states[0] : "part",
      kv: kvs.size === 1 ? part[0].kv : "part",
    });
  }
  return groups;
}

/** @param {number} first @param {number} last */
const layerText = (first, last) => (first === last ? `layer ${first}` : `layers ${first}–${last}`);

/**
 * The lane in words: what a screen reader says instead of the cells.
 * @param {Lane} lane
 */
function describeLane(lane) {
  const parts = lane.embed ? [`embedding ${lane.embed}`] : [];
  for (let i = 0; i < lane.layers.length; ) {
    const { layer, state, kv } = lane.layers[i];
    let j = i;
    while (j < lane.layers.length && lane.layers[j].state === state && lane.layers[j].kv === kv) j++;
    const cache = kv === "none" ? "" : `, KV ${kv}`;
    parts.push(`${layerText(layer, lane.layers[j - 1].layer)} ${state}${cache}`);
    i = j;
  }
  if (lane.head) parts.push(`head ${lane.head}`);
  return parts.join("; ");
}

const KV_WORDS = "written: tokens whose keys and values every layer of this rank holds in its KV cache; " +
  "pending: tokens of this pass that it has not written yet";

/** What the five numbers mean. @type {Record<string, string>} */
const NUMBER_WORDS = {
  min: "the least finite element",
  mean: "the mean of the finite elements",
  rms: WORDS.rms,
  max: "the greatest finite element",
  NaN: "elements that are not a number: 0 in a healthy pass",
  Inf: "infinite elements: an overflow, or a mask",
};

/** @param {Lane} lane */
function laneRow(lane) {
  const groups = group(lane.layers);
  const cells = h("div.ms-cells", { role: "img", "aria-label": describeLane(lane) });
  if (groups.length > 24) cells.classList.add(groups.length > 36 ? "tight" : "snug");
  if (lane.embed) cells.append(h(`span.ms-cell.ms-end.${lane.embed}`, { title: `embedding: ${lane.embed}` }, "emb"));
  for (const { first, last, state, kv } of groups) {
    const title = `${layerText(first, last)}: ${state}${kv === "none" ? "" : ` · KV ${kv}`}`;
    const number = state === "current" && groups.length <= 18 && first === last ? String(first) : "";
    const held = lane.layers.filter(({ layer }) => layer >= first && layer <= last);
    const known = held.find((layer) => layer.breakpoint)?.breakpoint || 0;
    const mark = known ? ".brk" : held.some((layer) => layer.within) ? ".brk-in" : "";
    cells.append(h(`span.ms-cell.${state}.kv-${kv}${mark}`, { title, "data-layer": first, "data-breakpoint": known }, number));
  }
  if (lane.head) cells.append(h(`span.ms-cell.ms-end.${lane.head}`, { title: `head: ${lane.head}` }, "head"));
  return h(
    "div.ms-lane",
    { role: "listitem" },
    h("div.ms-name", {},
      h("div.ms-who", { title: lane.host }, h("b", {}, `rank ${lane.rank}`), " ", h("span.ms-host", {}, lane.host)),
      h("div.ms-holds", { title: WORDS.ends }, lane.holds)),
    cells,
    h(`div.ms-status.${lane.status}`, {}, h("span", {}, lane.status), h("div", { title: lane.note && KV_WORDS }, lane.note)),
  );
}

/** @param {Wire} wire @param {Lane} from @param {Lane} to */
function wireRow(wire, from, to) {
  const label = `From rank ${wire.source} to rank ${wire.source + 1}: ${wire.text || "nothing yet"}`;
  const track = h("div.ms-track", {}, h("i.ms-arrow", {}, "↓"), wire.text ? h("span.ms-load.mv-mono", {}, wire.text) : null);
  for (const [name, lane] of /** @type {[string, Lane][]} */ ([["--ms-from", from], ["--ms-to", to]])) {
    track.style.setProperty(name, String(group(lane.layers).length || 1));
  }
  return h(`div.ms-wire.${wire.state}`, { role: "listitem", "aria-label": label }, track);
}

/**
 * The state as long as a stride is under way: nobody knows where the ranks are, only that they are not there any more.
 * @param {State} state @returns {State}
 */
function underWayState(state) {
  if (state.status === "running") return state; // Python says how far they have come
  const pending = (/** @type {string|null} */ edge) => edge && "pending";
  const lanes = state.lanes.map((lane) => ({
    ...lane, status: "running", note: "", embed: pending(lane.embed), head: pending(lane.head),
    layers: lane.layers.map((cell) => ({ ...cell, state: "pending", kv: "none" })),
  }));
  return { ...state, lanes, wires: state.wires.map((wire) => ({ ...wire, text: "", state: "idle" })), where: "", sentence: "Running." };
}

/** @param {State} state */
function laneRows(state) {
  return state.lanes.flatMap((lane, i) => {
    const wire = state.wires.find((w) => w.source === lane.rank);
    const next = state.lanes[i + 1];
    return wire && next ? [laneRow(lane), wireRow(wire, lane, next)] : [laneRow(lane)];
  });
}

// ------------------------------------------------------------------------------------------------ value and code

/** @param {State} state */
function valuePane(state) {
  const rows = state.arguments.map((row) => {
    const name = h("th", { scope: "row", title: row.name }, row.name);
    return row.dtype || row.size
      ? h("tr", {}, name, h("td", {}, row.shape), h("td", {}, row.dtype), h("td", {}, row.size))
      : h("tr", {}, name, h("td", { colspan: 3, title: row.shape }, h("span.ms-repr", {}, row.shape)));
  });
  const alarm = (/** @type {{name: string, value: string}} */ cell) =>
    /^(nan|inf)$/i.test(cell.name) ? cell.value !== "0" : /nan|inf/i.test(cell.value);
  const numbers = h(
    "table.mv-numbers",
    {},
    h("thead", {}, h("tr", {}, ...state.numbers.map((cell) => h("th", { scope: "col", title: NUMBER_WORDS[cell.name] || "" }, cell.name)))),
    h("tbody", {}, h("tr", {}, ...state.numbers.map((cell) => h(alarm(cell) ? "td.alarm" : "td", {}, cell.value)))),
  );
  return [
    h("div.mv-site.mv-mono", { role: "heading", "aria-level": 3 }, state.site, h("span", {}, state.suffix)),
    state.site_note ? h("div.mv-note", {}, state.site_note) : null,
    rows.length ? h("table.ms-arguments.mv-mono", {}, h("tbody", {}, ...rows)) : null,
    state.numbers.length ? numbers : null,
  ];
}

/** @param {Source|null} source */
function codePane(source) {
  if (!source) return [h("div.mv-note", {}, "No line of the model's own code here.")];
  const indent = Math.min(...source.lines.filter((line) => line.text.trim()).map((line) => line.text.search(/\S/)));
  const lines = source.lines.map((line) =>
    h(line.current ? "span.ms-line.current" : "span.ms-line", { "aria-current": line.current && "location" },
      h("span.ms-number", {}, String(line.number)), " ", h("span.ms-code", {}, line.text.slice(indent)), "\n"));
  const crumbs = source.breadcrumb.flatMap((name, i) => (i ? [" › ", h("span", {}, name)] : [h("span", {}, name)]));
  return [
    h("div.mv-title", { role: "heading", "aria-level": 3 }, source.title, " ", h("span", {}, source.file)),
    h("div.ms-crumbs.mv-mono", {}, ...crumbs),
    h("pre.ms-source.mv-mono", { role: "group", "aria-label": `Source lines of ${source.title}`, tabindex: 0 },
      h("code", {}, ...lines)),
  ];
}

// ----------------------------------------------------------------------------------------------------- preview

/** @typedef {{width: number, height: number, cells: Uint8Array}} Preview */

/**
 * Draw the packed preview, one device pixel at a time. Where there are fewer pixels than cells the
 * strongest cell wins, so that an outlier is never dropped.
 * @param {HTMLCanvasElement} canvas
 * @param {Preview} preview
 */
function paint(canvas, { width, height, cells }) {
  const ratio = window.devicePixelRatio || 1;
  const W = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio)));
  const H = (canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio)));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const picked = new Uint8Array(W * H).fill(ZERO);
  for (let r = 0; r < height; r++) {
    const top = Math.floor((r * H) / height);
    const bottom = Math.max(top + 1, Math.floor(((r + 1) * H) / height));
    for (let c = 0; c < width; c++) {
      const left = Math.floor((c * W) / width);
      const right = Math.max(left + 1, Math.floor(((c + 1) * W) / width));
      const index = cells[r * width + c];
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) {
          if (strength(index) >= strength(picked[y * W + x])) picked[y * W + x] = index;
        }
      }
    }
  }
  const image = context.createImageData(W, H);
  for (let i = 0; i < picked.length; i++) image.data.set(colour(picked[i], i % W, Math.floor(i / W)), i * 4);
  context.putImageData(image, 0, 0);
  label(context, { width, height, cells });
}

/**
 * Letters, where a reserved cell has room for them.
 * @param {CanvasRenderingContext2D} context
 * @param {Preview} preview
 */
function label(context, { width, height, cells }) {
  const [w, tall] = [context.canvas.width / width, context.canvas.height / height];
  if (w < 18 || tall < 12) return;
  context.font = `bold ${Math.min(tall, w / 2) * 0.7}px sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  cells.forEach((index, i) => {
    if (!(index in RESERVED)) return;
    const [x, y] = [((i % width) + 0.5) * w, (Math.floor(i / width) + 0.5) * tall];
    context.lineWidth = 4;
    context.strokeStyle = "#fff";
    context.strokeText(RESERVED[index].mark, x, y);
    context.fillStyle = "#000";
    context.fillText(RESERVED[index].mark, x, y);
  });
}

/** The picture with its legend. It is redrawn when its size changes. */
function previewFigure() {
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas.ms-canvas", { role: "img" }));
  const legend = h("figcaption.mv-legend");
  const node = h("figure.ms-preview", {}, canvas, legend);
  /** @type {Preview|null} */
  let preview = null;
  const repaint = () => preview && canvas.clientWidth && paint(canvas, preview);
  const observer = new ResizeObserver(repaint);
  observer.observe(canvas);

  /** @param {State} state @param {DataView|null} packed */
  function draw(state, packed) {
    node.hidden = !packed || packed.byteLength <= 8;
    if (node.hidden || !packed) return void (preview = null);
    const [width, height] = [packed.getUint32(0, true), packed.getUint32(4, true)];
    preview = { width, height, cells: new Uint8Array(packed.buffer, packed.byteOffset + 8, width * height) };
    canvas.setAttribute("aria-label", state.preview_label || "Preview of the value");
    canvas.style.height = `${previewHeight(height)}px`;
    const found = Object.keys(RESERVED).map(Number).filter((index) => preview?.cells.includes(index));
    const scale = [h("span", {}, `−${state.preview_limit}`), " ", h("i.mv-scale"), " ", h("span", {}, `+${state.preview_limit}`)];
    legend.replaceChildren(
      ...(state.preview_limit ? scale : []),
      ...(state.preview_note ? [" ", h("span.mv-clipped", { title: WORDS.clipped }, state.preview_note)] : []),
      ...found.flatMap((index) =>
        [" ", h("span.mv-key", {}, h(`i.mv-hatch.h${index}`), " ", h("span", {}, RESERVED[index].name))]),
    );
    repaint();
  }
  return { node, draw, stop: () => observer.disconnect() };
}

/** As in png.py: a row is 2 to 16 pixels high, and the picture no lower than a line of text. @param {number} rows */
const previewHeight = (rows) => Math.max(16, Math.min(rows * 16, 64), Math.min(rows * 2, 128));

// ---------------------------------------------------------------------------------------------------------- view

/** @param {{model: Model, el: HTMLElement}} context @returns {() => void} */
function render({ model, el }) {
  const listening = new AbortController();
  const { signal } = listening;

  // Python answers by id. The ids of two views of one model must not meet.
  let id = Math.floor(Math.random() * 2 ** 40);
  /** @type {{id: number, stride: string}|null} */
  let pending = null;
  let drawn = -1;
  let busySince = 0;
  /** Whether the place is drawn as that of a stride under way; null for not yet. @type {boolean|null} */
  let shownPlace = null;
  /** @type {ReturnType<typeof setInterval>|undefined} */
  let clock;

  // -- the skeleton, made once: buttons keep their focus, details stay open
  const buttons = new Map();
  /** @param {string} name @param {HTMLElement} node */
  const button = (name, node) => (buttons.set(name, node), node);
  const strides = STRIDES.map((set) => h("span.mv-set", {}, ...set.map(([name, text, key, title]) =>
    button(name, h(`button.mv-button`, { type: "button", title, "aria-keyshortcuts": key }, text, " ", h("kbd", { "aria-hidden": true }, key))))));
  const stop = button("interrupt", h("button.mv-button.mv-stop",
    { type: "button", title: "Stop the stride that is under way", "aria-keyshortcuts": STOP_KEY, hidden: true },
    "Stop ", h("kbd", { "aria-hidden": true }, STOP_KEY)));
  strides[strides.length - 1].append(stop);
  const endings = h("span.mv-set", {}, ...ENDINGS.map(([name, text, label, title]) =>
    button(name, h("button.mv-button.mv-icon", { type: "button", title: `${label}: ${title}`, "aria-label": label }, text))));
  const bar = h("div.mv-buttons", { role: "toolbar", "aria-label": "Strides" }, ...strides, endings);

  const name = h("b.mv-model");
  const where = h("span.mv-where");
  const pill = h("span.mv-pill");
  const prompt = h("div.mv-prompt");
  const header = h("div.mv-header", {}, h("div.mv-what", {}, h("div.mv-top", {}, name, " ", where, " ", pill), prompt), bar);
  const tokens = tokenStrip(signal);
  const lanes = h("div.mv-row.ms-lanes", { role: "list", "aria-label": "Ranks" });
  const value = h("div.ms-value");
  const preview = previewFigure();
  const code = h("div.ms-pane.ms-right");
  const panes = h("div.ms-panes", {}, h("div.ms-pane", {}, value, preview.node), code);
  const sentence = h("div.mv-sentence", { role: "status", "aria-live": "polite" });
  const details = foldedDetails(setBreakpoint, signal);
  const error = h("div.mv-error.mv-mono", { role: "alert", hidden: true });
  const root = h("div.mlxnb-view.mlxnb-stepper", { role: "group", tabindex: 0, "aria-label": "Stepper" },
    header, tokens.node, lanes, panes, sentence, details.node, error);

  // -- from Python

  function drawState() {
    /** @type {State} */
    const state = model.get("state");
    if (!state || state.sequence === undefined || state.sequence < drawn) return;
    drawn = state.sequence;
    name.textContent = name.title = state.model;
    prompt.textContent = state.prompt ? `“${state.prompt}”` : "";
    prompt.title = state.prompt;
    root.setAttribute("aria-label", `Stepper: ${state.model}`);
    tokens.draw(state);
    lanes.classList.toggle("dense", state.lanes.length > 4);
    value.replaceChildren(.../** @type {Node[]} */ (valuePane(state).filter(Boolean)));
    preview.draw(state, model.get("preview"));
    code.replaceChildren(...codePane(state.source));
    details.draw(state);
    error.hidden = !state.error;
    if (error.textContent !== state.error) error.textContent = state.error;
    shownPlace = null;
    drawBusy();
  }

  /** Where the ranks are, as far as that is known while a stride is `going`. */
  function drawPlace(/** @type {boolean} */ going) {
    if (shownPlace === going) return;
    shownPlace = going;
    const state = going ? underWayState(model.get("state")) : model.get("state");
    where.textContent = state.where;
    where.title = [state.where, WORDS.phases].filter(Boolean).join(" · ");
    lanes.replaceChildren(...laneRows(state));
    if (sentence.textContent !== state.sentence) sentence.textContent = state.sentence;
    root.classList.toggle("stale", going || state.status === "running");
  }

  const underWay = () => pending?.stride || model.get("busy") || "";

  function allowed(/** @type {string} */ stride) {
    const status = model.get("state")?.status;
    if (underWay()) return false;
    if (["back", "restart", "close"].includes(stride)) return status !== "running";
    return status === "ready" || status === "stopped";
  }

  /** Whether a stride may start shows at once; that one is under way shows when it takes a while. */
  function drawBusy() {
    const stride = underWay();
    if (stride && !busySince) {
      busySince = Date.now();
      clock = setInterval(drawBusy, BUSY_LOOKS_AFTER_MS);
    } else if (!stride) {
      busySince = 0;
      clearInterval(clock);
    }
    const waited = busySince ? Date.now() - busySince : 0;
    const looks = waited >= BUSY_LOOKS_AFTER_MS;
    const status = model.get("state")?.status || "ready";
    const text = looks ? (waited < 1000 ? "running" : `running ${Math.floor(waited / 1000)} s`) : status;
    pill.className = `mv-pill ${looks ? "running" : status}`;
    if (pill.textContent !== text) pill.textContent = text;
    root.classList.toggle("busy", looks);
    drawPlace(looks);
    root.setAttribute("aria-busy", String(Boolean(stride)));
    for (const [each, node] of buttons) {
      if (each === "interrupt") continue;
      // Not `disabled`: that would drop the focus, and the keys with it.
      node.setAttribute("aria-disabled", String(stride && !looks ? node.getAttribute("aria-disabled") === "true" : !allowed(each)));
      node.classList.toggle("going", looks && each === stride);
    }
    swap(stop, buttons.get("run"), looks && model.get("can_interrupt"));
    if (pending && !model.get("busy") && waited > NO_ANSWER_AFTER_S * 1000) {
      sentence.textContent = "No answer from the kernel yet: it may be busy with a cell, or gone.";
    }
  }

  /** Show one button in the place of another, and let it take over the focus. */
  function swap(/** @type {HTMLElement} */ one, /** @type {HTMLElement} */ other, /** @type {boolean} */ on) {
    if (one.hidden === !on) return;
    const [shown, gone] = on ? [one, other] : [other, one];
    const focus = document.activeElement === gone;
    shown.hidden = false;
    if (focus) shown.focus({ preventScroll: true });
    gone.hidden = true;
  }

  /**
   * A new breakpoint at a `site`, or what becomes of the one with a `number`.
   * @param {{site?: string, when?: string, number?: number, enabled?: boolean}} wish
   */
  function setBreakpoint(wish) {
    line.send({ kind: "ask", what: "breakpoint", id: ++id, details: wish });
  }

  lanes.addEventListener("click", (event) => {
    const cell = /** @type {HTMLElement|null} */ (/** @type {Element} */ (event.target).closest("[data-layer]"));
    if (!cell) return;
    const known = Number(cell.dataset.breakpoint);
    setBreakpoint(known ? { number: known } : { site: `layers.${cell.dataset.layer}.input` });
  }, { signal });

  /** @param {{kind: string, id: number}} message */
  function onMessage(message) {
    if (message.kind === "answered" && pending?.id === message.id) {
      pending = null;
      drawBusy();
    }
  }

  // State and preview come in one message, but each has its event: draw once, when both are there.
  let queued = false;
  function queueDraw() {
    if (queued) return;
    queued = true;
    queueMicrotask(() => {
      queued = false;
      if (!signal.aborted) drawState();
    });
  }

  // -- from the user

  function ask(/** @type {string} */ stride) {
    if (!allowed(stride)) return;
    pending = { id: ++id, stride };
    if (!line.send({ kind: "stride", stride, id })) pending = null;
    drawBusy();
  }

  function interrupt() {
    if (underWay() && model.get("can_interrupt")) line.send({ kind: "interrupt" });
  }

  for (const [each, node] of buttons) {
    node.addEventListener("click", () => (each === "interrupt" ? interrupt() : ask(each)), { signal });
  }

  const keys = new Map(STRIDES.flat().map(([stride, , key]) => [key, stride]));
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // Ctrl+S saves the notebook from here too
    // JupyterLab's command mode listens on the document: there `x` would cut the cell, and Enter edit it.
    if (event.key.length === 1 || event.key === "Enter") event.stopPropagation();
    if (event.repeat || event.shiftKey || event.target instanceof HTMLInputElement) return;
    if (keys.has(event.key)) ask(/** @type {string} */ (keys.get(event.key)));
    else if (event.key === STOP_KEY) interrupt();
    else return;
    event.preventDefault();
  }, { signal });

  const events = [["change:state", queueDraw], ["change:preview", queueDraw], ["change:busy", drawBusy],
    ["change:can_interrupt", drawBusy], ["msg:custom", onMessage]];
  for (const [event, callback] of events) model.on(/** @type {string} */ (event), /** @type {Function} */ (callback));

  el.append(root);
  const line = lineTo(model, root);
  ownKeys(root, signal);
  drawState();

  return () => {
    listening.abort();
    line.end();
    clearInterval(clock);
    preview.stop();
    for (const [event, callback] of events) model.off(/** @type {string} */ (event), /** @type {Function} */ (callback));
    root.remove();
  };
}

export default { render };
