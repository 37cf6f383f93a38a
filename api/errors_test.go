package api_test

import (
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

// TestBodyThatComesTooSlowlyIsToldApart: SDKs know a request that took too long, which
// is another failure, by the code request_timeout.
func TestBodyThatComesTooSlowlyIsToldApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		r := chat("")
		r.Body = io.NopCloser(iotest.ErrReader(os.ErrDeadlineExceeded)) // what a connection says then
		if a := h.do(t, r); a.Code != 408 || !strings.Contains(a.Body.String(), `"code":"slow_body"`) || h.last().Code != "slow_body" {
			t.Errorf("%d %s, counted as %+v", a.Code, a.Body, h.last())
		}
	})
}
