"""Style and behaviour of the report page, inlined into it so that it needs no network."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --soft: #5d6878; --rule: #dde2e9;
  --c0: #2563c9; --c1: #d9622b; --c2: #1d8a5b; --c3: #9a3fb5; --c4: #b98300; --c5: #c2375f;
  --c6: #3b9bb3; --c7: #777f8c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1b2129; --ink: #e6eaf0; --soft: #9aa6b6; --rule: #313a46;
    --c0: #6ea4ff; --c1: #ff9a62; --c2: #52cf98; --c3: #d58af0; --c4: #e8b93c; --c5: #ff7d9e;
    --c6: #66cfe8; --c7: #a3adbb;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 8px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; }
h3 { font-size: .95rem; margin: 0 0 8px; }
p { margin: 4px 0 10px; }
.soft, figcaption { color: var(--soft); }
figcaption { font-size: .85rem; margin-top: 6px; }
.grid {
  display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr));
}
.cards { display: grid; gap: 10px; grid-template-columns: repeat(2, 1fr); }
@media (min-width: 720px) { .cards { grid-template-columns: repeat(5, 1fr); } }
.card, figure, .scroll {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px;
}
figure { margin: 0; min-width: 0; }
.card b { display: block; font-size: 1.35rem; line-height: 1.25; }
.card span { color: var(--soft); font-size: .82rem; }
svg { display: block; width: 100%; height: auto; max-width: 620px; margin: 0 auto; }
svg text { fill: currentColor; font-size: 11.5px; }
svg text.small { font-size: 9.5px; }
svg text.mid { text-anchor: middle; }
svg text.end { text-anchor: end; }
svg text.soft { fill: var(--soft); }
svg line.grid { stroke: var(--rule); stroke-width: 1; }
svg .window { fill: var(--c2); opacity: .13; }
svg .frame { fill: none; stroke: var(--rule); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.spikes { fill: none; stroke-width: 2.6; }
.legend {
  display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .82rem; margin: 6px 0 0;
  overflow-wrap: anywhere;
}
.legend i {
  display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 5px;
}
.scroll { overflow-x: auto; padding: 0; max-height: 620px; }
table {
  border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums;
}
th, td {
  padding: 6px 10px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule);
}
th:first-child, td:first-child { text-align: left; }
thead th { position: sticky; top: 0; background: var(--card); padding: 0; }
th button {
  all: unset; cursor: pointer; padding: 8px 10px; display: block; font-weight: 600; width: 100%;
  box-sizing: border-box;
}
th button:focus-visible { outline: 2px solid var(--c0); outline-offset: -2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
tbody tr:hover { background: color-mix(in srgb, var(--c0) 8%, transparent); }
.maps {
  display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr));
}
.maps div { display: flex; gap: 5px; align-items: end; }
.maps span { flex: 1; min-width: 0; font-size: .75rem; color: var(--soft); text-align: center; }
.maps img {
  width: 100%; aspect-ratio: 1; image-rendering: pixelated; border-radius: 5px; display: block;
}
@media (max-width: 560px) {
  svg text { font-size: 13.5px; }
  svg text.small { font-size: 11px; }
  td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 160px; }
}
details { margin: 12px 0; }
details summary { cursor: pointer; }
""" + "".join(
    f".line.s{i},.spikes.s{i}{{stroke:var(--c{i})}}.bar.s{i},.dot.s{i}{{fill:var(--c{i})}}"
    f"i.s{i}{{background:var(--c{i})}}\n"
    for i in range(8)
)

# The self-test (address ending in #self-test, or a frame of that name) clicks every heading and
# leaves what it found in the attribute data-self-test of the root element.
SCRIPT = """
"use strict";
const failures = [];
window.addEventListener("error", (event) => failures.push(event.message));
const key = (row, column) => {
  const cell = row.cells[column];
  const value = cell.dataset.value;
  return value === undefined ? cell.textContent : value === "" ? -Number.MAX_VALUE : Number(value);
};
const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
function sortBy(heading) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const direction = heading.ariaSort === "descending" ? 1 : -1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => direction * compare(key(a, column), key(b, column)));
  table.tBodies[0].append(...rows);
}
for (const heading of document.querySelectorAll("th")) {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}
function isSorted(heading) {
  const sign = heading.ariaSort === "ascending" ? 1 : -1;
  const keys = [...heading.closest("table").tBodies[0].rows].map((r) => key(r, heading.cellIndex));
  return keys.every((k, i) => i === 0 || sign * compare(keys[i - 1], k) <= 0);
}
function selfTest() {
  let sorted = 0;
  for (const heading of document.querySelectorAll("th")) {
    for (let click = 0; click < 2; click++) {
      heading.querySelector("button").click();
      if (isSorted(heading)) sorted++;
      else failures.push("not sorted by " + heading.textContent);
    }
  }
  const empty = [...document.querySelectorAll("figure")].filter(
    (f) => ![...f.querySelectorAll("svg, img")].some((e) => e.getBoundingClientRect().height > 20));
  empty.forEach((f) => failures.push("empty figure " + f.dataset.figure));
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  if (wide > 0) failures.push("page is wider than the window by " + wide);
  const [width, figures] = [window.innerWidth, document.querySelectorAll("figure").length];
  document.documentElement.dataset.selfTest = JSON.stringify({ sorted, width, figures, failures });
}
const testing = location.hash === "#self-test" || window.name === "self-test";
if (testing) window.addEventListener("load", selfTest);
"""
