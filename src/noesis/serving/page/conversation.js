// The conversation: what is asked, what each model answered, and its settings. The browser keeps it over a reload.
const KEPT = "noesis.conversation", KEPT_LANGUAGE = "noesis.language", TEMPERATURE = 0.7;

// system: null is the server's own
const empty = (language) => ({ language, system: null, temperature: TEMPERATURE, turns: [] });

// Where the browser keeps nothing (a private window, a full disk), the page works without.
function keep(name, value) {
  try { localStorage.setItem(name, value); } catch { /* it is gone with the page */ }
}

function kept(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}

// The kept conversation; null if there is none, or if what is there is not one of ours.
function restore() {
  try {
    const found = JSON.parse(kept(KEPT));
    const sound = found && Array.isArray(found.turns) && typeof found.language === "string"
      && (found.system === null || typeof found.system === "string") && typeof found.temperature === "number"
      && (found.strength === undefined || (found.strength >= 0 && found.strength <= 1.5))
      && found.turns.every((turn) => typeof turn.question === "string" && Object.values(turn.answers).every(
        (answer) => typeof answer.text === "string" && (!answer.failure || typeof answer.failure.code === "string")));
    return sound ? found : null;
  } catch {
    return null;
  }
}

// What a model is sent for the question of a turn: its own answers to the questions before it.
function messagesFor(conversation, index, model) {
  const said = (turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.answers[model].text },
  ];
  const before = conversation.turns.slice(0, index).filter((turn) => turn.answers[model]?.text).flatMap(said);
  const system = conversation.system === null ? [] : [{ role: "system", content: conversation.system }];
  return [...system, ...before, { role: "user", content: conversation.turns[index].question }];
}

// The conversation as Markdown, for a file.
function exported(conversation, models, t) {
  const parts = ["# " + document.title];
  if (conversation.system !== null) parts.push("## " + t("system"), conversation.system);
  for (const turn of conversation.turns) {
    parts.push("## " + t("you"), turn.question);
    for (const model of models) {
      if (turn.answers[model]?.text) parts.push("### " + t(nameOf(model, models)), turn.answers[model].text);
    }
  }
  return parts.join("\n\n") + "\n";
}

// The word for a model: the tuned one is the first that the server names.
const nameOf = (model, models) => (model === models[0] ? "tuned" : "base");
