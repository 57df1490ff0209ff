// The first page: what came out, the tables with their intervals, training curves, counts, where the time went.
import { about, runs, two } from "./data.js";
import { EMPTY, filters, go, mode } from "./model.js";
import { Bar, LineChart, number } from "./plots.jsx";

const known = () => runs.filter((run) => run.overview.value);
const title = (run) => (two ? `${run.letter}: ${run.name}` : run.name);

/** What several lists hold under one name, in order: [[name, one item or undefined for each list]]. */
function beside(lists, nameOf) {
  const names = [...new Set(lists.flatMap((list) => list.map(nameOf)))];
  return names.map((name) => [name, lists.map((list) => list.find((item) => nameOf(item) === name))]);
}

export function Overview() {
  const shown = known();
  if (!shown.length) return <p class="soft" role="status">Reading the run …</p>;
  const overviews = shown.map((run) => run.overview.value);
  return (
    <>
      {shown.map((run) => <Lead key={run.letter} run={run} />)}
      {beside(overviews.map((one) => one.grids), (grid) => grid.eval)
        .map(([name, grids]) => <Grid key={name} shown={shown} grids={grids} />)}
      <Curves shown={shown} />
      <Counts shown={shown} />
      <Times shown={shown} />
    </>
  );
}

function Lead({ run }) {
  const { notes, summary, counts, chips, title: what } = run.overview.value;
  const browse = (next) => {
    filters.value = { ...EMPTY, run: two ? run.letter : "", ...next };
    mode.value = "dialogues";
    go({ page: "dialogues" });
  };
  return (
    <section class="lead-part" aria-label={`result of ${run.name}`}>
      <h2>{two && <b class={`letter ${run.letter}`}>{run.letter}</b>} {two ? `${what} · ${run.name}` : "Result"}</h2>
      {notes.map((note, place) => <p key={place} class="note" role="note"><b>Note.</b> {note}</p>)}
      <p class="lead">{summary}</p>
      {chips.length > 0 && <ul class="chips">{chips.map(([name, value]) => <li key={name}><span>{name}</span> <bdi>{value.slice(0, 60)}</bdi></li>)}</ul>}
      <ul class="tiles">
        <li><button type="button" onClick={() => browse({ part: "trees" })}><b>{number(counts.trees)}</b> {counts.trees === 1 ? "dialogue tree" : "dialogue trees"}</button></li>
        <li><button type="button" onClick={() => browse({ part: "trees" })}><b>{number(counts.turns)}</b> {counts.turns === 1 ? "turn" : "turns"}</button></li>
        <li><button type="button" disabled={!counts.pairs} onClick={() => browse({ pair: "*" })}><b>{number(counts.pairs)}</b> {counts.pairs === 1 ? "preference pair" : "preference pairs"}</button></li>
      </ul>
    </section>
  );
}

function Grid({ shown, grids }) {
  const grid = grids.find(Boolean);
  const columns = beside(grids.filter(Boolean).map((one) => one.metrics), (metric) => metric.name);
  const lines = beside(grids.map((one) => one?.lines ?? []), (line) => line.subject);
  const cellOf = (at, line, name) => line?.cells[grids[at].metrics.findIndex((metric) => metric.name === name)];
  const [single, series] = bySeries(columns);
  const table = (some) => some.length > 0 && <Table {...{ shown, grids, lines, cellOf }} columns={some} />;
  return (
    <section><h2>{grid.title}</h2>
      {grid.about && <p>{grid.about}</p>}
      {table(single)}
      {series.map((points) => (
        <div key={points[0][1][0]}><Series {...{ points, lines, cellOf, shown, grids }} />
          <details class="fold"><summary>these numbers, with intervals</summary>{table(points.map(([, column]) => column))}</details></div>
      ))}
    </section>
  );
}

