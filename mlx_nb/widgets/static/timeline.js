/**
 * The timeline's view: a lane for each rank, what it computed, sent and waited for, on one axis of time.
 *
 * `state` is mlx_nb/widgets/timeline_state.py's, the trait `spans` has the whole run packed as there (SPAN_DTYPE), pooled
 * if it is long. ask("window", {begin_s, end_s}) gives the spans of a part of it: {pooled, begin_s, end_s} and one buffer.
 *
 * @typedef {{begin: number, end: number, index: number, start: number, stop: number, rank: number,
 *            kind: number, decode: boolean}} Span
 * @typedef {{rank: number, host: string, holds: string, busy: string}} Lane
 * @typedef {{title: string, note: string, summary: string, length_s: number, lanes: Lane[],
 *            phases: {name: string, begin_s: number, end_s: number}[], rows: string[][], sentence: string,
 *            pooled: boolean}} State
 */

import { h, setText, inks, penOf, isPageKey, WORDS, frame } from "./view.js";

const RECORD_BYTES = 30;
const DECODE_BIT = 16;
const [COMPUTE, SEND, WAIT] = [0, 1, 2];
const KINDS = ["compute", "send", "wait"];
const VERBS = ["computes", "sends", "waits"];
const PAST = ["computed", "sent", "waited"];

const AXIS = 24; // CSS pixels above the first lane
const LANE = 46; // from one lane to the next
const BAR = 26;
const LEAST_WINDOW_S = 50e-6;
const HOPS_SHOWN = 80;
const INKS = ["bg", "fg", "soft", "line", "edge", "chip", "done", "other", "on-done", "send", "wait", "now"];

// ------------------------------------------------------------------------------------------------------- spans

/** @param {DataView|null} packed @returns {Span[]} */
function unpack(packed) {
  const found = [];
  for (let at = 0; packed && at + RECORD_BYTES <= packed.byteLength; at += RECORD_BYTES) {
    const begin = packed.getFloat64(at, true);
    const kind = packed.getUint8(at + 29);
    found.push({
      begin,
      end: begin + packed.getFloat64(at + 8, true),
      index: packed.getUint32(at + 16, true),
      start: packed.getUint32(at + 20, true),
      stop: packed.getUint32(at + 24, true),
      rank: packed.getUint8(at + 28),
      kind: kind & (DECODE_BIT - 1),
      decode: Boolean(kind & DECODE_BIT),
    });
  }
  return found;
}

