// Package login keeps a ChatGPT login fresh: it refreshes the auth.json of a
// CODEX_HOME well before its access token expires.
//
// The daemon opens one [Login] and runs [Login.Keep] in the background; the
// relay calls [Login.Authorize] for each request.
//
// A refresh token works once, and Codex guards it within one process only. So
// no child that serves requests has it. A child of its own, the keeper,
// refreshes the login in a folder of its own, and Keep moves the auth.json that
// the keeper wrote to CODEX_HOME. A lock keeps other daemons that share the
// login from refreshing it at the same time. The keeper holds the lock too: the
// keeper of a killed daemon finishes its refresh first. The next daemon that gets
// the lock saves what that keeper wrote.
package login

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"codexpool/codex"
)

const (
	pollEvery      = 2 * time.Second  // how often Keep looks for a new auth.json
	pauseFailed    = 15 * time.Second // after a refresh that failed
	pauseRejected  = 10 * time.Minute // after a refresh that was rejected: another program may have spent the token
	pauseRefreshed = 5 * time.Minute  // between two refreshes, however soon the new token expires
)

// ErrNone means that a CODEX_HOME has no ChatGPT login.
var ErrNone = errors.New("there is no ChatGPT login in it (codexpool login makes one; an API key belongs in OPENAI_API_KEY)")

// errRejected means that the token endpoint rejected the refresh token.
var errRejected = errors.New("the login was rejected, log in again (codexpool login)")

// CutShort says what it means that a keeper left no new login. Keep warns of it before
// the refresh that shows whether the old one still works.
const CutShort = "a refresh of the login was cut short when its process was killed: the refresh token, which works once, may be spent; " +
	"the daemon tries it once more, and where that is rejected, only a new login helps (codexpool login)"

// Login is a ChatGPT login as Codex stores it, in the auth.json of a CODEX_HOME.
// Its methods may be called from any goroutine, but Keep by one at a time.
type Login struct {
	// Changed, if not nil, is called by Keep when there is another access token.
	// Set it before Keep is called.
	Changed func()

	// Refreshed, if not nil, is called by Keep after each attempt to refresh the login:
	// with ok, failed, or refused, which means that the login is no longer valid. Set it
	// before Keep is called.
	Refreshed func(outcome string)

	dir    string
	keeper func(home string) codex.Command
	log    *slog.Logger

	installation []byte // set by Open
	cutShort     bool   // set by Open

	file os.FileInfo // of the auth.json that was read last; Keep's goroutine only

	mu   sync.Mutex
	auth auth // guarded by mu
}

// Open reads the login in the folder dir. keeper returns the command of the child
// that refreshes it, whose Home is home; auth.json is added to its Files.
//
// The error is [ErrNone] where there is no login. Open also fails where a refreshed login
// could not take the place of the old one: it would be lost. A link is followed.
func Open(dir string, keeper func(home string) codex.Command, log *slog.Logger) (*Login, error) {
	l := &Login{dir: dir, keeper: keeper, log: log}
	path := l.path()
	if err := l.load(path); errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: the folder and auth.json must belong to user %d, as which codexpool runs", err, os.Geteuid())
	} else if err != nil {
		return nil, err
	}
	if err := replaceable(path); err != nil {
		return nil, err
	}
	held, err := lock(path)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		l.identify()
		return l, nil // another daemon refreshes it right now
	}
	if err != nil {
		return nil, err
	}
	defer held.Close()
	l.identify()
	if err := l.salvage(path); err != nil {
		return nil, err
	}
	l.cutShort = l.unsaved()
	return l, l.load(path)
}

