// Draws the figures of a report, follows its sliders, and offers each figure's data as CSV.
"use strict";

const FIGURES = JSON.parse(document.getElementById("figures").textContent);
const FRAMES = new Map();
const root = document.documentElement;
const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

function setTheme(theme) {
  root.dataset.theme = theme;
  document.querySelectorAll(".plot").forEach((plot) => plot.data && dress(plot));
}

// A figure's colours are names of CSS variables, resolved here so that each theme has its own.
function dress(plot) {
  const axis = { gridcolor: color("grid"), linecolor: color("line"), zerolinecolor: color("line") };
  const layout = { "font.color": color("muted") };
  for (const name of Object.keys(plot.layout).filter((key) => /^[xy]axis/.test(key)))
    for (const [key, value] of Object.entries(axis)) layout[`${name}.${key}`] = value;
  Plotly.relayout(plot, layout);
  plot.data.forEach((trace, index) => {
    const role = trace.meta && trace.meta.color;
    if (role) Plotly.restyle(plot, { "line.color": color(role), "marker.color": color(role) }, [index]);
  });
}

function show(plot, frame) {
  if (frame.x) Plotly.restyle(plot, { x: frame.x, y: frame.y });
  else Plotly.restyle(plot, { y: frame.y });
  plot.closest("figure").querySelector("small").textContent = frame.note;
}

function csv(plot) {
  const rows = [["series", "x", "y"]];
  for (const trace of plot.data.filter((t) => !(t.meta && t.meta.shade)))
    trace.x.forEach((x, i) => rows.push([trace.name, x, trace.y[i]]));
  const cell = (value) => (typeof value === "string" && /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value ?? "");
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `${name}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const [id, { data, layout, frames }] of Object.entries(FIGURES)) {
  const plot = document.getElementById(id);
  Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false });
  FRAMES.set(plot, frames);
  plot.closest("figure").querySelector("button").addEventListener("click", () => save(id, csv(plot)));
}

for (const slider of document.querySelectorAll(".slider input")) {
  const plots = [...slider.closest("section").querySelectorAll(".plot")].filter((plot) => FRAMES.get(plot).length);
  const follow = () => {
    const at = slider.value / slider.max;
    slider.nextElementSibling.textContent = `${Math.round(100 * at)}% of training`;
    for (const plot of plots) {
      const nearest = FRAMES.get(plot).reduce((a, b) => (Math.abs(b.at - at) < Math.abs(a.at - at) ? b : a));
      show(plot, nearest);
    }
  };
  slider.addEventListener("input", follow);
  follow();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
