// What the page does.
const $ = (id) => document.getElementById(id);
const settings = new URLSearchParams(location.hash.slice(1));  // key, lang, ask
const isLanguage = (name) => name === "pt" || name === "en";

const page = {
  key: settings.get("key") || "",
  language: [settings.get("lang"), kept(KEPT_LANGUAGE), navigator.language?.slice(0, 2), "en"].find(isLanguage),
  about: { models: [], languages: [], judge: null, examples: null, system: {} },
  conversation: restore(),
  running: null,
  t: (name) => WORDS[page.language][name],
  number: (x, digits) => new Intl.NumberFormat(
    document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(x),

  // A failure in the page's language; the server's own words, which are English, only where we have none.
  explain({ code, detail }) {
    const words = FAILURES[page.language], nodes = [make("span", "", (words[code] || words.other) + " ")];
    if (detail && (!words[code] || code === "no_verdict" || code === "bad_example")) {
      nodes.push(make("span", "", detail));
      nodes[1].lang = "en";
    }
    return nodes;
  },

  say(text) {
    if ($("state").textContent !== text) $("state").textContent = text;  // a screen reader says each change
  },

  async copy(text, button) {
    try {
      if (navigator.clipboard) await navigator.clipboard.writeText(text);
      else copyBySelection(text);  // a page that isn't on localhost and comes without TLS
      page.say(page.t("copied"));
      button.textContent = page.t("copied");
      setTimeout(() => { button.textContent = page.t("copy"); }, 2000);
    } catch {
      page.say(page.t("noCopy"));
    }
  },

  // Have `models` answer the question of a turn. What they answered before is replaced once there is something new.
  async answer(index, models) {
    if (page.running) return;
    const control = new AbortController(), turn = page.conversation.turns[index];
    setRunning(control);
    showFailure(null);
    page.say(page.t("waiting"));
    const answers = await Promise.all(models.map((model) => answerBy(model, index, control.signal)));
    keepConversation();
    const complete = answers.every((answer) => !answer.failure);
    const end = models.length > 1 ? "ready" : "alone";
    page.say(control.signal.aborted ? page.t("stopped") : complete ? page.t(end) : "");
    for (const model of page.about.judge ? models : []) {
      const { text, failure } = turn.answers[model];
      if (text && !failure && !control.signal.aborted) await judge(model, index, control.signal);
    }
    setRunning(null);
    keepConversation();
    // on a phone this would open the keyboard over the answers
    if (!matchMedia("(pointer: coarse)").matches) $("question").focus({ preventScroll: true });
  },
};
// The page's language, where the system prompt has it.
const spoken = () => (page.about.languages.includes(page.language) ? page.language : page.about.language);
const cards = new Map();  // "turn/model" → its card

function copyBySelection(text) {
  const field = make("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("not allowed");
}

function keepConversation() {
  const { turns } = page.conversation;
  const settled = turns.map((turn) => ({ ...turn, answers: withoutWaiting(turn.answers) }));
  keep(KEPT, JSON.stringify({ ...page.conversation, turns: settled }));
}

const withoutWaiting = (answers) => Object.fromEntries(Object.entries(answers).map(
  ([model, answer]) => [model, answer.opinion === "waiting" ? { ...answer, opinion: undefined } : answer]));

async function answerBy(model, index, signal) {
  const turn = page.conversation.turns[index], card = cards.get(index + "/" + model), before = turn.answers[model];
  const { language, temperature } = page.conversation;
  const body = { model, messages: messagesFor(page.conversation, index, model), language, temperature, ...strength.of(page, model) };
  let text = "", drawn = 0;
  const answer = {};
  card.begin();
  try {
    Object.assign(answer, await streamAnswer(page.key, body, signal, (soFar) => {
      text = soFar;
      page.say(page.t("writing"));
      drawn ||= requestAnimationFrame(() => { drawn = 0; card.showText(text); });
    }));
  } catch (error) {
    if (error.name === "AbortError") answer.stopped = true;
    else answer.failure = { ...Failure.of(error) };
    if (answer.failure?.code === "invalid_api_key") askForKey();
  }
  cancelAnimationFrame(drawn);
  answer.text = text;
  turn.answers[model] = text || !before?.text ? answer : { ...before, failure: answer.failure };
  card.finish();
  return turn.answers[model];
}

async function judge(model, index, signal) {
  const turn = page.conversation.turns[index], answer = turn.answers[model], card = cards.get(index + "/" + model);
  const messages = messagesFor(page.conversation, index, model);
  answer.opinion = "waiting";
  card.finish();
  try {
    const body = { messages, answer: answer.text, language: spoken() };
    answer.opinion = await (await call(page.key, "/noesis/court", body, signal)).json();
  } catch (error) {
    answer.opinion = error.name === "AbortError" ? undefined : { failure: { ...Failure.of(error) } };
  }
  card.finish();
}

function setRunning(control) {
  page.running = control;
  $("send").hidden = Boolean(control);
  $("stop").hidden = !control;
  if (!control) for (const card of cards.values()) card.finish();
}

function showFailure(failure) {
  $("error").hidden = !failure;
  $("error").replaceChildren(...(failure ? page.explain(failure) : []));
}

function addTurn(turn, index) {
  const box = make("section", "turn"), asked = make("h3", "asked", turn.question), pair = make("div", "pair");
  asked.id = "asked" + index;
  asked.lang = "";
  box.setAttribute("aria-labelledby", asked.id);
  for (const model of page.about.models) {
    const card = makeCard(page, turn, index, model);
    cards.set(index + "/" + model, card);
    pair.append(card.box);
  }
  box.append(asked, pair);
  $("turns").append(box);
  return box;
}

function showConversation() {
  cards.clear();
  $("turns").replaceChildren();
  page.conversation.turns.forEach(addTurn);
  showSettings();
}

function showSettings() {
  const { system, language, temperature } = page.conversation;
  $("system").value = system ?? page.about.system[language] ?? "";
  $("restore").disabled = system === null;
  offerLanguages($("systemLanguage"), page.about.languages);
  $("systemLanguage").value = language;
  $("temperature").value = temperature;
  $("chosen").value = page.number(temperature, 1);
  strength.show(page);
}

// Each language by its own name.
function offerLanguages(select, codes) {
  select.replaceChildren(...codes.map((code) => {
    const option = make("option", "", new Intl.DisplayNames([code], { type: "language" }).of(code));
    option.value = option.lang = code;
    return option;
  }));
}

function translate() {
  document.documentElement.lang = page.language === "pt" ? "pt-BR" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = page.t(node.dataset.t);
  $("question").placeholder = page.t("question");
  $("language").textContent = page.t("otherLanguage");
  $("language").lang = page.language === "pt" ? "en" : "pt-BR";
  page.say("");
  if (page.conversation && !page.running) showConversation();
}

function ask(question) {
  const fresh = page.conversation.turns.push({ question, answers: {} }) - 1;
  keepConversation();  // whatever happens now, the question is not lost
  for (const card of cards.values()) card.finish();  // only the last turn is answered again
  addTurn(page.conversation.turns[fresh], fresh).scrollIntoView({ block: "start" });
  page.answer(fresh, page.about.models);
}

function askForKey() {
  $("keys").hidden = false;
  $("key").focus();
}

async function connect() {
  if (!page.key) return askForKey();
  try {
    page.about = await (await call(page.key, "/noesis/about")).json();
  } catch (error) {
    const failure = Failure.of(error);
    if (failure.code === "invalid_api_key") askForKey();
    return showFailure(failure);
  }
  const { language, languages } = page.about;
  page.conversation ||= empty(language);
  if (!languages.includes(page.conversation.language)) page.conversation.language = language;  // kept from another run
  $("keys").hidden = true;
  showFailure(null);
  showConversation();
  document.documentElement.dataset.state = "connected";
  const first = settings.get("ask");
  settings.delete("ask");
  if (first && !page.conversation.turns.length) ask(first);
  else $("question").focus();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || page.running || !page.about.models.length) return;
  $("question").value = "";
  ask(question);
});
$("keys").addEventListener("submit", (event) => {
  event.preventDefault();
  page.key = $("key").value.trim();
  connect();
});
$("question").addEventListener("keydown", (event) => {
  const sends = event.ctrlKey || event.metaKey || !(event.shiftKey || matchMedia("(pointer: coarse)").matches);
  if (event.key !== "Enter" || event.isComposing || !sends) return;  // a phone's keyboard has no Shift+Enter
  event.preventDefault();
  $("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && page.running && !$("example").open) page.running.abort();
});
$("stop").addEventListener("click", () => page.running?.abort());
$("reset").addEventListener("click", () => {
  page.running?.abort();
  page.conversation = { ...page.conversation ?? empty(page.language), turns: [] };
  keepConversation();
  showConversation();
  page.say("");
  showFailure(null);
  $("question").focus();
});
$("export").addEventListener("click", () => {
  const link = make("a");
  const text = exported(page.conversation, page.about.models, page.t);
  link.href = URL.createObjectURL(new Blob([text], { type: "text/markdown" }));
  link.download = document.title + ".md";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
$("language").addEventListener("click", () => {
  page.language = page.language === "pt" ? "en" : "pt";
  keep(KEPT_LANGUAGE, page.language);
  settings.delete("lang");  // of the address: it would win again on reload
  history.replaceState(null, "", "#" + settings);
  translate();
});
$("settings").addEventListener("change", () => {
  const own = $("system").value.trim(), { language } = page.conversation;
  page.conversation.system = own === (page.about.system[language] ?? "").trim() || !own ? null : $("system").value;
  page.conversation.language = $("systemLanguage").value;
  page.conversation.temperature = Number($("temperature").value);
  strength.keep(page);
  keepConversation();
  showSettings();
});
$("temperature").addEventListener("input", () => {
  $("chosen").value = page.number(Number($("temperature").value), 1);
});
$("strength").addEventListener("input", () => strength.say(page, Number($("strength").value) / 100));
$("restore").addEventListener("click", () => {
  page.conversation.system = null;
  keepConversation();
  showSettings();
});
$("exampleForm").addEventListener("submit", (event) => {
  event.preventDefault();
  saveExample(page);
});
$("exampleClose").addEventListener("click", () => $("example").close());
translate();
connect();