function Table({ shown, grids, lines, columns, cellOf }) {
  const way = grids.some((one) => one?.way) && columns.some(([name]) => !/_\d+$/.test(name));
  return (
      <div class="scroll"><table class={`results${columns.length > 6 ? " many" : ""}`}>
        <caption>{grids.map((one, at) => one && <span key={at}>{two && <b>{shown[at].letter}: </b>}{one.caption} </span>)}</caption>
        <thead><tr><th scope="col"><span class="sr">model</span></th>
          {columns.map(([name, [metric]]) => <th key={name} scope="col">{(metric ?? columnOf(grids, name)).title}</th>)}
          {way && <th scope="col" class="way">of the way to the ceiling</th>}</tr></thead>
        <tbody>
          {lines.map(([subject, held]) => {
            const line = held.find(Boolean);
            return (
              <tr key={subject} class={line.kind === "own" ? "own" : ""}><th scope="row">{line.title}</th>
                {columns.map(([name]) => (
                  <td key={name} data-name={columnOf(grids, name).title}>
                    {held.map((one, at) => <Cell key={at} run={shown[at]} cell={one && cellOf(at, one, name)} kind={line.kind} range={range(grids, name)} />)}
                  </td>
                ))}
                {way && <td class="way" data-name="of the way to the ceiling">{held.map((one, at) => <div key={at}>{two && one?.way && <Letter run={shown[at]} />}{one?.way || "–"}</div>)}</td>}
              </tr>
            );
          })}
        </tbody>
      </table></div>
  );
}

/** Metrics of one name and a number (level at turn 1, 2, ...), at least four of them: rather lines than columns. */
function bySeries(columns) {
  const series = new Map();
  for (const column of columns) {
    const [, stem, at] = /^(.*_)(\d+)$/.exec(column[0]) ?? [];
    if (stem) series.set(stem, [...(series.get(stem) ?? []), [Number(at), column]]);
  }
  const drawn = [...series.values()].filter((points) => points.length >= 4);
  const inside = new Set(drawn.flat().map(([, column]) => column));
  return [columns.filter((column) => !inside.has(column)), drawn];
}

/** One line for each subject over what the metrics are numbered by; the table of the same numbers opens on demand. */
function Series({ points, lines, cellOf, shown, grids }) {
  const sorted = [...points].sort(([one], [other]) => one - other);
  const percent = columnOf(grids, sorted[0][1][0]).title.endsWith("%");
  const rivals = lines.filter(([, held]) => held.find(Boolean).kind === "other").map(([subject]) => subject);
  const color = (subject, kind) => (kind === "own" ? 2 : kind === "ceiling" ? 6 : [0, 1, 3, 4, 5][rivals.indexOf(subject) % 5]);
  const dashed = (subject) => rivals.indexOf(subject) >= 5;
  const drawn = lines.flatMap(([subject, held]) => held.map((line, at) => line && ({
    name: two ? `${shown[at].letter} ${line.title}` : line.title, color: color(subject, line.kind), dashed: shown[at].number > 0 || dashed(subject),
    points: sorted.flatMap(([x, [name]]) => {
      const cell = cellOf(at, line, name);
      return cell ? [[x, cell.value * (percent ? 100 : 1)]] : [];
    }) })).filter((line) => line?.points.length));
  return (
    <div class="series">
      <ul class="legend">{lines.map(([subject, held]) => <li key={subject}><i class={`swatch c${color(subject, held.find(Boolean).kind)}${dashed(subject) ? " dashed" : ""}`} />{held.find(Boolean).title}</li>)}</ul>
      <LineChart title={`${columnOf(grids, sorted[0][1][0]).title.replace(/[\s(]*\d+\)?/, "").replace(/^turn,?\s*/, "")} by turn`.trim()} lines={drawn} across="turn" wide />
    </div>
  );
}

const columnOf = (grids, name) => grids.filter(Boolean).flatMap((one) => one.metrics).find((metric) => metric.name === name);

function range(grids, name) {
  const all = grids.filter(Boolean).flatMap((one) => one.metrics).filter((metric) => metric.name === name);
  return [Math.min(...all.map((metric) => metric.low)), Math.max(...all.map((metric) => metric.high))];
}

