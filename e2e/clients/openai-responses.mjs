// The openai package over the Responses API.
import assert from "node:assert/strict";
import { test } from "node:test";
import { apiKey, baseURL, clock, failures, left, OpenAI, packageName, Report, run, scenario, thrown, weather } from "./shared.mjs";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const { zodTextFormat } = await import(`${packageName}/helpers/zod`);

const ask = (input, more) => ({ model: "codex-5", input, ...more });

scenario("chat", async (text) => {
  const answer = await client.responses.create(ask(text));
  assert.equal(answer.output_text, "Hello there.");
  assert.equal(answer.model, "gpt-provider");
  assert.equal(answer.usage.total_tokens, 10);
  assert.deepEqual(answer.output.map((item) => item.id), ["rs_chat", "msg_chat"]);
});

scenario("stream", async (text) => {
  const stream = client.responses.stream(ask(text));
  const deltas = [];
  stream.on("response.output_text.delta", ({ delta }) => deltas.push(delta));
  assert.equal((await stream.finalResponse()).output_text, "Hello there.");
  assert.deepEqual(deltas, ["Hello", " there."]);
});

scenario("structured output", async (text) => {
  const answer = await client.responses.parse(ask(text, { text: { format: zodTextFormat(Report, "report") } }));
  assert.deepEqual(answer.output_parsed, { city: "Oslo", degrees: 7 });
});

scenario("tools", async (text) => {
  const tools = [weather, clock].map((f) => ({ type: "function", strict: false, ...f }));
  const input = [{ role: "user", content: text }];
  const asked = await client.responses.create(ask(input, { tools, include: ["reasoning.encrypted_content"] }));
  const calls = asked.output.filter((item) => item.type === "function_call");
  const results = calls.map((c) => ({ type: "function_call_output", call_id: c.call_id, output: run[c.name](JSON.parse(c.arguments)) }));
  const answer = await client.responses.create(ask([...input, ...asked.output, ...results], { tools }));
  assert.equal(answer.output_text, "At noon it is 7 degrees.");
});

scenario("custom tool", async (text) => {
  const tools = [{ type: "custom", name: "apply_patch", format: { type: "grammar", syntax: "lark", definition: 'start: "x"' } }];
  const input = [{ role: "user", content: text }];
  let call;
  for await (const event of await client.responses.create(ask(input, { tools, stream: true }))) {
    if (event.type === "response.output_item.done") call = event.item;
  }
  assert.equal(call.input, '*** Begin Patch\n+"é"\n*** End Patch');
  const result = { type: "custom_tool_call_output", call_id: call.call_id, output: "Done." };
  assert.equal((await client.responses.create(ask([...input, call, result], { tools }))).output_text, "Hello there.");
});

scenario("abort", async (text) => {
  const stream = await client.responses.create(ask(text, { stream: true }));
  for await (const event of stream) if (event.type === "response.output_text.delta") stream.controller.abort();
  await left();
  assert.equal((await client.responses.create(ask("chat"))).output_text, "Hello there.");
});

scenario("failed", async (text) => {
  const kinds = [];
  for await (const event of await client.responses.create(ask(text, { stream: true }))) kinds.push(event.type);
  assert.equal(kinds.at(-1), "response.failed");
  const failure = { status: 502, code: "upstream_error" };
  await assert.rejects(client.responses.create(ask(text)), (error) => error.status === failure.status && error.code === failure.code);
});

scenario("cut", async (text) => {
  let content = "";
  await assert.rejects(async () => {
    for await (const event of await client.responses.create(ask(text, { stream: true }))) content += event.delta ?? "";
  }, (error) => error instanceof OpenAI.APIError && error.code === "upstream_error");
  assert.equal(content, "Hal");
});

for (const failure of failures) {
  scenario(failure.name, async (text) => {
    await assert.rejects(client.responses.create(ask(text)), thrown(failure));
    await assert.rejects(client.responses.create(ask(text, { stream: true })), thrown(failure));
  });
}

test("a wrong key", () => {
  const stranger = new OpenAI({ baseURL, apiKey: "wrong" });
  return assert.rejects(stranger.responses.create(ask("chat")), thrown({ status: 401, code: "invalid_api_key" }));
});
