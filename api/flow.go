package api

import (
	"net/http"
	"strings"
	"time"
)

// flow is the common part of both kinds of stream. Its 200 is sent with the first piece
// of the answer, or commitAfter after the turn began. A failure before that is a real HTTP
// status, which SDKs retry or raise.
type flow struct {
	reply
	begin       func() error // called before the 200
	opening     func()       // adds what a stream begins with; nil = nothing
	commitAfter time.Duration
	keepalive   time.Duration // 0 = none

	turn  time.Time // when the first began
	wrote time.Time // when anything was last sent
	buf   []byte    // frames that go out with the next write
}

// maxUnsent bounds, in bytes, what a stream collects for one write.
const maxUnsent = 32 << 10

func (s *Server) newFlow(base reply, r *http.Request, begin func() error) flow {
	f := flow{reply: base, begin: begin, commitAfter: s.cfg.Commit, keepalive: s.cfg.Keepalive}
	if rejectsComments(r) {
		f.keepalive = 0
	}
	return f
}

// rejectsComments reports whether the client cannot parse SSE comments: it is
// known for that, or it sent the header or parameter for it.
func rejectsComments(r *http.Request) bool {
	agent := r.UserAgent()
	return r.Header.Get("X-No-Keepalive") == "1" || r.URL.Query().Get("no_keepalive") == "1" ||
		strings.Contains(agent, "Obsidian") || strings.Contains(agent, "Electron")
}

// clock notes when the turn began. A tick that comes together with another event is
// dropped, so the first may come late.
func (f *flow) clock() {
	if f.turn.IsZero() {
		f.turn = time.Now()
	}
}

// tick commits the stream, or keeps it alive, when it is time.
func (f *flow) tick() error {
	f.clock()
	now := time.Now()
	switch {
	case !f.res.stream && now.Sub(f.turn) >= f.commitAfter:
		if err := f.commit(); err != nil {
			return err
		}
		f.res.result.Commit = CommitTimer
		return f.flush()
	case f.res.stream && f.keepalive > 0 && now.Sub(f.wrote) >= f.keepalive:
		f.buf = append(f.buf, ": keepalive\n\n"...)
		f.res.result.Keepalives++
		return f.flush()
	}
	return nil
}

// commit sends the 200, if it was not sent.
func (f *flow) commit() error {
	if f.res.stream {
		return nil
	}
	if err := f.begin(); err != nil {
		return err
	}
	f.res.sse()
	f.res.result.Commit = CommitToken
	if f.opening != nil {
		f.opening()
	}
	return nil
}

// flush sends the buffer in one write.
func (f *flow) flush() error {
	err := f.res.send(f.buf)
	f.buf, f.wrote = f.buf[:0], time.Now()
	return err
}
