// The AI SDK with @ai-sdk/openai as it comes: over the Responses API.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";
import { apiKey, baseURL, clock, left, Report, run, scenario, weather } from "./shared.mjs";

const to = { model: createOpenAI({ baseURL, apiKey })("codex-5"), maxRetries: 0, onError() {} };

scenario("chat", async (prompt) => {
  const answer = await generateText({ ...to, prompt });
  assert.equal(answer.text, "Hello there.");
  assert.equal(answer.usage.totalTokens, 10);
});

scenario("stream", async (prompt) => {
  const deltas = [];
  for await (const delta of streamText({ ...to, prompt }).textStream) deltas.push(delta);
  assert.deepEqual(deltas, ["Hello", " there."]);
});

const tools = Object.fromEntries(
  [weather, clock].map(({ name, description, strict, parameters }) => [
    name,
    tool({ description, strict, inputSchema: jsonSchema(parameters), execute: run[name] }),
  ]),
);

// With the default the second step refers to stored items; without, it has the reasoning itself.
scenario("tools", async (prompt) => {
  for (const providerOptions of [{}, { openai: { store: false, include: ["reasoning.encrypted_content"] } }]) {
    const answer = await generateText({ ...to, prompt, tools, providerOptions, stopWhen: stepCountIs(2) });
    assert.equal(answer.text, "At noon it is 7 degrees.");
    assert.equal(answer.steps.length, 2);
  }
});

scenario("structured output", async (prompt) => {
  const answer = await generateText({ ...to, prompt, output: Output.object({ schema: Report, name: "report" }) });
  assert.deepEqual(answer.output, { city: "Oslo", degrees: 7 });
});

scenario("abort", async (prompt) => {
  const controller = new AbortController();
  for await (const part of streamText({ ...to, prompt, abortSignal: controller.signal }).fullStream) {
    if (part.type === "text-delta") controller.abort();
  }
  await left();
  assert.equal((await generateText({ ...to, prompt: "chat" })).text, "Hello there.");
});

scenario("cut", async (prompt) => {
  const parts = [];
  await assert.rejects(async () => {
    for await (const part of streamText({ ...to, prompt }).fullStream) parts.push(part);
    throw parts.find((part) => part.type === "error")?.error;
  });
  assert.ok(parts.some((part) => part.type === "text-delta" && part.text === "Hal"));
});
