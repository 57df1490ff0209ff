// What the page shows: runs with their overviews and dialogues. They lie in the page itself, compressed, or come from
// the server of a live page, which is asked again and again for what changed.
import { computed, signal } from "@preact/signals";

const read = (id) => document.getElementById(id).textContent;
export const about = JSON.parse(read("about"));

/** One entry per run: `overview` (null until known), `trees` (key -> tree), `ready`, `changed` (ms, live pages only). */
export const runs = about.runs.map((given, number) => ({
  number,
  letter: "AB"[number],
  name: given.name,
  overview: signal(about.live ? null : given),
  trees: signal(new Map()),
  ready: signal(false),
  changed: signal(0),
}));
export const two = runs.length > 1;
export const failure = signal("");
export const everyTree = computed(() => runs.flatMap((run) => [...run.trees.value.values()]));

/** A tree as the page walks it, made of what the file says in few words (see dialoom/report/trees.py). */
function grown(raw, run) {
  const tree = { ...raw, run, key: `${raw.part}\n${raw.id}`, roots: [], kinds: [] };
  tree.turns = raw.turns.map(([id, parent, speaker, text, scores, notes], place) => (
    { id, place, parent, speaker, text, scores, notes, tree, children: [], marks: [], dropped: [], below: 0 }));
  for (const turn of tree.turns) {
    (turn.parent < 0 ? tree.roots : tree.turns[turn.parent].children).push(turn);
    if (turn.notes.rejected) turn.dropped.push(String(turn.notes.rejected));
  }
  for (let place = tree.turns.length - 1; place >= 0; place--) {
    const turn = tree.turns[place];
    if (turn.parent >= 0) tree.turns[turn.parent].below += 1 + turn.below;
  }
  for (const [chosen, rejected, kind, scoreChosen, scoreRejected] of raw.pairs) {
    tree.turns[chosen]?.marks.push({ side: "chosen", kind, score: scoreChosen });
    tree.turns[rejected]?.marks.push({ side: "rejected", kind, score: scoreRejected });
    if (!tree.kinds.includes(kind)) tree.kinds.push(kind);
  }
  tree.dropped = raw.skips.filter(([place]) => place < 0).map(([, reason]) => reason);
  for (const [place, reason] of raw.skips) tree.turns[place]?.dropped.push(reason);
  return tree;
}

function bytes(base64) {
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) found[at] = text.charCodeAt(at);
  return found;
}

async function unpack(run) {
  const stream = new Blob([bytes(read(`dialogues-${run.number}`))]).stream()
    .pipeThrough(new DecompressionStream("gzip"));
  const raws = await new Response(stream).json();
  run.trees.value = new Map(raws.map((raw) => grown(raw, run)).map((tree) => [tree.key, tree]));
  run.ready.value = true;
}

async function ask(run, since) {
  const answer = await fetch(`data?run=${run.number}&since=${since}`, { cache: "no-store" });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  if (told.overview) {
    run.overview.value = told.overview;
    run.changed.value = Date.now();
  }
  if (told.reset || told.trees.length) {
    const trees = told.reset ? new Map() : new Map(run.trees.value);
    for (const raw of told.trees) {
      const tree = grown(raw, run);
      trees.set(tree.key, tree);
    }
    run.trees.value = trees;
  }
  run.ready.value = true;
  return told.version;
}

/** Ask for news until the page is left: every two seconds, less often where an answer takes long to make. */
async function follow(run) {
  for (let since = -1; ;) {
    const start = performance.now();
    try {
      since = await ask(run, since);
      failure.value = "";
    } catch (wrong) {
      failure.value = wrong instanceof TypeError ? "the server does not answer; is `dialoom view` still running?"
        : wrong.message;
    }
    await new Promise((go) => setTimeout(go, Math.max(2000, 5 * (performance.now() - start))));
  }
}

export function load() {
  for (const run of runs) {
    if (about.live) follow(run);
    else setTimeout(() => unpack(run).catch((wrong) => { failure.value = `the dialogues cannot be read: ${wrong}`; }));
  }
}
