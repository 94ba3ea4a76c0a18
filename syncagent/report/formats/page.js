// A click on a heading sorts its table: numbers by data-value and largest first, words from A.
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstChild.addEventListener("click", () => {
    const numeric = heading.classList.contains("n");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = heading.ariaSort === first ? other : first;
    const value = (row) => numeric ? Number(row.cells[column].dataset.value) : row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
    if (order === "descending") rows.reverse();
    headings.forEach((each) => each.removeAttribute("aria-sort"));
    heading.ariaSort = order;
    table.tBodies[0].append(...rows);
  }));
}
