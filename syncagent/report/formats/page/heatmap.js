// The pictures of steps and ranks: a cell for each, which is named under the pointer and by the arrow keys.
(() => {
  const {heat_maps: maps} = JSON.parse(document.getElementById("data").textContent);
  const number = ([first, last]) => (first === last ? `${first}` : `${first} to ${last}`);
  const font = "12px system-ui, sans-serif", bottom = 22, top = 2;

  const shown = (box, map) => {
    const canvas = box.appendChild(document.createElement("canvas"));
    const ctx = canvas.getContext("2d");
    const hint = box.parentElement.querySelector(".hint");
    const {columns, rows, cells, colours} = map;
    const cell = Math.min(Math.max(Math.floor(320 / rows.length), 3), 22);
    const height = cell * rows.length;
    let chosen = null, left = 0, width = 0;
    const x = (column) => Math.round(left + (width * column) / columns.length);
    const y = (row) => top + cell * row;

    const draw = () => {
      const style = getComputedStyle(document.documentElement);
      const color = (name) => style.getPropertyValue(`--${name}`).trim();
      const whole = Math.max(box.clientWidth, 200), dense = devicePixelRatio || 1;
      canvas.width = Math.round(whole * dense);
      canvas.height = Math.round((top + height + bottom) * dense);
      canvas.style.width = `${whole}px`;
      canvas.style.height = `${top + height + bottom}px`;
      ctx.setTransform(dense, 0, 0, dense, 0, 0);
      ctx.font = font;
      const names = rows.map((row) => `rank ${row[0]}`);
      left = Math.ceil(Math.max(...names.map((name) => ctx.measureText(name).width))) + 8;
      width = whole - left - 12;
      const fills = colours.map((_, index) => color(`heat-${index}`));
      rows.forEach((_, row) => columns.forEach((_, column) => {
        const fill = fills[cells[row][column]];
        if (!fill) return; // not known: the page shows through
        ctx.fillStyle = fill;
        ctx.fillRect(x(column), y(row), x(column + 1) - x(column), cell);
      }));
      ctx.fillStyle = color("dim");
      ctx.textBaseline = "middle";
      ctx.textAlign = "right";
      const each = Math.ceil(16 / cell);
      for (let row = 0; row < rows.length; row += each) ctx.fillText(names[row], left - 6, y(row) + Math.max(cell / 2, 6));
      ctx.textBaseline = "top";
      let free = -Infinity;
      columns.forEach(([first], column) => {
        const name = `step ${first}`, wide = ctx.measureText(name).width;
        const from = Math.min(x(column), whole - wide);
        if (from < free) return;
        ctx.textAlign = "left";
        ctx.fillText(name, from, y(rows.length) + 6);
        free = from + Math.max(wide + 24, 90);
      });
      if (chosen) {
        for (const [name, wide] of [["back", 5], ["text", 2]]) { // seen on any colour
          ctx.strokeStyle = color(name);
          ctx.lineWidth = wide;
          ctx.strokeRect(x(chosen[0]) - 1, y(chosen[1]) - 1, x(chosen[0] + 1) - x(chosen[0]) + 2, cell + 2);
        }
      }
    };
    const choose = (column, row) => {
      chosen = column < 0 || row < 0 || column >= columns.length || row >= rows.length ? null : [column, row];
      draw();
      if (!chosen) hint.textContent = "\u00a0";
      else {
        const steps = columns[column], ranks = rows[row];
        hint.textContent = `step ${number(steps)}, rank ${number(ranks)}: ${colours[cells[row][column]] ?? "not known"}`;
      }
    };
    canvas.addEventListener("pointermove", (event) => choose(
      Math.floor(((event.offsetX - left) / width) * columns.length), Math.floor((event.offsetY - top) / cell)));
    canvas.addEventListener("pointerleave", () => choose(-1, -1));
    const moves = {"ArrowLeft": [-1, 0], "ArrowRight": [1, 0], "ArrowUp": [0, -1], "ArrowDown": [0, 1]};
    const within = (at, count) => Math.min(Math.max(at, 0), count - 1);
    const worst = () => {
      for (let index = colours.length - 1; index >= 0; index--) {
        const row = cells.findIndex((row) => row.includes(`${index}`));
        if (row >= 0) return [cells[row].indexOf(`${index}`), row];
      }
      return [0, 0];
    };
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const [right, down] = moves[event.key] ?? [0, 0];
      if (event.key === "Escape") choose(-1, -1);
      else if (event.key === "Home" || (moves[event.key] && !chosen)) choose(...worst());
      else if (moves[event.key]) choose(within(chosen[0] + right, columns.length), within(chosen[1] + down, rows.length));
      else return;
      event.preventDefault();
    });
    draw();
    new ResizeObserver(() => { if (canvas.style.width !== `${Math.max(box.clientWidth, 200)}px`) draw(); }).observe(box);
    for (const media of ["(prefers-color-scheme: dark)", "print"]) matchMedia(media).addEventListener("change", draw);
  };
  document.querySelectorAll(".heat").forEach((box, index) => shown(box, maps[index]));
})();
