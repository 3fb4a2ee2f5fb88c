// A chart of bars, each with a mark of what was expected. The table below it says the same.

const SPACE = "http://www.w3.org/2000/svg";
const WIDE = 560;
const HIGH = 180;
const LEFT = 48;
const BOTTOM = 8;

function part(name, attributes, text) {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The next round number: 1, 2 or 5 of some power of ten.
function round(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= most) ?? most;
}

// Values are {took, expected, name}, the oldest first.
export function bars(figure, values, unit) {
  const key = JSON.stringify(values);
  if (figure.shownAs === key) return;
  figure.shownAs = key;
  figure.querySelector("svg, p")?.remove();
  if (values.length === 0) {
    const none = document.createElement("p");
    none.className = "none";
    none.textContent = "Nothing has arrived yet.";
    figure.append(none);
    return;
  }
  const most = round(Math.max(1e-9, ...values.flatMap((one) => [one.took, one.expected ?? 0])));
  const y = (value) => HIGH - BOTTOM - (value / most) * (HIGH - BOTTOM - 14);
  const sorted = values.map((one) => one.took).sort((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)];
  const about = `${values.length} moves, the newest at the right; median ${median.toFixed(unit === "s" ? 1 : 0)} ${unit}, ` +
    `most ${sorted.at(-1).toFixed(unit === "s" ? 1 : 0)} ${unit}. The table below has each.`;
  const svg = part("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": about });
  for (const share of [0, 0.5, 1]) {
    const at = y(most * share);
    svg.append(part("line", { class: "grid", x1: LEFT, x2: WIDE, y1: at, y2: at }));
    const label = most * share;
    svg.append(part("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, `${+label.toPrecision(3)}`));
  }
  const step = (WIDE - LEFT - 4) / Math.max(values.length, 12);
  const wide = Math.min(step * 0.7, 24);
  values.forEach((one, nth) => {
    const x = LEFT + 4 + nth * step;
    const bar = part("rect", { class: "bar", x, y: y(one.took), width: wide, height: Math.max(1, HIGH - BOTTOM - y(one.took)) });
    bar.append(part("title", {}, `${one.name}: ${one.took} ${unit}`));
    svg.append(bar);
    if (one.expected !== null && one.expected !== undefined) {
      svg.append(part("line", { class: "expected", x1: x - 2, x2: x + wide + 2, y1: y(one.expected), y2: y(one.expected) }));
    }
  });
  figure.append(svg);
}
