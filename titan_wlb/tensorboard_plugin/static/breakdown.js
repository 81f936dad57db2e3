// Where a step's time goes, what it is lost to, and who is slow.

import { el } from "./dom.js";
import { CAUSES, PLACES, ms, percent, placeWords } from "./words.js";
import { slowWords } from "./headlines.js";

/** A stacked bar per run; the places add up to the step. */
export function places(views, names) {
  const shown = Object.keys(PLACES).filter((place) => views.some((view) => view.places[place] / view.wall >= 0.002));
  const longest = Math.max(...views.map((view) => view.wall));
  const bars = views.map((view, i) =>
    el(
      "div",
      { class: "bar-row" },
      el("span", { class: `bar-name run${i}` }, views.length > 1 ? names[i] : "", el("b", {}, ms(view.wall))),
      el(
        "div",
        { class: "bar", role: "img", "aria-label": shown.map((p) => `${PLACES[p]} ${percent(view.places[p] / view.wall)}`).join(", ") },
        shown.map((place) =>
          el("i", {
            class: `place-${place}`,
            style: { width: `${(100 * view.places[place]) / longest}%` },
            title: `${PLACES[place]}: ${ms(view.places[place])}, ${percent(view.places[place] / view.wall)}`,
          }),
        ),
      ),
    ),
  );
  const keys = shown.map((place) =>
    el(
      "div",
      {},
      el("span", {}, el("i", { class: `swatch place-${place}` }), PLACES[place]),
      views.map((view) => el("b", {}, percent(view.places[place] / view.wall))),
    ),
  );
  return panel("Where the time goes", "mean of all ranks and steps", bars, el("div", { class: "key" }, keys));
}

/** Bars of what a step would gain by cause. */
export function causes(views, names) {
  const told = Object.keys(CAUSES).filter((cause) => views.some((view) => (view.lost[cause] || 0) > 0));
  if (!told.length) return null;
  const most = Math.max(...views.flatMap((view) => told.map((cause) => view.lost[cause] || 0)));
  const rows = told.map((cause) =>
    el(
      "div",
      { class: "cause" },
      el("span", {}, CAUSES[cause]),
      views.map((view, i) =>
        el(
          "div",
          { class: "bar-row" },
          el("div", { class: "bar thin" }, el("i", { class: `run-fill${i}`, style: { width: `${(100 * (view.lost[cause] || 0)) / most}%` }, title: names[i] })),
          el("b", {}, ms(view.lost[cause] || 0)),
        ),
      ),
    ),
  );
  return panel("What it is lost to", "gain of a step if only this were even; the gains do not add up", rows);
}

/** Persistently slow ranks of each run; `show(rank)` brings one to the heatmap. */
export function slowRanks(views, names) {
  const lists = views.map((view, i) => {
    const { kind, ranks } = view.slow;
    const listed = kind === "same" || kind === "rotating" ? ranks.slice(0, views.length > 1 ? 3 : 5) : [];
    const rows = listed.map((slow) =>
      el(
        "tr",
        {},
        el("th", {}, `rank ${slow.rank}`),
        el("td", { class: "words" }, placeWords(slow.place, view.axes)),
        el("td", {}, `${slow.excess >= 0 ? "+" : ""}${percent(slow.excess, 0)}`),
        el("td", {}, percent(slow.share_of_steps, 0)),
      ),
    );
    const head = el("tr", {}, el("th", {}, ""), el("th", {}, ""), el("th", {}, "over peers"), el("th", {}, "of steps"));
    return el(
      "div",
      { class: `slow kind-${kind}` },
      views.length > 1 ? el("h4", { class: `run${i}` }, names[i]) : null,
      el("p", {}, el("span", { class: "tag" }, { same: "hardware", rotating: "data", even: "even", few: "?", alone: "?" }[kind]), ` ${slowWords(view)}`),
      rows.length ? el("table", { class: "slow-table" }, head, rows) : null,
    );
  });
  return panel("Who is slow", "a rank's own work against the median of its peers", lists);
}

export function panel(title, hint, ...children) {
  return el("section", { class: "panel" }, el("h2", {}, title, el("small", {}, hint)), children);
}