const Letter = ({ run }) => <b class={`letter ${run.letter}`}>{run.letter}</b>;

function Cell({ run, cell, kind, range: [start, end] }) {
  if (!cell) return <div class="none">{two && <Letter run={run} />}–</div>;
  return (
    <div class="cell">{two && <Letter run={run} />}<b>{cell.text}</b> <small>{cell.interval}</small>
      <Bar {...cell} start={start} end={end} kind={kind} /></div>
  );
}

function Curves({ shown }) {
  const stages = beside(shown.map((run) => run.overview.value.curves), (stage) => stage.stage);
  if (!stages.length) return null;
  return (
    <section><h2>Training curves</h2>
      {two && <p class="soft">Run A is drawn solid, run B dashed.</p>}
      {stages.map(([name, held]) => {
        const legend = beside(held.map((stage) => stage?.legend ?? []), ([, subject]) => subject);
        const charts = beside(held.map((stage) => stage?.charts ?? []), (chart) => chart.title);
        const drawn = (only) => charts.filter(([, both]) => both.some((chart) => chart?.first) === only).map(([what, both]) => (
          <LineChart key={what} title={what} lines={both.flatMap((chart, at) => (chart?.lines ?? []).map((line) => (
            { ...line, name: two ? `${shown[at].letter} ${line.name}` : line.name, dashed: shown[at].number > 0 })))} />
        ));
        const rest = drawn(false);
        return (
          <div key={name}><h3>{name}</h3>
            {legend.length > 0 && <ul class="legend">{legend.map(([subject, both]) => <li key={subject}><i class={`swatch c${both.find(Boolean)[0]}`} />{subject}</li>)}</ul>}
            <div class="charts">{drawn(true)}</div>
            {rest.length > 0 && <details class="fold"><summary>{rest.length} more</summary><div class="charts">{rest}</div></details>}
          </div>
        );
      })}
    </section>
  );
}

function Counts({ shown }) {
  return shown.map((run) => {
    const { counts, funnels, dropped } = run.overview.value;
    const most = Math.max(1, ...dropped.map(([, count]) => count));
    return (
      <section key={run.letter}><h2>Counts{two && ` of ${title(run)}`}</h2>
        <div class="halves">
          {funnels.length > 0 && <div><h3>Of all messages that were written</h3>{funnels.map((funnel) => <Funnel key={funnel.title} {...funnel} />)}</div>}
          {counts.by.length > 0 && <div><h3>Pairs</h3><PairCounts by={counts.by} /></div>}
          <div><h3>Dropped, and why</h3>
            {dropped.length ? (
              <table class="plain numbers"><thead><tr><th scope="col">reason</th><th scope="col">count</th><th aria-hidden="true" /></tr></thead>
                <tbody>{dropped.map(([reason, count]) => (
                  <tr key={reason}><th scope="row">{reason}</th><td>{number(count)}</td><td class="wide"><Bar value={count} end={most} /></td></tr>
                ))}</tbody></table>
            ) : <p>Nothing was dropped.</p>}
          </div>
        </div>
      </section>
    );
  });
}

function Funnel({ title: name, steps }) {
  const most = Math.max(1, ...steps.map(([, count]) => count));
  return (
    <table class="plain numbers funnel"><caption>{name}</caption>
      <tbody>{steps.map(([step, count]) => (
        <tr key={step}><th scope="row">{step}</th><td>{number(count)}</td><td class="wide"><Bar value={count} end={most} kind="own" /></td></tr>
      ))}</tbody></table>
  );
}

function PairCounts({ by }) {
  const { kinds } = by[0];
  const sum = (counts) => counts.reduce((one, other) => one + other, 0);
  return (
    <div class="scroll"><table class="plain numbers">
      <thead><tr><th scope="col"><span class="sr">counted by</span></th>{kinds.map((kind) => <th key={kind} scope="col">{kind}</th>)}<th scope="col">sum</th></tr></thead>
      {by.map((group) => (
        <tbody key={group.by}>
          {group.by && <tr><th class="group" colSpan={kinds.length + 2} scope="rowgroup">{group.by}</th></tr>}
          {group.rows.map(([value, counts]) => <tr key={value}><th scope="row">{value}</th>{counts.map((count, at) => <td key={at}>{number(count)}</td>)}<td>{number(sum(counts))}</td></tr>)}
        </tbody>
      ))}
    </table></div>
  );
}

