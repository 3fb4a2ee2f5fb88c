// Figures for people.

const STEPS = ["B", "kB", "MB", "GB", "TB", "PB"];

export function bytes(count) {
  if (!Number.isFinite(count) || count <= 0) return "–";
  let step = 0;
  while (count >= 1000 && step < STEPS.length - 1) {
    count /= 1000;
    step += 1;
  }
  return `${count < 10 && step > 0 ? count.toFixed(1) : Math.round(count)} ${STEPS[step]}`;
}

export function rate(count) {
  const text = bytes(count);
  return text === "–" ? text : `${text}/s`;
}

export function time(ms) {
  if (!Number.isFinite(ms)) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 120000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 7200000) return `${Math.round(ms / 60000)} min`;
  return `${(ms / 3600000).toFixed(1)} h`;
}

export function when(text) {
  if (!text) return "–";
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return "–";
  const today = new Date().toDateString() === at.toDateString();
  return today ? at.toLocaleTimeString() : at.toLocaleString();
}

export function percent(part, whole) {
  return whole > 0 ? Math.max(0, Math.min(100, (part / whole) * 100)) : 0;
}

export function money(micros, currency) {
  return currency ? `${(micros / 1e6).toFixed(2)} ${currency}` : "free";
}
