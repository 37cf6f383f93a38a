package api_test

import (
	"testing"

	"codexpool/api"
	"codexpool/codex"
)

// TestWatchingADeltaAllocatesNothing: what is counted of a turn is not to cost its stream
// anything.
func TestWatchingADeltaAllocatesNothing(t *testing.T) {
	watch, delta := api.Watch(), codex.Event(codex.TextDelta{Text: "word "})
	if n := testing.AllocsPerRun(1000, func() { watch(delta) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
