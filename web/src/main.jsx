// The viewer: one page for a run, or two side by side; static, or live beside a run that goes on.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { about, failure, load, runs, two } from "./data.js";
import { Dialogues } from "./dialogues.jsx";
import { go, place, readAddress } from "./model.js";
import { Overview, Settings } from "./overview.jsx";
import "./style.css";

const PAGES = { overview: "Overview", dialogues: "Dialogues", settings: "Settings" };
const THEMES = ["auto", "light", "dark"];

function Theme() {
  const [theme, setTheme] = useState(() => {
    try {
      return THEMES.includes(localStorage.dialoomTheme) ? localStorage.dialoomTheme : "auto";
    } catch {   // a browser that keeps nothing for files
      return "auto";
    }
  });
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.dialoomTheme = theme;
    } catch { /* as above */ }
  }, [theme]);
  return <button type="button" class="theme" onClick={() => setTheme(THEMES[(THEMES.indexOf(theme) + 1) % 3])}>Theme: {theme}</button>;
}

/** How long ago a live page last saw something new. */
function Live() {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const tick = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(tick);
  }, []);
  const last = Math.max(...runs.map((run) => run.changed.value));
  return <span class="live">live{last > 0 && ` · changed ${Math.max(0, Math.round((now - last) / 1000))} s ago`}</span>;
}

function App() {
  const { page } = place.value;
  const first = runs[0].overview.value;
  const heading = two ? "Two runs side by side" : first?.title ?? runs[0].name;
  useEffect(() => { document.title = `${heading} – ${PAGES[page]} – Dialoom`; }, [heading, page]);
  return (
    <div class={page}>
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>To the content</a>
      <header>
        <p class="brand"><svg viewBox="0 0 30 22" aria-hidden="true"><path d="M4 11h7M11 11c5 0 4-7 9-7h6M11 11c5 0 4 7 9 7h6" /><circle cx="4" cy="11" r="3.5" /><circle cx="26" cy="4" r="3.5" /><circle cx="26" cy="18" r="3.5" /></svg>Dialoom
          <span dir="auto">{runs.map((run) => run.name).join(" · ")}</span> {about.live && <Live />}<Theme /></p>
        <h1>{heading}</h1>
        <nav aria-label="pages">
          {Object.entries(PAGES).map(([name, title]) => <a key={name} href={`#${name}`} aria-current={page === name ? "page" : undefined} onClick={(event) => { event.preventDefault(); go({ page: name }); scrollTo(0, 0); }}>{title}</a>)}
        </nav>
        {failure.value && <p class="note" role="alert">{failure.value}</p>}
      </header>
      <main id="main" tabIndex={-1}>{page === "overview" ? <Overview /> : page === "dialogues" ? <Dialogues /> : <Settings />}</main>
      <footer>Written by Dialoom. This page {about.live ? "asks only the server it came from" : "loads nothing and sends nothing"}.</footer>
    </div>
  );
}

readAddress();
addEventListener("hashchange", readAddress);
render(<App />, document.getElementById("app"));
load();
