// The drawings: a row a layer, GPU neurons left and CPU neurons right, bright where they are active.
let glow = []; // by layer and cell, fading

function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["--hot", "--hot-dim", "--cold", "--cold-dim", "--text", "--soft", "--card"];
  return Object.fromEntries(names.map((name) => [name.slice(2), style.getPropertyValue(name).trim()]));
}

function sized(canvas, height) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth;
  if (!width) return null;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = height + "px";
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

export function drawMap(canvas, seen, chosen, still) {
  const layers = seen.layers, rows = layers.length;
  const row = Math.max(6, Math.min(18, Math.floor(260 / Math.max(1, rows))));
  const at = sized(canvas, Math.max(1, rows) * row);
  if (!at || !rows) return;
  const { pen, width } = at, ink = colours(), n = seen.n_cells, gutter = 30;
  const cell = (width - gutter) / n;
  if (glow.length !== rows) glow = layers.map(() => new Float32Array(n));
  for (let number = 0; number < rows; number++) {
    const layer = layers[number], total = layer.owned.reduce((a, b) => a + b, 0) || 1;
    const y = number * row, border = gutter + (width - gutter) * (layer.owned[0] / total);
    pen.fillStyle = ink["hot-dim"];
    pen.fillRect(gutter, y, border - gutter, row - 2);
    pen.fillStyle = ink["cold-dim"];
    pen.fillRect(border, y, width - border, row - 2);
    const active = seen.active?.[number], full = Math.max(1, total / n);
    for (let at = 0; at < n; at++) {
      let now = 0;
      if (active) for (const cells of active) if (cells) now += cells[at];
      // Few are: a root makes one of many visible.
      const level = Math.sqrt(Math.min(1, now / full));
      glow[number][at] = still ? level : Math.max(level, glow[number][at] * 0.5);
      if (glow[number][at] < 0.04) continue;
      pen.globalAlpha = glow[number][at];
      pen.fillStyle = gutter + (at + 0.5) * cell < border ? ink.hot : ink.cold;
      pen.fillRect(gutter + at * cell, y, Math.max(1, cell - 0.6), row - 2);
    }
    pen.globalAlpha = 1;
    pen.fillStyle = number === chosen ? ink.text : ink.soft;
    pen.font = `${number === chosen ? "700 " : ""}${Math.min(11, row + 3)}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const every = row < 9 ? 4 : 1;
    if (number % every === 0 || number === chosen) pen.fillText(String(number), gutter - 8, y + row / 2 - 1);
    if (number === chosen) {
      pen.strokeStyle = ink.text;
      pen.lineWidth = 1.5;
      pen.strokeRect(gutter - 2.5, y - 0.5, width - gutter + 2, row - 1);
    }
  }
}

export function drawSpark(canvas, values) {
  const at = sized(canvas, 40);
  if (!at || values.length < 2) return;
  const { pen, width, height } = at, most = Math.max(1, ...values), ink = colours();
  const x = (index) => width - (values.length - 1 - index) * (width / 119);
  const y = (value) => height - 3 - (height - 8) * (value / most);
  pen.beginPath();
  values.forEach((value, index) => pen.lineTo(x(index), y(value)));
  pen.strokeStyle = ink.hot;
  pen.lineWidth = 2;
  pen.lineJoin = "round";
  pen.stroke();
  pen.lineTo(x(values.length - 1), height);
  pen.lineTo(x(0), height);
  pen.globalAlpha = 0.12;
  pen.fillStyle = ink.hot;
  pen.fill();
  pen.globalAlpha = 1;
}
