// Sizes, rates, counts, times and shares, digit for digit as tracer/units.py writes them.

const SIZE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

// Python rounds a tie to the even digit, toFixed upwards. Of sums of powers of two only .25 and .75 are ties.
const fixed1 = (x) => ((x * 4) % 4 === 1 ? `${Math.floor(x)}.2` : x.toFixed(1));
const roundEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

function humanBytes(n, signed = false) {
  const sign = n < 0 ? "-" : signed && n > 0 ? "+" : "";
  let size = Math.abs(n);
  let unit = 0;
  while (size >= (unit === 0 ? 1024 : 1023.95) && unit < SIZE_UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${sign}${unit === 0 ? size.toFixed(0) : fixed1(size)} ${SIZE_UNITS[unit]}`;
}

const humanRate = (n, signed = false) => `${humanBytes(n, signed)}/s`;
const humanCount = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ",");
const plural = (n, noun, ending = "s") => `${humanCount(n)} ${noun}${n === 1 ? "" : ending}`;

function humanSeconds(seconds) {
  if (seconds <= 0) return "0 s";
  if (seconds < 0.9995) return `${Math.max(1, roundEven(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${fixed1(seconds)} s`;
  let whole = roundEven(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return twoUnits(whole, 60, "min", 1, "s");
  whole = roundEven(seconds / 60) * 60;
  if (whole < 86400) return twoUnits(whole, 3600, "h", 60, "min");
  return twoUnits(roundEven(seconds / 3600) * 3600, 86400, "d", 3600, "h");
}

function twoUnits(seconds, large, largeName, small, smallName) {
  const rest = Math.floor((seconds % large) / small);
  return `${Math.floor(seconds / large)} ${largeName}${rest ? ` ${rest} ${smallName}` : ""}`;
}

function percent(part, whole = 1) {
  if (!whole) return "-";
  const share = (100 * part) / whole;
  if (Math.abs(share) > 0 && Math.abs(share) < 0.05) return share > 0 ? "<0.1 %" : "-<0.1 %";
  return `${share < 0 ? "-" : ""}${fixed1(Math.abs(share))} %`;
}
