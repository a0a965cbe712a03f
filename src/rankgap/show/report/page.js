// Draws the figures of a report when they come near the window, follows the sliders, and saves figures as CSV and SVG.
"use strict";

const root = document.documentElement;
const near = new Set();
let figures, plots, sliders, stale; // set by `show`
let percent = 100; // of training: the position of all sliders

const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const figureOf = (part) => part.closest("figure");

const distance = (frame) => Math.abs(frame.at - percent / 100);

function draw(plot, size = {}) {
  const { data, layout, frames } = figures[plot.id];
  const frame = frames.length && frames.reduce((a, b) => (distance(b) < distance(a) ? b : a));
  const traces = data.map((trace, i) => {
    const shown = { ...trace, ...(frame && { y: frame.y[i] }), ...(frame && frame.x && { x: frame.x }) };
    const role = trace.meta.color && { color: color(trace.meta.color) };
    return role ? { ...shown, line: { ...trace.line, ...role }, marker: { ...trace.marker, ...role } } : shown;
  });
  const themed = { ...layout, font: { ...layout.font, color: color("muted") }, uirevision: 1, ...size };
  const lines = { gridcolor: color("grid"), linecolor: color("line"), zerolinecolor: color("line") };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) themed[name] = { ...layout[name], ...lines };
  if (matchMedia("(pointer: coarse)").matches) themed.dragmode = false; // a finger scrolls the page
  Plotly.react(plot, traces, themed, { responsive: true, displayModeBar: false });
  if (frame) figureOf(plot).querySelector("small").textContent = frame.note;
}

function refresh() {
  for (const plot of near) if (stale.delete(plot)) draw(plot);
}

function redraw() {
  stale = new Set(plots);
  refresh();
}

function setTheme(theme) {
  root.dataset.theme = theme;
  redraw();
}

function follow(position) {
  percent = position;
  const place = Number(percent) === 100 ? "newest reading" : `after ${percent}% of training`; // a run may be unfinished
  for (const slider of sliders) {
    slider.value = percent;
    slider.nextElementSibling.textContent = place;
    slider.setAttribute("aria-valuetext", place);
  }
  redraw();
}

// The values of bars are along x.
function csv(plot) {
  const bars = plot.data[0].type === "bar";
  const rows = [["series", bars ? "run" : plot.layout.xaxis.title.text, "value"]];
  for (const { name, x, y } of plot.data.filter((trace) => !trace.meta.shade))
    x.forEach((value, i) => rows.push(bars ? [name, y[i], value] : [name, value, y[i]]));
  const cell = (value) => (typeof value === "string" && /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value ?? "");
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

// A picture has its theme's background, its title and its note.
function picture(plot, filename) {
  const said = (part) => figureOf(plot).querySelector(part).textContent.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const title = { text: `${said("h3")}<br><sub>${said("small")}</sub>`, x: 0.02, y: 0.95, yanchor: "top", font: { size: 13 } };
  const paper = { paper_bgcolor: color("paper"), plot_bgcolor: color("paper") };
  const layout = { ...plot.layout, ...paper, title, margin: { ...plot.layout.margin, t: 70 } };
  const { width, height } = plot.getBoundingClientRect();
  Plotly.downloadImage({ data: plot.data, layout }, { format: "svg", width, height: height + 64, filename });
}

document.addEventListener("click", ({ target }) => {
  const button = target.closest("button.csv, button.svg");
  if (!button) return;
  const plot = figureOf(button).querySelector(".plot");
  const { file } = figures[plot.id];
  if (button.matches(".csv")) save(`${file}.csv`, csv(plot));
  else picture(plot, file);
});
document.addEventListener("input", ({ target }) => target.matches(".slider input") && follow(target.value));

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => (dark.matches ? "dark" : "light");
root.dataset.theme = theme();
dark.addEventListener("change", () => setTheme(theme()));
document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));

const seen = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting ? near.add(target) : near.delete(target);
    refresh();
  },
  { rootMargin: "100% 0px" }, // one screen ahead
);

// Show these figures in the page's elements, as they are now.
function show(found) {
  figures = found;
  plots = [...document.querySelectorAll(".plot")];
  sliders = [...document.querySelectorAll(".slider input")];
  for (const plot of near) if (!plot.isConnected) near.delete(plot);
  plots.forEach((plot) => seen.observe(plot));
  follow(percent);
}
show(JSON.parse(document.getElementById("figures").textContent));

// Print in the light theme, with two figures side by side.
let before = root.dataset.theme;
addEventListener("beforeprint", () => {
  before = root.dataset.theme;
  root.dataset.theme = "light";
  plots.forEach((plot) => draw(plot, { width: figureOf(plot).parentElement.matches(".wide") ? 690 : 325 }));
});
addEventListener("afterprint", () => {
  setTheme(before);
  plots.forEach((plot) => Plotly.Plots.resize(plot));
});
