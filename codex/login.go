package codex

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	loginFile = "auth.json"
	keeperDir = ".codexpool-keeper" // beside auth.json: on its file system, so that a rename brings the login back
	beganFile = "began.json"        // in keeperDir: the auth.json that the refresh began with

	loginPoll    = 2 * time.Second    // how soon a new login is seen
	loginPause   = 15 * time.Second   // after a refresh that failed
	loginMargin  = 24 * time.Hour     // refreshed that long before it expires, or in the middle of its life if that is later
	loginStale   = 7 * 24 * time.Hour // refreshed after that long in any case; Codex itself does so after 8 days
	loginTimeout = 90 * time.Second   // a whole refresh: the token endpoint may be slow, and what it says counts
	loginGrace   = 30 * time.Second   // for each step of stopping the keeper: it ends its refresh first
	loginAgain   = 10 * time.Minute   // after a refresh that was refused, perhaps by somebody in between
	loginLeast   = 5 * time.Minute    // between two refreshes, whatever the tokens say of themselves
	loginRoom    = 4 << 20            // bytes that must be free: the keeper writes 1 MB of its own before the login
)

// ErrNoLogin is a CODEX_HOME without a ChatGPT login.
var ErrNoLogin = errors.New("there is no ChatGPT login in it (codex login makes one; an API key belongs in OPENAI_API_KEY)")

// errRefused is a refresh that was refused: only a new login helps.
var errRefused = errors.New("the login was refused, log in again (codex login)")

// Login is a ChatGPT login as Codex keeps it, in the auth.json of a CODEX_HOME.
//
// A refresh token works once, and Codex guards it within one process only. So
// no child that serves has it: Keep lets one child of its own, the keeper,
// refresh the login in a folder of its own, and takes over what that child
// wrote. The refresh is locked against other daemons that share the login, for as
// long as the keeper lives: one whose daemon was killed ends its refresh
// first. Whoever has the lock next takes over what was left.
type Login struct {
	// Changed, if not nil, is called by Keep when there is another access token. It
	// is set before Keep is called.
	Changed func()

	dir    string
	keeper func(home string) Command
	log    *slog.Logger

	file os.FileInfo // of what was last looked at; Keep's goroutine only

	mu   sync.Mutex
	auth authFile // guarded by mu
}

// authFile is what we read of an auth.json, and the whole of it.
type authFile struct {
	whole   json.RawMessage
	tokens  authTokens
	renewed time.Time
	issued  time.Time // the access token's; zero where it does not say
	expires time.Time // the same, by the clock that renewed is of
	refused bool      // the provider refused the access token
}

type authTokens struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
	Account string `json:"account_id"`
}

// OpenLogin reads the login in dir. keeper says how to run the child that
// refreshes it, in home; auth.json is added to its Files. It fails where there
// is none, ErrNoLogin, or where dir cannot take the refreshed one: it would be lost.
func OpenLogin(dir string, keeper func(home string) Command, log *slog.Logger) (*Login, error) {
	l := &Login{dir: dir, keeper: keeper, log: log}
	path := l.path()
	if err := l.load(path); err != nil {
		return nil, err
	}
	lock, err := lockLogin(path)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return l, nil // another daemon refreshes it right now
	}
	if err != nil {
		return nil, fmt.Errorf("a refreshed login could not be kept in it: %w", err)
	}
	defer lock.Close()
	if err := l.salvage(path); err != nil {
		return nil, err
	}
	return l, l.load(path)
}

// path is where auth.json really is. It may be a link, which stays one.
func (l *Login) path() string {
	path := filepath.Join(l.dir, loginFile)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// Bearer is the access token and the account that it is for. The error says
// that the token has expired.
func (l *Login) Bearer() (token, account string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.auth.expires.IsZero() && time.Now().After(l.auth.expires) {
		return "", "", errors.New("the login has expired")
	}
	return l.auth.tokens.Access, l.auth.tokens.Account, nil
}

// WithoutRefresh is the auth.json without the refresh token: what a child may
// have that calls the provider itself.
func (l *Login) WithoutRefresh() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.auth.withoutRefresh()
}

// Refused says that the provider refused an access token: it is refreshed once,
// if it is still ours.
func (l *Login) Refused(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.auth.tokens.Access == token {
		l.auth.refused = true
	}
}

