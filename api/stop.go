package api

import (
	"errors"
	"strings"

	"codexpool/codex"
)

// errCut ends a turn at a stop sequence. It is no failure.
var errCut = errors.New("a stop sequence")

// cutter passes a turn's events on, up to a stop sequence. It holds back what
// may be the beginning of one.
type cutter struct {
	stop []string
	to   func(codex.Event) error
	held string
}

// pass passes one event on. It returns errCut when the answer ends with it.
func (c *cutter) pass(e codex.Event) error {
	switch e := e.(type) {
	case codex.TextDelta:
		text, found := c.cut(e.Text)
		if text != "" {
			if err := c.to(codex.TextDelta{Text: text}); err != nil {
				return err
			}
		}
		if !found {
			return nil
		}
		if err := c.to(codex.Completed{Finish: codex.FinishStop}); err != nil {
			return err
		}
		return errCut
	case codex.ToolCalls, codex.Completed:
		if c.held != "" {
			held := c.held
			c.held = ""
			if err := c.to(codex.TextDelta{Text: held}); err != nil {
				return err
			}
		}
	}
	return c.to(e)
}

// cut is the text that is safe to pass on, and whether it ends there.
func (c *cutter) cut(text string) (safe string, found bool) {
	text = c.held + text
	end := len(text)
	for _, stop := range c.stop {
		if i := strings.Index(text, stop); i >= 0 && i < end {
			end, found = i, true
		}
	}
	if found {
		return text[:end], true
	}
	for _, stop := range c.stop {
		for n := min(len(stop)-1, len(text)); n > len(text)-end; n-- {
			if strings.HasSuffix(text, stop[:n]) {
				end = len(text) - n
				break
			}
		}
	}
	c.held = text[end:]
	return text[:end], false
}
