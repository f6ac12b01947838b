/**
 * What all views share: elements, colours, the frame, questions to Python and their answers.
 *
 * mlx_nb/widgets/assets.py puts this file in the place of a view's import, for the page loads a module from a Blob.
 * mlx_nb/widgets/view.py is the other half:
 *
 *   to Python:    {kind: "ask", what, id, details}      {kind: "place", place}
 *   from Python:  {kind: "answer", id, …} with buffers  and the traits state, place
 *
 * @typedef {{get(name: string): any, send(content: object): void,
 *            on(event: string, callback: Function): void, off(event: string, callback: Function): void}} Model
 * @typedef {{site?: string, rank?: number, layer?: number, token?: number, head?: number}} Place
 */

// ---------------------------------------------------------------------------------------------------- elements

/**
 * An element from ``tag.class.class``. Strings become text nodes, never markup.
 * @param {string} selector
 * @param {Object<string, any>} [attributes] null, undefined and false are left out
 * @param {...(Node|string|null)} children
 * @returns {HTMLElement}
 */
export function h(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const node = document.createElement(tag);
  node.className = classes.join(" ");
  return fill(node, attributes, children);
}

/** The same for SVG. @param {string} selector @returns {SVGElement} */
export function svg(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  return fill(node, attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value != null && value !== false) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/**
 * A view's way to Python, which says in the view when there is nobody any more: its buttons are dead then.
 *
 * JupyterLab tells widgets when their kernel is restarted; where nobody tells, the next message cannot be sent.
 * @param {Model} model @param {HTMLElement} root @param {() => void} [over] called when it has ended
 */
export function lineTo(model, root, over = () => {}) {
  let alive = true;
  function cut() {
    if (!alive) return;
    alive = false;
    const header = /** @type {HTMLElement} */ (root.querySelector(".mv-header"));
    for (const node of header.querySelectorAll(".mv-buttons, .mv-pill")) node.setAttribute("inert", "");
    header.after(h("div.mv-gone", { role: "status" }, "This is a picture now, for the view's kernel has ended. Run its cell again."));
    root.classList.add("gone");
    over();
  }
  model.on("comm_live_update", cut);
  return {
    /** @param {object} content @returns {boolean} whether it was sent */
    send(content) {
      try {
        if (alive) model.send(content);
      } catch (error) {
        console.warn(error);
        cut();
      }
      return alive;
    },
    end: () => model.off("comm_live_update", cut),
  };
}

/**
 * Keep a view's keys from the page's shortcuts. Notebook 7 looks for those before the view hears a key: there `c` would
 * copy the cell, and `x` cut it. Lumino leaves alone what has this attribute; Ctrl+S still saves the notebook.
 * @param {HTMLElement} root @param {AbortSignal} signal
 */
export function ownKeys(root, signal) {
  window.addEventListener("keydown", (event) => {
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey && (event.key.length === 1 || event.key === "Enter");
    root.toggleAttribute("data-lm-suppress-shortcuts", plain && root.contains(/** @type {Node} */ (event.target)));
  }, { signal, capture: true });
}

/** Set a text only if it is another one, so that a screen reader hears changes alone. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ----------------------------------------------------------------------------------------------------- colours

/** The index of the value 0 in an image of `shared/preview.py`. */
export const ZERO = 126;

/**
 * The three reserved indices: their letters, and where their hatch lines run (0 is on a line).
 * @type {Record<number, {name: string, mark: string, hatch: (x: number, y: number) => number}>}
 */
export const RESERVED = {
  253: { name: "−Inf", mark: "−∞", hatch: (x, y) => (x - y) & 3 },
  254: { name: "+Inf", mark: "+∞", hatch: (x, y) => (x + y) & 3 },
  255: { name: "NaN", mark: "N", hatch: (x, y) => (x & 3) && (y & 3) },
};

/** How much a cell matters where two share a pixel: NaN, Inf, then magnitude. */
export const strength = (/** @type {number} */ index) => (index > 252 ? index : Math.abs(index - ZERO));

/**
 * Blue over nothing to orange, told apart by readers with any colour vision; the background shows through,
 * so that the same picture suits light and dark. Reserved indices are black lines on yellow.
 * @param {number} index @param {number} x @param {number} y @returns {[number, number, number, number]}
 */
export function colour(index, x, y) {
  if (index in RESERVED) return RESERVED[index].hatch(x, y) ? [255, 225, 77, 255] : [0, 0, 0, 255];
  const alpha = Math.round((255 * Math.abs(index - ZERO)) / ZERO);
  return index < ZERO ? [31, 95, 208, alpha] : [217, 72, 15, alpha];
}

// ----------------------------------------------------------------------------------------------------- numbers

/** What several views have to say in a tooltip. */
export const WORDS = {
  phases: "prefill: the prompt goes through the model, in chunks; decode: one token at a time",
  kv: "KV cache: the keys and values of the tokens so far, which every layer keeps so that they are not computed again",
  ends: "embed makes hidden states of token ids; norm and head make scores for the next token of the last hidden state",
  rms: "root mean square: the typical size of an element, whatever its sign",
  clipped: "The largest values all have the last colour, so that a few of them do not fade the rest",
};

/** A number as mlx_nb/shared/text.py prints it, with a true minus. @param {number} value */
export function formatNumber(value) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "+Inf" : "−Inf";
  const size = Math.abs(value);
  const text = size === 0 ? "0" : size >= 1e6 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace("e+", "e").replace("e-", "e−").replace(/^-/, "−");
}