// Keep refreshes the login well before it expires, and takes over a new one as
// soon as it is in the folder. It returns when ctx ends.
func (l *Login) Keep(ctx context.Context) {
	var tried string // the refresh token that must rest until notBefore
	var notBefore time.Time
	access := l.current().tokens.Access
	for ctx.Err() == nil {
		if err := l.reload(); err != nil {
			l.log.Error("ChatGPT login not read", "err", err) // said once: the file is looked at again when it changes
		}
		now, auth := time.Now(), l.current()
		if (auth.due(now) || l.left()) && (auth.tokens.Refresh != tried || now.After(notBefore)) {
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
		case <-time.After(loginPoll):
		}
	}
}

// attempt renews the login and says how long what is then there must rest.
func (l *Login) attempt(ctx context.Context) (pause time.Duration) {
	before := l.current()
	err := l.renew(ctx)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK): // another daemon is at it
		return 0
	case errors.Is(err, ErrNoLogin): // nothing to be refreshed, until the next login
		return 0
	case err == nil:
		if after := l.current(); after.tokens != before.tokens {
			l.log.Info("ChatGPT login refreshed", "expires", after.expires)
		}
		return loginLeast
	}
	l.log.Error("ChatGPT login not refreshed", "err", err, "expires", before.expires)
	if errors.Is(err, errRefused) {
		return loginAgain
	}
	return loginPause
}

func (l *Login) current() authFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.auth
}

// reload reads the file if it is not the one that was looked at last. Between a
// logout and a login there is none: the old login is kept until it expires.
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
	auth, err := readAuth(path)
	if err != nil {
		return err
	}
	l.adopt(auth)
	return nil
}

func (l *Login) adopt(auth authFile) {
	l.mu.Lock()
	defer l.mu.Unlock()
	auth.refused = l.auth.refused && auth.tokens.Access == l.auth.tokens.Access
	l.auth = auth
}

// left says that there is a keeper, or was one whose login was not taken over.
func (l *Login) left() bool {
	_, err := os.Lstat(filepath.Join(filepath.Dir(l.path()), keeperDir))
	return err == nil
}

// lockLogin keeps other daemons from refreshing the same login, and proves that
// the folder can be written. It does not wait. The lock lives until the file is
// closed, here and in the keeper.
func lockLogin(path string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(filepath.Dir(path), ".codexpool-lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// renew lets a keeper refresh the login. What counts is the file that it has
// written when it is gone: what it answers also depends on services that we do
// not need.
func (l *Login) renew(ctx context.Context) error {
	path := l.path()
	lock, err := lockLogin(path)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := l.salvage(path); err != nil {
		return err
	}
	if err := l.load(path); err != nil {
		return err
	}
	before := l.current()
	if !before.due(time.Now()) {
		return nil // another daemon was faster, or was killed after it had been
	}
	asked := l.ask(ctx, filepath.Join(filepath.Dir(path), keeperDir), before, lock)
	if err := l.salvage(path); err != nil {
		return err
	}
	if err := l.load(path); err != nil || l.current().tokens != before.tokens {
		return err
	}
	if asked == nil {
		asked = errors.New("the child kept the old one")
	}
	return asked
}

// ask has a keeper refresh the login, and returns when it is gone.
func (l *Login) ask(ctx context.Context, dir string, before authFile, lock *os.File) error {
	if err := prepare(dir, before.whole); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), loginTimeout, ErrUnresponsive)
	defer cancel()
	cmd := l.keeper(filepath.Join(dir, "home"))
	cmd.Files[loginFile], cmd.StopGrace, cmd.lock = before.whole, loginGrace, lock
	c, err := Start(ctx, cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	// A child refreshes what is about to expire without being told to. To tell
	// it then would refresh twice.
	for _, force := range []bool{false, true} {
		err = c.readAccount(ctx, force)
		after, unread := readAuth(filepath.Join(cmd.CodexHome(), loginFile))
		if errors.Is(err, errRefused) || c.Err() != nil || (unread == nil && after.tokens != before.tokens) {
			break
		}
	}
	return err
}

// prepare makes the keeper's folder. Where there is no room for a login, none
// must be asked for.
func prepare(dir string, began []byte) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	ballast := filepath.Join(dir, "ballast")
	if err := writeSynced(ballast, make([]byte, loginRoom)); err != nil {
		return err
	}
	if err := os.Remove(ballast); err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, beganFile), began)
}

func writeSynced(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return syncFile(path)
}