const duration = (seconds) => (seconds < 60 ? `${number(Number(seconds.toFixed(1)))} s`
  : seconds < 3600 ? `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`
    : `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`);

const time = (held) => Math.max(...held.map((row) => row?.seconds ?? 0));

function Times({ shown }) {
  const stages = beside(shown.map((run) => run.overview.value.times), (row) => row.stage);
  if (!stages.length) return about.live ? <section><h2>Stages</h2><p>No stage is done yet.</p></section> : null;
  const longest = [...stages].sort(([, one], [, other]) => time(other) - time(one)).slice(0, stages.length > 24 ? 12 : 24);
  const [first, rest] = [true, false].map((inside) => stages.filter((stage) => longest.includes(stage) === inside));
  const rows = (some) => some.map(([name, held]) => (
    <tr key={name}><th scope="row">{name}</th>{held.map((row, at) => <td key={at}>{row ? duration(row.seconds) : "–"}</td>)}
      <td class="wide">{held.map((row, at) => row && <Bar key={at} value={row.seconds} end={most} kind={at ? "other" : "own"} />)}</td></tr>
  ));
  const most = Math.max(0.1, ...stages.flatMap(([, held]) => held.map((row) => row?.seconds ?? 0)));
  const sum = (run) => run.overview.value.times.reduce((total, row) => total + row.seconds, 0);
  return (
    <section><h2>Stages and their times</h2>
      <p>{shown.map((run) => `${two ? `${run.letter}: ` : ""}${run.overview.value.times.length} stages done in ${duration(sum(run))}`).join("; ")}.
        {" "}A stage may hold others, whose time is then counted in both.</p>
      <div class="scroll"><table class="plain numbers">
        <thead><tr><th scope="col">stage</th>{shown.map((run) => <th key={run.letter} scope="col">{two ? run.letter : "time"}</th>)}<th aria-hidden="true" /></tr></thead>
        <tbody>{rows(first)}</tbody></table></div>
      {rest.length > 0 && <details class="fold"><summary>{rest.length} shorter ones</summary><div class="scroll"><table class="plain numbers"><tbody>{rows(rest)}</tbody></table></div></details>}
    </section>
  );
}

/** Every setting, where it ran, and how to go on. Of two runs, what differs is marked. */
export function Settings() {
  const shown = known();
  return (
    <>
      {[["settings", "Every setting"], ["about", "Where it ran"]].map(([field, heading]) => {
        const rows = beside(shown.map((run) => run.overview.value[field]), ([name]) => name);
        return rows.length > 0 && (
          <section key={field}><h2>{heading}</h2>
            <div class="scroll"><table class="plain settings">
              {two && <thead><tr><th scope="col">name</th>{shown.map((run) => <th key={run.letter} scope="col">{title(run)}</th>)}</tr></thead>}
              <tbody>{rows.map(([name, held]) => {
                const differs = held.length > 1 && new Set(held.map((item) => item?.[1])).size > 1;
                return (
                  <tr key={name} class={differs ? "differs" : ""}><th scope="row">{name}{differs && <span class="sr"> (differs)</span>}</th>
                    {held.map((item, at) => <td key={at} dir="auto">{item?.[1] ?? "–"}</td>)}</tr>
                );
              })}</tbody></table></div>
          </section>
        );
      })}
      {shown.map((run) => (
        <section key={run.letter}><h2>How to go on{two && ` with ${run.name}`}</h2>
          <dl class="commands">{run.overview.value.commands.map(([command, what]) => [<dt key={command}><code>{command}</code></dt>, <dd key={what}>{what}</dd>])}</dl>
        </section>
      ))}
    </>
  );
}
