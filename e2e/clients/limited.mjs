// The openai package with a key whose limit is reached: it waits as long as it is told, and
// is served. It may try once more only.
import assert from "node:assert/strict";
import { apiKey, baseURL, OpenAI, scenario } from "./shared.mjs";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 1 });

for (const text of ["first", "second"]) {
  scenario(text, async () => {
    const answer = await client.chat.completions.create({ model: "codex-5", messages: [{ role: "user", content: text }] });
    assert.equal(answer.choices[0].message.content, text);
  });
}
