// A page: its heading, its notes, and what it is about.

/** Fill an element with what a payload says; gives back the page, whose parts the widget listens to. */
function mount(root, packedPayload) {
  const payload = unpack(packedPayload);
  root.classList.add("girih");
  const wish = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const colours = () => {
    const dark = chosen ?? wish.matches;
    return { dark, line: dark ? "#5b6675" : "#9aa5b4", text: dark ? "#e6ebf2" : "#1c2430" };
  };
  const state = new State(payload.rows ? payload.rows.count : 0);
  const theme = element("button", { type: "button", class: "theme", onclick: () => ((chosen = !colours().dark), show()) });
  const show = () => {
    const { dark } = colours();
    root.dataset.theme = dark ? "dark" : "light";
    theme.textContent = dark ? "Light" : "Dark";
    state.tell("theme");
  };
  wish.addEventListener("change", () => chosen === null && show());
  const Page = payload.kind === "table" ? TablePage : payload.line ? LinePage : LatentPage;
  root.dataset.theme = colours().dark ? "dark" : "light";
  const page = new Page(payload, state, colours);
  const notes = payload.notes.length ? element("p", { class: "notes" }, payload.notes.join(" ")) : null;
  const keys = "Drag to move, wheel or + and − to zoom, arrow keys to walk, click to hold the cursor and to look at a row, Shift and drag to select rows.";
  const help = element("details", { class: "help" }, element("summary", {}, "How to"), element("p", {}, payload.help ?? keys));
  root.replaceChildren(
    element("header", {}, element("div", { class: "title" }, element("h1", {}, payload.title), help, theme), element("p", { class: "lead" }, payload.lead), notes),
    page.element,
  );
  show();
  return page;
}
