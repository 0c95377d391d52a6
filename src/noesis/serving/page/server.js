// Requests to our server. What goes wrong is a Failure: a code, which the page has words for, and the server's words.
class Failure extends Error {
  constructor(code, detail = "") {
    super(code);
    this.code = code;
    this.detail = detail;
  }

  // Of anything that was thrown: a TypeError is fetch's, whose connection could not be made or broke.
  static of(error, code = "unreachable") {
    if (error instanceof Failure) return error;
    return new Failure(error instanceof TypeError ? code : "other", String(error.message));
  }
}

async function call(key, path, body, signal) {
  const reply = await fetch(path, {
    method: body ? "POST" : "GET", signal, credentials: "omit", cache: "no-store",
    headers: { Authorization: "Bearer " + key, ...(body ? { "Content-Type": "application/json" } : {}) },
    body: body ? JSON.stringify(body) : undefined,
  });
  if (reply.ok) return reply;
  const error = (await reply.json().catch(() => null))?.error;
  throw new Failure(error?.code || "other", error?.message || "HTTP " + reply.status);
}

// The answer to `messages`, shown as it arrives: its text, why it ended, and tokens a second.
async function streamAnswer(key, body, signal, show) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const reply = await call(key, "/v1/chat/completions", asked, signal);
  const reader = reply.body.getReader(), decoder = new TextDecoder();
  let rest = "", text = "", finish = "", done = false, tokens = 0, started = 0;
  for (;;) {
    const piece = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : Failure.of(error, "broken");
    });
    rest += decoder.decode(piece.value || new Uint8Array(), { stream: !piece.done });
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: [DONE]")) done = true;
      if (!line.startsWith("data: {")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Failure(event.error.code || "other", event.error.message);
      started ||= performance.now();  // the prompt has been read
      tokens = event.usage?.completion_tokens || tokens;
      for (const choice of event.choices) {
        if (choice.delta.content) show((text += choice.delta.content));
        finish = choice.finish_reason || finish;
      }
    }
    if (piece.done) break;
  }
  if (!done) throw new Failure("broken");
  const seconds = (performance.now() - started) / 1000;
  return { text, finish, speed: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null };
}
