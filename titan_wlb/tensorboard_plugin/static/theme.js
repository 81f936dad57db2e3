// Light or dark: as TensorBoard's page around this one, else as the system.

const system = window.matchMedia("(prefers-color-scheme: dark)");

export function isDark() {
  return document.documentElement.dataset.theme === "dark";
}

/** Sets data-theme now and whenever it changes; `changed` draws anew what no style sheet reaches. */
export function followTheme(changed) {
  const around = outer();
  const apply = () => {
    const dark = around ? around.classList.contains("dark-mode") : system.matches;
    if (document.documentElement.dataset.theme === (dark ? "dark" : "light")) return;
    const first = document.documentElement.dataset.theme === undefined;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    if (!first) changed();
  };
  apply();
  if (around) new MutationObserver(apply).observe(around, { attributes: true, attributeFilter: ["class"] });
  else system.addEventListener("change", apply);
}

function outer() {
  try {
    return window.parent !== window ? window.parent.document.body : null;
  } catch {
    return null; // another origin around us, a notebook say
  }
}
