// The AI SDK: ai with @ai-sdk/openai-compatible or, where AI_SDK is openai, with the
// chat models of @ai-sdk/openai.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";
import { apiKey, baseURL, clock, failures, image, left, openURL, otherPage, read, Report, run, scenario, weather } from "./shared.mjs";

const openai = process.env.AI_SDK === "openai";

// to is what generateText and streamText need. onError only keeps the latter
// from printing what is asserted here.
const to = (more) => ({
  model: openai
    ? createOpenAI({ baseURL, apiKey, ...more }).chat("codex-5")
    : createOpenAICompatible({ name: "codexpool", baseURL, apiKey, ...more })("codex-5"),
  maxRetries: 0,
  onError() {},
});

scenario("chat", async (prompt) => {
  const answer = await generateText({ ...to(), prompt });
  assert.equal(answer.text, "Hello there.");
  assert.equal(answer.finishReason, "stop");
  assert.equal(answer.usage.inputTokens, 7);
  assert.equal(answer.usage.outputTokens, 3);
  assert.equal(answer.usage.totalTokens, 10);
});

scenario("stream", async (prompt) => {
  const deltas = [];
  const result = streamText({ ...to(), prompt });
  for await (const delta of result.textStream) {
    deltas.push(delta);
    await read();
  }
  assert.deepEqual(deltas, ["One", " two", " three."]);
  assert.equal(await result.finishReason, "stop");
  assert.equal((await result.usage).totalTokens, openai ? 10 : undefined); // the former always asks for it
});

scenario("usage", async (prompt) => {
  const result = streamText({ ...to({ includeUsage: true }), prompt });
  assert.equal(await result.text, "Four tokens came out.");
  assert.equal(await result.finishReason, "stop");
  assert.equal((await result.usage).totalTokens, 11);
});

scenario("abort", async (prompt) => {
  const controller = new AbortController();
  const parts = [];
  for await (const part of streamText({ ...to(), prompt, abortSignal: controller.signal }).fullStream) {
    parts.push(part.type);
    if (part.type === "text-delta") controller.abort();
  }
  assert.equal(parts.at(-1), "abort");
  await left();
  assert.equal((await generateText({ ...to(), prompt: "chat" })).text, "Hello there.");
});

scenario("cut", async (prompt) => {
  const parts = [];
  await assert.rejects(async () => {
    for await (const part of streamText({ ...to(), prompt }).fullStream) parts.push(part);
  });
  const [delta, error, ...rest] = parts.slice(parts.findIndex((p) => p.type === "text-delta"));
  assert.equal(delta.text, "Hal");
  assert.equal(error.error.code, "upstream_error");
  assert.deepEqual(rest, []);
});

const tools = Object.fromEntries(
  [weather, clock].map(({ name, description, strict, parameters }) => [
    name,
    tool({ description, strict, inputSchema: jsonSchema(parameters), execute: run[name] }),
  ]),
);

scenario("tools", async (prompt) => {
  const answer = await generateText({ ...to(), prompt, tools, stopWhen: stepCountIs(2) });
  assert.equal(answer.text, "At noon it is 7 degrees.");
  assert.deepEqual(answer.steps.map((s) => s.finishReason), ["tool-calls", "stop"]);
});

scenario("streamed tools", async (prompt) => {
  const answer = streamText({ ...to(), prompt, tools, stopWhen: stepCountIs(2) });
  assert.equal(await answer.text, "At noon it is 7 degrees.");
  assert.deepEqual((await answer.steps).map((s) => s.finishReason), ["tool-calls", "stop"]);
});

scenario("forced tool", async (prompt) => {
  const answer = await generateText({ ...to(), prompt, tools, toolChoice: { type: "tool", toolName: "weather" } });
  assert.deepEqual(answer.toolCalls.map((c) => [c.toolCallId, c.toolName, c.input]), [["call_1", "weather", { city: "Oslo", unit: "C" }]]);
});

scenario("structured output", async (prompt) => {
  const answer = await generateText({ ...to({ supportsStructuredOutputs: true }), prompt, output: Output.object({ schema: Report, name: "report" }) });
  assert.deepEqual(answer.output, { city: "Oslo", degrees: 7 });
});

scenario("image", async (text) => {
  // The AI SDK has no word for the detail: this is its way to say what it has no word for.
  const part = { type: "image", image, providerOptions: { openai: { imageDetail: "low" }, openaiCompatible: { image_url: { url: image, detail: "low" } } } };
  const answer = await generateText({ ...to(), messages: [{ role: "user", content: [{ type: "text", text }, part] }] });
  assert.equal(answer.text, "A dot.");
});

for (const failure of failures) {
  scenario(failure.name, (prompt) => assert.rejects(generateText({ ...to(), prompt }), thrown(failure)));
}

test("a wrong key", () => {
  const stranger = to({ apiKey: "wrong" });
  return assert.rejects(generateText({ ...stranger, prompt: "chat" }), thrown({ status: 401, code: "invalid_api_key" }));
});

test("a page of another host", () => {
  const page = to({ baseURL: openURL, headers: otherPage });
  return assert.rejects(generateText({ ...page, prompt: "chat" }), thrown({ status: 403, code: "permission_denied" }));
});

// thrown checks the one class that the AI SDK has for all statuses.
function thrown({ status, code, param = null }) {
  return (error) => {
    assert.ok(APICallError.isInstance(error), `it is ${error.stack}`);
    assert.equal(error.statusCode, status);
    assert.equal(error.data.error.code, code);
    assert.equal(error.data.error.param, param);
    assert.equal(error.isRetryable, status === 429 || status >= 500);
    return true;
  };
}
