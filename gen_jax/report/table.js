// Tables that sort and filter. Text enters the page as text (textContent), never as markup.

const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);

/** A new element; `properties` are set on it, children are nodes or text. */
function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** JSON has no NaN: 'nan', 'inf' and '-inf' stand for what is not finite. */
function number(value) {
  if (typeof value !== 'string') return value;
  return { nan: NaN, inf: Infinity, '-inf': -Infinity }[value] ?? NaN;
}

/** A value in the metric's format, so that decimal points stand below each other. */
function shown(value, metric) {
  value = number(value);
  if (value === null || value === undefined) return '–';
  if (!Number.isFinite(value)) return String(value).replace('Infinity', 'inf');
  const text = metric.powers ? value.toExponential(metric.digits) : value.toFixed(metric.digits);
  return text.replace(/^-/, '−');
}

/** Numbers as text, filled up with spaces as wide as digits so that decimal points stand below each other. */
function aligned(texts) {
  const after = (t) => (/^-?\d+(\.\d+)?$/.test(t) ? (t.split('.')[1] || '').length : 0);
  const most = Math.max(0, ...texts.map(after));
  return (t) => t + (most && !t.includes('.') ? '\u2008' : '') + '\u2007'.repeat(most - after(t));
}

/** Order of two values: numbers, then text, then what is missing (last in either direction). */
function order(a, b, way) {
  const rank = (v) => (v === null || v === undefined || v === '' || Number.isNaN(v) ? 2 : typeof v === 'number' ? 0 : 1);
  if (rank(a) !== rank(b)) return rank(a) === 2 || rank(b) === 2 ? rank(a) - rank(b) : way * (rank(a) - rank(b));
  if (rank(a) === 2) return 0;
  return way * (typeof a === 'number' ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true }));
}

/**
 * Draws a table into `host` and returns a function that shows other rows in the order that was chosen.
 * A column: {label, title, better, warn, number, get(row) -> what it sorts by, cell(row, td) -> content}.
 */
function drawTable(host, columns, rows, label, memory = {}) {
  const head = make('tr');
  const body = make('tbody');
  const box = make('div', { className: 'box', tabIndex: 0 }, make('table', {}, make('thead', {}, head), body));
  box.setAttribute('role', 'region');
  box.setAttribute('aria-label', label);
  columns.forEach((column) => {
    const button = make('button', { type: 'button', title: column.title || `sort by ${column.label}` }, column.label);
    if (column.better) button.append(make('span', { className: 'better' }, column.better === 'up' ? ' ↑' : ' ↓'));
    if (column.warn) button.append(make('span', { className: 'warn' }, ' ⚠'));
    const cell = make('th', { scope: 'col', className: column.number ? 'number' : '' }, button);
    button.addEventListener('click', () => {  // ascending, descending, as it came
      const same = memory.label === column.label;
      memory.way = !same ? 1 : memory.way === 1 ? -1 : 0;
      memory.label = memory.way ? column.label : null;
      show();
    });
    head.append(cell);
  });
  function show(newRows) {
    rows = newRows || rows;
    const at = columns.findIndex((c) => c.label === memory.label);
    const sorted = at < 0 ? rows : [...rows].sort((a, b) => order(columns[at].get(a), columns[at].get(b), memory.way));
    [...head.children].forEach((cell, i) => {
      cell.setAttribute('aria-sort', i !== at ? 'none' : memory.way > 0 ? 'ascending' : 'descending');
    });
    body.replaceChildren(...sorted.map((row) => make('tr', {}, ...columns.map((column) => {
      const cell = make('td', { className: column.number ? 'number' : '' });
      const content = column.cell ? column.cell(row, cell) : column.get(row);
      cell.append(...(Array.isArray(content) ? content : [content === null || content === undefined ? '–' : content]));
      return cell;
    }))));
    box.classList.toggle('tall', rows.length > 24);
  }
  host.replaceChildren(box);
  show();
  return show;
}

/** A table that Python made: {columns: [{label, digits of a number or null}], rows}. */
function drawPlain(id, table, empty) {
  if (!table.rows.length) {
    byId(id).replaceChildren(make('p', { className: 'empty' }, empty));
    return;
  }
  const long = table.columns.map((_, i) => table.rows.some((r) => /\s/.test(r[i] ?? '') && r[i].length > 44));
  drawTable(byId(id), table.columns.map((c, i) => ({
    label: c.label, number: c.digits !== null, get: (row) => (c.digits === null ? row[i] : number(row[i])),
    cell: (row, td) => {
      if (long[i]) td.classList.add('wrap');
      return row[i] !== null && c.digits !== null ? shown(row[i], c) : String(row[i] ?? '–');
    },
  })), table.rows, id.replace('-table', ''));
}

// ---------------------------------------------------------------- the filter

/** 'a key=value metric<0.5 -word' -> terms {not, key, op, value} or {not, word}. */
function parseFilter(text) {
  return (text.match(/(?:[^\s"]|"[^"]*")+/g) || []).map((raw) => {
    const token = raw.replaceAll('"', '');
    const found = raw.startsWith('"') ? null : /^(-?)([^<>=!]+)(<=|>=|!=|=|<|>)(.*)$/.exec(token);
    if (found && resolve(found[2])) return { not: found[1] === '-', key: resolve(found[2]), op: found[3], value: found[4] };
    const not = token.length > 1 && token.startsWith('-');
    return { not, word: (not ? token.slice(1) : token).toLowerCase() };
  });
}

/** What a key of the filter names: {axis} | {seed} | {metric} | {own: 'run' | 'status' | 'step' | 'n'}, or null. */
function resolve(key) {
  const end = (name) => name === key || name.endsWith(`.${key}`) || name.endsWith(`/${key}`);
  const axis = data.axes.find((a) => a.name === key || a.key === key || a.tied.includes(key));
  if (axis) return { axis: axis.name };
  if (data.seeds.includes(key)) return { seed: key };
  if (['run', 'status', 'step', 'n'].includes(key)) return { own: key };
  const metric = data.metrics.find((m) => m.name === key) || data.metrics.find((m) => end(m.name));
  if (metric) return { metric: metric.name };
  const seed = data.seeds.find(end);
  return seed ? { seed } : null;
}

/** Whether a value fits '=', '!=', '<' ...; numbers compare as numbers. */
function fits(value, op, wanted) {
  const both = wanted.trim() !== '' && Number.isFinite(Number(wanted)) && value !== null && value !== ''
    && Number.isFinite(Number(value));
  if (op === '=' || op === '!=') {
    const same = both ? Number(value) === Number(wanted) : String(value ?? '–').toLowerCase() === wanted.toLowerCase();
    return same === (op === '=');
  }
  if (!both) return false;
  const [a, b] = [Number(value), Number(wanted)];
  return { '<': a < b, '<=': a <= b, '>': a > b, '>=': a >= b }[op];
}

/** Whether a row passes: `values(key)` gives what it has of a key (one may fit), `text` is searched for words. */
function passes(terms, text, values) {
  return terms.every((t) => t.not !== (t.word !== undefined ? text.toLowerCase().includes(t.word)
    : values(t.key).some((v) => fits(v, t.op, t.value))));
}
