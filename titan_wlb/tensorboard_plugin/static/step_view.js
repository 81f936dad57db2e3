// One step: the documents of each micro-batch, predicted against measured cost, and what each rank did when.

import { canvasOf, colour, el, svg } from "./dom.js";
import { MICRO_BATCHES } from "./colours.js";
import { panel } from "./breakdown.js";
import { ms, percent, whole } from "./words.js";

const ROWS_SHOWN = 32;
const WAITS = ["pipeline", "cp", "fsdp", "data"];

/** Panels of a step; view: of api.step. */
export function stepPanels(view, name, width) {
  const { plan, actions } = view;
  if (!plan && !actions) {
    const why = view.note || (view.written.length ? "Nothing readable was written of this step." : "This run has written no plans and actions.");
    return [panel("One step", name, el("p", { class: "empty" }, why))];
  }
  const panels = [];
  if (plan) {
    const half = Math.floor(width * 0.64);
    const [listed, more] = rowsOf(plan);
    panels.push(
      el(
        "div",
        { class: "two" },
        panel(`Micro-batches of step ${view.step}`, `${plan.packing} · a bar is a micro-batch, its pieces are documents, orange ones waited for it`, documents(listed, plan, half - 190), more),
        panel("Cost, predicted and measured", "a point is a micro-batch", costs(plan.micro_batches)),
      ),
    );
  }
  if (actions) panels.push(panel(`Timeline of step ${view.step}`, "colours are micro-batches: pale forward, full backward; hatched is waiting", timeline(actions, width - 40)));
  return panels;
}

function rowsOf(plan) {
  const sorted = [...plan.micro_batches];
  if (sorted.length <= ROWS_SHOWN) return [sorted, null];
  const cost = (mb) => mb.measured_ms ?? mb.predicted_ms ?? mb.tokens;
  sorted.sort((a, b) => cost(b) - cost(a));
  return [sorted.slice(0, ROWS_SHOWN), el("p", { class: "note" }, `the costliest ${ROWS_SHOWN} of ${plan.micro_batches.length}`)];
}

function documents(rows, plan, width) {
  const longest = Math.max(plan.context_window, ...rows.map((mb) => mb.tokens));
  const bars = rows.map((mb) => {
    const pieces = (mb.lengths || [mb.tokens]).map((length, i) => {
      const late = mb.arrivals && mb.arrivals[i] < plan.step;
      const words = mb.lengths ? `document of ${whole(length)} tokens${late ? `, waited ${plan.step - mb.arrivals[i]} step(s)` : ""}` : `${mb.num_documents} documents`;
      return el("i", { class: `document${late ? " late" : ""}`, title: words, style: { width: `${(100 * length) / longest}%` } });
    });
    return el(
      "div",
      { class: "micro-batch" },
      el("span", {}, `dp ${mb.dp_rank} · ${mb.place}`),
      el("div", { class: "documents", role: "img", "aria-label": `${mb.num_documents} documents, ${mb.tokens} tokens` }, pieces),
      el("b", {}, mb.measured_ms == null ? whole(mb.tokens) : ms(mb.measured_ms)),
    );
  });
  return el("div", { class: "micro-batches", style: { "--documents": `${Math.max(width, 120)}px` } }, bars);
}

function costs(microBatches) {
  const pairs = microBatches.filter((mb) => mb.predicted_ms > 0 && mb.measured_ms > 0);
  if (!pairs.length) return el("p", { class: "empty" }, "Costs were not written.");
  const sum = (name) => pairs.reduce((total, mb) => total + mb[name], 0);
  const scale = sum("measured_ms") / sum("predicted_ms");
  const error = pairs.reduce((total, mb) => total + Math.abs((scale * mb.predicted_ms) / mb.measured_ms - 1), 0) / pairs.length;
  const most = 1.05 * Math.max(...pairs.map((mb) => Math.max(mb.predicted_ms * scale, mb.measured_ms)));
  const [w, h] = [300, 200];
  const x = (value) => 34 + (value / most) * (w - 40);
  const y = (value) => h - 24 - (value / most) * (h - 30);
  const points = pairs.map((mb) =>
    svg("circle", { cx: x(scale * mb.predicted_ms), cy: y(mb.measured_ms), r: 3.5 }, svg("title", {}, `dp ${mb.dp_rank}, place ${mb.place}: predicted ${ms(scale * mb.predicted_ms)}, measured ${ms(mb.measured_ms)}`)),
  );
  return [
    svg(
      "svg",
      { class: "scatter", viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `predicted to within ${percent(error)}` },
      svg("path", { class: "axis", d: `M34 6V${h - 24}H${w - 6}` }),
      svg("path", { class: "ideal", d: `M${x(0)} ${y(0)}L${x(most)} ${y(most)}` }),
      points,
      svg("text", { x: w - 6, y: h - 8, "text-anchor": "end" }, `predicted, up to ${ms(most)}`),
      svg("text", { x: 12, y: 6, transform: "rotate(-90 12 6)", "text-anchor": "end" }, "measured"),
    ),
    el("p", { class: "note" }, `Predicted to within ${percent(error)}, once scaled by ${scale.toFixed(2)}; the scale does not matter to a plan.`),
  ];
}

