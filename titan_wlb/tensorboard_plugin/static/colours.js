// Ramps that a colour-blind eye and a grey print tell apart: lightness alone orders them.

const IDLE_LIGHT = ["#f4f1e8", "#e6d9a4", "#c9b25f", "#8f8468", "#56607a", "#1f3a6e", "#0b1f4b"];
const IDLE_DARK = ["#161b26", "#22365f", "#4a5a7a", "#7d7c78", "#b3a45f", "#e0ca55", "#fff0a0"];
const OVER_LIGHT = ["#1f5fa8", "#86b3dc", "#f2f2ef", "#f0a65a", "#b34700"];
const OVER_DARK = ["#7ab8f5", "#3a6ea5", "#20242e", "#c26a1b", "#ffc07a"];

/** Of micro-batches, in turn; places and causes have theirs in the style sheet. */
export const MICRO_BATCHES = ["#4477aa", "#ddaa33", "#66a3c2", "#aa7744", "#8877bb", "#bbbbaa", "#336677", "#cc8899"];

export const isOver = (value) => value.startsWith("compute_over");

/** [256] of [r, g, b] for a value of the heatmap. */
export function ramp(value, dark) {
  const stops = (isOver(value) ? (dark ? OVER_DARK : OVER_LIGHT) : dark ? IDLE_DARK : IDLE_LIGHT).map(rgb);
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return [0, 1, 2].map((c) => Math.round(stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c])));
  });
}

// Of the cells that the scale spans: one rank of 300 rows is among them, a single step that went astray is not.
const SHOWN = 0.998;

/** [low, high] of the scale that these cells ask for: around 1 for ratios, from 0 for shares. */
export function domain(value, pictures) {
  const all = [];
  for (const { cells } of pictures) for (const cell of cells) if (!Number.isNaN(cell)) all.push(cell);
  if (isOver(value)) {
    const far = all.map((cell) => Math.abs(cell - 1)).sort((a, b) => a - b);
    const reach = Math.min(Math.max(far[Math.floor(SHOWN * (far.length - 1))] ?? 0.1, 0.1), 1);
    return [1 - reach, 1 + reach];
  }
  all.sort((a, b) => a - b);
  return [0, Math.max(all[Math.floor(SHOWN * (all.length - 1))] ?? 0.01, 0.01)];
}

/** Place of a value in the ramp. */
export function level(cell, [low, high]) {
  return Math.max(0, Math.min(255, Math.round((255 * (cell - low)) / (high - low))));
}

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}
