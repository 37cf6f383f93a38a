// @langchain/openai with the alias codex-5: it takes every model with "codex" in its
// name to the Responses API.
import assert from "node:assert/strict";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";
import { apiKey, baseURL, clock, Report, run, scenario, weather } from "./shared.mjs";

const model = new ChatOpenAI({ model: "codex-5", apiKey, maxRetries: 0, configuration: { baseURL } });

scenario("chat", async (text) => {
  const answer = await model.invoke(text);
  assert.equal(answer.text, "Hello there.");
  assert.equal(answer.usage_metadata.total_tokens, 10);
});

scenario("stream", async (text) => {
  let said = "";
  for await (const chunk of await model.stream(text)) said += chunk.text;
  assert.equal(said, "Hello there.");
});

scenario("tools", async (text) => {
  const calling = model.bindTools([weather, clock].map((f) => ({ type: "function", function: f })));
  const asked = await calling.invoke(text);
  const results = asked.tool_calls.map((c) => new ToolMessage({ tool_call_id: c.id, content: run[c.name](c.args) }));
  assert.equal((await calling.invoke([new HumanMessage(text), asked, ...results])).text, "At noon it is 7 degrees.");
});

scenario("structured output", async (text) => {
  const answer = await model.withStructuredOutput(Report, { name: "report" }).invoke(text);
  assert.deepEqual(answer, { city: "Oslo", degrees: 7 });
});

scenario("second turn", async (text) => {
  const first = await model.invoke(text);
  assert.equal((await model.invoke([new HumanMessage("before"), first, new HumanMessage(text)])).text, "Hello there.");
});
