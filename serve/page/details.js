/* What is said of runs in words: where each stands, its samples, its settings. Names and texts stay texts. It knows no curves. */
import { duration } from "./charts.js";

const states = { waiting: "waiting", running: "running", finished: "finished", stalled: "stalled", removed: "removed" };
const number = new Intl.NumberFormat("en-US");

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function progress({ state, step, steps, secondsLeft, changed }) {
  const done = steps > 0 ? `update ${number.format(step)} of ${number.format(steps)}` : `update ${number.format(step)}`;
  if (state === "running" && secondsLeft !== null) return `${done}, ${duration(secondsLeft)} left`;
  if (state === "stalled" && changed !== null) return `${done}, no news for ${duration((Date.now() - changed) / 1000)}`;
  if (state === "waiting") return "nothing measured yet";
  return state === "removed" ? "its folder is gone" : done;
}

function losses({ loss, heldOutLoss, run }) {
  const parts = [
    loss === null ? "" : `loss ${loss.toFixed(4)}`,
    heldOutLoss === null ? "" : `held-out ${heldOutLoss.toFixed(4)}`,
    run === null ? "" : `${number.format(run.parameters)} parameters, ${run.device}`,
  ];
  return parts.filter((part) => part !== "").join(" · ");
}

/** A run's line: made once, then only its words change, so that focus stays where it is. */
function createRow(index, onToggle) {
  const parts = {
    shown: element("input", { type: "checkbox", checked: true }),
    name: element("span", { className: "name" }),
    state: element("span", { className: "state" }),
    progress: element("span", { className: "progress" }),
    bar: element("progress", { max: 1, ariaLabel: "Progress" }),
    losses: element("span", { className: "losses" }),
  };
  parts.shown.addEventListener("change", onToggle);
  const swatch = element("span", { className: "swatch", ariaHidden: "true" });
  swatch.style.background = `var(--run-${index % 8})`;
  const label = element("label", {}, parts.shown, swatch, parts.name);
  const row = element("li", {}, label, parts.state, parts.progress, parts.bar, parts.losses);
  return { row, ...parts };
}

export function createRuns(list, empty, onToggle) {
  const rows = [];
  const write = (target, text) => target.textContent === text || (target.textContent = text);
  return {
    isShown: (index) => rows[index]?.shown.checked ?? true,
    show(runs) {
      empty.hidden = runs.length > 0;
      runs.forEach((run, index) => {
        if (rows[index] === undefined) list.append((rows[index] = createRow(index, onToggle)).row);
        const row = rows[index];
        row.row.dataset.state = run.state;
        write(row.name, run.label);
        row.name.title = run.folder;
        write(row.state, states[run.state]);
        write(row.progress, progress(run));
        write(row.losses, losses(run));
        row.bar.hidden = run.steps === 0;
        row.bar.value = run.steps > 0 ? Math.min(1, run.step / run.steps) : 0;
        row.bar.ariaLabel = `Progress of ${run.label}`;
      });
    },
  };
}

export function showSamples(parent, runs) {
  const key = JSON.stringify(runs.map(({ label, samples }) => [label, samples]));
  if (parent.dataset.key === key) return;
  parent.dataset.key = key;
  const most = Math.ceil(5 / runs.length);
  const made = runs.flatMap(({ label, samples }) =>
    samples.slice(-most).toReversed().map(({ step, text }) => {
      const head = element("h3", {
        textContent: `${runs.length > 1 ? `${label}, ` : ""}after update ${number.format(step)}`,
      });
      return element("article", {}, head, element("p", { textContent: text }));
    })
  );
  parent.replaceChildren(
    ...(made.length > 0 ? made : [element("p", { className: "hint", textContent: "No sample yet." })]),
  );
}

/** A table with a column a run; settings that differ stand first. */
export function showConfig(parent, runs) {
  const key = JSON.stringify(runs.map(({ label, config }) => [label, config]));
  if (parent.dataset.key === key) return;
  parent.dataset.key = key;
  const text = (
    value,
  ) => (value === undefined || value === "" ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const names = [...new Set(runs.flatMap(({ config }) => Object.keys(config)))];
  const differs = (name) => {
    const known = runs.filter(({ config }) => name in config); // a run of an older version has fewer
    return new Set(known.map(({ config }) => text(config[name]))).size > 1;
  };
  const ordered = [...names.filter(differs), ...names.filter((name) => !differs(name))];
  const head = element(
    "tr",
    {},
    ...["Setting", ...runs.map(({ label }) => label)].map((textContent) =>
      element("th", { scope: "col", textContent })
    ),
  );
  const rows = ordered.map((name) =>
    element(
      "tr",
      { className: differs(name) ? "differs" : "" },
      element("th", { scope: "row", textContent: name }),
      ...runs.map(({ config }) => element("td", { textContent: text(config[name]) })),
    )
  );
  parent.replaceChildren(
    rows.length > 0
      ? element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows))
      : element("p", { className: "hint", textContent: "No settings." }),
  );
}
