// Numbers as people read them.

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits, short: 0.123, 12.3, 1,230, 12.3k, 1.2e-6. */
export function number(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.001) return value.toExponential(1).replace(".0e", "e").replace("e-", "e−");
  if (size >= 1e9) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  if (size >= 1e6) return `${trimmed((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${trimmed((value / 1e3).toPrecision(3))}k`;
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return trimmed(value.toPrecision(3));
}

const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

export const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : "–");
export const whole = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : "–");

export function percent(value) {
  if (!known(value)) return "–";
  const hundred = 100 * value;
  const size = Math.abs(hundred);
  return `${size === 0 || size >= 10 ? Math.round(hundred) : size >= 1 ? hundred.toFixed(1) : hundred.toPrecision(1)}%`;
}

export function seconds(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 0.9995) return `${number(1000 * value)} ms`;
  return size < 120 ? `${number(value)} s` : clock(value);
}

/** m:ss or h:mm:ss. */
export function clock(value) {
  if (!known(value)) return "–";
  const all = Math.max(0, Math.floor(value));
  const two = (part) => String(part).padStart(2, "0");
  const hours = Math.floor(all / 3600);
  const minutes = Math.floor(all / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(all % 60)}` : `${minutes}:${two(all % 60)}`;
}

export const FORMATS = { number, percent, seconds, whole };

/** Round values that divide an interval into about `wanted` parts. */
export function ticks(low, high, wanted) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / Math.max(1, wanted);
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * unit).find((size) => size >= rough * 0.75) ?? 10 * unit;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Powers of ten within an interval, thinned out to a few. */
export function logTicks(low, high) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const every = Math.max(1, Math.ceil((last - first) / 5));
  const found = [];
  for (let power = first; power <= last; power += every) found.push(10 ** power);
  return found;
}
