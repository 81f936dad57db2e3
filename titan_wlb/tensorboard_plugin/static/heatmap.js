// Ranks x steps. A cell is the largest value of the ranks and steps that share it, and knows whose it is.

import { canvasOf, colour, el } from "./dom.js";
import { domain, isOver, level, ramp } from "./colours.js";
import { VALUES, percent, placeWords } from "./words.js";

const LEFT = 64;
const BOTTOM = 18;

/**
 * A picture with axes, a cursor and a readout.
 *
 * picture: of api.heatmap. size: {width, height} of the cells' area. scale: [low, high]. pick(step, rank): a click, or
 * Enter at the cursor. selected: a step to mark.
 */
export function heatmap({ name, picture, size, scale, dark, axes, pick, selected }) {
  const [canvas, context] = canvasOf(size.width + LEFT, size.height + BOTTOM);
  const image = cellsImage(picture, scale, dark);
  const readout = el("output", { class: "readout", "aria-live": "polite" }, hint());
  const cursor = el("div", { class: "cursor", hidden: true });
  let at = null;

  context.imageSmoothingEnabled = false;
  context.drawImage(image, LEFT, 0, size.width, size.height);
  drawAxes(context, picture, size, selected);

  function move(row, column) {
    at = [clamp(row, picture.rows), clamp(column, picture.columns)];
    const [height, width] = [size.height / picture.rows, size.width / picture.columns];
    Object.assign(cursor.style, {
      left: `${LEFT + at[1] * width}px`,
      top: `${at[0] * height}px`,
      width: `${Math.max(width, 3)}px`,
      height: `${Math.max(height, 3)}px`,
    });
    cursor.hidden = false;
    readout.textContent = words(picture, at, axes);
  }

  function cellOf(event) {
    const box = canvas.getBoundingClientRect();
    const x = (event.clientX - box.left - LEFT) / size.width;
    const y = (event.clientY - box.top) / size.height;
    return x < 0 || x >= 1 || y < 0 || y >= 1 ? null : [Math.floor(y * picture.rows), Math.floor(x * picture.columns)];
  }

  function picked() {
    if (at) pick(picture.steps[at[1]][1], picture.whose[at[0] * picture.columns + at[1]]);
  }

  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -1e9], End: [0, 1e9] };
  const frame = el(
    "div",
    {
      class: "heatmap",
      tabindex: 0,
      role: "application",
      "aria-label": `Heatmap of ${name}: ${VALUES[picture.value]}, ${picture.num_ranks} ranks by ${picture.num_steps} steps. Arrow keys move, Enter shows the step.`,
      onpointermove: (event) => {
        const cell = cellOf(event);
        if (cell) move(...cell);
      },
      onpointerleave: () => {
        cursor.hidden = true;
        readout.textContent = hint();
      },
      onclick: picked,
      onkeydown: (event) => {
        if (event.key in moves) {
          const [down, right] = moves[event.key];
          move((at ? at[0] : 0) + (at ? down : 0), (at ? at[1] : picture.columns - 1) + (at ? right : 0));
          event.preventDefault();
        } else if (event.key === "Enter") picked();
      },
    },
    canvas,
    cursor,
  );
  return el("div", { class: "picture" }, frame, readout);
}

/** The colours and what they stand for. */
export function legend(value, scale, dark) {
  const [canvas, context] = canvasOf(120, 10);
  ramp(value, dark).forEach((rgb, i) => {
    context.fillStyle = `rgb(${rgb})`;
    context.fillRect((i / 256) * 120, 0, 1, 10);
  });
  const words = isOver(value) ? scale.map((x) => `${x.toFixed(2)}x`) : scale.map((x) => percent(x, x < 0.1 ? 1 : 0));
  return el("div", { class: "legend" }, words[0], canvas, `${words[1]}${isOver(value) ? "" : " of the step"}`);
}

export { domain };