function timeline({ fields, ranks, num_ranks: numRanks }, width) {
  const column = Object.fromEntries(fields.map((field, i) => [field, i]));
  const left = 64;
  const row = Math.max(6, Math.min(18, Math.floor(420 / ranks.length)));
  const end = Math.max(1, ...ranks.flatMap(({ actions }) => actions.map((a) => a[column.start] + a[column.wall])));
  const [canvas, context] = canvasOf(width, row * ranks.length + 20);
  const x = (time) => left + (time / end) * (width - left - 4);
  const readout = el("output", { class: "readout" }, "Point at an action.");
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  const hatch = hatched(context);
  ranks.forEach(({ rank, actions }, i) => {
    context.fillStyle = colour("muted");
    context.textAlign = "right";
    if (row >= 12 || i % Math.ceil(12 / row) === 0) context.fillText(`rank ${rank}`, left - 8, (i + 0.5) * row);
    for (const action of actions) {
      const waits = WAITS.reduce((sum, name) => sum + (action[column[name]] || 0), 0);
      const [x0, x1, x2] = [action[column.start], action[column.start] + action[column.wall] - waits, action[column.start] + action[column.wall]].map(x);
      const place = action[column.micro_batch];
      context.globalAlpha = action[column.kind] === "F" ? 0.6 : 1;
      context.fillStyle = place < 0 ? colour("rest") : MICRO_BATCHES[place % MICRO_BATCHES.length];
      context.fillRect(x0, i * row + 1, Math.max(x1 - x0 - 0.5, 0.3), row - 2);
      context.globalAlpha = 1;
      context.fillStyle = hatch;
      context.fillRect(x1, i * row + 1, Math.max(x2 - x1, 0), row - 2);
    }
  });
  context.fillStyle = colour("muted");
  for (let i = 0; i <= 5; i += 1) {
    context.textAlign = i === 5 ? "right" : i ? "center" : "left";
    context.fillText(ms((i / 5) * end), x((i / 5) * end), row * ranks.length + 12);
  }
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const of = ranks[Math.floor((event.clientY - box.top) / row)];
    const time = ((event.clientX - box.left - left) / (width - left - 4)) * end;
    const action = of?.actions.find((a) => a[column.start] <= time && time < a[column.start] + a[column.wall]);
    if (action) readout.textContent = `rank ${of.rank} · ${actionWords(action, column)}`;
  });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Timeline of ${ranks.length} of ${numRanks} ranks`);
  const note = ranks.length < numRanks ? el("p", { class: "note" }, `${ranks.length} of ${numRanks} ranks: the pipelines of the slowest, and the fastest one`) : null;
  return [canvas, readout, note];
}

function actionWords(action, column) {
  const names = { F: "forward", B: "backward", W: "weight gradient", R: "gradient reduction", head: "before the first action", norm: "gradient norm", tail: "the rest of the step" };
  const kind = names[action[column.kind]] || action[column.kind];
  const which = action[column.micro_batch] >= 0 ? ` of micro-batch ${action[column.micro_batch]}, stage ${action[column.stage]}` : "";
  const waits = WAITS.filter((name) => action[column[name]] > 0.01).map((name) => `${name} ${ms(action[column[name]])}`);
  return `${kind}${which} · ${ms(action[column.wall])}, from ${ms(action[column.start])}${waits.length ? ` · idle: ${waits.join(", ")}` : ""}`;
}

function hatched(context) {
  const tile = el("canvas", { width: 6, height: 6 });
  const of = tile.getContext("2d");
  of.strokeStyle = colour("faint");
  of.beginPath();
  of.moveTo(0, 6);
  of.lineTo(6, 0);
  of.stroke();
  return context.createPattern(tile, "repeat");
}
