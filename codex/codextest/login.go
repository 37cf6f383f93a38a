package codextest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// AuthFile writes the auth.json of a made-up ChatGPT login into dir. Its access
// token was issued an hour ago and expires in life.
func AuthFile(t testing.TB, dir, refresh string, life time.Duration) {
	t.Helper()
	auth := map[string]any{
		"auth_mode": "chatgpt", "OPENAI_API_KEY": nil, "last_refresh": time.Now().Add(-time.Hour).UTC(),
		"tokens": map[string]string{
			"id_token": token(refresh, life), "access_token": token(refresh, life), "refresh_token": refresh, "account_id": "account",
		},
	}
	data, err := json.Marshal(auth)
	if err != nil {
		t.Fatal(err)
	}
	// As codex login does: whole, or not at all.
	if err := os.WriteFile(filepath.Join(dir, "new"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "auth.json")); err != nil {
		t.Fatal(err)
	}
}

// RefreshToken is the refresh token in the auth.json in dir.
func RefreshToken(t testing.TB, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "auth.json"))
	if err != nil {
		t.Fatal(err)
	}
	var auth struct {
		Tokens struct {
			Refresh string `json:"refresh_token"`
		}
	}
	if err := json.Unmarshal(data, &auth); err != nil {
		t.Fatal(err)
	}
	return auth.Tokens.Refresh
}

// Keepers are the processes that refresh the login in dir.
func Keepers(dir string) (pids []int) {
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		environ, _ := os.ReadFile(path) // empty for one that has ended
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && strings.Contains(string(environ), "CODEX_HOME="+dir+"/.codexpool-keeper/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// token is an unsigned JWT. It names the refresh token that it came with.
func token(name string, life time.Duration) string {
	now := time.Now()
	claims, _ := json.Marshal(map[string]any{
		"iat": now.Add(-time.Hour).Unix(), "exp": now.Add(life).Unix(), "jti": name, "email": "nobody@example.com",
		"https://api.openai.com/auth": map[string]string{"chatgpt_account_id": "account", "chatgpt_plan_type": "plus", "chatgpt_user_id": "user"},
	})
	enc := base64.RawURLEncoding
	return enc.EncodeToString([]byte(`{"alg":"none"}`)) + "." + enc.EncodeToString(claims) + "." + enc.EncodeToString([]byte("-"))
}

// AccessToken is an unsigned access token of the made-up login, which names name and was
// issued an hour ago.
func AccessToken(name string, life time.Duration) string { return token(name, life) }

// Tokens is a scripted token endpoint.
type Tokens struct {
	*httptest.Server

	mu     sync.Mutex
	reject bool     // guarded by mu
	rotate bool     // guarded by mu
	issued string   // the last refresh token; guarded by mu
	during func()   // called before it answers; guarded by mu
	spent  []string // refresh tokens that it received; guarded by mu
}

// NewTokens starts a token endpoint. It answers with the refresh token "rt-fresh"
// and an access token that lives for a day.
func NewTokens(t testing.TB) *Tokens {
	k := &Tokens{}
	k.Server = httptest.NewServer(k)
	t.Cleanup(k.Close)
	return k
}

// Reject makes it reject every refresh token, as if that was used before.
func (k *Tokens) Reject() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reject = true
}

// Rotate makes it accept first once, then the refresh token that it has issued last, and
// no other: as the real one does. Each that it issues is a new one.
func (k *Tokens) Rotate(first string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rotate, k.issued = true, first
}

// Issued is the refresh token that it has issued last.
func (k *Tokens) Issued() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.issued
}

// During has it call f before it answers.
func (k *Tokens) During(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.during = f
}

// Spent returns the refresh tokens that it has received so far.
func (k *Tokens) Spent() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]string(nil), k.spent...)
}

func (k *Tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Refresh string `json:"refresh_token"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	k.mu.Lock()
	k.spent = append(k.spent, body.Refresh)
	reject, during := k.reject, k.during
	refresh := "rt-fresh"
	if k.rotate {
		if body.Refresh == k.issued {
			k.issued = fmt.Sprint("rt-", len(k.spent))
		} else {
			reject = true
		}
		refresh = k.issued
	}
	k.mu.Unlock()
	if during != nil {
		during()
	}
	w.Header().Set("Content-Type", "application/json")
	if reject {
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"error":{"code":"refresh_token_reused","message":"used before"}}`)
		return
	}
	access := token(refresh, 24*time.Hour)
	fmt.Fprintf(w, `{"id_token":%q,"access_token":%q,"refresh_token":%q}`, access, access, refresh)
}
