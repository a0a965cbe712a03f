// Colours the map by cluster or label, shows the image under the pointer, and finds a cluster on the map.
"use strict";

const POINTS = JSON.parse(document.getElementById("points").textContent);
const map = document.getElementById("map");
const tip = document.getElementById("tip");
const by = document.getElementById("by");
const MARKS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
const LEGEND = 16; // groups with room for a legend
const pictureOf = POINTS.pictures && new Map(POINTS.pictures.map((row, k) => [row, k]));
let chosen = null; // the cluster that stands out

const groupName = (kind, group) =>
  kind === "labels" ? (group < 0 ? "no label" : POINTS.classes[group]) : group < 0 ? "no cluster" : `Cluster ${group + 1}`;
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // Plotly reads names as markup

function traces(kind) {
  const groups = new Map();
  POINTS[kind].forEach((group, row) => groups.has(group) ? groups.get(group).push(row) : groups.set(group, [row]));
  const size = POINTS.x.length > 5000 ? 4 : 7;
  return [...groups].sort(([a], [b]) => a - b).map(([group, rows]) => ({
    type: "scattergl", mode: "markers", name: plain(groupName(kind, group)), meta: {}, customdata: rows, hoverinfo: "none",
    x: rows.map((row) => POINTS.x[row]), y: rows.map((row) => POINTS.y[row]),
    showlegend: groups.size <= LEGEND,
    marker: {
      size, line: { width: group < 0 ? 1 : 0 }, // an open mark is its line
      color: group < 0 ? "#8A9099" : POINTS.colours[group % POINTS.colours.length],
      symbol: group < 0 ? "circle-open" : MARKS[Math.floor(group / POINTS.colours.length) % MARKS.length],
      opacity: chosen === null || (kind === "clusters" && group === chosen) ? 0.75 : 0.08,
    },
  }));
}

function colour() {
  figures.map.data = traces(by.value);
  draw(map);
}

function say({ points: [{ customdata: row }], event }) {
  const [picture, name, group] = tip.children;
  const k = pictureOf ? pictureOf.get(row) : row;
  const sheet = k === undefined ? undefined : POINTS.sheets[Math.floor(k / POINTS.sheet)];
  picture.hidden = sheet === undefined;
  tip.hidden = false;
  if (sheet !== undefined) {
    const { width } = picture.getBoundingClientRect();
    const place = k % POINTS.sheet;
    picture.style.backgroundImage = `url(${sheet})`;
    picture.style.backgroundSize = `${POINTS.across * width}px auto`;
    picture.style.backgroundPosition = `${-(place % POINTS.across) * width}px ${-Math.floor(place / POINTS.across) * width}px`;
  }
  name.textContent = POINTS.names[row];
  const kinds = POINTS.labels ? ["labels", "clusters"] : ["clusters"];
  group.textContent = kinds.map((kind) => groupName(kind, POINTS[kind][row])).join(", ");
  const { width, height } = tip.getBoundingClientRect();
  const at = (pointer, length, room) => Math.max(4, pointer + 14 + length > room ? pointer - 14 - length : pointer + 14);
  tip.style.left = `${at(event.clientX, width, innerWidth)}px`;
  tip.style.top = `${at(event.clientY, height, innerHeight)}px`;
}

colour();
stale.delete(map);
map.on("plotly_hover", say);
map.on("plotly_click", say);
map.on("plotly_unhover", () => (tip.hidden = true));
addEventListener("scroll", () => (tip.hidden = true), { passive: true });
by.addEventListener("input", () => ((chosen = null), press(), colour()));

function press() {
  for (const button of document.querySelectorAll("[data-cluster]"))
    button.setAttribute("aria-pressed", Number(button.dataset.cluster) === chosen);
}

document.getElementById("clusters").addEventListener("click", ({ target }) => {
  const button = target.closest("[data-cluster]");
  if (!button) return;
  const cluster = Number(button.dataset.cluster);
  chosen = chosen === cluster ? null : cluster;
  by.value = "clusters";
  press();
  colour();
  if (chosen !== null) document.getElementById("whole").scrollIntoView({ behavior: "smooth" });
});
