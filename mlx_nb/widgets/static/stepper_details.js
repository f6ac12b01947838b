/**
 * What is folded below the stepper's first screen: the module tree, the KV caches, the breakpoints.
 *
 * @typedef {import("./stepper.js").State} State
 * @typedef {(wish: {site?: string, when?: string, number?: number, enabled?: boolean}) => void} SetBreakpoint
 */

import { h, WORDS } from "./view.js";

/** @type {Record<string, string>} */
const MARKS = { done: "✓", current: "▸", pending: "·" };

/** @param {string} name @param {string[]} heads @param {Node[]} rows @param {string[]} [tips] */
function table(name, heads, rows, tips = []) {
  const head = heads.map((text, i) => h("th", { scope: "col", title: tips[i] || null }, text));
  return h(`table.${name}.mv-mono`, {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows));
}

/** @param {State} state */
function moduleTable(state) {
  const rows = state.modules.map((row) => {
    const label = row.breakpoint ? `Remove breakpoint ${row.breakpoint} at ${row.site}` : `Break at ${row.site}`;
    const dot = row.site &&
      h("button.ms-dot", { type: "button", title: label, "aria-label": label, "aria-pressed": Boolean(row.breakpoint),
        "data-key": row.site, "data-site": row.site, "data-number": row.breakpoint || 0 }, row.breakpoint ? "●" : "");
    return h(`tr.${row.state}`, {}, h("td", {}, dot || null), h("td", { title: row.state }, MARKS[row.state] || "·"),
      h("td", {}, "\u00a0\u00a0".repeat(row.depth) + row.path), h("td", {}, row.class_name), h("td", {}, row.shape || ""));
  });
  return table("ms-modules", ["", "", "module", "class", "returned"], rows,
    ["Press a dot to stop before a module", "", "", "", "The shape of what it has returned in this pass"]);
}

/** @param {State} state */
function kvTable(state) {
  const rows = state.kv.map((row) =>
    h("tr", {}, ...[row.rank, row.layers, row.class_name, row.offset, row.state].map((cell) => h("td", {}, String(cell)))));
  return table("ms-kv", ["rank", "layers", "class", "offset", "state"], rows,
    ["", "", "The class of the KV cache in mlx-lm", "Tokens whose keys and values have been written",
      "Whether this pass's keys and values have been written"]);
}

/** @param {State} state */
function breakTable(state) {
  const rows = state.breakpoints.map(({ number, site, condition, hits, enabled }) => {
    const toggle = h("button.ms-toggle", { type: "button", "aria-pressed": enabled, "aria-label": `Breakpoint ${number} on`,
      "data-key": `on${number}`, "data-number": number, "data-enabled": String(!enabled), title: enabled ? "Press to pass it over" : "Press to stop there again" },
      enabled ? "on" : "off");
    const remove = h("button.ms-toggle.ms-remove", { type: "button", "aria-label": `Remove breakpoint ${number}`,
      "data-key": `rm${number}`, "data-number": number, title: "Remove it" });
    return h("tr", {}, ...[number, site, condition, hits].map((cell) => h("td", {}, String(cell))),
      h("td", {}, toggle), h("td", {}, remove));
  });
  return table("ms-breaks", ["id", "site", "condition", "hits", "on"], rows,
    ["", "", "It stops only where this holds", "How often a run has come by with the condition true"]);
}

/**
 * Where a breakpoint is typed: a site, and a condition after `if`.
 * @param {SetBreakpoint} set @param {AbortSignal} signal
 */
function breakForm(set, signal) {
  const input = /** @type {HTMLInputElement} */ (h("input.ms-input.mv-mono", { type: "text", size: 44, spellcheck: "false",
    autocomplete: "off", "aria-label": "Site of a new breakpoint", placeholder: "layers.*.mlp.output if absmax > 100" }));
  const add = h("button.mv-button", { type: "button", title: "Stop every run at this site; * is every module's exit" }, "Add");
  const send = () => {
    const [, site, when] = input.value.trim().match(/^(.*?)(?:\s+if\s+(.*))?$/) || [];
    if (!site) return;
    set({ site, when: when || "" });
    input.value = "";
  };
  add.addEventListener("click", send, { signal });
  input.addEventListener("keydown", (event) => { if (event.key === "Enter") send(); }, { signal });
  return h("div.ms-form", {}, input, add);
}

/**
 * @param {string} title @param {(state: State) => HTMLElement} draw @param {"modules"|"kv"|"breakpoints"} key
 * @param {HTMLElement|null} [form] what stays below the table; a part without one hides while it is empty
 * @param {string} [tip]
 */
function folded(title, draw, key, form = null, tip = "") {
  const summary = h("summary", { title: tip || null }, title);
  const body = h("div.mv-fold-body");
  const node = h("details.mv-fold", {}, summary, body, form);
  return {
    node,
    /** @param {State} state */
    draw(state) {
      const rows = state[key] || [];
      node.hidden = !rows.length && !form;
      if (form) summary.textContent = `${title} (${rows.length})`;
      const focus = body.contains(document.activeElement) && /** @type {HTMLElement} */ (document.activeElement).dataset.key;
      body.replaceChildren(...(rows.length ? [draw(state)] : []));
      if (!focus) return;
      const again = [...body.querySelectorAll("[data-key]")].find((each) => /** @type {HTMLElement} */ (each).dataset.key === focus);
      /** @type {HTMLElement} */ (again || summary).focus({ preventScroll: true });
    },
  };
}

/** The foot of the view. @param {SetBreakpoint} set @param {AbortSignal} signal */
export function foldedDetails(set, signal) {
  const parts = [folded("Module tree", moduleTable, "modules"), folded("KV cache", kvTable, "kv", null, WORDS.kv),
    folded("Breakpoints", breakTable, "breakpoints", breakForm(set, signal))];
  const node = h("div.mv-folds", {}, ...parts.map((part) => part.node));
  node.addEventListener("click", (event) => {
    const pressed = /** @type {HTMLElement|null} */ (/** @type {Element} */ (event.target).closest("button[data-key]"));
    if (!pressed) return;
    const { number, site, enabled } = pressed.dataset;
    if (enabled) set({ number: Number(number), enabled: enabled === "true" });
    else set(Number(number) ? { number: Number(number) } : { site });
  }, { signal });
  return { node, draw: (/** @type {State} */ state) => parts.forEach((part) => part.draw(state)) };
}