// ------------------------------------------------------------------------------------------------- canvas and keys

/**
 * Colours of the style sheet as a canvas takes them, and the font.
 * @param {HTMLElement} node inside the view @param {string[]} names of the style sheet's variables
 * @returns {Record<string, string>}
 */
export function inks(node, names) {
  const probe = h("i");
  node.append(probe);
  const found = Object.fromEntries(names.map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  }));
  const font = getComputedStyle(node).fontFamily;
  probe.remove();
  return { ...found, font };
}

/** A canvas cleared in the size that it has on the page, in CSS pixels. @param {HTMLCanvasElement} canvas */
export function penOf(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const [W, H] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.max(1, Math.round(W * ratio));
  canvas.height = Math.max(1, Math.round(H * ratio));
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.scale(ratio, ratio);
  return { pen, W, H };
}

/** Whether a key belongs to the page: Ctrl+S saves the notebook from a view too. @param {KeyboardEvent} event */
export const isPageKey = (event) => event.ctrlKey || event.metaKey || event.altKey;

/**
 * Where a key leads in a grid; null for any other key. Then the event is used up.
 * @param {KeyboardEvent} event @param {number} row @param {number} column
 * @param {number} rows how many there are @param {number} columns
 * @returns {[number, number]|null}
 */
export function gridStep(event, row, column, rows, columns) {
  if (isPageKey(event) || !rows || !columns) return null;
  const to = {
    ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
    Home: [row, 0], End: [row, columns - 1], PageUp: [0, column], PageDown: [rows - 1, column],
  }[event.key];
  if (!to) return null;
  event.preventDefault();
  event.stopPropagation();
  const within = (/** @type {number} */ at, /** @type {number} */ count) => Math.min(Math.max(at, 0), count - 1);
  return [within(to[0], rows), within(to[1], columns)];
}

/** A packed trait as numbers. @param {DataView|null|undefined} packed */
export function floatsOf(packed) {
  return packed ? new Float32Array(packed.buffer.slice(packed.byteOffset, packed.byteOffset + packed.byteLength)) : new Float32Array(0);
}

// ------------------------------------------------------------------------------------------------------- frame

/**
 * The frame of a view: header with name, note and buttons, the view's own parts, a sentence, an error pane.
 *
 * @param {{model: Model, el: HTMLElement}} context
 * @param {string} name as in ``.mlxnb-tensor`` and ``--… mlxnb-view``
 * @param {string} label for screen readers: ``Tensor``
 */
