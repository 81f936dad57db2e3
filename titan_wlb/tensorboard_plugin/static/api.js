// Asks the server; paths are relative to this file, so that a TensorBoard below a path prefix works.

async function ask(path, parameters = {}) {
  const url = new URL(`../${path}`, import.meta.url);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  const response = await fetch(url);
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Error(told.error || `the server answered ${response.status}`);
}

export const runs = async () => (await ask("runs")).json();
export const overview = async (run, last) => (await ask("overview", { run, last })).json();
export const step = async (run, at) => (await ask("step", { run, step: at })).json();

/** The header's fields, and cells and whose as arrays of rows x columns; the layout of bytes is described in plugin.py. */
export async function heatmap(parameters) {
  const bytes = await (await ask("heatmap", parameters)).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  const number = header.rows * header.columns;
  const cells = new Float32Array(bytes, 4 + length, number);
  const whose = new Int32Array(bytes, 4 + length + 4 * number, number);
  return { ...header, cells, whose };
}
