"use strict";
(() => {
  // Theme: follows the system until the button is pressed; then light, dark, system in turn.
  const root = document.documentElement;
  const button = document.querySelector(".theme");
  const store = { get: () => { try { return localStorage.getItem("xtoken-theme"); } catch { return null; } },
                  set: (v) => { try { v ? localStorage.setItem("xtoken-theme", v) : localStorage.removeItem("xtoken-theme"); } catch { /* a file may have no storage */ } } };
  const show = (theme) => {
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    button.textContent = { light: "Light", dark: "Dark" }[theme] || "System";
    button.setAttribute("aria-label", `Colour theme: ${theme || "system"}. Press to change.`);
  };
  const order = [null, "light", "dark"];
  let theme = store.get();
  if (!order.includes(theme)) theme = null;
  show(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    store.set(theme);
    show(theme);
  });

  // Charts: the pointer, or the arrow keys, read the recorded values nearest to a step.
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid; else high = mid; }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  const text = (value, unit) => value === null ? "not finite" :
    (Math.abs(value) >= 10000 ? Math.round(value).toLocaleString("en") : String(value)) + (unit === "%" ? " %" : "");

  for (const figure of document.querySelectorAll("figure.chart")) {
    const plot = figure.querySelector(".plot");
    const svg = plot.querySelector("svg");
    const cursor = svg.querySelector(".cursor");
    const tip = plot.querySelector(".tip");
    const data = JSON.parse(figure.querySelector(".points").textContent);
    const [left, right, first, last] = data.frame;
    const steps = data.lines.reduce((longest, line) => line.x.length > longest.length ? line.x : longest, []);
    let at = steps.length - 1;

    const point = (step) => {
      const place = last > first ? left + (step - first) / (last - first) * (right - left) : (left + right) / 2;
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      tip.replaceChildren();
      const head = document.createElement("i");
      head.textContent = `step ${step.toLocaleString("en")}`;
      tip.append(head);
      for (const line of data.lines) {
        const i = nearest(line.x, step);
        if (Math.abs(line.x[i] - step) > 0.02 * (last - first)) continue;
        const row = document.createElement("div");
        const key = document.createElement("i");
        key.className = `key b${line.colour}`;
        row.append(key, ` ${line.name} ${text(line.y[i], data.unit)}`);
        tip.append(row);
      }
      tip.hidden = false;
      const scale = svg.clientWidth / 360;
      const room = plot.clientWidth - tip.offsetWidth;
      const beside = place * scale + 10 > room ? place * scale - 10 - tip.offsetWidth : place * scale + 10;
      tip.style.left = `${Math.max(0, Math.min(room, beside))}px`;
    };
    const clear = () => { tip.hidden = true; cursor.setAttribute("x1", -9); cursor.setAttribute("x2", -9); };
    plot.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * 360 / box.width;
      at = nearest(steps, first + (x - left) / (right - left) * (last - first));
      point(steps[at]);
    });
    plot.addEventListener("pointerleave", clear);
    plot.addEventListener("blur", clear);
    plot.addEventListener("keydown", (event) => {
      const jump = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
      if (event.key === "Escape") { clear(); return; }
      if (jump === undefined) return;
      event.preventDefault();
      at = Math.max(0, Math.min(steps.length - 1, at + (tip.hidden ? 0 : jump)));
      point(steps[at]);
    });
  }
})();