/** Seconds as Python's format_duration writes them. @param {number} seconds */
function duration(seconds) {
  if (seconds > 0 && seconds < 1e-4) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** A round step so that about `count` of them make `length`. @param {number} length @param {number} count */
function roundStep(length, count) {
  const raw = length / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const factor = [1, 2, 5, 10].find((each) => each * power >= raw) || 10;
  return factor * power;
}

/** A time on the axis, with as many digits as the step between two of them needs. */
function timeText(/** @type {number} */ seconds, /** @type {number} */ step) {
  const [unit, name] = step >= 0.1 ? [1, "s"] : step >= 1e-4 ? [1e3, "ms"] : [1e6, "µs"];
  const digits = Math.max(0, -Math.floor(Math.log10(step * unit) + 1e-9));
  return `${(seconds * unit).toFixed(digits)} ${name}`;
}

/** What a span is, in words. @param {Span} span @param {boolean} pooled */
function describe(span, pooled) {
  const what = `${span.decode ? "decode" : "prefill"} ${span.start}:${span.stop}`;
  const length = duration(span.end - span.begin);
  if (pooled) return `rank ${span.rank} · ${what} · ${PAST[span.kind]} ${length} in all around here; zoom in for single spans`;
  return `rank ${span.rank} · ${what} · ${VERBS[span.kind]} ${length} · from ${duration(span.begin)}`;
}

/** The spans as Python's Timeline.chrome_trace makes them. @param {State} state @param {Span[]} spans */
function chromeTrace(state, spans) {
  const names = state.lanes.map(({ rank }) =>
    ({ ph: "M", name: "process_name", pid: rank, tid: 0, args: { name: `rank ${rank}` } }));
  const events = spans.map((span) => {
    const phase = span.decode ? "decode" : "prefill";
    return {
      ph: "X",
      name: span.kind === COMPUTE ? `${phase} ${span.start}:${span.stop}` : KINDS[span.kind],
      cat: KINDS[span.kind],
      pid: span.rank,
      tid: 0,
      ts: span.begin * 1e6,
      dur: (span.end - span.begin) * 1e6,
      args: { pass: span.index, phase, tokens: [span.start, span.stop] },
    };
  });
  return { traceEvents: [...names, ...events], displayTimeUnit: "ms" };
}

// ------------------------------------------------------------------------------------------------------ picture

/**
 * Draws the lanes. Where many spans share a pixel its colours are mixed by their shares of the time.
 * @param {HTMLCanvasElement} canvas
 * @param {{state: State, spans: Span[], lanes: Span[][], from: number, to: number, chosen: Span|null}} scene
 */
function paint(canvas, { state, lanes, from, to, chosen }) {
  const { pen: context, W, H } = penOf(canvas);
  const ink = inks(/** @type {HTMLElement} */ (canvas.parentElement), INKS);
  const x = (/** @type {number} */ seconds) => ((seconds - from) / (to - from)) * W;
  const top = (/** @type {number} */ rank) => AXIS + rank * LANE + 4;

  drawAxis(context, state, { from, to, x, W, H, ink });
  lanes.forEach((spans, rank) => drawLane(context, spans, { from, to, x, W, top: top(rank), ink, chosen }));
  drawHops(context, lanes, { from, to, x, top, ink });
  if (chosen) {
    for (const span of lanes.flat()) {
      if (span.index !== chosen.index || span.kind !== COMPUTE) continue;
      const [left, right] = [x(span.begin), Math.max(x(span.end), x(span.begin) + 1)];
      if (right < 0 || left > W) continue;
      context.strokeStyle = ink.now;
      context.lineWidth = 1.5;
      context.strokeRect(left + 0.75, top(span.rank) - 1.25, Math.max(1, right - left - 1.5), BAR + 2.5);
    }
    const [left, right] = [x(chosen.begin), Math.max(x(chosen.end), x(chosen.begin) + 2)];
    context.fillStyle = ink.now;
    context.fillRect(left, top(chosen.rank) + BAR + 3, right - left, 3);
  }
}

/** Ticks, and where one phase gives way to the other. */
function drawAxis(/** @type {CanvasRenderingContext2D} */ context, /** @type {State} */ state, /** @type {any} */ { from, to, x, W, H, ink }) {
  const step = roundStep(to - from, Math.max(2, W / 110));
  context.font = `11px ${ink.font}`;
  context.textBaseline = "alphabetic";
  context.fillStyle = ink.soft;
  context.lineWidth = 1;
  for (let tick = Math.ceil(from / step) * step; tick <= to; tick += step) {
    const at = Math.round(x(tick)) + 0.5;
    context.strokeStyle = ink.line;
    context.beginPath();
    context.moveTo(at, AXIS - 6);
    context.lineTo(at, H - 14);
    context.stroke();
    const text = timeText(tick, step);
    const half = context.measureText(text).width / 2;
    context.textAlign = at - half < 0 ? "left" : at + half > W ? "right" : "center";
    context.fillText(text, at - half < 0 ? Math.max(0, at) : at + half > W ? W : at, AXIS - 10);
  }
  for (const phase of state.phases.slice(1)) {
    const at = Math.round(x(phase.begin_s)) + 0.5;
    if (at < 0 || at > W) continue;
    context.strokeStyle = ink.edge;
    context.setLineDash([4, 3]);
    context.beginPath();
    context.moveTo(at, AXIS - 6);
    context.lineTo(at, H - 14);
    context.stroke();
    context.setLineDash([]);
  }
  context.textBaseline = "alphabetic";
  for (const phase of state.phases) {
    const [left, right] = [Math.max(0, x(phase.begin_s)), Math.min(W, x(phase.end_s))];
    if (right - left < context.measureText(phase.name).width + 8) continue;
    context.textAlign = "center";
    context.fillText(phase.name, (left + right) / 2, H - 3);
  }
}

/** One rank's spans: those of a pixel and more as bars, the others summed up pixel by pixel. */
function drawLane(/** @type {CanvasRenderingContext2D} */ context, /** @type {Span[]} */ spans, /** @type {any} */ { from, to, x, W, top, ink, chosen }) {
  context.fillStyle = ink.chip;
  context.fillRect(Math.max(0, x(0)), top, W, BAR);
  const small = new Float32Array(3 * (Math.ceil(W) + 1));
  let some = false;
  for (const span of spans) {
    if (span.end < from || span.begin > to) continue;
    const [left, right] = [Math.max(-4, x(span.begin)), Math.min(W + 4, x(span.end))];
    if (right - left >= 1.5) {
      drawBar(context, span, left, right, top, ink);
      continue;
    }
    some = true;
    for (let column = Math.max(0, Math.floor(left)); column <= Math.min(W, Math.floor(right)); column++) {
      small[3 * column + span.kind] += Math.max(0, Math.min(right, column + 1) - Math.max(left, column));
    }
  }
  if (!some) return;
  for (let column = 0; column <= W; column++) {
    const colours = [ink.done, ink.send, ink.wait];
    for (const kind of [COMPUTE, SEND]) {
      const share = Math.min(1, small[3 * column + kind]);
      if (share < 0.02) continue;
      context.globalAlpha = share;
      context.fillStyle = colours[kind];
      context.fillRect(column, top, 1, BAR);
    }
    context.globalAlpha = 1;
  }
}

/** Computing is filled, and neighbours differ a little; sending is filled in its own colour; waiting is a line. */
function drawBar(/** @type {CanvasRenderingContext2D} */ context, /** @type {Span} */ span, /** @type {number} */ left, /** @type {number} */ right, /** @type {number} */ top, /** @type {any} */ ink) {
  const width = right - left;
  if (span.kind === WAIT) {
    context.fillStyle = ink.wait;
    context.fillRect(left, top + BAR / 2 - 1, width, 2);
    return;
  }
  context.fillStyle = span.kind === SEND ? ink.send : span.index % 2 ? ink.other : ink.done;
  context.beginPath();
  context.roundRect(left, top, Math.max(1, width - (width > 4 ? 1 : 0)), BAR, width > 8 ? 3 : 0);
  context.fill();
  const text = span.stop - span.start > 1 ? `${span.start}:${span.stop}` : String(span.start);
  context.font = `11px ${ink.font}`;
  if (span.kind === COMPUTE && width > context.measureText(text).width + 8) {
    context.fillStyle = ink["on-done"];
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(text, (Math.max(left, 0) + right) / 2, top + BAR / 2 + 0.5);
  }
}

/** From the end of a rank's sending to where the rank below begins to compute the same pass, if there are not too many. */
function drawHops(/** @type {CanvasRenderingContext2D} */ context, /** @type {Span[][]} */ lanes, /** @type {any} */ { from, to, x, top, ink }) {
  const inView = (/** @type {Span} */ span) => span.end >= from && span.begin <= to;
  const sends = lanes.flat().filter((span) => span.kind === SEND && inView(span));
  if (!sends.length || sends.length > HOPS_SHOWN) return;
  context.strokeStyle = ink.edge;
  context.fillStyle = ink.edge;
  context.lineWidth = 1.25;
  for (const send of sends) {
    const below = lanes[send.rank + 1];
    if (!below) continue;
    const waited = below.find((span) => span.index === send.index && span.kind === WAIT);
    const target = below.find((span) => span.index === send.index && span.kind === COMPUTE && span.begin >= (waited ? waited.end - 1e-6 : send.begin));
    if (!target) continue;
    const [x1, y1, x2, y2] = [x(send.end), top(send.rank) + BAR + 1, x(target.begin), top(target.rank) - 2];
    context.beginPath();
    context.moveTo(x1, y1);
    context.bezierCurveTo(x1, (y1 + y2) / 2, x2, (y1 + y2) / 2, x2, y2 - 3);
    context.stroke();
    context.beginPath();
    context.moveTo(x2 - 3, y2 - 4);
    context.lineTo(x2 + 3, y2 - 4);
    context.lineTo(x2, y2);
    context.fill();
  }
}

// --------------------------------------------------------------------------------------------------------- view

/** What a pass is called where the tables have it, and the words behind it. */
const HEADS = [
  ["rank", "The position in the pipeline"],
  ["phase", "Prefill feeds the prompt in chunks; decode feeds one generated token after another"],
  ["passes", "How often the model was called: once a chunk, once a token"],
  ["compute", "Time in the rank's own layers"],
  ["send", "Time until a hidden state was on its way; the sending itself goes on beside the next work"],
  ["wait", "Time until something arrived: a hidden state, or the token"],
  ["busy", "The share of the phase in which the rank computed; the rest is its bubble"],
];

/** @param {{model: import("./view.js").Model, el: HTMLElement}} context @returns {() => void} */
function render(context) {
  const view = frame(context, "timeline", "Timeline");
  const { model } = context;
  const { root, signal, body, button, buttons } = view;
  /** @type {State} */
  let state;
  /** What was sent with the state, and what of it is shown: the same, or a part of a long run in more detail. */
  let whole = /** @type {Span[]} */ ([]);
  let part = { begin: 0, end: 0, pooled: false };
  let lanes = /** @type {Span[][]} */ ([]);
  let [from, to] = [0, 0];
  /** @type {Span|null} */
  let chosen = null;

  // -- the skeleton, made once
  const phaseButtons = h("span.mv-set");
  buttons.append(
    h("span.mv-set", {}, button("−", { key: "-", label: "Zoom out", title: "Zoom out (−)", icon: true }, () => zoom(2)),
      button("+", { key: "+", label: "Zoom in", title: "Zoom in (+)", icon: true }, () => zoom(0.5))),
    h("span.mv-set", {}, button("All", { key: "0", title: "Show the whole run" }, () => show(0, state.length_s))),
    phaseButtons,
    h("span.mv-set", {}, button("Save…", { title: "As a Chrome trace, for ui.perfetto.dev or chrome://tracing" }, save)));
  const names = h("div.mt-names");
  const shares = h("div.mt-shares");
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas.mt-canvas", { role: "img", tabindex: 0 }));
  const readout = h("div.mt-readout.mv-mono", { role: "status", "aria-live": "polite" });
  const key = (/** @type {string} */ kind, /** @type {string} */ word) => h("span.mv-key", {}, h(`i.mt-swatch.${kind}`), word);
  const legend = h("div.mv-legend", {}, key("compute", "computes"), key("send", "sends"), key("wait", "waits"),
    h("span.mt-hint", {}, "drag moves · Ctrl + wheel zooms · ← → from span to span, ↑ ↓ from rank to rank"));
  const table = h("div.mv-fold-body");
  body.append(
    h("div.mv-row", {}, h("div.mt-chart", {}, names, h("div.mt-plot", {}, canvas), shares), readout, legend),
    h("div.mv-row.mt-numbers", {}, table));

  // -- from Python

  function take(/** @type {State} */ next) {
    const another = state?.length_s !== next.length_s; // the run after the last one: what was zoomed to is gone
    state = next;
    whole = unpack(model.get("spans"));
    use(whole, { begin: 0, end: state.length_s, pooled: state.pooled });
    if (another) [from, to] = [0, state.length_s || 1];
    view.head(state);
    setText(view.note, state.summary);
    view.note.title = "bubbles: the share of the time in which the ranks did not compute";
    setText(view.sentence, state.sentence);
    canvas.style.height = `${AXIS + state.lanes.length * LANE + 14}px`;
    names.replaceChildren(...state.lanes.map((lane) => h("div.mt-name", { title: lane.host },
      h("div.mt-who", {}, h("b", {}, `rank ${lane.rank}`), " ", h("span", {}, lane.host)), h("div.mt-holds", { title: WORDS.ends }, lane.holds))));
    shares.replaceChildren(...state.lanes.map((lane) => h("div.mt-share", { title: HEADS[6][1] }, h("b", {}, lane.busy), " ", h("span", {}, "busy"))));
    phaseButtons.replaceChildren(...(state.phases.length > 1 ? state.phases : []).map((phase) =>
      button(phase.name[0].toUpperCase() + phase.name.slice(1), { title: `Show the ${phase.name} alone` }, () => show(phase.begin_s, phase.end_s))));
    const rows = state.rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row[0]), ...row.slice(1).map((cell, i) => h("td", { title: i ? null : WORDS.phases }, cell))));
    table.replaceChildren(h("table.mt-table", {},
      h("thead", {}, h("tr", {}, ...HEADS.map(([name, words]) => h("th", { scope: "col", title: words }, name)))), h("tbody", {}, ...rows)));
    const text = state.lanes.map((lane) => `rank ${lane.rank} computes ${lane.busy} of the time`).join(", ");
    canvas.setAttribute("aria-label", `${state.summary}; ${text}`);
    tell();
    queue();
  }

  function use(/** @type {Span[]} */ spans, /** @type {typeof part} */ what) {
    part = what;
    lanes = state.lanes.map(({ rank }) => spans.filter((span) => span.rank === rank));
    chosen = chosen && nearest(lanes[chosen.rank] || [], chosen);
  }

  /** The span of a lane that is another one's, seen in more or less detail. */
  function nearest(/** @type {Span[]} */ lane, /** @type {Span} */ wanted) {
    const away = (/** @type {Span} */ span) => Math.abs(span.begin - wanted.begin) + (span.kind === wanted.kind ? 0 : 1e9);
    return lane.reduce((/** @type {Span|null} */ best, span) => (!best || away(span) < away(best) ? span : best), null);
  }

  const queue = view.painter(canvas, () => state && paint(canvas, { state, lanes, from, to, chosen }));

  /** What stands in the line under the lanes: the chosen span, or the one under the mouse. */
  function tell(/** @type {Span|null} */ span = chosen) {
    const all = to - from >= (state.length_s || 1) * 0.999;
    setText(readout, span ? describe(span, part.pooled) : all ? "" : `${duration(to - from)} from ${duration(from)}`);
  }

  // -- from the user

  /** @type {ReturnType<typeof setTimeout>|undefined} */
  let asking;
  view.endings.push(() => clearTimeout(asking));

  function show(/** @type {number} */ begin, /** @type {number} */ end) {
    const length = Math.min(Math.max(end - begin, LEAST_WINDOW_S), state.length_s);
    from = Math.min(Math.max(begin, 0), state.length_s - length);
    to = from + length;
    const outside = from < part.begin - 1e-9 || to > part.end + 1e-9;
    if (outside) use(whole, { begin: 0, end: state.length_s, pooled: state.pooled });
    tell();
    queue();
    clearTimeout(asking);
    // Somewhat more than is seen, so that a small move needs no answer.
    if (part.pooled && length < (part.end - part.begin) * 0.6) asking = setTimeout(() => fetch(from - length / 4, to + length / 4), 120);
  }

  async function fetch(/** @type {number} */ begin_s, /** @type {number} */ end_s) {
    const answer = await view.ask("window", { begin_s, end_s });
    if (!answer || signal.aborted) return;
    const { content, buffers } = answer;
    if (from < content.begin_s - 1e-9 || to > content.end_s + 1e-9) return; // moved on meanwhile
    use(unpack(buffers[0]), { begin: content.begin_s, end: content.end_s, pooled: content.pooled });
    tell();
    queue();
  }

  function zoom(/** @type {number} */ factor, /** @type {number|null} */ at = null) {
    const fixed = at ?? (chosen && chosen.begin < to && chosen.end > from ? (chosen.begin + chosen.end) / 2 : (from + to) / 2);
    show(fixed - (fixed - from) * factor, fixed + (to - fixed) * factor);
  }

  const timeAt = (/** @type {number} */ clientX) => {
    const box = canvas.getBoundingClientRect();
    return from + ((clientX - box.left) / box.width) * (to - from);
  };

  /** The span under a point, or the nearest one of that lane within a few pixels. @returns {Span|null} */
  function spanAt(/** @type {MouseEvent} */ event) {
    const box = canvas.getBoundingClientRect();
    const lane = lanes[Math.floor((event.clientY - box.top - AXIS) / LANE)];
    if (!lane) return null;
    const at = timeAt(event.clientX);
    const reach = (4 / box.width) * (to - from);
    let [best, least] = [/** @type {Span|null} */ (null), reach];
    for (const span of lane) {
      const away = at < span.begin ? span.begin - at : at > span.end ? at - span.end : 0;
      if (away === 0 && span.end - span.begin > reach / 4) return span;
      if (away < least) [best, least] = [span, away];
    }
    return best;
  }

  function choose(/** @type {Span|null} */ span, tellOthers = true) {
    chosen = span;
    if (span && (span.end < from || span.begin > to || span.end - span.begin > to - from)) {
      const length = Math.max(to - from, (span.end - span.begin) * 1.2);
      show((span.begin + span.end - length) / 2, (span.begin + span.end + length) / 2);
    } else if (span && (span.begin < from || span.end > to)) {
      const move = span.begin < from ? span.begin - from : span.end - to;
      show(from + move, to + move);
    }
    tell();
    queue();
    if (span && tellOthers && !part.pooled) view.pick({ rank: span.rank, token: span.stop - 1 });
  }

  view.onPlace(({ rank, token }) => {
    if (!state || token === undefined || part.pooled) return;
    const found = (rank === undefined ? lanes.flat() : lanes[rank] || []).find((span) => span.kind === COMPUTE && span.start <= token && token < span.stop);
    if (found && !(chosen && chosen.index === found.index && chosen.rank === found.rank)) choose(found, false);
  });

  /** @type {{x: number, from: number, moved: boolean}|null} */
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drag = { x: event.clientX, from, moved: false };
    canvas.setPointerCapture(event.pointerId);
  }, { signal });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return tell(spanAt(event) || chosen);
    const by = ((drag.x - event.clientX) / canvas.clientWidth) * (to - from);
    if (Math.abs(event.clientX - drag.x) > 3) drag.moved = true;
    if (drag.moved) show(drag.from + by, drag.from + by + (to - from));
  }, { signal });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) choose(spanAt(event));
    drag = null;
  }, { signal });
  canvas.addEventListener("pointercancel", () => (drag = null), { signal });
  canvas.addEventListener("pointerleave", () => state && tell(), { signal });
  canvas.addEventListener("dblclick", (event) => zoom(0.4, timeAt(event.clientX)), { signal });
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) zoom(1.0015 ** event.deltaY, timeAt(event.clientX));
    else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      const by = ((event.deltaX || event.deltaY) / canvas.clientWidth) * (to - from);
      show(from + by, to + by);
    } else return; // the page scrolls
    event.preventDefault();
  }, { signal, passive: false });

  /** The span of a lane nearest in time to what is chosen. */
  function across(/** @type {number} */ rank) {
    const at = chosen ? (chosen.begin + chosen.end) / 2 : (from + to) / 2;
    const away = (/** @type {Span} */ span) => Math.max(span.begin - at, at - span.end, 0);
    return (lanes[rank] || []).reduce((/** @type {Span|null} */ best, span) => (!best || away(span) < away(best) ? span : best), null);
  }

  root.addEventListener("keydown", (event) => {
    if (isPageKey(event) || !state) return;
    if (event.key === "+" || event.key === "=") zoom(0.5);
    else if (event.key === "-") zoom(2);
    else if (event.key === "0") show(0, state.length_s);
    else if (event.target !== canvas) return;
    else if (["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) {
      const lane = lanes[chosen ? chosen.rank : 0] || [];
      const at = chosen ? lane.indexOf(chosen) : -1;
      const next = { ArrowLeft: Math.max(0, at - 1), ArrowRight: Math.min(lane.length - 1, at + 1), Home: 0, End: lane.length - 1 }[event.key];
      if (lane.length) choose(lane[/** @type {number} */ (next)]);
      event.stopPropagation();
    } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const rank = Math.min(Math.max((chosen ? chosen.rank : 0) + (event.key === "ArrowUp" ? -1 : chosen ? 1 : 0), 0), lanes.length - 1);
      const span = across(rank);
      if (span) choose(span);
      event.stopPropagation();
    } else return;
    event.preventDefault();
  }, { signal });

  async function save() {
    const answer = state.pooled ? await view.ask("window", { begin_s: 0, end_s: state.length_s, whole: true }) : null;
    if (state.pooled && !answer) return;
    const file = new Blob([JSON.stringify(chromeTrace(state, answer ? unpack(answer.buffers[0]) : whole))], { type: "application/json" });
    const link = /** @type {HTMLAnchorElement} */ (h("a", { href: URL.createObjectURL(file), download: "timeline.json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  view.onState(take, ["spans"]);
  return view.end;
}

export default { render };
