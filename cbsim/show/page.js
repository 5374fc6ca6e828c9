"use strict";
// Sorting: a click on a column's name sorts by it, another turns the order round; cells without a value go last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button")?.addEventListener("click", () => {
      const rises = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) {
        if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      }
      heading.setAttribute("aria-sort", rises ? "ascending" : "descending");
      const cells = [...body.rows].map((row) => [row.cells[column], row]);
      const isNumeric = cells.some(([cell]) => cell.dataset.value !== undefined);
      const compare = ([first], [second]) => {
        if (!isNumeric) return (rises ? 1 : -1) * first.textContent.localeCompare(second.textContent);
        const values = [first, second].map((cell) => cell.dataset.value);
        if (values.includes(undefined)) return (values[0] === undefined) - (values[1] === undefined);
        return (rises ? 1 : -1) * (Number(values[0]) - Number(values[1]));
      };
      body.append(...cells.sort(compare).map(([, row]) => row));
    });
  });
}
// Filtering: a row stays if it holds every word.
for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const count = document.getElementById(`${input.dataset.filters}-count`);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let numShown = 0;
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      numShown += !row.hidden;
    }
    count.textContent = `${numShown} of ${rows.length} rows`;
  });
}
