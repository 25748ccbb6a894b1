// Evaluations, calibration of verifiers, diagnosis of provers, other files; and what starts the page.

const withInterval = (found, format = num) => (!found || !isNumber(found.value) ? "–" : isNumber(found.low) && found.low !== found.high ? `${format(found.value)} (${format(found.low)} to ${format(found.high)})` : format(found.value));
const NAMES = { auroc: "AUROC", ece: "calibration error (ECE)", brier: "Brier score", p_value_holm: "p value (Holm)", mcnemar_exact: "McNemar, exact" };
const words = (name) => NAMES[name] || name.replace(/^by_/, "by ").replace(/^num_/, "").replace(/_/g, " ");
// What counts something has no decimals.
const formatOf = (name) => (/^(num_|count$)/.test(name) ? amount : num);

function breakdownTable(title, rows) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => name !== "label");
  return h("div", { class: "card" }, h("h2", null, words(title)), table(["", ...columns.map(words)], rows.map((row) => [row.label, ...columns.map((name) => withInterval(row[name], formatOf(name)))])));
}

SECTIONS.evaluation = {
  build(panel) {
    append(panel, h("div", { class: "stack" }, DATA.evaluations.map((evaluation) => {
      const names = [...new Set(evaluation.models.flatMap((model) => Object.keys(model.metrics)))];
      const curves = ["pass", "maj"].map((kind) => {
        const ks = names.map((name) => new RegExp(`^${kind}@(\\d+)$`).exec(name)).filter(Boolean).map((match) => Number(match[1])).sort((a, b) => a - b);
        if (ks.length < 2) return null;
        const lines = evaluation.models.map((model, index) => {
          const found = ks.map((k) => model.metrics[`${kind}@${k}`] || {});
          const line = { label: model.name, index, x: ks, mean: found.map((e) => e.value), points: true };
          return found.every((e) => isNumber(e.low)) ? { ...line, low: found.map((e) => e.low), high: found.map((e) => e.high) } : line;
        });
        return lineChart({ title: `${kind}@k`, hint: "with intervals over problems", height: 230, xName: "k", format: (v) => percent(v) }, lines).figure;
      });
      return [h("h2", null, evaluation.label), curves.some(Boolean) && h("div", { class: "charts wide" }, curves),
        h("div", { class: "card" }, table(["metric", ...evaluation.models.map((model) => model.name)], names.map((name) => [name, ...evaluation.models.map((model) => withInterval(model.metrics[name], percent))]), "Estimates with intervals in parentheses")),
        evaluation.comparisons.length ? h("div", { class: "card" }, h("h2", null, "Paired tests"), objectTable(evaluation.models.length > 2 ? evaluation.comparisons : evaluation.comparisons.map(({ before, after, ...row }) => row))) : null,
        evaluation.models.flatMap((model) => Object.entries(model.groups).filter(([, rows]) => rows.length).map(([name, rows]) => breakdownTable(`${model.name}, ${name}`, rows)))];
    })));
  },
};

function objectTable(rows) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  return table(columns.map(words), rows.map((row) => columns.map((name) => (isNumber(row[name]) ? formatOf(name)(row[name]) : NAMES[row[name]] || String(row[name] ?? "–")))));
}

// Observed success against predicted value; a calibrated verifier lies on the diagonal.
function reliability(verifier) {
  const bins = verifier.bins.filter((bin) => isNumber(bin.predicted) && isNumber(bin.observed) && bin.count !== 0);
  if (!bins.length) return null;
  const observed = { label: "observed", index: 0, x: bins.map((bin) => bin.predicted), mean: bins.map((bin) => bin.observed), points: true };
  const ideal = { label: "perfect", index: 7, x: [0, 1], mean: [0, 1] };
  const figures = [lineChart({ title: "Calibration", hint: "observed success against predicted value", height: 280, xName: "predicted", xRange: [0, 1], yRange: [0, 1], zoom: false, ends: false }, [observed, ideal]).figure];
  if (bins.every((bin) => isNumber(bin.count))) {
    figures.push(lineChart({ title: "Steps per bin", hint: "where the verifier's values lie", height: 280, xName: "predicted", xRange: [0, 1], zoom: false, zero: true, ends: false }, [{ label: "steps", index: 3, dash: [], x: bins.map((bin) => bin.predicted), mean: bins.map((bin) => bin.count), bars: true }]).figure);
  }
  return h("div", { class: "charts wide" }, figures);
}

