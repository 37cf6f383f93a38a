// What the clients' files share: where the daemon is, and what the provider
// behind it plays (../provider_test.go).
import assert from "node:assert/strict";
import { test } from "node:test";
import { z } from "zod";

// packageName is the version of the openai package that is played.
export const packageName = process.env.OPENAI ?? "openai";
export const { default: OpenAI } = await import(packageName);

export const baseURL = process.env.BASE_URL;
export const apiKey = process.env.API_KEY;

// openURL is a daemon without keys, which refuses the pages of other hosts.
export const openURL = process.env.OPEN_URL;
export const otherPage = { Origin: "https://elsewhere.example" };

// scenario is a test whose name is said to the model.
export const scenario = (name, play) => test(name, { timeout: 10_000 }, () => play(name));

// read tells the provider that a delta was read: it says the next one only then.
export const read = () => call("/read");

// left tells the provider that the client has just left. It fails if the
// provider's own request does not end within a second.
export const left = () => call("/left");

async function call(path) {
  const response = await fetch(process.env.PROVIDER_URL + path, { method: "POST" });
  assert.ok(response.ok, await response.text());
}

// failures are what callers get where the provider fails.
export const failures = [
  { name: "fail 400", status: 400, code: "some_code", param: "input[0]" },
  { name: "fail 404", status: 404, code: "some_code", param: "input[0]" },
  { name: "fail 429", status: 429, code: "upstream_rate_limited" },
  { name: "fail 500", status: 502, code: "upstream_error" },
  { name: "fail 503", status: 503, code: "upstream_overloaded" },
];

const classes = {
  400: OpenAI.BadRequestError,
  401: OpenAI.AuthenticationError,
  403: OpenAI.PermissionDeniedError,
  404: OpenAI.NotFoundError,
  429: OpenAI.RateLimitError,
  502: OpenAI.InternalServerError,
  503: OpenAI.InternalServerError,
};

// thrown checks an error of the openai package, which others pass on.
export const thrown = ({ status, code, param = null }) => (error) => {
  assert.ok(error instanceof classes[status], `it is ${error.stack}`);
  assert.equal(error.status, status);
  assert.equal(error.code, code);
  assert.equal(error.param, param);
  const { headers } = error; // an object in version 4
  assert.equal(headers.get?.("retry-after") ?? headers["retry-after"] ?? null, status === 429 || status === 503 ? "60" : null);
  assert.ok(error.requestID ?? error.request_id);
  return true;
};

// cutOff checks the error of a stream that was cut off, of the same package.
export const cutOff = (error) => {
  assert.ok(error instanceof OpenAI.APIError, `it is ${error.stack}`);
  assert.equal(error.code, "upstream_error");
  return true;
};

// weather and clock are functions that the model may call. Their schemas have
// keywords that somebody on the way might drop; clock says nothing of strict.
export const weather = {
  name: "weather",
  description: "The weather in a city.",
  strict: true,
  parameters: {
    type: "object",
    properties: {
      city: { type: "string", description: "Its name.", pattern: "^[A-Z]" },
      unit: { anyOf: [{ type: "string", enum: ["C", "F"] }, { type: "null" }] },
    },
    required: ["city", "unit"],
    additionalProperties: false,
  },
};
export const clock = {
  name: "clock",
  description: "The time in a city.",
  parameters: {
    type: "object",
    properties: { city: { type: "string" }, zone: { type: "string", default: "UTC" } },
    required: ["city"],
    additionalProperties: true,
  },
};

// run is what the functions do.
export const run = {
  weather: ({ city, unit }) => (city === "Oslo" && unit === "C" ? "7 degrees" : "unknown"),
  clock: ({ city }) => (city === "Oslo" ? "noon" : "unknown"),
};

// Report is what the model answers in the scenario of structured output.
export const Report = z.object({ city: z.string(), degrees: z.number() });

// image is a PNG of one pixel.
export const image =
  "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
