// Numbers and names as people read them.

export const PLACES = {
  compute: "compute",
  pipeline: "waiting for another stage",
  cp_waiting: "waiting for a CP rank",
  cp_transfer: "K/V transfer",
  fsdp_waiting: "waiting for an FSDP rank",
  fsdp_transfer: "FSDP transfer",
  data: "waiting for the loader",
  starved: "core taken by others",
  other: "logging, checkpoints",
};

export const CAUSES = {
  pipeline: "micro-batches of a pipeline",
  cp: "CP ranks",
  dp: "DP ranks",
  slow_rank: "one slow rank",
  data: "the loader",
};

export const VALUES = {
  compute_over_mean: "compute over the mean of all",
  compute_over_peers: "compute over the stage's median",
  idle: "idle, all places",
  pipeline: "waiting for another stage",
  cp_waiting: "waiting for a CP rank",
  cp_transfer: "K/V transfer",
  fsdp_waiting: "waiting for an FSDP rank",
  fsdp_transfer: "FSDP transfer",
  data: "waiting for the loader",
  starved: "core taken by others",
  blocked: "asleep within compute",
  other: "logging, checkpoints",
};

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

export const whole = (number) => Math.round(number).toLocaleString("en-US");

export function ms(value) {
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 100 ? `${whole(value)} ms` : `${value.toFixed(value >= 10 ? 1 : 2)} ms`;
}

export function short(number) {
  const size = Math.abs(number);
  if (size >= 1e6) return `${(number / 1e6).toFixed(2)} M`;
  return size >= 1e4 ? `${(number / 1e3).toFixed(1)} k` : size >= 100 ? whole(number) : number.toFixed(2);
}

/** "pp 1, dp 3": a rank's place on the axes that have several. */
export function placeWords(place, axes) {
  return axes.map((axis) => `${axis} ${place[axis]}`).join(", ");
}

/** Runs without what all their names begin with. */
export function shortNames(names) {
  if (names.length < 2) return names;
  const parts = names.map((name) => name.split("/"));
  let same = 0;
  while (parts.every((p) => p.length > same + 1 && p[same] === parts[0][same])) same += 1;
  return parts.map((p) => p.slice(same).join("/"));
}
