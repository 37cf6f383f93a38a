// The openai package, reading a stream slowly that breaks.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import OpenAI from "openai";
import { apiKey, baseURL, cutOff } from "./shared.mjs";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

test("a stream that breaks while it is read slowly", async () => {
  const words = [];
  await assert.rejects(async () => {
    const stream = await client.chat.completions.create({ model: "codex-5", stream: true, messages: [{ role: "user", content: "slow" }] });
    for await (const chunk of stream) {
      await setTimeout(5);
      if (chunk.choices[0].delta.content) words.push(chunk.choices[0].delta.content);
    }
  }, cutOff);
  assert.equal(words.length, 30);
});
