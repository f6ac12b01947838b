/**
 * The cluster's view: a card for each rank, and buttons that act on all of them.
 *
 *   to Python:    {kind: "ask", what: "pause" | "resume" | "interrupt" | "restart" | "stop", details: {}}
 *   from Python:  the trait state
 */

import { h, setText, isPageKey, frame, WORDS } from "./view.js";

const PILLS = { running: "running", stopped: "stopped", paused: "stopped", waiting: "waiting", lost: "failed", ended: "ended" };
const TIPS = {
  running: "It computes, or waits inside a run for its neighbour",
  waiting: "It waits for its turn: a stepper stands on another rank",
  stopped: "It stands still",
  paused: "The run stands still, and can go on",
  lost: "Its process has ended, or cannot be reached",
  idle: "It has nothing to do",
  ended: "The cluster was stopped",
};
const PARTS = [
  ["weights", "weights", "The model's weights that this rank holds"],
  ["kv", "KV caches", "Keys and values of the runs that this rank holds, as of the last time it was free"],
  ["other", "in use besides", "Everything else that uses this host's memory, other ranks too"],
  ["free", "free", "What is left of this host's memory"],
];

/** @param {{model: import("./view.js").Model, el: HTMLElement}} context @returns {() => void} */
function render(context) {
  const view = frame(context, "cluster", "Cluster");
  const { signal } = view;
  /** @type {any} */
  let state = null;
  /** What is asked to be confirmed. */
  let asking = "";
  /** @type {Map<number, any>} */
  const cards = new Map();

  const buttons = {
    pause: view.button("Pause", { key: "p", title: "Let the run stand still after a token or a chunk; it can go on" }, () => act("pause")),
    resume: view.button("Go on", { key: "p", title: "Let the run go on" }, () => act("resume")),
    interrupt: view.button("Interrupt", { key: "i", title: "End what the ranks run; the text so far stays" }, () => act("interrupt")),
    restart: view.button("Restart…", { key: "r", title: "End every process and start the same cluster again, with the same models" }, () => confirm("restart")),
    start: view.button("Start again", { key: "r", title: "Start the same cluster again, with the same models" }, () => act("restart")),
    stop: view.button("Stop…", { key: "x", title: "End every process of the cluster" }, () => confirm("stop")),
  };
  view.buttons.append(...Object.values(buttons));
  const question = h("div.mc-question", { id: `mc-${Math.random().toString(36).slice(2)}` });
  const yes = view.button("", {}, () => { const what = asking; confirm(""); act(what); });
  yes.classList.add("mv-stop");
  const no = view.button("Cancel", { key: "Esc" }, () => confirm(""));
  const dialog = h("div.mc-confirm", { role: "alertdialog", "aria-labelledby": question.id, hidden: true }, question, h("span.mv-set", {}, yes, no));
  const doing = h("div.mc-doing", { role: "status", "aria-live": "polite", hidden: true });
  const list = h("div.mc-cards", { role: "list" });
  view.body.append(dialog, doing, list);

  const can = (/** @type {string} */ what) => state && state.actions.includes(what);

  /** @param {string} what */
  function act(what) {
    if (can(what) || (what === "restart" && can("start"))) view.ask(what);
  }

  /** Ask before what cannot be taken back; nothing ("") takes the question away. @param {string} what */
  function confirm(what) {
    if (what && !can(what)) return;
    const before = asking;
    asking = what;
    dialog.hidden = !what;
    if (what) {
      setText(question, state.warnings[what]);
      setText(/** @type {any} */ (yes.firstChild), what === "stop" ? "Stop the cluster" : "Restart the cluster");
      no.focus();
    } else if (before && dialog.contains(document.activeElement)) buttons[before].focus();
  }

  /** @param {any} next */
  function draw(next) {
    state = next;
    view.head({ title: state.name, note: state.run });
    setText(view.note, `cluster · ${state.note}`);
    view.note.setAttribute("title", state.note);
    setText(view.pill, state.status);
    view.pill.hidden = !state.status;
    view.pill.className = `mv-pill ${PILLS[state.status] || ""}`;
    view.pill.setAttribute("title", TIPS[state.status] || "");
    setText(view.sentence, state.sentence);
    setText(doing, state.doing);
    doing.hidden = !state.doing;
    const focused = Object.values(buttons).find((node) => node === document.activeElement);
    buttons.pause.hidden = can("resume");
    buttons.resume.hidden = !can("resume");
    buttons.restart.hidden = can("start");
    buttons.start.hidden = !can("start");
    for (const [what, node] of Object.entries(buttons)) node.setAttribute("aria-disabled", String(!can(what)));
    if (focused?.hidden) (focused === buttons.pause ? buttons.resume : focused === buttons.resume ? buttons.pause : view.root).focus();
    if (asking && !can(asking)) confirm("");
    if (asking) setText(question, state.warnings[asking]);
    for (const [rank, card] of cards) {
      if (state.ranks.some((/** @type {any} */ one) => one.rank === rank)) continue;
      card.root.remove();
      cards.delete(rank);
    }
    for (const one of state.ranks) {
      if (!cards.has(one.rank)) {
        cards.set(one.rank, makeCard(one.rank));
        list.append(cards.get(one.rank).root);
      }
      drawCard(cards.get(one.rank), one);
    }
  }

  /** A card is made once, and only its texts change: a reader's place in it stays. @param {number} rank */
  function makeCard(rank) {
    const pill = h("span.mv-pill");
    const host = h("span.mc-host");
    const holds = h("div.mc-holds");
    const device = h("span");
    const process = h("span");
    const facts = h("div.mc-facts", {}, device, process);
    const why = h("div.mc-why", { role: "alert", hidden: true });
    const bar = h("div.mc-bar", { role: "img" }, ...PARTS.map(([name]) => h(`i.${name}`)));
    const numbers = h("dl.mc-numbers", {}, ...PARTS.map(([name, label, tip]) => h("div", { title: tip }, h("dt", {}, h(`i.${name}`), label), h("dd.mv-mono"))));
    const speed = h("b.mc-speed");
    const rate = h("div.mc-rate", { title: "Tokens that the pipeline generates in a second; it is the same on all its ranks" }, speed);
    const log = h("pre.mc-log.mv-mono", { tabindex: 0, "aria-label": `Last lines of rank ${rank}'s log` });
    const root = h("section.mc-card", { role: "listitem", "aria-label": `Rank ${rank}` },
      h("div.mc-top", {}, h("b", {}, `rank ${rank}`), host, pill), holds, facts, why, bar, numbers, rate, log);
    return { root, pill, host, holds, facts, device, process, why, bar, numbers, rate, speed, log };
  }

  /** @param {any} card @param {any} one */
  function drawCard(card, one) {
    card.root.classList.toggle("lost", one.state === "lost");
    setText(card.pill, one.state);
    const looks = `mv-pill ${PILLS[one.state] || ""}`;
    if (card.pill.className !== looks) card.pill.className = looks;
    card.pill.setAttribute("title", TIPS[one.state] || "");
    setText(card.host, one.host);
    card.host.setAttribute("title", one.host);
    setText(card.holds, one.holds || "no model");
    card.holds.setAttribute("title", one.holds && `${one.holds} · ${WORDS.ends}`);
    setText(card.device, one.device);
    setText(card.process, `process ${one.pid}${one.process && ` · ${one.process}`}`);
    card.facts.setAttribute("title", `ipyparallel's engine ${one.engine}`);
    card.why.hidden = !one.why;
    setText(card.why, one.why);
    const texts = { weights: one.weights, kv: one.kv, other: one.other, free: one.free };
    PARTS.forEach(([name], i) => {
      card.bar.children[i].style.flexGrow = String(one.parts[i] || 0);
      card.bar.children[i].hidden = !one.parts[i];
      setText(card.numbers.children[i].lastChild, texts[name] || "–");
    });
    const words = PARTS.map(([name, label]) => `${label} ${texts[name] || "unknown"}`).join(", ");
    card.bar.setAttribute("aria-label", `Memory of ${one.host}: ${words}`);
    card.rate.hidden = !one.speed;
    setText(card.speed, `${one.speed} tok/s${one.fresh ? "" : " in the last run"}`);
    card.speed.classList.toggle("old", !one.fresh);
    setText(card.log, one.log.join("\n"));
    card.log.hidden = !one.log.length;
  }

  view.root.addEventListener("keydown", (event) => {
    if (isPageKey(event) || !state) return;
    if (event.key === "Escape" && asking) {
      confirm("");
      event.stopPropagation();
    } else if (event.key === "p") act(can("resume") ? "resume" : "pause");
    else if (event.key === "i") act("interrupt");
    else if (event.key === "r") can("start") ? act("restart") : confirm("restart");
    else if (event.key === "x") confirm("stop");
    else return;
    event.preventDefault();
  }, { signal });

  view.onState(draw);
  return view.end;
}

export default { render };
