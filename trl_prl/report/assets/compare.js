// The same prompt at different checkpoints and of different runs, side by side.

let promptIndex = null;

function byPrompt() {
  if (!promptIndex) {
    promptIndex = new Map();
    for (const row of DATA.completions) {
      if (!promptIndex.has(row.prompt)) promptIndex.set(row.prompt, []);
      promptIndex.get(row.prompt).push(row);
    }
  }
  return promptIndex;
}

const comparison = { prompt: null, run: "all", build: null };
const columnKey = (row) => `${row.run}/${row.source}/${row.label ?? ""}/${row.step ?? ""}/${row.split ?? ""}`;

function comparePrompt(row) {
  comparison.prompt = row.prompt;
  comparison.run = String(row.run);
  openTab("compare", true);
  comparison.build();
}

function compareColumn(rows) {
  let shown = 0;
  const body = h("div");
  const label = h("span");
  const right = rows.filter((row) => isRight(row)).length;
  const judged = rows.filter((row) => isRight(row) !== null).length;
  function draw() {
    const row = rows[shown];
    label.textContent = `${shown + 1} of ${rows.length}`;
    const reward = rewardOf(row);
    replace(body, h("div", { class: "chips" }, mark(isRight(row)), reward !== null && h("span", { class: "chip" }, "reward ", h("b", null, num(reward, 2))),
      isNumber(row.outcome) && h("span", { class: "chip" }, "advantage ", h("b", null, signed(row.outcome)))), renderSteps(row));
  }
  const turn = (step) => () => { shown = (shown + step + rows.length) % rows.length; draw(); };
  draw();
  const first = rows[0];
  return h("article", { class: "card column" },
    h("header", null,
      h("div", null, h("h3", null, isNumber(first.step) ? `Optimizer step ${integer.format(first.step)}` : runLabel(first)), h("span", { class: "made" }, isNumber(first.step) && runLabel(first), first.split === "eval" ? " · eval" : "",
        judged ? ` · ${right} of ${judged} right` : "")),
      h("div", { class: "pager" }, h("button", { type: "button", class: "plain", "aria-label": "Previous sample", onclick: turn(-1) }, "‹"), label, h("button", { type: "button", class: "plain", "aria-label": "Next sample", onclick: turn(1) }, "›"))),
    body);
}

SECTIONS.compare = {
  build(panel) {
    const prompts = [...byPrompt()].map(([prompt, rows]) => [prompt, rows, new Set(rows.map(columnKey)).size])
      .filter(([, , size]) => size > 1).sort((a, b) => b[2] - a[2]).slice(0, 400);
    if (comparison.prompt === null && prompts.length) {
      const [prompt, rows] = prompts[0];
      comparison.prompt = prompt;
      comparison.run = String((rows.find((row) => row.rew) || rows[0]).run);
    }
    const controls = h("div", { class: "bar" });
    const holder = h("div", { class: "stack" });
    append(panel, [controls, holder]);
    comparison.build = () => {
      const rows = byPrompt().get(comparison.prompt) || [];
      const runs = [...new Set(rows.map((row) => row.run))].sort((a, b) => a - b);
      if (comparison.run !== "all" && !runs.includes(Number(comparison.run))) comparison.run = "all";
      const choices = prompts.some(([prompt]) => prompt === comparison.prompt) ? prompts : [[comparison.prompt, rows, 1], ...prompts];
      replace(controls,
        select("Prompt", choices.map(([prompt, , size]) => [String(prompt), `${DATA.prompts[prompt].replace(/\s+/g, " ").slice(0, 90)} (${size})`]), String(comparison.prompt), (value) => { comparison.prompt = Number(value); comparison.build(); }),
        runs.length > 1 && select("Run", [["all", "all runs, last checkpoint"], ...runs.map((run) => [String(run), DATA.runs[run] ? DATA.runs[run].label : "files"])], comparison.run, (value) => { comparison.run = value; comparison.build(); }),
        available.length ? measureControls(draw) : null);
      draw();
    };
    function draw() {
      const rows = byPrompt().get(comparison.prompt) || [];
      const groups = new Map();
      for (const row of rows) {
        if (comparison.run !== "all" && String(row.run) !== comparison.run) continue;
        if (!groups.has(columnKey(row))) groups.set(columnKey(row), []);
        groups.get(columnKey(row)).push(row);
      }
      let columns = [...groups.values()];
      if (comparison.run === "all") {
        const latest = new Map();
        for (const column of columns) {
          const name = `${column[0].run}/${column[0].source}/${column[0].label ?? ""}`;
          if (!latest.has(name) || (latest.get(name)[0].step ?? -1) < (column[0].step ?? -1)) latest.set(name, column);
        }
        columns = [...latest.values()];
      }
      columns.sort((a, b) => (a[0].step ?? 0) - (b[0].step ?? 0) || a[0].run - b[0].run);
      const shown = columns.length <= 12 ? columns : columns.filter((_, index) => index % Math.ceil(columns.length / 12) === 0 || index === columns.length - 1);
      replace(holder,
        h("div", { class: "prompt compare-prompt", tabindex: "0" }, DATA.prompts[comparison.prompt] ?? ""),
        shown.length < columns.length && note(`${shown.length} of ${columns.length} checkpoints are shown, evenly spaced.`),
        h("div", { class: "columns", tabindex: "0", role: "region", "aria-label": "Checkpoints side by side" }, shown.map(compareColumn)));
    }
    comparison.build();
  },
};
