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
	loginFile  = "auth.json"
	keeperHome = ".codexpool-keeper" // in the CODEX_HOME: on its file system, so that a rename brings the login back

	loginPoll    = 2 * time.Second    // how soon a new login is seen
	loginPause   = 15 * time.Second   // after a refresh that failed
	loginMargin  = 24 * time.Hour     // refreshed that long before it expires, or in the middle of its life if that is later
	loginStale   = 7 * 24 * time.Hour // refreshed after that long in any case; Codex itself does so after 8 days
	loginTimeout = 30 * time.Second   // a whole refresh
)

// ErrNoLogin is a CODEX_HOME without a ChatGPT login.
var ErrNoLogin = errors.New("there is no ChatGPT login in it (codex login makes one; an API key belongs in OPENAI_API_KEY)")

// errRefused is a refresh that was refused: only a new login helps.
var errRefused = errors.New("the login was refused, log in again (codex login)")

// Login is a ChatGPT login as Codex keeps it, in the auth.json of a CODEX_HOME.
//
// A refresh token works once, and Codex guards it within one process only. So
// no child that serves has it: Keep lets one child of its own refresh the login
// and takes over what that child wrote. The child lives for the refresh only,
// which is locked against other daemons that share the folder.
type Login struct {
	dir    string
	keeper func(home string) Command
	log    *slog.Logger

	file os.FileInfo // of what auth was read from; Keep's goroutine only

	mu   sync.Mutex
	auth authFile // guarded by mu
}

// authFile is what we read of an auth.json, and the whole of it.
type authFile struct {
	whole   json.RawMessage
	tokens  authTokens
	renewed time.Time
	issued  time.Time // the access token's; zero where it does not say
	expires time.Time // the same
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
	if err := l.reload(); err != nil {
		return nil, err
	}
	unlock, err := l.lock()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return l, nil // another daemon refreshes it right now
	}
	if err != nil {
		return nil, fmt.Errorf("a refreshed login could not be kept in it: %w", err)
	}
	defer unlock()
	if err := l.salvage(); err != nil {
		return nil, err
	}
	return l, l.reload()
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

// Keep refreshes the login well before it expires, and takes over a new one as
// soon as it is in the folder. It returns when ctx ends.
func (l *Login) Keep(ctx context.Context) {
	var notBefore time.Time
	var refused string // the refresh token that is known not to work
	for ctx.Err() == nil {
		if err := l.reload(); err != nil {
			l.log.Error("ChatGPT login not read", "err", err) // said once: the file is looked at again when it changes
		}
		now := time.Now()
		if auth := l.current(); auth.due(now) && auth.tokens.Refresh != refused && now.After(notBefore) {
			err := l.renew(context.WithoutCancel(ctx))
			switch {
			case errors.Is(err, syscall.EWOULDBLOCK): // another daemon is at it
			case err != nil:
				if errors.Is(err, errRefused) {
					refused = auth.tokens.Refresh
				}
				notBefore = now.Add(loginPause)
				l.log.Error("ChatGPT login not refreshed", "err", err, "expires", auth.expires)
			default:
				l.log.Info("ChatGPT login refreshed", "expires", l.current().expires)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(loginPoll):
		}
	}
}

func (l *Login) current() authFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.auth
}

// reload reads the file if it is not the one that was read last. Between a
// logout and a login there is none: the old login is kept until it expires.
func (l *Login) reload() error {
	path := filepath.Join(l.dir, loginFile)
	info, err := os.Stat(path)
	if l.file != nil && (err != nil || same(info, l.file)) {
		return nil
	}
	l.file = info
	auth, err := readAuth(path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.auth = auth
	return nil
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// lock keeps other daemons from refreshing the same login, and proves that the
// folder can be written. It does not wait.
func (l *Login) lock() (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(l.dir, ".codexpool-lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, err
	}
	return func() { file.Close() }, nil
}

// renew lets a child refresh the login. What counts is the file that the child
// writes: its answer also depends on services that we do not need.
func (l *Login) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, loginTimeout, ErrUnresponsive)
	defer cancel()
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.reload(); err != nil {
		return err
	}
	before := l.current()
	if !before.due(time.Now()) {
		return nil // another daemon was faster
	}
	cmd := l.keeper(filepath.Join(l.dir, keeperHome))
	cmd.Files[loginFile] = before.whole
	c, err := Start(ctx, cmd)
	if err != nil {
		return err
	}
	defer c.Close() // after the login was taken from its home
	// A child refreshes what is about to expire without being told to. To tell
	// it then would refresh twice.
	var answered error
	for _, force := range []bool{false, true} {
		answered = c.readAccount(ctx, force)
		if after, err := readAuth(filepath.Join(cmd.CodexHome(), loginFile)); err == nil && after.tokens != before.tokens {
			return l.takeOver(cmd)
		}
		if errors.Is(answered, errRefused) {
			break
		}
	}
	if answered == nil {
		answered = errors.New("the child kept the old one")
	}
	return answered
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

// takeOver moves the child's auth.json to where it is kept. The caller has the
// lock.
func (l *Login) takeOver(cmd Command) error {
	from, to := filepath.Join(cmd.CodexHome(), loginFile), filepath.Join(l.dir, loginFile)
	if err := os.Chmod(from, 0o600); err != nil {
		return err
	}
	if err := syncFile(from); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := syncFile(l.dir); err != nil {
		return err
	}
	return l.reload()
}

func syncFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}

// salvage takes over what the child of a daemon that was killed had written: its
// refresh token is the only one that works. The caller has the lock.
func (l *Login) salvage() error {
	home := filepath.Join(l.dir, keeperHome)
	cmd := Command{Home: home}
	left, err := readAuth(filepath.Join(cmd.CodexHome(), loginFile))
	if err == nil {
		kept, err := readAuth(filepath.Join(l.dir, loginFile))
		if err == nil && kept.tokens != left.tokens && left.renewed.After(kept.renewed) {
			l.log.Warn("a refreshed ChatGPT login was left behind by a daemon that was killed; it is taken over")
			if err := l.takeOver(cmd); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(home)
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
