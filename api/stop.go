package api

import (
	"strings"

	"codexpool/codex"
)

// cutAt passes the events of an answer on, up to the first of the stop
// sequences. Then the answer is over, and leaving the turn interrupts it. Text that
// may be the beginning of a sequence is held back until more has come.
//
// The provider does not count an answer that we cut, so its usage is an [estimate].
func cutAt(stop []string, answer events) events {
	if len(stop) == 0 {
		return answer
	}
	return func(yield func(codex.Event, error) bool) {
		pass := func(text string) bool { return text == "" || yield(codex.TextDelta{Text: text}, nil) }
		held, received := "", 0
		for e, err := range answer {
			received += content(e)
			switch e := e.(type) {
			case codex.TextDelta:
				safe, rest, found := cut(held+e.Text, stop)
				if !pass(safe) {
					return
				}
				if found {
					if yield(estimate{codex.Usage{Output: tokensOf(received)}}, nil) {
						yield(codex.Completed{Finish: codex.FinishStop}, nil)
					}
					return
				}
				held = rest
				continue
			case codex.ToolCallDelta, codex.ToolCalls, codex.Completed:
				if !pass(held) {
					return
				}
				held = ""
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// estimate is the usage of an answer that the provider did not count. Only its output is
// there: the input is the reply's to know.
type estimate struct{ codex.Usage }

// tokensOf is about how many tokens so many bytes of text are.
func tokensOf(bytes int) int64 { return int64(bytes+3) / 4 }

// cut returns the text before the first of the stop sequences and true; or,
// where there is none, the text that cannot be a part of one, the rest, and false.
func cut(text string, stop []string) (safe, rest string, found bool) {
	end := len(text)
	for _, s := range stop {
		if i := strings.Index(text, s); i >= 0 && i < end {
			end, found = i, true
		}
	}
	if found {
		return text[:end], "", true
	}
	for _, s := range stop {
		for n := min(len(s)-1, len(text)); n > len(text)-end; n-- {
			if strings.HasSuffix(text, s[:n]) {
				end = len(text) - n
				break
			}
		}
	}
	return text[:end], text[end:], false
}
