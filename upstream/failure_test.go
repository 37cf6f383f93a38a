package upstream_test

import (
	"testing"

	"codexpool/upstream"
)

func TestParseFailureReadsEachFormOfAnError(t *testing.T) {
	for body, want := range map[string]upstream.Failure{
		`{"error":{"message":"m","type":"t","param":"p","code":"c"}}`:    {Message: "m", Type: "t", Param: "p", Code: "c"},
		`{"error":{"message":"m","type":"t","param":null,"code":null}}`:  {Message: "m", Type: "t"},
		`{"error":{"message":"m","code":42,"param":7.5}}`:                {Message: "m", Code: "42", Param: "7.5"},
		`{"error":{"message":"m","code":[],"param":["p"],"type":{}}}`:    {Message: "m"},
		`{"type":"error","code":"c","message":"m"}`:                      {Message: "m", Type: "error", Code: "c"},
		`{"type":"error","error":{"type":"t","code":"c","message":"m"}}`: {Message: "m", Type: "t", Code: "c"},
		`{"error":"m"}`:  {Message: "m"},
		`{"detail":"m"}`: {Message: "m"},
		`{"error":{"message":"m","code":"usage_limit_reached","resets_in_seconds":16.2}}`: {Message: "m", Code: "usage_limit_reached", RetryAfter: "17"},
		`{"error":{"message":"m","resets_in_seconds":-1}}`:                                {Message: "m"},
		`{"error":{}}`:          {},
		`{}`:                    {},
		`[{"error":{}}]`:        {},
		`"stream disconnected"`: {},
		`null`:                  {},
		`<html>`:                {},
		``:                      {},
	} {
		if got := upstream.ParseFailure([]byte(body)); got == nil || *got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", body, got, want)
		}
	}
}
