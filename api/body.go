package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	bodyTimeout   = time.Minute // for a body to arrive
	unreadTimeout = time.Second // for one that is not read, as without a key: it must not keep a connection
)

// bodies counts the bytes of all requests' bodies that are in memory.
type bodies struct {
	most int64

	mu   sync.Mutex
	held int64 // guarded by mu
}

// share is what one request has of them. Its owner returns it.
type share struct {
	of   *bodies
	held int64 // guarded by of.mu
}

// take adds n bytes. Where there is no room it gives all back and returns false. One
// share may not grow larger than what it leaves to others, if there are any: so a small
// body finds room however many large ones come.
func (s *share) take(n int64) bool {
	b := s.of
	b.mu.Lock()
	defer b.mu.Unlock()
	left := b.most - b.held - n
	alone := b.held == s.held
	if left < 0 || (!alone && s.held+n > left) {
		b.held -= s.held // at once: the next in line has that room
		s.held = 0
		return false
	}
	b.held += n
	s.held += n
	return true
}

// giveBack is for when the body is in memory no more. It may be called more than once.
func (s *share) giveBack() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.held -= s.held
	s.held = 0
}

// counted reads a body and counts its bytes as they come, whatever was announced.
type counted struct {
	io.Reader
	share *share
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if !c.share.take(int64(n)) {
		return 0, errNoRoom
	}
	return n, err
}

// decode reads a request, and names in the response what it ignores. The body's bytes
// are in the share, also with an error.
func (s *Server) decode(res *response, r *http.Request, f form, held *share) (*chatRequest, error) {
	body, err := s.readBody(res, r, held)
	if err != nil {
		return nil, err
	}
	if err := s.decoding.Acquire(r.Context(), 1); err != nil {
		return nil, context.Cause(r.Context())
	}
	defer s.decoding.Release(1)
	req, err := s.parse(r.Context(), body, f)
	if err == nil {
		err = res.caller.account.mayUse(s.cfg.Models(), req.Model)
	}
	if err == nil && req.Exact != nil {
		req.Exact.header = exactHeader(r.Header)
		err = req.Exact.refused(res.caller.account.Refuse)
	}
	if err == nil && len(req.Ignored) > 0 {
		res.Header().Set("X-Codexpool-Ignored", headerList(req.Ignored))
	}
	return req, err
}

// readBody reads a JSON body within its limits of type, size and time. A packed body is
// unpacked as it arrives, and its limits are those of what it unpacks to.
func (s *Server) readBody(res *response, r *http.Request, held *share) ([]byte, error) {
	kind, err := mediaType(r)
	if err != nil || (kind == formType && res.caller.Key == "") {
		return nil, errMediaType
	}
	unpack, ok := codings[strings.ToLower(r.Header.Get("Content-Encoding"))]
	if !ok {
		return nil, errEncoding
	}
	if r.ContentLength > s.cfg.MaxBody && r.Header.Get("Expect") != "" {
		return nil, errTooLarge // the client waits for our answer before it sends the body
	}
	if err := s.pool.Room(r.Context(), res.caller.Key); err != nil {
		e := describe(r.Context(), err)
		e.Close = true // the body is not read
		return nil, e
	}
	_ = res.control.SetReadDeadline(time.Now().Add(bodyTimeout)) // a recorder in a test has none
	arriving := &arrival{Reader: io.LimitReader(r.Body, s.cfg.MaxBody+1)}
	body, err := readAll(unpack, arriving, s.cfg.MaxBody, held)
	if max(arriving.bytes, int64(len(body))) > s.cfg.MaxBody {
		held.giveBack()
		// Read on a little: a client that is still writing would not see the answer.
		_, _ = io.CopyN(io.Discard, r.Body, s.cfg.MaxBody)
		return nil, errTooLarge
	}
	_ = res.control.SetReadDeadline(time.Time{})
	switch {
	case err == errNoRoom:
		return nil, err
	case errors.Is(arriving.err, os.ErrDeadlineExceeded):
		return nil, errSlowBody
	case malformed(arriving.err):
		return nil, errBadBody
	case arriving.err != nil:
		return nil, &goneError{arriving.err}
	case err != nil:
		return nil, errPacked
	case kind == formType && !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")):
		return nil, errMediaType
	}
	return body, nil
}

// arrival notes what came of a body, and how its arrival failed.
type arrival struct {
	io.Reader
	bytes int64
	err   error
}

func (a *arrival) Read(p []byte) (int, error) {
	n, err := a.Reader.Read(p)
	a.bytes += int64(n)
	if err != io.EOF {
		a.err = err
	}
	return n, err
}

// readAll unpacks a body, of which it reads one byte more than most at most.
func readAll(unpack unpacker, packed io.Reader, most int64, held *share) ([]byte, error) {
	body, err := unpack(packed)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(counted{io.LimitReader(body, most+1), held})
}

// formType is the type that curl gives to a body that it is given no type for. It is
// taken for JSON where the request has a key: a form of any web page has this type too,
// but no key.
const formType = "application/x-www-form-urlencoded"

// mediaType is the type of a body that may be JSON. A body without a type is JSON.
func mediaType(r *http.Request) (string, error) {
	given := r.Header.Get("Content-Type")
	if given == "" {
		return "application/json", nil
	}
	kind, _, err := mime.ParseMediaType(given)
	if err == nil && kind != "application/json" && kind != formType && !strings.HasSuffix(kind, "+json") {
		err = errMediaType
	}
	return kind, err
}

// malformed reports whether a body has no valid transfer encoding, such as broken
// chunks: net/http has no type for that error. A client that disconnected causes a
// network error, or a body that is too short.
func malformed(err error) bool {
	var network net.Error
	return err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &network)
}
