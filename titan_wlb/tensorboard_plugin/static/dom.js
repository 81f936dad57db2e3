// Elements without a framework. Text goes in as text, never as markup: names of runs come from folders.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a child that is no node becomes text, null is left out. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, of] of Object.entries(value)) node.style.setProperty(name, of);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** A labelled choice; `options` are [value, text]. */
export function choice(label, name, options, value, change) {
  const select = el("select", { name, onchange: () => change(select.value) });
  for (const [of, text] of options) select.append(el("option", { value: of, selected: of === value }, text));
  return el("label", { class: "choice" }, el("span", {}, label), select);
}

/** A canvas sharp on this screen, and its context in CSS pixels. */
export function canvasOf(width, height) {
  const scale = window.devicePixelRatio || 1;
  const canvas = el("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return [canvas, context];
}

/** A colour of the style sheet. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
