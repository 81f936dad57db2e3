// Six numbers with their trend, and a sentence that says what to look at.

import { el, svg } from "./dom.js";
import { CAUSES, PLACES, ms, percent, placeWords, short } from "./words.js";

const WAITS = ["pipeline", "cp_waiting", "cp_transfer", "fsdp_waiting", "fsdp_transfer", "data"];

/** Cards of the chosen runs side by side; `views` are overviews. */
export function headlines(views) {
  const cards = [
    card("Imbalance degree", "slowest micro-batch over the mean; 1 is ideal", views, (v) =>
      number(v, "imbalance_degree", (x) => x.toFixed(3), predicted(v)),
    ),
    card("Idle", "share of all rank time spent waiting", views, (v) => {
      const idle = WAITS.reduce((sum, place) => sum + v.places[place], 0);
      return { ...number(v, "idle_share", percent), text: percent(idle / v.wall), note: `${ms(idle)} a step` };
    }),
    card("Largest loss", "what a step would gain at most", views, loss),
    card("Slow rank", "always the same, or another each step", views, slow),
    card("Tokens per second", "of the whole job", views, (v) =>
      number(v, "tokens_per_second", short, v.headlines.step_ms ? `${ms(v.headlines.step_ms.value)} a step` : ""),
    ),
    card("Delay", "steps that a token waits to be trained", views, (v) => number(v, "delay_iterations", (x) => x.toFixed(2), hours(v))),
  ];
  return el("section", { class: "cards", "aria-label": "Headline numbers" }, cards);
}

/** The run in a sentence. */
export function verdict(view) {
  const idle = WAITS.reduce((sum, place) => sum + view.places[place], 0);
  const most = WAITS.reduce((a, b) => (view.places[a] >= view.places[b] ? a : b));
  const parts = [`Ranks wait ${percent(idle / view.wall)} of their time, mostly ${phrase(most)}.`];
  const [cause] = largest(view.lost);
  if (cause) parts.push(`Evening out ${CAUSES[cause]} would gain ${ms(view.lost[cause])} of ${ms(view.wall)} a step.`);
  parts.push(slowWords(view));
  return parts.join(" ");
}

/** Who is slow, in words. */
export function slowWords(view) {
  const { kind, ranks, num_same: same, share_of_steps: share } = view.slow;
  if (kind === "same") {
    const first = ranks[0];
    const others = same > 1 ? ` and ${same - 1} more` : "";
    const over = `${percent(first.excess, 0)} over its peers in ${percent(first.share_of_steps, 0)} of the steps`;
    return `Always the same: rank ${first.rank}${others}, ${over}. Look at this machine.`;
  }
  if (kind === "rotating") return `Another rank is slow each time (in ${percent(share, 0)} of the steps): the data, not a machine.`;
  if (kind === "even") return "No rank stands out.";
  return kind === "few" ? "Too few steps to tell a slow rank." : "No rank has a peer to compare with.";
}

function card(title, hint, views, of) {
  const values = views.map((view, i) => {
    const { text, note = "", trend = null } = of(view);
    const line = trend && trend.length > 1 ? spark(trend) : null;
    return el(
      "div",
      { class: `value run${i}` },
      el("span", { class: "number" }, text),
      line,
      el("span", { class: "note" }, note || "\u00a0"),
    );
  });
  return el("article", { class: "card", title: hint }, el("h3", {}, title), values);
}

function number(view, name, format, note = "") {
  const told = view.headlines[name];
  return told ? { text: format(told.value), note, trend: told.trend } : { text: "–", note: "not recorded" };
}

function predicted(view) {
  const told = view.headlines.imbalance_degree_predicted;
  return told ? `${told.value.toFixed(3)} predicted` : "";
}

function hours(view) {
  const told = view.headlines.lost_rank_hours;
  if (!told) return "";
  return told.value < 0.1 ? `${short(told.value * 3600)} rank-seconds lost` : `${short(told.value)} rank-hours lost`;
}

function loss(view) {
  const [cause, trend] = largest(view.lost, view);
  if (cause) return { text: ms(view.lost[cause]), note: CAUSES[cause], trend };
  const most = WAITS.reduce((a, b) => (view.places[a] >= view.places[b] ? a : b));
  return { text: ms(view.places[most]), note: PLACES[most] };
}

function slow(view) {
  const { kind, ranks } = view.slow;
  if (kind === "same") return { text: `rank ${ranks[0].rank}`, note: `always, +${percent(ranks[0].excess, 0)} · ${placeWords(ranks[0].place, view.axes)}` };
  return { text: { rotating: "rotating", even: "none", few: "–", alone: "–" }[kind], note: { rotating: "another each step", even: "no rank stands out", few: "too few steps", alone: "no peers" }[kind] };
}

function largest(lost, view = null) {
  const causes = Object.keys(lost).filter((cause) => lost[cause] > 0);
  if (!causes.length) return [null, null];
  const cause = causes.reduce((a, b) => (lost[a] >= lost[b] ? a : b));
  return [cause, view && view.headlines[`lost_${cause}`].trend];
}

function phrase(place) {
  return { cp_transfer: "for K/V transfer", fsdp_transfer: "for FSDP transfer" }[place] || PLACES[place].replace("waiting ", "");
}

function spark(trend) {
  const width = 120;
  const height = 22;
  const values = trend.map((point) => point[1]);
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const points = values.map((value, i) => `${((i / (values.length - 1)) * width).toFixed(1)},${(height - 2 - ((value - low) / span) * (height - 4)).toFixed(1)}`);
  const label = `from ${short(values[0])} at step ${trend[0][0]} to ${short(values.at(-1))} at step ${trend.at(-1)[0]}`;
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("polyline", { points: points.join(" "), "vector-effect": "non-scaling-stroke" }),
  );
}