export function frame({ model, el }, name, label) {
  const listening = new AbortController();
  const { signal } = listening;
  /** @type {[string, Function][]} */
  const events = [];
  /** @type {(() => void)[]} */
  const endings = [];
  /** @type {Map<number, {resolve: (answer: any) => void, what: string}>} */
  const waiting = new Map();
  // Python answers by id. The ids of two views of one model must not meet.
  let id = Math.floor(Math.random() * 2 ** 40);
  let drawn = -1;

  const title = h("b.mv-model");
  const note = h("span.mv-where");
  const pill = h("span.mv-pill", { hidden: true });
  const subtitle = h("div.mv-prompt");
  const buttons = h("div.mv-buttons", { role: "toolbar", "aria-label": label });
  const header = h("div.mv-header", {}, h("div.mv-what", {}, h("div.mv-top", {}, title, " ", note, " ", pill), subtitle), buttons);
  const body = h("div.mv-body");
  const sentence = h("div.mv-sentence", { role: "status", "aria-live": "polite" });
  const error = h("div.mv-error.mv-mono", { role: "alert", hidden: true });
  const root = h(`div.mlxnb-view.mlxnb-${name}`, { role: "group", tabindex: 0, "aria-label": label }, header, body, sentence, error);

  const line = lineTo(model, root, () => forgetAll());
  ownKeys(root, signal);

  /** Listen to the model until the view ends. @param {string} event @param {Function} callback */
  function on(event, callback) {
    events.push([event, callback]);
    model.on(event, callback);
  }

  /**
   * Ask Python; null if the answer was overtaken by a later question, failed (the error is shown), or the view ended.
   * @param {string} what @param {object} [details]
   * @returns {Promise<{content: any, buffers: DataView[]}|null>}
   */
  function ask(what, details = {}) {
    return new Promise((resolve) => {
      waiting.set(++id, { resolve, what });
      drawBusy();
      if (!line.send({ kind: "ask", what, id, details })) forgetAll();
    });
  }

  /** Nobody will answer what is still asked. */
  function forgetAll() {
    for (const { resolve } of waiting.values()) resolve(null);
    waiting.clear();
    drawBusy();
  }

  on("msg:custom", (/** @type {any} */ content, /** @type {DataView[]} */ buffers) => {
    const known = content.kind === "answer" && waiting.get(content.id);
    if (!known) return;
    waiting.delete(content.id);
    drawBusy();
    known.resolve(content.stale || content.failed ? null : { content, buffers: buffers || [] });
  });

  function drawBusy() {
    root.setAttribute("aria-busy", String(waiting.size > 0));
  }

  /**
   * Call `draw(state)` now and for every later state: once, when all traits that came with it are there.
   * @param {(state: any) => void} draw @param {string[]} [others] further traits that belong to a state
   */
  function onState(draw, others = []) {
    let queued = false;
    const now = () => {
      queued = false;
      const state = model.get("state");
      if (signal.aborted || !state || state.sequence === undefined || state.sequence < drawn) return;
      drawn = state.sequence;
      error.hidden = !state.error;
      setText(error, state.error || "");
      draw(state);
    };
    const queue = () => {
      if (!queued) queueMicrotask(now);
      queued = true;
    };
    for (const trait of ["state", ...others]) on(`change:${trait}`, queue);
    now();
  }

  /** Call `look(place)` whenever another view picks a place. @param {(place: Place) => void} look */
  function onPlace(look) {
    on("change:place", () => look(model.get("place") || {}));
  }

  /** Tell the linked views where the user looks. @param {Place} place */
  function pick(place) {
    line.send({ kind: "place", place });
  }

  /**
   * A button for the header's toolbar.
   * @param {string} text @param {{key?: string, title?: string, label?: string, icon?: boolean}} looks @param {() => void} press
   */
  function button(text, { key, title: tip, label: said, icon } = {}, press = () => {}) {
    const node = h(`button.mv-button${icon ? ".mv-icon" : ""}`,
      { type: "button", title: tip, "aria-label": said, "aria-keyshortcuts": key },
      text, key && !icon ? " " : null, key && !icon ? h("kbd", { "aria-hidden": true }, key) : null);
    node.addEventListener("click", press, { signal });
    return node;
  }

  /**
   * Buttons of which one is pressed, for the header's toolbar.
   * @param {string} said what they choose @param {(name: string) => void} press
   */
  function choices(said, press) {
    const node = h("span.mv-set", { role: "group", "aria-label": said });
    /** @param {[string, string, string][]} names name, text and tooltip of each */
    const offer = (names) => node.replaceChildren(...names.map(([name, text, tip]) => {
      const one = button(text, { title: tip }, () => press(name));
      one.dataset.name = name;
      return one;
    }));
    const mark = (/** @type {string} */ name) => {
      for (const one of node.children) one.setAttribute("aria-pressed", String(/** @type {HTMLElement} */ (one).dataset.name === name));
    };
    return { node, offer, mark };
  }

  /** What the header says, and the view's name for screen readers. @param {{title: string, note: string}} state */
  function head({ title: name, note: below }) {
    setText(title, name);
    setText(subtitle, below);
    subtitle.setAttribute("title", below);
    root.setAttribute("aria-label", `${label}: ${name}`);
  }

  /**
   * Draw a canvas at most once a frame, and again when its size or the page's theme changes.
   * @param {HTMLElement} canvas or what holds it @param {() => void} paint
   * @returns {() => void} to be called when what it shows has changed
   */
  function painter(canvas, paint) {
    let asked = 0;
    const queue = () => {
      asked ||= requestAnimationFrame(() => {
        asked = 0;
        if (canvas.clientWidth) paint();
      });
    };
    const sizes = new ResizeObserver(queue);
    sizes.observe(canvas);
    const themes = new MutationObserver(queue);
    for (const node of [document.body, document.documentElement]) themes.observe(node, { attributeFilter: ["class", "style", "data-jp-theme-light", "data-jp-theme-name"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", queue, { signal });
    endings.push(() => cancelAnimationFrame(asked), () => sizes.disconnect(), () => themes.disconnect());
    return queue;
  }

  // JupyterLab's command mode listens on the document: there `x` would cut the cell, and Enter edit it.
  root.addEventListener("keydown", (event) => {
    if (isPageKey(event)) return;
    if (event.key.length === 1 || event.key === "Enter") event.stopPropagation();
  }, { signal });

  /** The cleanup that `render` returns. */
  function end() {
    listening.abort();
    for (const ending of endings) ending();
    for (const [event, callback] of events) model.off(event, callback);
    line.end();
    forgetAll();
    root.remove();
  }

  el.append(root);
  return { root, header, title, note, pill, subtitle, buttons, body, sentence, error, signal, endings, on, ask, onState, onPlace, pick, button, choices, head, painter, end };
}
