"use strict";
(() => {
  const root = document.documentElement;
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const places = [...document.querySelectorAll("[data-figure]")];
  const drawn = new Set();
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  // Colours in the pictures are names of CSS variables.
  const coloured = (value, style) => {
    if (typeof value === "string") return /^--[a-z]/.test(value) ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((each) => coloured(each, style));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, style)]));
    return value;
  };
  const draw = (place) => {
    const { data, layout } = coloured(pictures[Number(place.dataset.figure)], getComputedStyle(root));
    Plotly.react(place, data, layout, { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false });
    drawn.add(place);
    root.dataset.drawn = String(drawn.size);
  };
  const rest = () => places.forEach((place) => drawn.has(place) || draw(place));

  // A picture is drawn when it comes near: hundreds of tasks must not make the verdict wait.
  if ("IntersectionObserver" in window) {
    const watch = new IntersectionObserver((seen) => seen.forEach((each) => {
      if (each.isIntersecting && !drawn.has(each.target)) { watch.unobserve(each.target); draw(each.target); }
    }), { rootMargin: "800px" });
    places.forEach((place) => watch.observe(place));
  } else rest();
  addEventListener("beforeprint", rest);

  const button = document.getElementById("theme");
  const show = () => {
    button.textContent = dark() ? "Light theme" : "Dark theme";
    drawn.forEach(draw);
  };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; show(); });
  system.addEventListener("change", show);
  show();
})();
