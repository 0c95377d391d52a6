// How strongly the tuned model is tuned: a slider, there where the server can scale the model's adapter.
const strength = {
  of: (page, model) => (page.about.scaled?.includes(model) && page.conversation.strength !== undefined
    ? { strength: page.conversation.strength } : {}),

  show(page) {
    const value = page.conversation.strength ?? 1;
    $("strengthField").hidden = !page.about.scaled?.length;
    $("strength").value = 100 * value;
    strength.say(page, value);
  },

  say(page, value) {
    $("chosenStrength").value = new Intl.NumberFormat(document.documentElement.lang, { style: "percent" }).format(value);
  },

  keep(page) {
    const value = Number($("strength").value) / 100;
    if (value === 1) delete page.conversation.strength;
    else page.conversation.strength = value;
  },
};