// readAccount asks a child for its account, and to refresh it if force is true.
func (c *Client) readAccount(ctx context.Context, force bool) error {
	defer c.enter()()
	var answer accountReadResult
	if err := c.call(ctx, "account/read", accountReadParams{RefreshToken: force}, &answer); err != nil {
		return err
	}
	if answer.Account == nil {
		return errRefused
	}
	return nil
}

// salvage takes over what a keeper has written and removes its folder: ours,
// or that of a daemon that was killed or could not. Its refresh token is the only
// one that works, so where that fails it stays there, and is used. The caller has
// the lock.
func (l *Login) salvage(path string) error {
	dir := filepath.Join(filepath.Dir(path), keeperDir)
	from := filepath.Join(Command{Home: filepath.Join(dir, "home")}.CodexHome(), loginFile)
	began, err := os.ReadFile(filepath.Join(dir, beganFile))
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(dir) // nothing was begun
	}
	if err != nil {
		return err
	}
	left, err := readAuth(from)
	if unread := (*fs.PathError)(nil); errors.As(err, &unread) {
		return err
	}
	if err == nil && !bytes.Equal(left.whole, began) {
		if err := takeOver(from, path, began); err != nil {
			l.adopt(left)
			return fmt.Errorf("the refreshed one is kept in %s: %w", keeperDir, err)
		}
	}
	return os.RemoveAll(dir)
}

// takeOver moves a keeper's auth.json to where it is kept, unless somebody has
// logged in or out since the refresh began.
func takeOver(from, to string, began []byte) error {
	kept, err := os.ReadFile(to)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && !bytes.Equal(kept, began)) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(from, 0o600); err != nil {
		return err
	}
	if err := syncFile(from); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncFile(filepath.Dir(to))
}

func syncFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}

// readAuth reads an auth.json that holds a ChatGPT login.
func readAuth(path string) (authFile, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return authFile{}, ErrNoLogin
	}
	if err != nil {
		return authFile{}, err
	}
	var f struct {
		Tokens      authTokens `json:"tokens"`
		LastRefresh time.Time  `json:"last_refresh"`
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return authFile{}, errors.New("auth.json is not what Codex writes") // the cause would quote it
	}
	if f.Tokens.Access == "" || f.Tokens.Refresh == "" {
		return authFile{}, ErrNoLogin
	}
	a := authFile{whole: data, tokens: f.Tokens, renewed: f.LastRefresh}
	a.issued, a.expires = lifetime(f.Tokens.Access)
	if a.issued.IsZero() {
		a.issued = a.renewed
	}
	// The token's times are of the provider's clock. Where ours is ahead of it, a
	// good one must not look expired; a bad one the provider refuses.
	if ours := a.renewed.Add(a.expires.Sub(a.issued)); !a.expires.IsZero() && !a.renewed.IsZero() && ours.After(a.expires) {
		a.issued, a.expires = a.renewed, ours
	}
	return a, nil
}

// lifetime reads a JWT. We are not the one to verify it.
func lifetime(token string) (issued, expires time.Time) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct{ Iat, Exp int64 }
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return
	}
	if claims.Iat > 0 {
		issued = time.Unix(claims.Iat, 0)
	}
	if claims.Exp > 0 {
		expires = time.Unix(claims.Exp, 0)
	}
	return
}

// due says that it is time for a refresh.
func (a authFile) due(now time.Time) bool {
	if a.refused {
		return true
	}
	if a.expires.IsZero() {
		return now.Sub(a.renewed) > loginStale
	}
	margin := loginMargin
	if half := a.expires.Sub(a.issued) / 2; half < margin {
		margin = half
	}
	return now.After(a.expires.Add(-margin)) || (!a.renewed.IsZero() && now.Sub(a.renewed) > loginStale)
}

func (a authFile) withoutRefresh() []byte {
	var whole, tokens map[string]json.RawMessage
	dec := json.NewDecoder(bytes.NewReader(a.whole))
	if dec.Decode(&whole) != nil || json.Unmarshal(whole["tokens"], &tokens) != nil {
		panic("BUG: an auth.json that was read before")
	}
	tokens["refresh_token"] = json.RawMessage(`""`)
	var err error
	if whole["tokens"], err = json.Marshal(tokens); err != nil {
		panic("BUG: " + err.Error())
	}
	data, err := json.Marshal(whole)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return data
}