SECTIONS.verifier = {
  build(panel) {
    append(panel, h("div", { class: "stack" }, DATA.verifiers.map((verifier) => [
      h("h2", null, verifier.label),
      h("div", { class: "tiles" }, Object.entries(verifier.metrics).slice(0, 12).map(([name, found]) => h("div", { class: "tile" }, h("b", null, num(found.value)), h("span", null, words(name), isNumber(found.low) ? ` (${num(found.low)} to ${num(found.high)})` : "")))),
      reliability(verifier),
      verifier.bins.length ? h("details", null, h("summary", null, "Bins as a table"), objectTable(verifier.bins)) : null,
      Object.entries(verifier.tables).map(([name, rows]) => breakdownTable(name, rows)),
    ])));
  },
};

// Both terms of Theorem 3.1 over the prover's K, one line per prover.
function diagnosisCharts(candidates) {
  const provers = [...new Set(candidates.map((candidate) => candidate.prover))];
  const names = ["credit", "gain", "distinguishability", "alignment", "sum"].filter((name) => candidates.some((candidate) => candidate.numbers[name]));
  const hints = { credit: "correlation of a step's credit with its true advantage", gain: "credit over that of the outcome signal alone", distinguishability: "variance of the progress over the policy's steps", alignment: "progress of the prover times that of the policy", sum: "both terms" };
  const charts = names.map((name) => {
    const lines = provers.map((prover, index) => {
      const own = candidates.filter((candidate) => candidate.prover === prover && isNumber(candidate.k) && candidate.numbers[name]).sort((a, b) => a.k - b.k);
      const found = own.map((candidate) => candidate.numbers[name]);
      const line = { label: prover, index, x: own.map((candidate) => candidate.k), mean: found.map((e) => e.value), points: true };
      return found.every((e) => isNumber(e.low)) ? { ...line, low: found.map((e) => e.low), high: found.map((e) => e.high) } : line;
    }).filter((line) => line.x.length);
    return lines.length ? lineChart({ title: words(name)[0].toUpperCase() + words(name).slice(1), hint: hints[name], height: 220, xName: "Best of" }, lines).figure : null;
  });
  return charts.some(Boolean) ? h("div", { class: "charts" }, charts) : null;
}

SECTIONS.prover = {
  build(panel) {
    append(panel, h("div", { class: "stack" }, DATA.diagnoses.map((diagnosis) => {
      const names = [...new Set(diagnosis.candidates.flatMap((candidate) => Object.keys(candidate.numbers)))];
      const rows = (candidates) => candidates.map((candidate) => [candidate.label, ...names.map((name) => withInterval(candidate.numbers[name]))]);
      return [h("h2", null, `Provers for ${diagnosis.label}`),
        diagnosis.warnings.map((text) => h("p", { class: "warning", role: "note" }, text)),
        diagnosis.words.length ? h("div", { class: "card" }, h("h2", null, "Recommendation"), diagnosis.words.map((text) => h("p", null, text))) : null,
        diagnosisCharts(diagnosis.candidates),
        h("div", { class: "card" }, table(["prover", ...names.map(words)], rows(diagnosis.candidates), "Theorem 3.1's terms and what follows from them, with intervals")),
        diagnosis.by_difficulty.map((bin) => h("details", { class: "card" }, h("summary", null, `Problems that the base policy solves with probability ${num(bin.low, 2)} to ${num(bin.high, 2)} (${bin.num_problems ?? "?"})`), table(["prover", ...names.map(words)], rows(bin.candidates))))];
    })));
  },
};

SECTIONS.other = {
  build(panel) {
    append(panel, h("div", { class: "stack" }, DATA.others.map((other) => h("div", { class: "card" }, h("h2", null, other.label), h("pre", { class: "json", tabindex: "0" }, other.text)))));
  },
};

// ---- start ----

document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("help-open").addEventListener("click", () => document.getElementById("help").showModal());
setTheme(remembered("theme") in THEMES ? remembered("theme") : "auto");

const tabs = [...document.querySelectorAll("[role=tab]")];
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    openTab(tabs[(next + tabs.length) % tabs.length].getAttribute("aria-controls"), true);
  });
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, dialog")) return;
  const section = SECTIONS[currentTab()];
  const actions = {
    "/": () => { const input = document.querySelector(".panel:not([hidden]) input[type=search]"); if (input) input.focus(); },
    "?": () => document.getElementById("help").showModal(),
    t: nextTheme,
    j: () => section.move && section.move(1),
    k: () => section.move && section.move(-1),
    c: () => currentTab() === "completions" && currentRow && document.getElementById("compare") && comparePrompt(currentRow),
  };
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
});
addEventListener("scroll", hideTip, { passive: true, capture: true });
addEventListener("hashchange", () => { const id = location.hash.slice(1); if (id in SECTIONS && document.getElementById(id)) openTab(id); });

const wanted = location.hash.slice(1);
openTab(wanted in SECTIONS && document.getElementById(wanted) ? wanted : "overview");
