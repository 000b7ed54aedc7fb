// One perceptual ramp, dark to light, interpolated in OKLab; the light scheme runs it backwards so that "more" always stands out.
const RAMP = ["#1a1730", "#2f2654", "#3a4383", "#33659b", "#2d88a5", "#34aba8", "#65cba9", "#a9e4bc", "#e8f6e2"];
const dark = window.matchMedia("(prefers-color-scheme: dark)");

const toLinear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const toGamma = (c) => (c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055);

function oklab(hex) {
  const [r, g, b] = [1, 3, 5].map((i) => toLinear(parseInt(hex.slice(i, i + 2), 16) / 255));
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s];
}

function rgb([L, a, b]) {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s].map((c) => Math.round(255 * toGamma(Math.min(1, Math.max(0, c)))));
}

const STEPS = RAMP.map(oklab);
function colour(share) {
  const place = (dark.matches ? share : 1 - share) * (STEPS.length - 1);
  const low = Math.min(Math.floor(place), STEPS.length - 2), part = place - low;
  return `rgb(${rgb(STEPS[low].map((c, i) => c + part * (STEPS[low + 1][i] - c))).join(" ")})`;
}

// A statistic's values as shares of its colour scale.
function scaleOf(stat) {
  const all = data.values[stat.name].flat().filter((v) => v !== null);
  let [low, high] = stat.domain || [Math.min(...all), Math.max(...all)];
  const logarithmic = stat.scale === "log" && all.length > 0;
  if (logarithmic) { low = Math.max(low, high / 1e6, 1e-9); high = Math.max(high, low); }
  const at = logarithmic ? (v) => Math.log(Math.max(v, low)) : (v) => v;
  const span = at(high) - at(low) || 1;
  return { low, high, logarithmic, all, share: (v) => Math.min(1, Math.max(0, (at(v) - at(low)) / span)) };
}
