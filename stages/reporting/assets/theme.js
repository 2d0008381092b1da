"use strict";
// Before anything is drawn: the reader's choice of colours, if a disk's page may remember one.
(() => {
  const themes = { system: "◐", light: "○", dark: "●" };
  const names = { system: "as the system", light: "light", dark: "dark" };
  let theme = "system";
  try { theme = localStorage.getItem("theme") || "system"; } catch { /* not allowed: the system's */ }
  if (!(theme in themes)) theme = "system";
  const apply = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (!button) return;
    button.textContent = `${themes[theme]} ${theme[0].toUpperCase()}${theme.slice(1)}`;
    button.setAttribute("aria-label", `Colours: ${names[theme]}`);
  };
  apply();
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      const order = Object.keys(themes);
      theme = order[(order.indexOf(theme) + 1) % order.length];
      try { localStorage.setItem("theme", theme); } catch { /* lasts for this page only */ }
      apply();
    });
  });
})();
