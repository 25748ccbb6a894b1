// Shared by all sections: the data, building elements, numbers as text, colours, tabs, theme and tooltip.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);

// Text reaches the page only as text: strings become text nodes, never markup.
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  fill(element, attributes);
  append(element, children);
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  append(element, children);
  return element;
}

function fill(element, attributes) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name in element && name !== "list" && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
}

function append(element, children) {
  for (const child of [children].flat(5)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

// ---- numbers ----

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const integer = new Intl.NumberFormat("en");

function num(value, digits = 3) {
  if (!isNumber(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) >= 10) return integer.format(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1).replace(/-/g, "−");
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : digits).replace("-", "−");
}

const amount = (value) => (Number.isInteger(value) ? integer.format(value) : num(value));

function signed(value, digits = 2) {
  if (!isNumber(value)) return "?";
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return "±" + text;
  return (value < 0 ? "−" : "+") + text;
}

const percent = (value, digits = 1) => (isNumber(value) ? (100 * value).toFixed(digits) + " %" : "–");
const plural = (count, noun) => `${integer.format(count)} ${noun}${count === 1 ? "" : "s"}`;
const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN);

function quantile(values, share) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : NaN;
}

// ---- colours ----

// Okabe and Ito's colours, told apart by dash too. The dark theme lightens them in CSS.
const DASHES = [[], [10, 5], [2, 4], [12, 4, 2, 4], [5, 3], [16, 4], [2, 2, 8, 2], [1, 6]];
const groupColor = (index) => css(`--series-${index % 8}`);
const groupDash = (index) => DASHES[index % DASHES.length];

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function swatch(index) {
  return svg(
    "svg",
    { class: "swatch", viewBox: "0 0 30 10", "aria-hidden": "true" },
    svg("line", {
      x1: 1, x2: 29, y1: 5, y2: 5, "stroke-dasharray": groupDash(index).join(" "), class: `series-${index % 8}`,
    }),
  );
}

// ---- theme ----

const themeListeners = [];
const THEMES = { auto: ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

function setTheme(theme) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = THEMES[theme][0];
  button.dataset.value = theme;
  button.setAttribute("aria-label", `Colours: ${THEMES[theme][1]}`);
  button.title = `Colours: ${THEMES[theme][1]}`;
  remember("theme", theme);
  for (const listener of themeListeners) listener();
}

function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.getElementById("theme").dataset.value) + 1) % names.length]);
}

// Some browsers give files no storage; then a choice lasts as long as the page.
function remember(name, value) {
  try {
    localStorage.setItem(`trl-prl-report-${name}`, value);
  } catch (error) {
    return;
  }
}

function remembered(name) {
  try {
    return localStorage.getItem(`trl-prl-report-${name}`);
  } catch (error) {
    return null;
  }
}

// ---- tooltip ----

const tip = document.getElementById("tip");

function showTip(anchor, children) {
  replace(tip, children);
  tip.hidden = false;
  const box = anchor.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  // Beside the text of a wide step, so that it hides no other; else below or above.
  if (box.width > own.width + 260) {
    tip.style.left = `${box.right - own.width - 10}px`;
    tip.style.top = `${Math.max(8, Math.min(box.top + 4, innerHeight - own.height - 8))}px`;
    return;
  }
  const left = Math.max(8, Math.min(box.left, innerWidth - own.width - 8));
  const below = box.bottom + 8 + own.height < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - own.height - 6)}px`;
}

function hideTip() {
  tip.hidden = true;
}

// ---- tabs ----

// A section is built when it is first opened, so that a large report opens at once.
const SECTIONS = {};
const built = new Set();

function openTab(id, focus = false) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const selected = tab.getAttribute("aria-controls") === id;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
    if (selected && focus) tab.focus();
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !selected;
  }
  hideTip();
  if (!built.has(id)) {
    built.add(id);
    SECTIONS[id].build(document.getElementById(id));
  }
  if (SECTIONS[id].shown) SECTIONS[id].shown();
  scrollTo(0, 0);
  if (location.hash !== `#${id}`) history.replaceState(null, "", `#${id}`);
}

const currentTab = () => document.querySelector("[role=tab][aria-selected=true]").getAttribute("aria-controls");

// ---- small parts ----

function segmented(label, options, value, onchange) {
  const group = h("div", { class: "segmented", role: "radiogroup", "aria-label": label });
  const buttons = options.map(([key, text, title]) =>
    h("button", { type: "button", role: "radio", title, onclick: () => choose(key, true) }, text),
  );
  function choose(key, notify) {
    options.forEach(([name], index) => {
      buttons[index].setAttribute("aria-checked", String(name === key));
      buttons[index].tabIndex = name === key ? 0 : -1;
    });
    group.dataset.value = key;
    if (notify) onchange(key);
  }
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const keys = options.map(([key]) => key);
    const next = (keys.indexOf(group.dataset.value) + step + keys.length) % keys.length;
    choose(keys[next], true);
    buttons[next].focus();
  });
  append(group, buttons);
  choose(value, false);
  return group;
}

function select(label, options, value, onchange) {
  const field = h("select", { onchange: () => onchange(field.value) });
  append(field, options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
  return h("label", { class: "field" }, h("span", null, label), field);
}

function table(columns, rows, caption) {
  const isText = (cell) => typeof cell === "string" && !/^[−+±–\d][\d.,e−+±% ()to]*$/.test(cell);
  const numeric = columns.map((_, index) => rows.length > 0 && rows.every((row) => typeof row[index] === "string" && !isText(row[index])));
  return h(
    "div",
    { class: "scroll-x", tabindex: "0", role: "region", "aria-label": caption || "Table" },
    h(
      "table",
      { class: "data" },
      caption && h("caption", null, caption),
      h("thead", null, h("tr", null, columns.map((name, index) => h("th", { scope: "col", class: index && numeric[index] ? "number" : "" }, name)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map((cell, index) =>
        index ? h("td", { class: numeric[index] ? "number" : "", "data-label": columns[index] }, cell)
          : h("th", { scope: "row" }, cell))))),
    ),
  );
}

const note = (...text) => h("p", { class: "notice" }, text);
