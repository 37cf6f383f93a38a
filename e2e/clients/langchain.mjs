// @langchain/openai. It takes every model with "codex" in its name to the
// Responses API, whatever useResponsesApi says; hence the other alias.
import assert from "node:assert/strict";
import { test } from "node:test";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";
import { apiKey, baseURL, clock, cutOff, failures, image, left, openURL, otherPage, read, Report, run, scenario, thrown, weather } from "./shared.mjs";

const options = { model: "codev-5", apiKey, maxRetries: 0, configuration: { baseURL } };
const model = new ChatOpenAI(options);

scenario("chat", async (text) => {
  const answer = await model.invoke(text);
  assert.equal(answer.content, "Hello there.");
  assert.equal(answer.response_metadata.finish_reason, "stop");
  assert.equal(answer.usage_metadata.input_tokens, 7);
  assert.equal(answer.usage_metadata.output_tokens, 3);
  assert.equal(answer.usage_metadata.total_tokens, 10);
});

scenario("stream", async (text) => {
  const deltas = [];
  let whole;
  for await (const chunk of await new ChatOpenAI({ ...options, streamUsage: false }).stream(text)) {
    whole = whole?.concat(chunk) ?? chunk;
    if (!chunk.content) continue;
    deltas.push(chunk.content);
    await read();
  }
  assert.deepEqual(deltas, ["One", " two", " three."]);
  assert.equal(whole.response_metadata.finish_reason, "stop");
  assert.equal(whole.usage_metadata, undefined);
});

scenario("usage", async (text) => {
  const chunks = [];
  for await (const chunk of await model.stream(text)) chunks.push(chunk);
  assert.equal(chunks.map((c) => c.content).join(""), "Four tokens came out.");
  assert.equal(chunks.pop().usage_metadata.total_tokens, 11);
  assert.equal(chunks.at(-1).response_metadata.finish_reason, "stop", "it must finish before the usage");
});

scenario("abort", async (text) => {
  const controller = new AbortController();
  await assert.rejects(async () => {
    for await (const chunk of await model.stream(text, { signal: controller.signal })) if (chunk.content) controller.abort();
  }, { name: "AbortError" });
  await left();
  assert.equal((await model.invoke("chat")).content, "Hello there.");
});

scenario("cut", async (text) => {
  let content = "";
  await assert.rejects(async () => {
    for await (const chunk of await model.stream(text)) content += chunk.content;
  }, cutOff);
  assert.equal(content, "Hal");
});

const tools = [weather, clock].map((f) => ({ type: "function", function: f }));

scenario("tools", async (text) => {
  const calling = model.bindTools(tools);
  const asked = await calling.invoke(text);
  assert.equal(asked.response_metadata.finish_reason, "tool_calls");
  const answer = await calling.invoke([new HumanMessage(text), asked, ...results(asked)]);
  assert.equal(answer.content, "At noon it is 7 degrees.");
});

scenario("streamed tools", async (text) => {
  const calling = model.bindTools(tools);
  let asked;
  for await (const chunk of await calling.stream(text)) asked = asked?.concat(chunk) ?? chunk;
  assert.equal(asked.response_metadata.finish_reason, "tool_calls");
  const answer = await calling.invoke([new HumanMessage(text), asked, ...results(asked)]);
  assert.equal(answer.content, "At noon it is 7 degrees.");
});

const results = (asked) => asked.tool_calls.map((c) => new ToolMessage({ tool_call_id: c.id, content: run[c.name](c.args) }));

scenario("forced tool", async (text) => {
  const answer = await model.bindTools(tools, { tool_choice: "weather" }).invoke(text);
  assert.deepEqual(answer.tool_calls.map((c) => [c.id, c.name, c.args]), [["call_1", "weather", { city: "Oslo", unit: "C" }]]);
});

scenario("structured output", async (text) => {
  const answer = await model.withStructuredOutput(Report, { name: "report" }).invoke(text);
  assert.deepEqual(answer, { city: "Oslo", degrees: 7 });
});

scenario("image", async (text) => {
  const content = [{ type: "text", text }, { type: "image_url", image_url: { url: image, detail: "low" } }];
  assert.equal((await model.invoke([new HumanMessage({ content })])).content, "A dot.");
});

for (const failure of failures) {
  scenario(failure.name, async (text) => {
    await assert.rejects(model.invoke(text), langchains(failure));
    await assert.rejects(model.stream(text), langchains(failure));
  });
}

test("a wrong key", () => {
  const stranger = new ChatOpenAI({ ...options, apiKey: "wrong" });
  return assert.rejects(stranger.invoke("chat"), langchains({ status: 401, code: "invalid_api_key" }));
});

test("a page of another host", () => {
  const page = new ChatOpenAI({ ...options, configuration: { baseURL: openURL, defaultHeaders: otherPage } });
  return assert.rejects(page.invoke("chat"), langchains({ status: 403, code: "permission_denied" }));
});

// langchains checks an error of the openai package with LangChain's mark on it.
function langchains(failure) {
  const marks = { 401: "MODEL_AUTHENTICATION", 404: "MODEL_NOT_FOUND", 429: "MODEL_RATE_LIMIT" };
  return (error) => thrown(failure)(error) && error.lc_error_code === marks[failure.status];
}
