/* Runs, live: hears the server's events and has all drawn again, at most a few times a second. */
import { createCharts } from "./charts.js";
import { Curves } from "./curves.js";
import { createRuns, showConfig, showSamples } from "./details.js";

const at = (id) => document.getElementById(id);
const form = at("view");
const curves = [];
let runs = [];
let due = false;

const drawCharts = createCharts(at("charts"));
const list = createRuns(at("runs"), at("empty"), () => draw());

const curvesOf = (index) => curves[index] ??= new Curves();

function view() {
  const { x, smoothing, log } = form.elements;
  return { x: x.value, smoothing: Number(smoothing.value), log: log.checked };
}

function drawNow() {
  due = false;
  list.show(runs);
  const shown = runs.map((run, index) => ({ ...run, index })).filter(({ index }) => list.isShown(index));
  drawCharts(
    shown.map(({ label, index }) => ({ name: label, color: `--run-${index % 8}`, curves: curvesOf(index) })),
    view(),
  );
  form.classList.toggle("several", shown.length > 1);
  showSamples(at("samples"), shown);
  showConfig(at("config"), shown);
}

function draw() {
  if (due) return;
  due = true;
  setTimeout(() => requestAnimationFrame(drawNow), 60);
}

/** Runs by their folders' names, or by whole paths where two have the same. */
function labeled(statuses) {
  return statuses.map((run) => {
    const alone = statuses.filter(({ name }) => name === run.name).length === 1;
    return { ...run, label: alone ? run.name : run.folder };
  });
}

function listen() {
  const events = new EventSource("events");
  events.addEventListener("open", () => at("connection").textContent = "Live");
  events.addEventListener("error", () => at("connection").textContent = "Connection lost; trying again");
  events.addEventListener("runs", ({ data }) => {
    runs = labeled(JSON.parse(data));
    const [first] = runs;
    document.title = runs.length === 1 ? `${first.label} · wgpt` : `${runs.length} runs · wgpt`;
    draw();
  });
  events.addEventListener("records", ({ data }) => {
    const { run, reset, records } = JSON.parse(data);
    if (reset) curvesOf(run).reset();
    for (const record of records) curvesOf(run).push(record);
    draw();
  });
}

form.addEventListener("input", draw);
form.addEventListener("submit", (event) => event.preventDefault());
new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
setInterval(draw, 20_000); // how long a silent run has been silent
draw();
listen();
