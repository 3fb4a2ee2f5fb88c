// Elements, and tables that change in place: whoever reads or has the focus in one keeps their place.

// An element; strings among the children are text, never markup.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(key, value === true ? "" : String(value));
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// What a cell shows: {text, tone, title}, an element's maker {make, key}, or a plain value.
function show(cell, shown) {
  const what = shown !== null && typeof shown === "object" ? shown : { text: shown };
  const key = what.key ?? `${what.text ?? ""}\u0000${what.tone ?? ""}\u0000${what.title ?? ""}`;
  if (cell.shownAs === key) return;
  cell.shownAs = key;
  if (what.make) {
    const held = cell.contains(document.activeElement);
    cell.replaceChildren(what.make());
    if (held) cell.querySelector("button")?.focus();
    return;
  }
  const text = what.text === null || what.text === undefined || what.text === "" ? "–" : String(what.text);
  cell.textContent = text;
  for (const tone of ["good", "warn", "bad"]) cell.classList.toggle(tone, what.tone === tone);
  if (what.title) cell.title = what.title;
  else cell.removeAttribute("title");
}

// Shows rows in the table of a section. Columns are {head, of(row), number, short}; the first names its row.
export function table(place, caption, columns, rows, key, none) {
  let found = place.querySelector("table");
  if (rows.length === 0) {
    const text = place.querySelector("p.none");
    if (!text || text.textContent !== none || found) place.replaceChildren(element("p", { class: "none" }, none));
    return;
  }
  if (!found) {
    const heads = columns.map((column) =>
      element("th", { scope: "col", class: column.number ? "number" : null }, column.head));
    found = element("table", {}, element("caption"), element("thead", {}, element("tr", {}, ...heads)), element("tbody"));
    place.replaceChildren(found);
  }
  if (found.caption.textContent !== caption) found.caption.textContent = caption;
  const body = found.tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.rowKey, row]));
  let last = null;
  for (const one of rows) {
    const name = key(one);
    let row = old.get(name);
    old.delete(name);
    if (!row) {
      row = element("tr");
      row.rowKey = name;
      columns.forEach((column, nth) => {
        const kind = [column.number ? "number" : null, column.short ? "short" : null].filter(Boolean).join(" ");
        row.append(element(nth === 0 ? "th" : "td", { scope: nth === 0 ? "row" : null, class: kind || null }));
      });
    }
    columns.forEach((column, nth) => show(row.cells[nth], column.of(one)));
    const place_ = last ? last.nextSibling : body.firstChild;
    if (place_ !== row) body.insertBefore(row, place_);
    last = row;
  }
  for (const row of old.values()) row.remove();
}
