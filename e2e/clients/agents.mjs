// @openai/agents, over Chat Completions.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Agent, OpenAIProvider, Runner, tool } from "@openai/agents";
import OpenAI from "openai";
import { apiKey, baseURL, clock, cutOff, failures, image, left, openURL, otherPage, read, Report, run, scenario, thrown, weather } from "./shared.mjs";

const runnerTo = (more) =>
  new Runner({
    model: "codex-5",
    modelProvider: new OpenAIProvider({ openAIClient: new OpenAI({ baseURL, apiKey, maxRetries: 0, ...more }), useResponses: false }),
    tracingDisabled: true, // it would go to OpenAI
  });
const runner = runnerTo();
const agent = new Agent({ name: "player" });

// textOf is the text of a streamed event, undefined where it has none.
const textOf = (event) => (event.type === "raw_model_stream_event" && event.data.type === "output_text_delta" ? event.data.delta : undefined);

scenario("chat", async (text) => {
  const result = await runner.run(agent, text);
  assert.equal(result.finalOutput, "Hello there.");
  assert.equal(result.state.usage.inputTokens, 7);
  assert.equal(result.state.usage.outputTokens, 3);
  assert.equal(result.state.usage.totalTokens, 10);
});

scenario("stream", async (text) => {
  const deltas = [];
  const result = await runner.run(agent, text, { stream: true });
  for await (const event of result) {
    if (textOf(event) === undefined) continue;
    deltas.push(textOf(event));
    await read();
  }
  assert.deepEqual(deltas, ["One", " two", " three."]);
  assert.equal(result.finalOutput, "One two three.");
});

scenario("usage", async (text) => {
  const result = await runner.run(agent, text, { stream: true });
  await result.completed;
  assert.equal(result.finalOutput, "Four tokens came out.");
  assert.equal(result.state.usage.totalTokens, 11);
});

scenario("abort", async (text) => {
  const controller = new AbortController();
  for await (const event of await runner.run(agent, text, { stream: true, signal: controller.signal })) {
    if (textOf(event) !== undefined) controller.abort();
  }
  await left();
  assert.equal((await runner.run(agent, "chat")).finalOutput, "Hello there.");
});

scenario("cut", async (text) => {
  let content = "";
  await assert.rejects(async () => {
    for await (const event of await runner.run(agent, text, { stream: true })) content += textOf(event) ?? "";
  }, cutOff);
  assert.equal(content, "Hal");
});

const tools = [weather, clock].map(({ strict = false, ...f }) => tool({ ...f, strict, execute: run[f.name] }));

scenario("tools", async (text) => {
  const result = await runner.run(new Agent({ name: "player", tools }), text);
  assert.equal(result.finalOutput, "At noon it is 7 degrees.");
});

scenario("streamed tools", async (text) => {
  const result = await runner.run(new Agent({ name: "player", tools }), text, { stream: true });
  await result.completed;
  assert.equal(result.finalOutput, "At noon it is 7 degrees.");
});

scenario("forced tool", async (text) => {
  const forced = new Agent({ name: "player", tools, modelSettings: { toolChoice: "weather" }, toolUseBehavior: "stop_on_first_tool" });
  assert.equal((await runner.run(forced, text)).finalOutput, "7 degrees");
});

scenario("structured output", async (text) => {
  const result = await runner.run(new Agent({ name: "player", outputType: Report }), text);
  assert.deepEqual(result.finalOutput, { city: "Oslo", degrees: 7 });
});

scenario("image", async (text) => {
  const content = [{ type: "input_text", text }, { type: "input_image", image, detail: "low" }];
  const result = await runner.run(agent, [{ role: "user", content }]);
  assert.equal(result.finalOutput, "A dot.");
});

for (const failure of failures) {
  scenario(failure.name, (text) => assert.rejects(runner.run(agent, text), thrown(failure)));
}

test("a wrong key", () => {
  const stranger = runnerTo({ apiKey: "wrong" });
  return assert.rejects(stranger.run(agent, "chat"), thrown({ status: 401, code: "invalid_api_key" }));
});

test("a page of another host", () => {
  const page = runnerTo({ baseURL: openURL, defaultHeaders: otherPage });
  return assert.rejects(page.run(agent, "chat"), thrown({ status: 403, code: "permission_denied" }));
});
