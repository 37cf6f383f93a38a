// The openai package, in the version that OPENAI names.
import assert from "node:assert/strict";
import { test } from "node:test";
import { z } from "zod";
import { apiKey, baseURL, clock, cutOff, failures, image, left, OpenAI, openURL, otherPage, packageName, read, Report, run, scenario, thrown, weather } from "./shared.mjs";

const options = { baseURL, apiKey, maxRetries: 0 };
const client = new OpenAI(options);

// Version 4 has the helpers under beta, and cannot read the schemas of zod 4.
const old = packageName === "openai-4";
const helpers = old ? client.beta.chat.completions : client.chat.completions;
const { zodResponseFormat } = await import(`${packageName}/helpers/zod`);
const reportFormat = old
  ? { type: "json_schema", json_schema: { name: "report", strict: true, schema: z.toJSONSchema(Report, { target: "draft-7" }) } }
  : zodResponseFormat(Report, "report");

const ask = (text, more) => ({ model: "codex-5", messages: [{ role: "user", content: text }], ...more });

scenario("chat", async (text) => {
  const answer = await client.chat.completions.create(ask(text));
  assert.equal(answer.model, "codex-5");
  assert.equal(answer.choices.length, 1);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.deepEqual(answer.choices[0].message, { role: "assistant", content: "Hello there.", refusal: null });
  assert.equal(answer.usage.prompt_tokens, 7);
  assert.equal(answer.usage.completion_tokens, 3);
  assert.equal(answer.usage.total_tokens, 10);
});

scenario("stream", async (text) => {
  const deltas = [];
  const finishes = [];
  for await (const chunk of await client.chat.completions.create(ask(text, { stream: true }))) {
    assert.ok(!("usage" in chunk), "nobody asked for usage");
    const [{ delta, finish_reason }] = chunk.choices;
    finishes.push(finish_reason);
    if (!delta.content) continue;
    deltas.push(delta.content);
    await read();
  }
  assert.deepEqual(deltas, ["One", " two", " three."]);
  assert.deepEqual(finishes.filter((f) => f !== null), ["stop"]);
  assert.equal(finishes.at(-1), "stop");
});

scenario("usage", async (text) => {
  const stream = helpers.stream(ask(text, { stream_options: { include_usage: true } }));
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.total_tokens, 11);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop", "it must finish before the usage");
  assert.ok(chunks.every((c) => c.usage === null));
  assert.equal(await stream.finalContent(), "Four tokens came out.");
});

scenario("abort", async (text) => {
  const stream = await client.chat.completions.create(ask(text, { stream: true }));
  for await (const chunk of stream) if (chunk.choices[0].delta.content) stream.controller.abort();
  await left();
  const next = await client.chat.completions.create(ask("chat"));
  assert.equal(next.choices[0].message.content, "Hello there.");
});

scenario("cut", async (text) => {
  let content = "";
  await assert.rejects(async () => {
    const stream = await client.chat.completions.create(ask(text, { stream: true }));
    for await (const chunk of stream) content += chunk.choices[0].delta.content ?? "";
  }, cutOff);
  assert.equal(content, "Hal");
});

const tools = [weather, clock].map((f) => ({ type: "function", function: f }));
const runnable = [weather, clock].map((f) => ({ type: "function", function: { ...f, parse: JSON.parse, function: run[f.name] } }));

scenario("tools", async (text) => {
  const runner = helpers.runTools(ask(text, { tools: runnable }));
  assert.equal(await runner.finalContent(), "At noon it is 7 degrees.");
  const [first] = runner.allChatCompletions();
  assert.equal(first.choices[0].finish_reason, "tool_calls");
  assert.equal(first.choices[0].message.content, null);
  assert.deepEqual(first.choices[0].message.tool_calls.map((c) => c.id), ["call_1", "call_2"]);
});

scenario("streamed tools", async (text) => {
  const runner = helpers.runTools(ask(text, { tools: runnable, stream: true }));
  assert.equal(await runner.finalContent(), "At noon it is 7 degrees.");
  const [first] = runner.allChatCompletions();
  assert.equal(first.choices[0].finish_reason, "tool_calls");
  assert.deepEqual(first.choices[0].message.tool_calls.map((c) => c.id), ["call_1", "call_2"]);
});

scenario("forced tool", async (text) => {
  const answer = await client.chat.completions.create(ask(text, { tools, tool_choice: { type: "function", function: { name: "weather" } } }));
  const [call, ...others] = answer.choices[0].message.tool_calls;
  assert.equal(call.function.arguments, '{"city":"Oslo","unit":"C"}');
  assert.deepEqual(others, []);
});

scenario("structured output", async (text) => {
  const answer = await helpers.parse(ask(text, { response_format: reportFormat }));
  const { parsed, content } = answer.choices[0].message;
  assert.deepEqual(parsed ?? JSON.parse(content), { city: "Oslo", degrees: 7 });
});

scenario("image", async (text) => {
  const content = [{ type: "text", text }, { type: "image_url", image_url: { url: image, detail: "low" } }];
  const answer = await client.chat.completions.create(ask(text, { messages: [{ role: "user", content }] }));
  assert.equal(answer.choices[0].message.content, "A dot.");
});

for (const failure of failures) {
  scenario(failure.name, async (text) => {
    for (const stream of [false, true]) {
      await assert.rejects(client.chat.completions.create(ask(text, { stream })), thrown(failure));
    }
  });
}

test("a wrong key", () => {
  const stranger = new OpenAI({ ...options, apiKey: "wrong" });
  return assert.rejects(stranger.chat.completions.create(ask("chat")), thrown({ status: 401, code: "invalid_api_key" }));
});

test("a page of another host", () => {
  const page = new OpenAI({ ...options, baseURL: openURL, defaultHeaders: otherPage });
  return assert.rejects(page.chat.completions.create(ask("chat")), thrown({ status: 403, code: "permission_denied" }));
});