function cellsImage(picture, scale, dark) {
  const canvas = el("canvas", { width: picture.columns, height: picture.rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(picture.columns, picture.rows);
  const colours = ramp(picture.value, dark);
  picture.cells.forEach((cell, i) => {
    if (Number.isNaN(cell)) return; // stays transparent: this rank was not there
    image.data.set([...colours[level(cell, scale)], 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function drawAxes(context, picture, size, selected) {
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = colour("muted");
  context.textBaseline = "middle";
  context.textAlign = "right";
  const height = size.height / picture.rows;
  if (picture.group !== "none") {
    let free = 0;
    picture.groups.forEach(([place, first, past], i) => {
      if (i) line(context, LEFT, Math.round(first * height) + 0.5, LEFT + size.width, Math.round(first * height) + 0.5, colour("page"));
      const y = ((first + past) / 2) * height;
      if (y < free) return;
      context.fillText(place < 0 ? "gone" : `${picture.group} ${place}`, LEFT - 6, Math.max(y, 6));
      free = y + 14;
    });
  } else if (picture.sort === "value") {
    context.fillText("most", LEFT - 6, 7);
    context.fillText("least", LEFT - 6, size.height - 7);
  } else {
    const every = Math.max(1, Math.ceil(picture.rows / Math.floor(size.height / 16)));
    let rank = 0;
    let free = 0;
    picture.row_sizes.forEach((ranks, row) => {
      const y = Math.max((row + 0.5) * height, 6);
      if (row % every === 0 && y >= free) {
        context.fillText(`rank ${rank}`, LEFT - 6, y);
        free = y + 14;
      }
      rank += ranks;
    });
  }
  context.textAlign = "center";
  context.textBaseline = "top";
  const width = size.width / picture.columns;
  const labels = Math.min(picture.columns, 6);
  for (let i = 0; i < labels; i += 1) {
    const column = labels > 1 ? Math.round((i * (picture.columns - 1)) / (labels - 1)) : 0;
    const x = LEFT + (column + 0.5) * width;
    context.textAlign = i === 0 ? "left" : i === labels - 1 ? "right" : "center";
    context.fillText(i === 0 ? `step ${picture.steps[column][0]}` : picture.steps[column][1], x, size.height + 5);
  }
  for (const step of picture.eras) {
    const column = picture.steps.findIndex(([, last]) => last >= step);
    line(context, LEFT + column * width, 0, LEFT + column * width, size.height, colour("ink"), [3, 3]);
  }
  const column = picture.steps.findIndex(([first, last]) => first <= selected && selected <= last);
  if (column >= 0) {
    context.fillStyle = colour("accent");
    context.fillRect(LEFT + column * width, size.height, Math.max(width, 3), 4);
  }
}

function line(context, x0, y0, x1, y1, stroke, dash = []) {
  context.strokeStyle = stroke;
  context.setLineDash(dash);
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
  context.setLineDash([]);
}

function words(picture, [row, column], axes) {
  const i = row * picture.columns + column;
  const rank = picture.whose[i];
  const [first, last] = picture.steps[column];
  const when = first === last ? `step ${first}` : `steps ${first}–${last}`;
  if (rank < 0) return `${when}: no such rank then`;
  const place = Object.fromEntries(axes.map((axis) => [axis, picture.coordinates[axis][rank]]));
  const value = isOver(picture.value) ? `${picture.cells[i].toFixed(3)}x` : percent(picture.cells[i]);
  const among = picture.row_sizes[row] > 1 ? `, the largest of ${picture.row_sizes[row]} ranks here` : "";
  return `${when} · rank ${rank}${axes.length ? ` (${placeWords(place, axes)})` : ""} · ${value}${among}`;
}

function hint() {
  return "Point at a cell, or focus and use the arrow keys; click or Enter shows the step below.";
}

function clamp(value, length) {
  return Math.max(0, Math.min(length - 1, value));
}