// path is the real path of auth.json. It may be a symbolic link, which remains.
func (l *Login) path() string {
	path := filepath.Join(l.dir, authName)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// WasCutShort reports whether Open found that a refresh had been cut short.
func (l *Login) WasCutShort() bool { return l.cutShort }

// Bearer returns the access token and the id of its account. It fails when the
// token has expired.
func (l *Login) Bearer() (token, account string, err error) {
	a := l.current()
	if err := a.usable(); err != nil {
		return "", "", err
	}
	return a.tokens.Access, a.account, nil
}

// Authorize adds the credential to the headers of a request, as Codex does. It fails as
// [Login.Bearer] does.
func (l *Login) Authorize(h http.Header) error {
	a := l.current()
	if err := a.usable(); err != nil {
		return err
	}
	h.Set("Authorization", "Bearer "+a.tokens.Access)
	if a.account != "" {
		h.Set("Chatgpt-Account-Id", a.account)
	}
	if a.region != "" {
		h.Set("X-Openai-Internal-Codex-Residency", a.region) // else a workspace that is bound to a region gets a 401
	}
	return nil
}

// WithoutRefresh returns the auth.json without the refresh token, for a child that
// calls the provider itself.
func (l *Login) WithoutRefresh() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.auth.withoutRefresh()
}

// Rejected reports that the provider rejected an access token. Keep then refreshes
// the login, if that token is still the current one.
func (l *Login) Rejected(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.auth.tokens.Access == token {
		l.auth.rejected = true
	}
}

// Keep refreshes the login well before it expires. It also reads a new auth.json
// within two seconds, for example after "codex login". It returns when ctx ends and
// a refresh that is running has finished.
func (l *Login) Keep(ctx context.Context) {
	var tried string // the refresh token that must not be used before notBefore
	var notBefore time.Time
	access := l.current().tokens.Access
	for ctx.Err() == nil {
		if err := l.reload(); err != nil {
			l.log.Error("ChatGPT login not read", "err", err) // logged once: the file is read again only when it changes
		}
		now, known := time.Now(), l.current()
		if (known.due(now) || l.unsaved()) && (known.tokens.Refresh != tried || now.After(notBefore)) {
			if pause := l.attempt(ctx); pause > 0 {
				tried, notBefore = l.current().tokens.Refresh, time.Now().Add(pause)
			}
		}
		if now := l.current().tokens.Access; now != access {
			access = now
			if l.Changed != nil {
				l.Changed()
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

// attempt refreshes the login once and returns how long the refresh token that is
// then in auth.json must not be used.
func (l *Login) attempt(ctx context.Context) (pause time.Duration) {
	before := l.current()
	err := l.refresh(ctx)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK): // another daemon refreshes it right now
		return 0
	case errors.Is(err, ErrNone): // there is nothing to refresh until the next login
		return 0
	case err == nil:
		if after := l.current(); after.tokens != before.tokens {
			l.log.Info("ChatGPT login refreshed", "expires", after.expires)
		}
		l.refreshed("ok")
		return pauseRefreshed
	}
	l.log.Error("ChatGPT login not refreshed", "err", err, "expires", before.expires)
	if errors.Is(err, errRejected) {
		l.refreshed("refused")
		return pauseRejected
	}
	l.refreshed("failed")
	return pauseFailed
}

func (l *Login) refreshed(outcome string) {
	if l.Refreshed != nil {
		l.Refreshed(outcome)
	}
}

// Expires is when the access token expires; zero where it does not say.
func (l *Login) Expires() time.Time { return l.current().expires }

func (l *Login) current() auth {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.auth
}

// reload reads auth.json if it has changed since it was read last. Between a logout
// and a login there is none: the old login is kept until it expires.
func (l *Login) reload() error {
	path := l.path()
	info, err := os.Stat(path)
	if err != nil || (l.file != nil && same(info, l.file)) {
		return nil
	}
	l.file = info
	return l.load(path)
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

func (l *Login) load(path string) error {
	read, err := readAuth(path)
	if err != nil {
		return err
	}
	l.adopt(read)
	return nil
}

func (l *Login) adopt(a auth) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.rejected = l.auth.rejected && a.tokens.Access == l.auth.tokens.Access
	l.auth = a
}
