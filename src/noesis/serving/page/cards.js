// An answer's card: the answer, what is said of it, and what can be done with it.
function makeCard(page, turn, index, model) {
  const { t } = page, box = make("article", "card " + nameOf(model)), head = make("div", "head");
  const title = make("h4", "", t(nameOf(model)));
  const note = make("span", "hint"), text = make("div", "answer"), failed = make("div", "error");
  const actions = make("div", "row actions");
  title.dataset.t = nameOf(model);
  text.lang = "";  // whatever the model speaks, which need not be the page's language
  head.append(title, note);
  box.append(head, text, failed, actions);

  function showText(soFar) {
    text.replaceChildren();
    fill(text, markdown(soFar));
  }

  function button(name, action) {
    const node = make("button", "small", t(name));
    node.type = "button";
    node.setAttribute("aria-label", `${t(name)}: ${t("answerOf")} ${t(nameOf(model))}`);
    node.addEventListener("click", () => action(node));
    actions.append(node);
  }

  // Everything but the text while it arrives.
  function finish() {
    const answer = turn.answers[model] || { text: "" };
    const notes = [answer.finish === "length" ? t("cut") : "", answer.stopped ? t("stopped") : ""];
    if (answer.speed) notes.push(page.number(answer.speed, 1) + " " + t("speed"));
    note.textContent = notes.filter(Boolean).join(" · ");
    failed.replaceChildren(...(answer.failure ? page.explain(answer.failure) : []));
    showText(answer.text);
    if (!answer.text && !answer.failure && !answer.stopped && answer.finish) text.textContent = t("empty");
    actions.replaceChildren();
    if (answer.text) button("copy", (node) => page.copy(answer.text, node));
    const isLast = index === page.conversation.turns.length - 1;
    if (isLast && !page.running) button(answer.text ? "again" : "tryAgain", () => page.answer(index, [model]));
    if (answer.text && page.about.examples) button("saveIt", () => openExample(page, index, model));
    box.querySelector(".opinion")?.remove();
    if (answer.opinion) box.append(opinionOf(page, answer.opinion));
  }

  function begin() {
    for (const part of [actions, failed, note, text]) part.replaceChildren();
    box.querySelector(".opinion")?.remove();
  }

  finish();
  return { box, showText, finish, begin };
}

// The Tribunal's opinion, or why there is none; "waiting" while it is asked.
function opinionOf(page, opinion) {
  const { t } = page, box = make("div", "opinion");
  box.append(make("h5", "", t("opinion")));
  if (opinion === "waiting" || opinion.failure) {
    const state = make("div", opinion.failure ? "error" : "hint");
    state.append(...(opinion.failure ? page.explain(opinion.failure) : [t("judging")]));
    box.append(state);
    return box;
  }
  const range = ([low, high]) => page.number(low, 2) + (low === high ? "" : "–" + page.number(high, 2));
  box.append(make("p", "hint", `${t("judge")}: ${opinion.judge}. ${t("impression")}`));
  if (opinion.verdict) {
    const verdict = VERDICTS[page.language][opinion.verdict] || opinion.verdict;
    box.append(make("p", "", verdict + (opinion.mean ? ` (${range(opinion.mean)})` : "")));
  }
  for (const said of opinion.said || []) {
    const score = said.unscored ? t("noVerdict") : range(opinion.judges[said.judge]);
    box.append(make("p", "", `${JUDGES[said.judge] || said.judge} ${score} — ${said.unscored || said.reasoning}`));
  }
  box.append(make("p", "hint", opinion.flags.length ? `${t("flags")}: ${opinion.flags.join(", ")}` : t("noFlags")));
  return box;
}
