// @openai/agents as it comes: over the Responses API.
import assert from "node:assert/strict";
import { Agent, OpenAIProvider, Runner, tool } from "@openai/agents";
import OpenAI from "openai";
import { apiKey, baseURL, clock, Report, run, scenario, weather } from "./shared.mjs";

const runner = new Runner({
  model: "codex-5",
  modelProvider: new OpenAIProvider({ openAIClient: new OpenAI({ baseURL, apiKey, maxRetries: 0 }) }),
  tracingDisabled: true, // it would go to OpenAI
});
const agent = new Agent({ name: "player" });

scenario("chat", async (text) => {
  const result = await runner.run(agent, text);
  assert.equal(result.finalOutput, "Hello there.");
  assert.equal(result.state.usage.totalTokens, 10);
});

scenario("stream", async (text) => {
  const deltas = [];
  const result = await runner.run(agent, text, { stream: true });
  for await (const event of result) {
    if (event.type === "raw_model_stream_event" && event.data.type === "output_text_delta") deltas.push(event.data.delta);
  }
  assert.deepEqual(deltas, ["Hello", " there."]);
  assert.equal(result.finalOutput, "Hello there.");
});

const tools = [weather, clock].map(({ strict = false, ...f }) => tool({ ...f, strict, execute: run[f.name] }));

scenario("tools", async (text) => {
  for (const stream of [false, true]) {
    const result = await runner.run(new Agent({ name: "player", tools }), text, { stream });
    await result.completed;
    assert.equal(result.finalOutput, "At noon it is 7 degrees.");
  }
});

scenario("structured output", async (text) => {
  const result = await runner.run(new Agent({ name: "player", outputType: Report }), text);
  assert.deepEqual(result.finalOutput, { city: "Oslo", degrees: 7 });
});

scenario("handoff", async (text) => {
  const poet = new Agent({ name: "poet", handoffDescription: "writes verses" });
  const result = await runner.run(Agent.create({ name: "desk", handoffs: [poet] }), text);
  assert.equal(result.finalOutput, "Hello there.");
  assert.equal(result.lastAgent.name, "poet");
});
