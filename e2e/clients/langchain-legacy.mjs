// The legacy LLM of @langchain/openai, which puts many prompts into one request.
import assert from "node:assert/strict";
import { test } from "node:test";
import { OpenAI } from "@langchain/openai";
import { apiKey, baseURL } from "./shared.mjs";

test("ten prompts", async () => {
  const prompts = Array.from({ length: 10 }, (_, i) => `prompt ${i}`);
  const llm = new OpenAI({ model: "codev-5", apiKey, maxRetries: 0, configuration: { baseURL } });
  const { generations } = await llm.generate(prompts); // the echo model answers
  assert.deepEqual(generations.map(([{ text }]) => text), prompts);
});
