// Draws the figures of a report, follows its sliders, and offers each figure as CSV and SVG.
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

// Bars lie: their values run along x.
function csv(plot) {
  const title = plot.layout.xaxis.title.text;
  const rows = [["series", plot.data[0].type === "bar" ? "run" : title, "value"]];
  for (const trace of plot.data.filter((t) => !(t.meta && t.meta.shade)))
    trace.x.forEach((x, i) => rows.push(trace.type === "bar" ? [trace.name, trace.y[i], x] : [trace.name, x, trace.y[i]]));
  const cell = (value) => (typeof value === "string" && /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value ?? "");
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

// A picture has the paper of its theme, and keeps its title.
function picture(plot, filename) {
  const caption = plot.closest("figure").querySelector("h3").textContent;
  const title = { text: caption.replaceAll("&", "&amp;").replaceAll("<", "&lt;"), x: 0.02, font: { size: 13 } };
  const margin = { ...plot.layout.margin, t: 54 };
  const layout = { ...plot.layout, title, margin, paper_bgcolor: color("paper"), plot_bgcolor: color("paper") };
  const { width, height } = plot.getBoundingClientRect();
  Plotly.downloadImage({ data: plot.data, layout }, { format: "svg", width, height: height + 48, filename });
}

for (const [id, { data, layout, frames, file }] of Object.entries(FIGURES)) {
  const plot = document.getElementById(id);
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls the page
  Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false });
  FRAMES.set(plot, frames);
  const button = (kind) => plot.closest("figure").querySelector(`button.${kind}`);
  button("csv").addEventListener("click", () => save(`${file}.csv`, csv(plot)));
  button("svg").addEventListener("click", () => picture(plot, file));
}

// All sliders show the same share of training; each plot shows its run's nearest record.
const sliders = [...document.querySelectorAll(".slider input")];

function follow(value) {
  const at = value / 100;
  for (const slider of sliders) {
    slider.value = value;
    slider.nextElementSibling.textContent = `after ${value}% of training`;
    slider.setAttribute("aria-valuetext", `${value}% of training`);
  }
  for (const [plot, frames] of FRAMES)
    if (frames.length) show(plot, frames.reduce((a, b) => (Math.abs(b.at - at) < Math.abs(a.at - at) ? b : a)));
}

for (const slider of sliders) slider.addEventListener("input", () => follow(slider.value));
follow(100);

const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
