// Small drawings as SVG: a bar with its interval, lines over steps. Colours are classes, so they follow light and dark.
import { useState } from "preact/hooks";

export const number = (value) => (Number.isInteger(value) ? value.toLocaleString("en")
  : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4))));

const finite = (value) => typeof value === "number" && Number.isFinite(value);

/** A bar from zero to `value`, the interval as a whisker, one dot for each seed; says nothing a table does not say. */
export function Bar({ value, low, high, points = [], start = 0, end = 1, kind = "other" }) {
  const at = (one) => (100 * (Math.min(Math.max(one, start), end) - start)) / (end - start || 1);
  const zero = at(0), tip = at(value);
  return (
    <svg class="bar" viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">
      <rect class="track" width="100" height="16" rx="2" />
      <rect class={`fill ${kind}`} x={Math.min(zero, tip)} width={Math.abs(tip - zero)} height="16" rx="1" />
      {start < 0 && <path class="zero" d={`M${zero} 0v16`} />}
      {points.map((point, place) => <path key={place} class="dot" d={`M${at(point)} 12v3`} />)}
      {finite(low) && finite(high) && <path class="whisker" d={`M${at(low)} 8H${at(high)}M${at(low)} 4.5v7M${at(high)} 4.5v7`} />}
    </svg>
  );
}

/** Round numbers spread over [low, high]: at least one, about as many as asked. */
export function ticks(low, high, about = 4) {
  const span = high - low || Math.abs(high) || 1;
  const unit = 10 ** Math.floor(Math.log10(span / about));
  const step = [1, 2, 2.5, 5, 10].map((size) => size * unit).find((size) => size >= (span / about) * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step);
  return found.length ? found : [low];
}

function padded(values, share) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = (high - low) * share || (high > low ? 0 : Math.max(Math.abs(high) * 0.1, 1e-6));
  return [low - room, high + room];
}

const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [200, 46, 12, 10, 34];
const tickText = (value) => (Math.abs(value) < 1000 ? String(Number(value.toPrecision(3))) : value.toLocaleString("en"));

/** Lines over steps or turns; what is not finite breaks a line. The pointer reads values off, screen readers get the last ones. */
export function LineChart({ title, lines, across = "step", wide = false }) {
  const [near, setNear] = useState(null);
  const WIDTH = wide && !matchMedia("(max-width: 48rem)").matches ? 760 : 380;
  const shown = lines.flatMap((line) => line.points.filter(([x, y]) => finite(x) && finite(y)));
  if (!shown.length) return <figure><figcaption>{title}</figcaption><p class="soft">no finite value</p></figure>;
  const [left, right] = padded(shown.map(([x]) => x), 0), [low, high] = padded(shown.map(([, y]) => y), 0.04);
  const xAt = (x) => LEFT + ((x - left) / (right - left)) * (WIDTH - LEFT - RIGHT);
  const yAt = (y) => HEIGHT - BOTTOM - ((y - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const drawn = (points) => {
    let text = "", up = true;
    for (const [x, y] of points) {
      if (finite(y)) text += `${up ? "M" : "L"}${xAt(x).toFixed(1)} ${yAt(y).toFixed(1)}${up ? "h0" : ""}`;
      up = !finite(y);   // a lone point still shows: the line's round cap
    }
    return text;
  };
  const readOff = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const step = left + ((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * (right - left);
    const close = (points) => points.reduce((one, other) => (Math.abs(other[0] - step) < Math.abs(one[0] - step) ? other : one));
    setNear(lines.filter((line) => line.points.length).map((line) => ({ line, point: close(line.points) })));
  };
  const ends = lines.filter((line) => line.points.length).map((line) => `${line.name} ends at ${tickText(line.points.at(-1)[1] ?? NaN)}`);
  return (
    <figure>
      <figcaption>{title}</figcaption>
      <svg class="chart" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`${title}: ${ends.join(", ")}`}
        onPointerMove={readOff} onPointerLeave={() => setNear(null)}>
        {ticks(low, high).map((tick) => (
          <g key={`y${tick}`}>
            <path class="grid" d={`M${LEFT} ${yAt(tick)}H${WIDTH - RIGHT}`} />
            <text class="y" x={LEFT - 6} y={yAt(tick) + 4}>{tickText(tick)}</text>
          </g>
        ))}
        {ticks(left, right).filter(Number.isInteger).map((tick) => <text key={`x${tick}`} class="x" x={xAt(tick)} y={HEIGHT - BOTTOM + 16}>{tickText(tick)}</text>)}
        <text class="x" x={(LEFT + WIDTH - RIGHT) / 2} y={HEIGHT - 3}>{across}</text>
        {lines.map((line, place) => <path key={place} class={`line c${line.color}${line.dashed ? " dashed" : ""}`} d={drawn(line.points)} />)}
        {near?.map(({ line, point: [x, y] }, place) => finite(y) && <circle key={place} class={`c${line.color}`} cx={xAt(x)} cy={yAt(y)} r="3" />)}
      </svg>
      {near && (
        <p class="near" aria-hidden="true">
          {near.slice(0, 8).map(({ line, point: [x, y] }, place) => (
            <span key={place}><i class={`swatch c${line.color}`} />{line.name}, {across} {number(x)}: <b>{finite(y) ? number(y) : "–"}</b></span>
          ))}
          {near.length > 8 && <span>and {near.length - 8} more</span>}
        </p>
      )}
    </figure>
  );
}

/** Numbers around zero as small columns: the action a planner took. */
export function Columns({ values, title }) {
  const most = Math.max(...values.map(Math.abs)) || 1;
  const wide = 120 / values.length;
  return (
    <svg class="columns-mini" viewBox="0 0 120 22" preserveAspectRatio="none" role="img" aria-label={title}>
      <path class="zero" d="M0 11H120" />
      {values.map((value, place) => (
        <rect key={place} class={value < 0 ? "minus" : "plus"} x={place * wide} width={wide * 0.8}
          y={11 - Math.max(0, (value / most) * 10)} height={Math.max(0.5, (Math.abs(value) / most) * 10)} />
      ))}
    </svg>
  );
}
