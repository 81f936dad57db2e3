// The tab: asks the server, draws, and asks again while the run goes on.

import * as api from "./api.js";
import { causes, panel, places, slowRanks } from "./breakdown.js";
import { choice, el } from "./dom.js";
import { domain, heatmap, legend } from "./heatmap.js";
import { headlines, verdict } from "./headlines.js";
import { stepPanels } from "./step_view.js";
import { followTheme, isDark } from "./theme.js";
import { VALUES, shortNames } from "./words.js";

const POLL_MS = 4000;
const NONE = "";
const state = { runs: [], run: NONE, beside: NONE, last: "0", value: "compute_over_mean", group: "none", sort: "rank", step: null };
let asked = 0; // answers to an older question are dropped
const root = el("main", { id: "imbalance" });
const status = el("span", { class: "status", role: "status" });

/** What TensorBoard calls. */
export async function render() {
  document.head.append(el("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url) }));
  document.documentElement.lang = "en";
  document.body.append(root);
  followTheme(draw);
  window.addEventListener("resize", debounced(draw, 200));
  await poll();
  setInterval(() => document.hidden || poll(), POLL_MS);
  document.addEventListener("visibilitychange", () => document.hidden || poll());
}

async function poll() {
  try {
    const runs = await api.runs();
    const grown = JSON.stringify(runs) !== JSON.stringify(state.runs);
    state.runs = runs;
    const names = runs.map(({ run }) => run);
    if (!names.includes(state.run)) {
      state.run = names.at(-1) ?? NONE;
      state.beside = names.length === 2 ? names[0] : NONE; // two runs: shown beside each other
    }
    if (!names.includes(state.beside)) state.beside = NONE;
    if (grown || !root.hasChildNodes()) await draw();
    else status.textContent = live();
  } catch (error) {
    status.textContent = `no answer: ${error.message}`;
    if (!root.hasChildNodes()) root.replaceChildren(panel("Imbalance", "", el("p", { class: "empty" }, status)));
  }
}

async function draw() {
  const question = (asked += 1);
  const chosen = [state.run, state.beside].filter((run) => run !== NONE);
  if (!chosen.length) {
    root.replaceChildren(panel("Imbalance", "", el("p", { class: "empty" }, "No run here has written tables of its ranks yet. They come with the first logged step of a run with TensorBoard on.")));
    return;
  }
  const size = sizeOf(chosen.length);
  try {
    const asks = { last: state.last, value: state.value, group: state.group, sort: state.sort, rows: size.height, columns: Math.min(size.width, 1024) };
    const [views, pictures] = await Promise.all([
      Promise.all(chosen.map((run) => api.overview(run, state.last))),
      Promise.all(chosen.map((run) => api.heatmap({ run, ...asks }))),
    ]);
    const step = state.step ?? views[0].steps.last;
    const steps = await Promise.all(chosen.map((run) => api.step(run, step)));
    if (question !== asked) return;
    const names = shortNames(chosen);
    const focus = focusPath();
    root.replaceChildren(toolbar(), ...body({ chosen, names, views, pictures, steps, size, step }));
    if (focus) root.querySelector(focus)?.focus();
    status.textContent = live();
    root.dataset.drawn = String(question);
  } catch (error) {
    if (question === asked) root.replaceChildren(toolbar(), panel("Imbalance", "", el("p", { class: "empty" }, error.message)));
  }
}

function body({ chosen, names, views, pictures, steps, size, step }) {
  const dark = isDark();
  const scale = domain(state.value, pictures);
  const maps = pictures.map((picture, i) =>
    el(
      "div",
      {},
      el("h4", { class: `run${i}` }, chosen.length > 1 ? names[i] : "", el("small", {}, eraWords(views[i]))),
      heatmap({
        name: names[i],
        picture: { ...picture, group: state.group, sort: state.sort },
        size,
        scale,
        dark,
        axes: views[i].axes,
        selected: step,
        pick: (at) => set("step", at),
      }),
    ),
  );
  const map = panel("Ranks by steps", `${VALUES[state.value]}; a pixel shows the largest of what it covers`, heatmapTools(views, scale, dark), el("div", { class: "maps" }, maps));
  const side = el("div", { class: "side" }, slowRanks(views, names), causes(views, names));
  const stepWidth = Math.floor((root.clientWidth - 40) / chosen.length);
  const panels = steps.map((view, i) => el("div", { class: "step" }, chosen.length > 1 ? el("h4", { class: `run${i}` }, names[i]) : null, stepPanels(view, names[i], stepWidth)));
  return [
    el("div", { class: "verdicts" }, views.map((view, i) => el("p", { class: `verdict run${i}` }, chosen.length > 1 ? el("b", {}, `${names[i]}: `) : null, verdict(view)))),
    headlines(views),
    el("div", { class: "upper" }, el("div", { class: "side" }, map, places(views, names)), side),
    el("div", { class: `steps runs-${chosen.length}` }, panels),
  ];
}

function toolbar() {
  const names = state.runs.map(({ run }) => run);
  const pairs = names.map((name) => [name, name]);
  return el(
    "header",
    { class: "toolbar" },
    choice("Run", "run", pairs, state.run, (run) => set("run", run)),
    names.length > 1 ? choice("beside", "beside", [[NONE, "no other"], ...pairs.filter(([name]) => name !== state.run)], state.beside, (run) => set("beside", run)) : null,
    choice("over", "last", [["0", "all steps"], ["200", "the last 200"], ["50", "the last 50"], ["20", "the last 20"]], state.last, (last) => set("last", last)),
    status,
  );
}

function heatmapTools(views, scale, dark) {
  const axes = views[0].axes.map((axis) => [axis, axis.toUpperCase()]);
  return el(
    "div",
    { class: "tools" },
    choice("Show", "value", Object.entries(VALUES), state.value, (value) => set("value", value)),
    choice("group by", "group", [["none", "nothing"], ...axes], state.group, (group) => set("group", group)),
    choice("sort by", "sort", [["rank", "rank"], ["value", "value"]], state.sort, (sort) => set("sort", sort)),
    legend(state.value, scale, dark),
  );
}

function set(name, value) {
  state[name] = value;
  if (name === "run") state.step = null;
  if (state.beside === state.run) state.beside = NONE;
  draw();
}

function sizeOf(number) {
  const inner = (root.clientWidth || 1240) - 32;
  const side = inner > 900 ? 360 : 0;
  const width = Math.floor((inner - side - 40) / number) - 64 - (number > 1 ? 8 : 0);
  return { width: Math.max(120, width), height: 300 };
}

function live() {
  const run = state.runs.find(({ run: name }) => name === state.run);
  if (!run) return "";
  const old = Math.max(0, Date.now() / 1000 - run.last_time);
  const ago = old < 90 ? "live" : old < 5400 ? `${Math.round(old / 60)} min ago` : old < 172800 ? `${Math.round(old / 3600)} h ago` : `${Math.round(old / 86400)} days ago`;
  status.classList.toggle("live", old < 90);
  return `step ${run.last_step.toLocaleString("en-US")} · ${ago}`;
}

function eraWords(view) {
  const now = view.eras.at(-1);
  const words = `${now.num_ranks.toLocaleString("en-US")} ranks, ${now.layout}`;
  return view.eras.length > 1 ? `${words} since step ${now.first}; before: ${view.eras.at(-2).num_ranks} ranks` : words;
}

/** Drawing anew must not take the keyboard away. */
function focusPath() {
  const active = document.activeElement;
  if (active?.name) return `select[name="${active.name}"]`;
  return active?.classList.contains("heatmap") ? ".heatmap" : null;
}

function debounced(run, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, wait);
  };
}
