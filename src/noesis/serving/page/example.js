// "Save as example": a person says what is wrong with an answer and writes a better one; the project keeps both.
let exampleOf = "";  // the answer that the form is about: what was typed stays while it is opened again

function openExample(page, index, model) {
  const turn = page.conversation.turns[index], answer = turn.answers[model].text;
  const name = JSON.stringify([index, model, answer]);
  if (exampleOf !== name) {
    exampleOf = name;
    $("exampleForm").reset();
    $("prompt").value = turn.question;
    $("initial").value = $("revised").value = answer;
    $("exampleLanguage").value = page.language;
    $("exampleForm").dataset.turns = JSON.stringify(
      messagesFor(page.conversation, index, model).filter((message) => message.role !== "system").slice(0, -1));
    $("values").replaceChildren(...page.about.examples.values.map((value) => {
      const label = make("label"), box = make("input");
      box.type = "checkbox";
      box.value = value.id;
      label.append(box, value[page.language]);
      return label;
    }));
    $("categories").replaceChildren(...page.about.examples.categories.map((category) => make("option", "", category)));
  }
  sayExample();
  $("example").showModal();
  $("critique").focus();
}

function sayExample(nodes = []) {
  $("exampleError").hidden = !nodes.length;
  $("exampleError").replaceChildren(...nodes);
}

async function saveExample(page) {
  const text = (id) => $(id).value.trim();
  const values = [...$("values").querySelectorAll("input:checked")].map((box) => box.value);
  if (!values.length) return sayExample([page.t("needValue")]);
  if (text("revised") === text("initial")) return sayExample([page.t("needRevision")]);
  const example = {
    language: text("exampleLanguage"), category: text("category"), prompt: text("prompt"),
    turns: JSON.parse($("exampleForm").dataset.turns), response_initial: text("initial"), critique: text("critique"),
    response_revised: text("revised"), reasoning: text("reasoning"), values_applied: values,
    difficulty: text("difficulty"),
  };
  try {
    const saved = await (await call(page.key, "/noesis/examples", example)).json();
    exampleOf = "";
    $("example").close();
    const warnings = saved.warnings.length ? ` (${saved.warnings.join("; ")})` : "";
    page.say(`${page.t("saved")} ${saved.file}${warnings}`);
  } catch (error) {
    sayExample(page.explain(Failure.of(error)));
  }
}
